"""Layer normalisation, whole on every tensor rank; of all positions, or of those of this rank."""

from torch import Tensor, nn
from torch.nn import functional as F

from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.shards import Initial, ShardSpec, mark_partial, new_parameter


class LayerNorm(nn.Module):
    """LayerNorm with weight and bias; ``[..., h]`` -> ``[..., h]``. Statistics are computed in fp32 by the kernel.

    Args:
        hidden_size: ``h``.
        epsilon: added to the variance.
        stream: the processes that share out the positions of the input; ``None`` if each sees all of them.
    """

    def __init__(self, hidden_size: int, *, epsilon: float, stream: AxisGroup | None = None) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = new_parameter(ShardSpec((hidden_size,)), Initial(mean=1.0))
        self.bias = new_parameter(ShardSpec((hidden_size,)), Initial())
        if stream is not None and stream.size > 1:
            mark_partial(self.weight)
            mark_partial(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.layer_norm(hidden, self.weight.shape, self.weight, self.bias, self.epsilon)
