"""Features in, anomaly map out: the cut backbone, the pooling of patches, the map from patch scores."""

from __future__ import annotations

import copy
import difflib
import hashlib
import math
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from utils import InputError

SMOOTHING_SIGMA = 4.0
MAX_PREFIX_TOKENS = 16


# ---------------------------------------------------------------------------------------- backbone


class _LastLayerReached(Exception):
    """Leaves the backbone's forward pass once all maps are final."""


@dataclass
class _Pass:
    """What one forward pass has gathered so far."""

    maps: dict[str, Tensor] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Layout:
    """How a layer's output becomes a (B, C, H, W) map. `prefix` counts class and register tokens."""

    kind: str  # nchw | nhwc | tokens
    prefix: int = 0
    grid: tuple[int, int] = (0, 0)

    def to_map(self, x: Tensor) -> Tensor:
        if self.kind == "nhwc":
            return x.permute(0, 3, 1, 2)
        if self.kind == "tokens":
            return x[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)
        return x


class _ExactConvolutions(AbstractContextManager):
    """While any thread is inside, cuDNN's convolutions of float32 are not rounded to TF32."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, ""

    def __enter__(self) -> None:
        of_convolutions = torch.backends.cudnn.conv
        with self._lock:
            if not self._inside:
                self._before, of_convolutions.fp32_precision = of_convolutions.fp32_precision, "ieee"
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                torch.backends.cudnn.conv.fp32_precision = self._before


_EXACT = _ExactConvolutions()


class NetworkFeatureAggregator(nn.Module):
    """The backbone up to the last layer used, giving the maps of the layers asked for.

    A layer's map is what its output tensor holds when the network is done with it: an activation that works in
    place on it (VGG, AlexNet) changes the map, so the cut comes after it. Where that is, is found with one
    trial image: the network is cut at the first module at whose end all maps have their last value.

    Args:
        backbone: whole network, as `backbones.load` gives it; it is not changed, but shares its weights unless
            it is trained.
        layers: dotted module names, e.g. `layer2`, `blocks.5`, `layer2.3.conv2`.
        device: where it runs.
        input_shape: (3, H, W) of the images.
        train_backbone: whether gradients flow, and batch norms move in train mode.
        dtype: bfloat16 lets torch's autocast choose it wherever it is safe; the maps are float32 all the same.

    Raises:
        InputError: unknown layer, image size the network cannot take, output that is no map or not finite, weights
            missing.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layers: Sequence[str],
        device: torch.device | str,
        input_shape: tuple[int, int, int],
        train_backbone: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.layers, self.dtype = tuple(layers), torch.float32  # while it is cut, what it gives is compared
        self._memory_format, self._device = torch.contiguous_format, torch.device(device)
        self.train_backbone = train_backbone
        self.input_shape = tuple(input_shape)
        self._state = threading.local()
        origin = getattr(backbone, "origin", None)
        self.name = origin.name if origin else type(backbone).__name__
        # frozen weights are shared with the given network, only the module tree is ours to cut; but a move to
        # another device would change the given network's own
        tensors = (*backbone.parameters(), *backbone.buffers())
        here = torch.empty(0, device=device).device
        shared = {} if train_backbone or any(t.device != here for t in tensors) else {id(t): t for t in tensors}
        self.backbone = copy.deepcopy(backbone, shared).to(device).eval()
        if callable(getattr(self.backbone, "set_input_size", None)):  # timm's transformers are built for one size
            self._set_input_size()
        _check_layers(self.backbone, self.layers, self.name)
        trial = torch.linspace(-2, 2, math.prod(self.input_shape), device=device).reshape(1, *self.input_shape)
        with self.exact():
            outputs, self._stop, unused = self._probe(trial)
        self._require_finite(outputs, origin.weights if origin else "")
        self._layouts = {
            name: _find_layout(out, self.input_shape, self.backbone, name) for name, out in outputs.items()
        }
        self._hook()
        self._drop(unused, trial, outputs)
        self._require_weights(origin.missing if origin else frozenset())
        self.fingerprint = _fingerprint(backbone, self.backbone.state_dict().keys())
        if not train_backbone:
            self._fold_batch_norms(trial, dtype)
        self.dtype = dtype
        self.feature_shapes = [tuple(m.shape[1:]) for m in self._maps(trial)]
        self.train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → a (B, C_l, H_l, W_l) map a layer, in the order of `layers`."""
        with torch.set_grad_enabled(self.train_backbone and self.training and torch.is_grad_enabled()):
            return self._run(images)

    def train(self, mode: bool = True) -> NetworkFeatureAggregator:
        """A frozen backbone stays in eval mode."""
        super().train(mode)
        self.backbone.train(mode and self.train_backbone)
        return self

    def _run(self, images: Tensor) -> list[Tensor]:
        self._state.now = now = _Pass()
        low = self.dtype != torch.float32
        try:
            with self.exact(), torch.autocast(images.device.type, self.dtype if low else None, enabled=low):
                self.backbone(images.contiguous(memory_format=self._memory_format))
        except _LastLayerReached:
            pass
        finally:
            self._state.now = None
        return [self._layouts[name].to_map(now.maps[name].float()) for name in self.layers]

    def exact(self) -> AbstractContextManager[None]:
        """Inside, this network's convolutions in float32 are not rounded to TF32; whoever loads a model finds torch's
        settings as they were.
        """
        return _EXACT if self._device.type == "cuda" else nullcontext()

    @torch.no_grad()
    def _maps(self, images: Tensor) -> list[Tensor]:
        return self._run(images)

    def _set_input_size(self) -> None:
        try:
            self.backbone.set_input_size(img_size=self.input_shape[1:])
        except (AssertionError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                f"backbone {self.name!r} cannot be built for {_size(self.input_shape)}: {error}"
            ) from error

    @torch.no_grad()
    def _probe(self, trial: Tensor) -> tuple[dict[str, Tensor], tuple[str, int] | None, list[str]]:
        """Run one image through the whole network and watch.

        Returns:
            The layers' outputs, the module (and which of its calls) after which they are final (None: only at
            the very end), and the modules that are not needed for that.
        """
        watch = _Watch(self.backbone, self.layers)
        try:
            with watch.hooked():
                self.backbone(trial)
        except Exception as error:  # whatever a network of any library raises at a size it cannot take
            # a failure beyond the layers used does not matter: they are cut off
            if not watch.complete:
                reason = str(error).strip().splitlines()
                raise InputError(
                    f"backbone {self.name!r} cannot take images of {_size(self.input_shape)} up to layers "
                    f"{', '.join(self.layers)}: {reason[0] if reason else type(error).__name__}"
                ) from error
        if not watch.complete:
            idle = [name for name in self.layers if name not in watch.outputs]
            raise InputError(f"backbone {self.name!r} never runs layer {', '.join(idle)}")
        self.largest_output = watch.largest  # bytes, of one image in float32
        return watch.outputs, watch.stop, watch.unused()

    def _hook(self) -> None:
        for name in {*self.layers, *([self._stop[0]] if self._stop else [])}:
            self.backbone.get_submodule(name).register_forward_hook(self._make_hook(name))

    def _make_hook(self, name: str) -> Callable[..., None]:
        # the network holds its hooks: one that held the aggregator, too, would keep both alive until the cyclic garbage
        # collector runs, and with them the weights of each model that a run is done with
        reference = weakref.ref(self)

        def hook(_module: nn.Module, _inputs: tuple, output: object) -> None:
            owner = reference()
            now = getattr(owner._state, "now", None) if owner is not None else None
            if now is None:
                return
            now.calls[name] += 1
            if name in owner._layouts:
                now.maps[name] = _tensor(output)
            if owner._stop == (name, now.calls[name]):
                raise _LastLayerReached

        return hook

    def _drop(self, unused: list[str], trial: Tensor, outputs: dict[str, Tensor]) -> None:
        """Take out the modules beyond the cut: all at once, or where the maps show that one is needed, one by one."""
        expected = [self._layouts[name].to_map(outputs[name]) for name in self.layers]
        kept = {name: self.backbone.get_submodule(name) for name in unused}
        for names in (unused, *([name] for name in unused)):
            for name in names:
                _replace(self.backbone, name, nn.Identity())
            if self._gives(expected, trial):
                if names is unused:
                    return
            else:
                for name in reversed(names):
                    _replace(self.backbone, name, kept[name])

    def _fold_batch_norms(self, trial: Tensor, dtype: torch.dtype) -> None:
        """Make a convolution and the batch norm that takes its output one convolution, on copies of the weights."""
        hooked = {*self.layers, *([self._stop[0]] if self._stop else [])}
        pairs = [
            (c, n) for c, n in _convolutions_and_norms(self.backbone, lambda: self._maps(trial)) if not {c, n} & hooked
        ]
        kept = {name: self.backbone.get_submodule(name) for pair in pairs for name in pair}
        expected = self._maps(trial)
        for convolution, norm in pairs:
            _replace(self.backbone, convolution, fuse_conv_bn_eval(kept[convolution], kept[norm]))
            _replace(self.backbone, norm, nn.Identity())
        if not self._gives(expected, trial):  # someone else looks at what is between the two
            for name, module in kept.items():
                _replace(self.backbone, name, module)
        elif pairs:
            self._memory_format = faster_format(trial.device, dtype)
            self.backbone.to(memory_format=self._memory_format)
            for convolution, _ in pairs:  # autocast would turn the weights anew in each pass
                self.backbone.get_submodule(convolution).to(dtype)

    def _gives(self, expected: list[Tensor], trial: Tensor) -> bool:
        try:
            got = self._maps(trial)
        except Exception:  # a parent may use a child without calling it, and miss any part of it
            return False
        return all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(got, expected, strict=True))

    def _require_finite(self, outputs: dict[str, Tensor], weights: str) -> None:
        for name, output in outputs.items():
            if not output.isfinite().all():
                source = f" ({weights})" if weights else ""
                raise InputError(
                    f"backbone {self.name!r} gives values that are not finite (NaN or infinity) in layer {name}: its "
                    f"weights{source} are damaged, or of another network"
                )

    def _require_weights(self, missing: frozenset[str]) -> None:
        lacking = sorted(missing & self.backbone.state_dict().keys())
        if lacking:
            more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
            raise InputError(
                f"the weights of backbone {self.name!r} lack what layers {', '.join(self.layers)} need: "
                f"{', '.join(lacking[:5])}{more}"
            )


class _Watch:
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
        return len(self.outputs) == len(self._layers)

    @contextmanager
    def hooked(self) -> Iterator[None]:
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
            self.outputs[name] = _tensor(output)
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


def faster_format(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """In which order convolutions want a map: channels last on a CPU, on CUDA only in what tensor cores take."""
    return torch.contiguous_format if device.type == "cuda" and dtype == torch.float32 else torch.channels_last


def _fingerprint(backbone: nn.Module, keys: Iterable[str]) -> str:
    """A hash of the given network's weights of these names: tells one set of weights from another."""
    state, digest = backbone.state_dict(), hashlib.sha256()
    for key in sorted(keys):
        if key in state and not key.endswith("num_batches_tracked"):
            digest.update(key.encode())
            digest.update(state[key].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _convolutions_and_norms(backbone: nn.Module, run: Callable[[], object]) -> list[tuple[str, str]]:
    """Names of each convolution and the batch norm that takes its output, both called once by `run`."""
    names = {module: name for name, module in backbone.named_modules()}
    made: dict[int, tuple[str, Tensor]] = {}  # the output is kept, so that its id is not given away again
    calls: Counter[str] = Counter()
    pairs: list[tuple[str, str]] = []

    def after(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        calls[names[module]] += 1
        if isinstance(module, nn.Conv2d):
            made[id(output)] = (names[module], output)
        elif id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], names[module]))

    kinds = (nn.Conv2d, nn.BatchNorm2d)
    handles = [module.register_forward_hook(after) for module in names if type(module) in kinds]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1]


