"""What the core of attention makes and drops again, by kernel: from queries, keys and values to attended heads.

All in bytes of one tensor rank and one microbatch. A *pair* is a query and a key of one head.
"""

from megatron_poro.config.run import AttentionBackend
from megatron_poro.models.tiles import tile_bounds
from megatron_poro.planning.tensor_sizes import TensorSizes

_FP32 = 4


def core_forward(sizes: TensorSizes, backend: AttentionBackend) -> float:
    """Most that a forward pass holds at a time, beside queries, keys and values as they come."""
    item, width, pairs = sizes.item, _width(sizes), _pairs(sizes)
    if backend is AttentionBackend.FLASH:
        return sizes.attention(backend)
    if backend is AttentionBackend.TILED:
        return _tiled_forward(sizes)
    if backend is AttentionBackend.SDPA:
        # the bias in fp32, and rounded
        bias = sizes.length**2 * sizes.heads / sizes.tensor * (_FP32 + (item if item != _FP32 else 0))
        # in fp32: queries, keys and values, the first two scaled; of several samples, which are not multiplied where
        # they lie, one more
        copies = 5 + (sizes.tokens > sizes.length)
        scores_and_weights = 2 * pairs * _FP32
        return copies * width * _FP32 + scores_and_weights + bias
    # products and scores and their softmax in fp32; or with dropout weights, which to keep, those kept, those scaled
    plain, dropping = item + 2 * _FP32, item + 1 + item + item
    # queries and keys of several samples are copied; those of one are multiplied where they lie
    copies = 2 if sizes.tokens > sizes.length else 0
    return copies * width * item + pairs * (max(plain, dropping) if sizes.drops_weights else plain)


def softmax_backward(sizes: TensorSizes, backend: AttentionBackend) -> float:
    """What the step back through the weights of pairs makes, less what was kept for later steps."""
    pairs = _pairs(sizes)
    if backend is AttentionBackend.FLASH:
        return 3 * sizes.flash_width  # gradients of queries, keys and values
    if backend is AttentionBackend.TILED:
        return _tiled_backward(sizes)
    if backend is AttentionBackend.SDPA:
        return 2 * pairs * _FP32
    # of dropout which weights were kept, and those
    gone = 1 + sizes.item if sizes.drops_weights else 0
    return pairs * (2 * sizes.item - gone)


def core_backward(sizes: TensorSizes, backend: AttentionBackend) -> float:
    """What a kernel holds when what it computed again goes back: that, and gradients.

    0 where it holds more forward: ``eager`` without dropout.
    """
    width, pairs = _width(sizes), _pairs(sizes)
    if backend is AttentionBackend.FLASH:
        return sizes.attention(backend) + softmax_backward(sizes, backend)
    if backend is AttentionBackend.TILED:
        return sizes.attention(backend) - 3 * width * sizes.item + _tiled_backward(sizes)
    if backend is AttentionBackend.SDPA:
        # in fp32: queries, keys, values and the gradient behind them; the weights, and two gradients of them
        return (4 * width + 3 * pairs) * _FP32
    if backend is AttentionBackend.EAGER and sizes.drops_weights:
        # queries, keys, values and a gradient; weights, two gradients of them, and which were kept
        return 4 * width * sizes.item + pairs * (3 * sizes.item + 1)
    return 0.0


def _tiled_forward(sizes: TensorSizes) -> float:
    """At the worst tile: keys in rows, what is kept of the tiles before, and what the tile makes.

    Of a tile: products, and in fp32 scores, their distance to the largest and its exponential. The exponentials of the
    tile before are there in fp32 until then; of fp32 inputs they are what is kept.
    """
    item, width = sizes.item, _width(sizes)
    most = kept = before = 0.0
    for first, last in tile_bounds(sizes.length):
        pairs = _tile_pairs(sizes, first, last)
        rounded = _FP32 * before if item != _FP32 else 0.0
        most = max(most, kept + (item + 3 * _FP32) * pairs + rounded)
        kept += item * pairs + width * item * (last - first) / sizes.length  # its weights, and what is attended
        before = pairs
    return width * item + max(most, kept)


def _tiled_backward(sizes: TensorSizes) -> float:
    """At the worst tile, beside what is kept: values in rows, gradients of the queries of the tiles before, sums for
    keys and values in fp32, and what the tile makes.

    Of a tile, in fp32: gradients of its weights, the same centred and scaled, the weights, and their product. Then,
    when these are gone but for the first and the rounded last, a gradient of all keys is padded and added to their sum.
    """
    item, width = sizes.item, _width(sizes)
    most = before = behind = 0.0
    for first, last in tile_bounds(sizes.length):
        pairs, rows = _tile_pairs(sizes, first, last), width * (last - first) / sizes.length
        sums = 2 * _FP32 * width if first else 0.0
        # weights that are fp32 are not copied; the rounded gradients of the tile before are still there
        in_fp32 = 4 if item != _FP32 else 3
        scaling = in_fp32 * _FP32 * pairs + item * before + (_FP32 + (item if item != _FP32 else 0)) * rows
        adding = (_FP32 + item) * pairs + 2 * _FP32 * width
        most = max(most, behind + sums + max(scaling, adding))
        behind += rows * item
        before = pairs
    return width * item + most


def _width(sizes: TensorSizes) -> float:
    """Numbers of the queries."""
    return sizes.tokens * sizes.hidden / sizes.tensor


def _pairs(sizes: TensorSizes) -> float:
    """Pairs of all samples and heads."""
    return sizes.tokens * sizes.length * sizes.heads / sizes.tensor


def _tile_pairs(sizes: TensorSizes, first: int, last: int) -> float:
    """Pairs of a tile of all samples and heads."""
    return (last - first) * last * sizes.tokens / sizes.length * sizes.heads / sizes.tensor
