"""Layer normalisation, whole on every tensor rank."""

from torch import Tensor, nn
from torch.nn import functional as F

from megatron_poro.parallel.shards import Initial, ShardSpec, new_parameter


class LayerNorm(nn.Module):
    """LayerNorm with weight and bias; ``[..., h]`` -> ``[..., h]``. Statistics are computed in fp32 by the kernel."""

    def __init__(self, hidden_size: int, *, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = new_parameter(ShardSpec((hidden_size,)), Initial(mean=1.0))
        self.bias = new_parameter(ShardSpec((hidden_size,)), Initial())

    def forward(self, hidden: Tensor) -> Tensor:
        return F.layer_norm(hidden, self.weight.shape, self.weight, self.bias, self.epsilon)
