"""How many bytes of tensors are alive, and what they were when they were most.

Counted are storages, each once however many views it has, from the operator that made it until nobody holds it: what an
allocator without any waste would hand out. Memory that a kernel takes and gives back within one operator is not seen.
"""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Label = Callable[[Tensor], str]
"""Which part of the memory a new tensor belongs to."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts storages of tensors that are made inside ``with live:``, and of those it is told of.

    Args:
        label: part of a new tensor.

    Attributes:
        now: bytes alive, by part.
        peak: most bytes alive at a time since the last :meth:`restart`.
        at_peak: what they were, by part.
    """

    def __init__(self, label: Label) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._label = label
        self._storages: dict[int, tuple[weakref.ref[Any], int, str]] = {}
        self.now: Counter[str] = Counter()
        self._total = 0
        self.restart()

    def restart(self) -> None:
        """Forgets the peak so far; what is alive stays counted."""
        self.peak, self.at_peak = self._total, Counter(self.now)

    def relabel(self, tensor: Tensor, part: str) -> None:
        """Counts a tensor's storage to a part from now on."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._add(storage, part)
            return
        reference, size, before = self._storages[key]
        self._storages[key] = (reference, size, part)
        self.now[before] -= size
        self.now[part] += size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.is_view:  # of a tensor that is counted, or of one that a kernel keeps to itself, as gloo's sums do
            return made
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._storages:
                    self._add(storage, self._label(leaf))
        return made

    def _add(self, storage: Any, part: str) -> None:
        key, size = storage._cdata, storage.nbytes()

        def forget(_: Any) -> None:
            _, size, part = self._storages.pop(key)
            self.now[part] -= size
            self._total -= size

        self._storages[key] = (weakref.ref(storage, forget), size, part)
        self.now[part] += size
        self._total += size
        if self._total > self.peak:
            self.peak, self.at_peak = self._total, Counter(self.now)