def _tensor(output: object) -> Tensor:
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise InputError(f"a layer that gives a {type(output).__name__} cannot serve as a feature map")
    return output


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)


def _size(input_shape: Sequence[int]) -> str:
    return f"{input_shape[1]}x{input_shape[2]}"


def _check_layers(backbone: nn.Module, layers: Sequence[str], name: str) -> None:
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


def _find_layout(output: Tensor, input_shape: Sequence[int], backbone: nn.Module, layer: str) -> _Layout:
    """Tell (B, C, H, W) from (B, H, W, C) and (B, L, C) by the shape of the image."""
    height, width = input_shape[1:]
    if output.ndim == 4 and len(output) == 1:
        _, a, b, c = output.shape
        nchw = abs(math.log(b * width / (c * height)))
        nhwc = abs(math.log(a * width / (b * height)))
        # where channels, rows and columns are as many, the shape does not tell
        swin = isinstance(backbone, torchvision.models.SwinTransformer)
        prefer_nhwc = swin or getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        return _Layout("nhwc" if nhwc < nchw or (nhwc == nchw and prefer_nhwc) else "nchw")
    if output.ndim == 3 and len(output) == 1:
        own = getattr(backbone, "num_prefix_tokens", None)
        for prefix in (own, *range(MAX_PREFIX_TOKENS + 1)):
            grid = _token_grid(output.shape[1] - prefix, height, width) if prefix is not None else None
            if grid:
                return _Layout("tokens", prefix, grid)
    raise InputError(f"layer {layer!r} gives {tuple(output.shape)}, which is no grid of patches; choose another")


