"""How causal attention is cut into tiles of queries; arithmetic, for kernels and for plans, without torch."""

SMALLEST_TILE = 256
MOST_TILES = 4
"""Each has code of its own, which takes seconds to compile; more of them would leave out little more."""


def tile_bounds(length: int) -> list[tuple[int, int]]:
    """First query of each tile and the one behind its last, which is also behind the last key that it sees."""
    tile = max(SMALLEST_TILE, -(-length // MOST_TILES))
    return [(first, min(first + tile, length)) for first in range(0, length, tile)]


def pairs_in_tiles(length: int) -> int:
    """Pairs of a query and a key that are computed for a sample, of ``length ** 2``."""
    return sum((last - first) * last for first, last in tile_bounds(length))
