"""What the tensors of a microbatch take on one tensor rank, and which of them a block keeps for its backward pass.

Counted tensor by tensor, as autograd saves them; a test compares the count with what autograd reports. What lives only
while a layer runs, such as the gathered input of a layer that keeps a cut one, is in
:mod:`~megatron_poro.planning.moments` and :mod:`~megatron_poro.planning.kernels`. ``t`` is the tensor size.
"""

from dataclasses import dataclass

from megatron_poro.config.model import AlibiForm
from megatron_poro.config.run import AttentionBackend, Recompute
from megatron_poro.models.tiles import pairs_in_tiles

_FP32 = 4
_FLASH_COLUMNS = 8


@dataclass(frozen=True)
class TensorSizes:
    """What the tensors of a microbatch are made of, on one tensor rank.

    Attributes:
        tokens: of a microbatch.
        hidden: width of the residual stream.
        heads: attention heads of the model.
        tensor: tensor ranks.
        length: tokens of a sample.
        item: bytes of a number in the format of the weights.
        drops: whether the residual stream has dropout.
        drops_weights: whether attention weights have.
        sequence: whether tensor ranks share out the positions outside of attention and feed-forward.
    """

    tokens: int
    hidden: int
    heads: int
    tensor: int
    length: int
    item: int
    drops: bool = False
    drops_weights: bool = False
    sequence: bool = False

    @property
    def outside(self) -> float:
        """Tokens that a tensor rank holds outside of attention and feed-forward."""
        return self.tokens / self.tensor if self.sequence else float(self.tokens)

    @property
    def width(self) -> float:
        """Bytes of the residual stream of a microbatch."""
        return self.outside * self.hidden * self.item

    def entrance(self, weight: float) -> float:
        """Bytes that a layer makes backward whose input is cut along the sequence: its input gathered and the gradient
        of that, each copied where there are several samples, this rank's part of its sum, and a weight's gradient.

        Args:
            weight: bytes of the weight.
        """
        whole = float(self.tokens * self.hidden * self.item)
        copies = 2 if self.tokens > self.length else 0
        return (2 + copies) * whole + max(self.width, weight - (whole if copies else 0.0) + self.width)

    def block(self, backend: AttentionBackend, *, selective: bool) -> float:
        """Bytes that a block keeps for its backward pass."""
        h, t = self.hidden, self.tensor
        # of each norm its input, its output (input of the next product), mean and deviation
        norms = 2 * (2 * h + 2) * self.item
        # up's output (input of GELU), GELU's output (input of down), attended heads (input of out)
        products = (4 * h / t + 4 * h / t + h / t) * self.item
        masks = 2 * h if self.drops else 0
        kept = self.outside * (norms + masks) + self.tokens * products
        return kept + (self.tokens * 3 * h / t * self.item if selective else self.attention(backend))

    def kept_block(self, backend: AttentionBackend, recompute: Recompute) -> float:
        """Bytes that a block keeps for its backward pass, of which it computes some again."""
        if recompute is Recompute.FULL:
            return self.width
        return self.block(backend, selective=recompute is Recompute.SELECTIVE)

    @property
    def waiting_block(self) -> float:
        """Bytes that a block leaves to weight gradients that wait: inputs and gradients of outputs of its products."""
        h, t = self.hidden, self.tensor
        # inputs of qkv and up, as each rank has them; gradients of what out and down have summed, whole
        entrances, exits = 2 * self.width, 2 * self.tokens * h * self.item
        # inputs of out and down, gradients of qkv and up
        return entrances + exits + self.tokens * (1 + 4 + 3 + 4) * h / t * self.item

    @property
    def flash_width(self) -> float:
        """Bytes of queries, keys or values of all heads with the extra columns that ``flash`` gives them."""
        columns = self.hidden / self.tensor + self.heads / self.tensor * _FLASH_COLUMNS
        return self.tokens * columns * self.item

    def attention(self, backend: AttentionBackend) -> float:
        """Bytes that the attention core keeps."""
        h, t, n = self.hidden, self.tensor, self.heads / self.tensor
        if backend is AttentionBackend.FLASH:
            # queries, keys and values with their extra columns, the output as wide, the normaliser in fp32
            return 4 * self.flash_width + self.tokens * n * _FP32
        if backend is AttentionBackend.SDPA:
            # with a bias torch computes in fp32 step by step: queries, keys, values, and the weights of every pair
            # values in fp32 that need no copy keep the product that queries and keys came in too
            whole = 2 * h / t if self.item == _FP32 and self.tokens == self.length else 0.0
            return self.tokens * (3 * h / t + whole + n * self.length) * _FP32
        if backend is AttentionBackend.TILED:
            # queries, keys, values, attended; the weights of what tiles hold, and their sums in fp32
            pairs = pairs_in_tiles(self.length) / self.length
            return self.tokens * (4 * h / t * self.item + n * (pairs * self.item + _FP32))
        # queries, keys, values; the weights of every pair; with dropout which of them to keep, and what is kept
        used = 1 + self.item if self.drops_weights else 0
        return self.tokens * (3 * h / t * self.item + n * self.length * (self.item + used))

    def constants(self, backend: AttentionBackend, alibi: AlibiForm) -> float:
        """Bytes of what all blocks of a process share: the bias, and which pairs are hidden."""
        if backend in (AttentionBackend.FLASH, AttentionBackend.TILED):
            return 0.0
        rows = 1 if alibi is AlibiForm.HISTORIC_BF16 else self.length  # by position the bias is that of every query
        # a bias for each query holds what is hidden; fused kernels are given a masked copy
        mask = 0 if backend is AttentionBackend.EAGER and rows > 1 else self.length
        return self.length * (rows * self.heads / self.tensor * _FP32 + mask)