def _token_grid(count: int, height: int, width: int) -> tuple[int, int] | None:
    """The (h, w) that square patches of some whole number of pixels make of the image, if `count` is h·w."""
    for stride in range(1, max(height, width) + 1):
        for grid in ((height // stride, width // stride), (-(-height // stride), -(-width // stride))):
            if grid[0] * grid[1] == count:
                return grid
    return None


# ----------------------------------------------------------------------------------- patch pooling


class Preprocessing(nn.Module):
    """Pools each layer's neighbourhood vectors to one length (general form).

    Args:
        output_dim: `pretrain_embed_dimension`.
    """

    def __init__(self, output_dim: int) -> None:
        super().__init__()
        self.output_dim = output_dim

    def forward(self, patches: Tensor) -> Tensor:
        """(B, P, C_l·p²) → (B, P, output_dim), with torch's adaptive average pooling bins."""
        return F.adaptive_avg_pool1d(patches, self.output_dim)


class Aggregator(nn.Module):
    """Pools the layers' vectors, put one after another, to the length of the patch features (general form).

    Args:
        target_dim: `target_embed_dimension`, C.
    """

    def __init__(self, target_dim: int) -> None:
        super().__init__()
        self.target_dim = target_dim

    def forward(self, layers: list[Tensor]) -> Tensor:
        """[(B, P, pretrain_embed_dimension), …] of one grid → (B·P, C)."""
        features = torch.cat(layers, dim=2).flatten(0, 1)
        return F.adaptive_avg_pool1d(features.unsqueeze(1), self.target_dim).squeeze(1)


class FusedPooling(nn.Module):
    """Patch features without unfolding, where every pooling window is a run of whole neighbourhood rows.

    Columns are averaged first, then runs of rows; only the C/layers channels that remain are resized to the
    first grid. No tensor is larger than the maps themselves.

    Args:
        channels: C_l of each layer.
        patchsize: p, odd.
        pretrain_dim: `pretrain_embed_dimension`.
        target_dim: C.
    """

    def __init__(self, channels: Sequence[int], patchsize: int, pretrain_dim: int, target_dim: int) -> None:
        super().__init__()
        if not self.applies(channels, patchsize, pretrain_dim, target_dim):
            raise ValueError("pooling windows are not runs of whole rows")
        merged = len(channels) * pretrain_dim // target_dim
        self.patchsize = patchsize
        self.rows = [merged * c * patchsize // pretrain_dim for c in channels]  # rows a window, per layer

    @staticmethod
    def applies(channels: Sequence[int], patchsize: int, pretrain_dim: int, target_dim: int) -> bool:
        """Whether windows fall on whole rows, and none straddles two layers."""
        whole_rows = all(c * patchsize**2 % (pretrain_dim * patchsize) == 0 for c in channels)
        total = len(channels) * pretrain_dim
        return whole_rows and total % target_dim == 0 and pretrain_dim % (total // target_dim) == 0

    def forward(self, maps: list[Tensor]) -> Tensor:
        """[(B, C_l, H_l, W_l), …] → (B·H'·W', C), H'×W' the first layer's grid."""
        grid = maps[0].shape[2:]
        pooled = [
            y if y.shape[2:] == grid else F.interpolate(y, size=grid, mode="bilinear", align_corners=False)
            for y in self.parts(maps)
        ]
        return torch.cat(pooled, dim=1).permute(0, 2, 3, 1).flatten(0, 2)

    def parts(self, maps: list[Tensor]) -> list[Tensor]:
        """[(B, C_l, H_l, W_l), …] → [(B, C/layers, H_l, W_l), …], a layer's share of the features on its own grid."""
        return [self._pool(x, rows) for x, rows in zip(maps, self.rows, strict=True)]

    def _pool(self, x: Tensor, rows: int) -> Tensor:
        p = self.patchsize
        if rows % p == 0:  # whole channels: average them, then the neighbourhood
            y = x.unflatten(1, (-1, rows // p)).mean(2)
            return F.avg_pool2d(y, p, stride=1, padding=p // 2)
        batch, channels, height, width = x.shape
        y = F.avg_pool2d(x, (1, p), stride=1, padding=(0, p // 2))
        y = F.pad(y, (0, 0, p // 2, p // 2))
        # the pattern of windows over (channel, row) repeats after this many channels in and out
        period = math.lcm(rows, p)
        y = y.view(batch, channels * p // period, period // p, height + p - 1, width)
        out = x.new_empty(batch, channels * p // period, period // rows, height, width)
        for window in range(period // rows):
            parts = [divmod(row, p) for row in range(window * rows, (window + 1) * rows)]
            total = sum(y[:, :, channel, shift : shift + height] for channel, shift in parts)
            out[:, :, window] = total / rows
        return out.flatten(1, 2)


# ------------------------------------------------------------------------------------ anomaly map


class RescaleSegmentor:
    """Patch scores → anomaly map: bilinear resize to the image, then a Gaussian of σ = 4 pixels.

    Both are linear along each axis, so the map is rows @ scores @ columnsᵀ with two matrices made once: exact,
    and as fast on a CPU as on a GPU.

    Args:
        device: where it runs.
        target_size: (H, W) of the image.
        smoothing: σ in pixels; 0 leaves the Gaussian out.
    """

    def __init__(
        self, device: torch.device | str, target_size: tuple[int, int], smoothing: float = SMOOTHING_SIGMA
    ) -> None:
        self.device = torch.device(device)
        self.target_size = tuple(target_size)
        self.smoothing = smoothing
        self._matrices: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, patch_scores: Tensor) -> Tensor:
        """(B, H', W') → (B, H, W)."""
        grid = tuple(patch_scores.shape[1:])
        if grid not in self._matrices:
            axes = zip(grid, self.target_size, strict=True)
            self._matrices[grid] = tuple(
                torch.from_numpy(_resize_and_smooth(n, size, self.smoothing)).to(self.device) for n, size in axes
            )
        rows, columns = self._matrices[grid]
        return rows @ patch_scores.to(self.device, torch.float32) @ columns.T

    def convert_to_segmentation(self, patch_scores: Tensor) -> NDArray[np.float32]:
        """(B, H', W') → (B, H, W) NumPy."""
        return self(patch_scores).cpu().numpy()


def _resize_and_smooth(n: int, size: int, sigma: float) -> NDArray[np.float32]:
    """The (size, n) matrix of a bilinear resize (align_corners=False) and scipy's Gaussian along one axis."""
    eye = torch.eye(n, dtype=torch.float64).unsqueeze(0)
    matrix = F.interpolate(eye, size=size, mode="linear", align_corners=False)[0].T.numpy()
    if sigma > 0:
        matrix = gaussian_filter1d(matrix, sigma, axis=0, mode="reflect", truncate=4.0)
    return np.ascontiguousarray(matrix, dtype=np.float32)
