"""Where a network can be cut, found by watching one forward pass.

Symbols: a *layer* is a module whose output is used as a feature map; the *stop* is the module, and the number of its
call, after which no layer's output changes any more. Invariant: a network that ends at the stop, without the modules
that are not used before it, gives the same maps as the whole network; tests/test_backbones.py compares the two for
every family.
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
    """Records one forward pass: which modules begin and end, and when the layers' outputs change for the last time.

    Attributes:
        outputs: of each layer, by its name.
        stop: name and number of the call after which no output changes; None if that is the end of the network.
        largest: size of the largest output of a module, in bytes.
    """

    def __init__(self, backbone: nn.Module, layers: Sequence[str]) -> None:
        self.outputs: dict[str, Tensor] = {}
        self.stop: tuple[str, int] | None = None
        self._backbone, self._layers = backbone, layers
        self._calls: Counter[str] = Counter()
        self.largest = 0
        self._begun: list[str] = []
        self._ended: list[str] = []
        self._at_stop = (0, 0)  # number of modules that had begun and that had ended at the stop
        self._versions: list[tuple[str, int, int]] = []  # of the outputs, to notice changes

    @property
    def complete(self) -> bool:
        """Whether every layer has given an output."""
        return len(self.outputs) == len(self._layers)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """A context in which all calls of the network's modules are recorded."""
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
        # autograd's version counter increases with every in-place change of a tensor
        versions = [(n, id(t), t._version) for n, t in self.outputs.items()]
        if versions != self._versions:
            self._versions = versions
            # the end of the root module is the end of the pass, so there is nothing to cut
            self.stop = (name, self._calls[name]) if name else None
            self._at_stop = (len(self._begun), len(self._ended))

    def unused(self) -> list[str]:
        """Names of the modules that had not begun at the stop and whose parent had not ended."""
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
    """Check that the backbone has the layers.

    Args:
        backbone: the whole network.
        layers: dotted names of its modules.
        name: of the backbone, for messages.

    Raises:
        InputError: no layer is given, one does not exist, or one is given twice.
    """
    known = [n for n, _ in backbone.named_modules() if n]
    if not layers:
        raise InputError(f"backbone {name!r}: no layer given; possible: {', '.join(dict(backbone.named_children()))}")
    for layer in layers:
        if layer not in known:
            close = difflib.get_close_matches(layer, known, n=5, cutoff=0.5)
            hint = f"; similar names: {', '.join(close)}" if close else ""
            raise InputError(
                f"backbone {name!r} has no layer {layer!r}; possible: {', '.join(dict(backbone.named_children()))} "
                f"or any module inside them by its dotted name{hint}"
            )
    if len(set(layers)) != len(layers):
        raise InputError(f"a layer is given twice: {', '.join(layers)}; give each once")


def fingerprint_of(backbone: nn.Module, keys: Iterable[str]) -> str:
    """A hash of the network's weights with these names, to tell different weights apart."""
    state, digest = backbone.state_dict(), hashlib.sha256()
    for key in sorted(keys):
        if key in state and not key.endswith("num_batches_tracked"):
            digest.update(key.encode())
            digest.update(state[key].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def convolutions_and_norms(backbone: nn.Module, run: Callable[[], object]) -> list[tuple[str, str]]:
    """Pairs of a convolution and the batch norm that takes its output, where `run` calls both exactly once.

    Args:
        backbone: the network.
        run: a forward pass.

    Returns:
        Their names, [(convolution, batch norm), …].
    """
    names = {module: name for name, module in backbone.named_modules()}
    outputs: dict[int, tuple[str, Tensor]] = {}  # holds the outputs themselves, so that no id is used twice
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
    """The faster memory format of feature maps: channels last on a CPU, and on CUDA if tensor cores are used."""
    return torch.contiguous_format if device.type == "cuda" and dtype == torch.float32 else torch.channels_last


def tensor_of(output: object) -> Tensor:
    """The tensor in a layer's output, the first if there are several.

    Raises:
        InputError: the output is not a tensor.
    """
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise InputError(
            f"a layer whose output is a {type(output).__name__} gives no feature map; choose one that gives a tensor"
        )
    return output


def replace_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module with this dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)


def size_text(input_shape: Sequence[int]) -> str:
    """(3, H, W) → `HxW`."""
    return f"{input_shape[1]}x{input_shape[2]}"
