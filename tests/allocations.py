"""Counts the bytes of all tensors that are alive at once while something runs, on any device."""

from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Inside, `peak` is the most bytes that tensors made inside (and those of `add`) held at once.

    What an operator needs only while it runs is not seen.
    """

    def __init__(self):
        super().__init__()
        self.peak, self._alive = 0, {}

    def add(self, *tensors):
        """Count these, too, while they are alive."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        return self

    def held(self):
        """Bytes at present."""
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        return sum(size for _, size in self._alive.values())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if hasattr(leaf, "dim")}
        result = function(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if hasattr(leaf, "untyped_storage")]
        new = [one for one in made if one.untyped_storage()._cdata not in given]
        if new:
            self.peak = max(self.peak, self.add(*new).held())
        return result
