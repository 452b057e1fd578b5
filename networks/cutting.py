"""Where a network can be cut: one forward pass is watched to find out.

Symbols: a *layer* is a module whose output is used as a feature map; the *stop* is the module (and which of its calls)
after which no layer's output changes any more. Invariant: a network cut at the stop, without the modules that are
unused before it, gives the same maps as the whole one; tests/test_backbones.py compares the two for every family.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from utils import InputError


class Watch:
    """Follows one forward pass: which modules begin and end, and when the layers' outputs get their last value."""

    def __init__(self, backbone: nn.Module, layers: Sequence[str]) -> None:
        self.outputs: dict[str, Tensor] = {}
        self.stop: tuple[str, int] | None = None
        self._backbone, self._layers = backbone, layers
        self._calls: Counter[str] = Counter()
        self.largest = 0  # bytes of an output
        self._begun: list[str] = []
        self._ended: list[str] = []
        self._at_stop = (0, 0)  # how many had begun and ended at the stop
        self._seen: list[tuple[str, int, int]] = []

    @property
    def complete(self) -> bool:
        """Whether every layer has given an output."""
        return len(self.outputs) == len(self._layers)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Inside, calls of the network's modules are watched."""
        handles = []
        for name, module in self._backbone.named_modules():
            handles.append(module.register_forward_pre_hook(lambda _m, _i, n=name: self._begun.append(n)))
            handles.append(module.register_forward_hook(lambda _m, _i, out, n=name: self._end(n, out)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _end(self, name: str, output: object) -> None:
        self._calls[name] += 1
        self._ended.append(name)
        if isinstance(output, Tensor):
            self.largest = max(self.largest, output.nbytes)
        if name in self._layers:
            self.outputs[name] = tensor_of(output)
        # autograd's version counter moves with every in-place change of a tensor
        seen = [(n, id(t), t._version) for n, t in self.outputs.items()]
        if seen != self._seen:
            self._seen = seen
            # the root's end is the end of the pass: nothing to stop at
            self.stop = (name, self._calls[name]) if name else None
            self._at_stop = (len(self._begun), len(self._ended))

    def unused(self) -> list[str]:
        """Modules that had not begun at the stop, in a parent that had not ended."""
        if self.stop is None:
            return []
        begun, ended = set(self._begun[: self._at_stop[0]]), set(self._ended[: self._at_stop[1]])
        needed = {id(self._backbone.get_submodule(name)) for name in begun}
        names: list[str] = []
        for name, module in self._backbone.named_modules():
            parent = name.rpartition(".")[0]
            inside = any(name.startswith(f"{top}.") for top in names)
            if name and not inside and parent not in ended and not any(id(m) in needed for m in module.modules()):
                names.append(name)
        return names


def check_layers(backbone: nn.Module, layers: Sequence[str], name: str) -> None:
    """Refuse layers that backbone `name` does not have.

    Raises:
        InputError: names the layer and those that are possible.
    """
    known = [n for n, _ in backbone.named_modules() if n]
    if not layers:
        raise InputError(f"backbone {name!r}: no layer given; possible: {', '.join(dict(backbone.named_children()))}")
    for layer in layers:
        if layer not in known:
            close = difflib.get_close_matches(layer, known, n=5, cutoff=0.5)
            hint = f"; close to it: {', '.join(close)}" if close else ""
            raise InputError(
                f"backbone {name!r} has no layer {layer!r}; possible: {', '.join(dict(backbone.named_children()))} "
                f"or any module inside them by its dotted name{hint}"
            )
    if len(set(layers)) != len(layers):
        raise InputError(f"layer given twice: {', '.join(layers)}")


def fingerprint_of(backbone: nn.Module, keys: Iterable[str]) -> str:
    """A hash of the network's weights with these names, which tells one set of weights from another."""
    state, digest = backbone.state_dict(), hashlib.sha256()
    for key in sorted(keys):
        if key in state and not key.endswith("num_batches_tracked"):
            digest.update(key.encode())
            digest.update(state[key].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def convolutions_and_norms(backbone: nn.Module, run: Callable[[], object]) -> list[tuple[str, str]]:
    """Names of each convolution and the batch norm that takes its output, both called once by `run`."""
    names = {module: name for name, module in backbone.named_modules()}
    outputs: dict[int, tuple[str, Tensor]] = {}  # each output is kept, so that no other one gets its id
    calls: Counter[str] = Counter()
    pairs: list[tuple[str, str]] = []

    def after(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        calls[names[module]] += 1
        if isinstance(module, nn.Conv2d):
            outputs[id(output)] = (names[module], output)
        elif id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], names[module]))

    kinds = (nn.Conv2d, nn.BatchNorm2d)
    handles = [module.register_forward_hook(after) for module in names if type(module) in kinds]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1]


def faster_format(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """The faster memory format of maps: channels last on a CPU, on CUDA only for what tensor cores compute."""
    return torch.contiguous_format if device.type == "cuda" and dtype == torch.float32 else torch.channels_last


def tensor_of(output: object) -> Tensor:
    """The tensor in a layer's output, the first of several.

    Raises:
        InputError: there is none.
    """
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise InputError(f"a layer that gives a {type(output).__name__} cannot serve as a feature map")
    return output


def replace_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one with this dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)


def size_text(input_shape: Sequence[int]) -> str:
    """(3, H, W) → `HxW`."""
    return f"{input_shape[1]}x{input_shape[2]}"
