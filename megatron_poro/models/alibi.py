"""ALiBi: attention scores fall linearly with distance, at a slope of each head's own.

Source: Press et al. 2022, arXiv:2108.12409.
"""

import math

import torch
from torch import Tensor

from megatron_poro.config.model import AlibiForm
from megatron_poro.errors import ConfigError
from megatron_poro.parallel.groups import AxisGroup


def alibi_slopes(num_heads: int) -> Tensor:
    """Per-head ALiBi slopes, in head order.

    For a power of two the slopes fall geometrically from ``2**(-8/n)`` to ``2**-8``. Otherwise the largest power of two
    below comes first, and the remaining heads take every second slope of the series for twice that power: for 56 heads
    32 slopes, then 24 from the 64-head series, so the list is not sorted.

    Args:
        num_heads: heads of the whole model, not of this tensor rank.

    Returns:
        fp32 ``[n]``; for 8 heads ``1/2, 1/4, ... 1/256``.

    Raises:
        ConfigError: if ``num_heads`` is not positive.

    Source: Press et al. 2022, arXiv:2108.12409, section 3; the rule for a head count that is not a power of two follows
    the authors' released code.
    """
    if num_heads < 1:
        raise ConfigError(f"model.num_heads={num_heads} must be at least 1.")
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (k + 1) / power) for k in range(power)]
    slopes += [2.0 ** (-4.0 * (2 * j + 1) / power) for j in range(num_heads - power)]
    return torch.tensor(slopes, dtype=torch.float64).float()


class Alibi:
    """The bias of this tensor rank's heads; the blocks of a model share one, so a length is computed once.

    Args:
        num_heads: heads of the whole model.
        form: ``distance`` or ``historic_bf16``.
        group: tensor group; rank r has the r-th contiguous range of heads.

    Raises:
        ConfigError: if the group does not divide the heads.
    """

    def __init__(self, num_heads: int, *, form: AlibiForm, group: AxisGroup) -> None:
        if num_heads % group.size != 0:
            divisors = ", ".join(str(d) for d in range(1, num_heads + 1) if num_heads % d == 0)
            raise ConfigError(
                f"parallel.tensor={group.size} does not divide model.num_heads={num_heads}. Use one of {divisors}."
            )
        local = num_heads // group.size
        self.form = form
        self.slopes = alibi_slopes(num_heads)[group.rank * local : (group.rank + 1) * local]
        self._bias: Tensor | None = None
        self._columns: Tensor | None = None
        self._columns_key: tuple[int, int, torch.device, torch.dtype] | None = None

    def bias(self, length: int, device: torch.device) -> Tensor:
        """What is added to the scores; where it is a matrix it holds the causal mask too, ``-inf`` above the diagonal.

        Returns:
            fp32 ``[n/tp, s, s]`` (``-slope * distance``) for ``distance``;
            fp32 ``[n/tp, 1, s]`` (``slope * key position`` rounded to bf16) for ``historic_bf16``: the same up to a
            constant per query before rounding, and what Megatron-DeepSpeed added, so what BLOOM and Poro learnt with.
        """
        if self._bias is None or self._bias.shape[-1] != length or self._bias.device != device:
            slopes = self.slopes.to(device).view(-1, 1, 1)
            positions = torch.arange(length, device=device, dtype=torch.float32)
            if self.form is AlibiForm.HISTORIC_BF16:
                self._bias = (slopes * positions.view(1, 1, -1)).bfloat16().float()
            else:
                distances = positions.view(1, 1, -1) - positions.view(1, -1, 1)
                self._bias = (slopes * distances).masked_fill_(distances > 0, -torch.inf)
        return self._bias

    def key_columns(self, length: int, head_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The bias as extra dimensions of the keys, for queries that hold ones there.

        A kernel multiplies them by ``1/sqrt(head_size)`` with everything else. ``slope * key position`` differs from
        ``-slope * distance`` by a constant per query, which no softmax sees; positions are counted from the middle to
        keep them small. A bf16 number holds 8 bits, so a value is the sum of three: exact to 24 bits, as in fp32.

        Returns:
            ``[n/tp, s, 3]`` in ``dtype``.
        """
        key = (length, head_size, device, dtype)
        if self._columns is None or self._columns_key != key:
            positions = torch.arange(length, device=device, dtype=torch.float64)
            slopes = self.slopes.to(device).double().unsqueeze(-1)
            if self.form is AlibiForm.HISTORIC_BF16:
                wanted = (slopes * positions).float().bfloat16().double() - slopes * (length // 2)
            else:
                wanted = slopes * (positions - length // 2)
            rest = wanted * math.sqrt(head_size)  # [n/tp, s]
            parts = []
            for _ in range(3):
                parts.append(rest.to(dtype))
                rest = rest - parts[-1].double()
            self._columns, self._columns_key = torch.stack(parts, dim=-1), key
        return self._columns
