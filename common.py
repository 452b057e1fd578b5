"""Features in, anomaly map out: the cut backbone, the pooling of patches, the map from patch scores."""

from __future__ import annotations

import copy
import math
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from networks.cutting import (
    Watch,
    check_layers,
    convolutions_and_norms,
    faster_format,
    fingerprint_of,
    replace_module,
    size_text,
    tensor_of,
)
from networks.layout import find_layout
from utils import InputError

SMOOTHING_SIGMA = 4.0


# ---------------------------------------------------------------------------------------- backbone


class _LastLayerReached(Exception):
    """Leaves the backbone's forward pass once all maps are final."""


@dataclass
class _Pass:
    """What one forward pass has gathered so far."""

    maps: dict[str, Tensor] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)


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
        check_layers(self.backbone, self.layers, self.name)
        trial = torch.linspace(-2, 2, math.prod(self.input_shape), device=device).reshape(1, *self.input_shape)
        with self.exact():
            outputs, self._stop, unused = self._probe(trial)
        self._require_finite(outputs, origin.weights if origin else "")
        self._layouts = {name: find_layout(out, self.input_shape, self.backbone, name) for name, out in outputs.items()}
        self._hook()
        self._drop(unused, trial, outputs)
        self._require_weights(origin.missing if origin else frozenset())
        self.fingerprint = fingerprint_of(backbone, self.backbone.state_dict().keys())
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
                f"backbone {self.name!r} cannot be built for {size_text(self.input_shape)}: {error}"
            ) from error

    @torch.no_grad()
    def _probe(self, trial: Tensor) -> tuple[dict[str, Tensor], tuple[str, int] | None, list[str]]:
        """Run one image through the whole network and watch.

        Returns:
            The layers' outputs, the module (and which of its calls) after which they are final (None: only at
            the very end), and the modules that are not needed for that.
        """
        watch = Watch(self.backbone, self.layers)
        try:
            with watch.hooked():
                self.backbone(trial)
        except Exception as error:  # whatever a network of any library raises at a size it cannot take
            # a failure beyond the layers used does not matter: they are cut off
            if not watch.complete:
                reason = str(error).strip().splitlines()
                raise InputError(
                    f"backbone {self.name!r} cannot take images of {size_text(self.input_shape)} up to layers "
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
                now.maps[name] = tensor_of(output)
            if owner._stop == (name, now.calls[name]):
                raise _LastLayerReached

        return hook

    def _drop(self, unused: list[str], trial: Tensor, outputs: dict[str, Tensor]) -> None:
        """Take out the modules beyond the cut: all at once, or where the maps show that one is needed, one by one."""
        expected = [self._layouts[name].to_map(outputs[name]) for name in self.layers]
        kept = {name: self.backbone.get_submodule(name) for name in unused}
        for names in (unused, *([name] for name in unused)):
            for name in names:
                replace_module(self.backbone, name, nn.Identity())
            if self._gives(expected, trial):
                if names is unused:
                    return
            else:
                for name in reversed(names):
                    replace_module(self.backbone, name, kept[name])

    def _fold_batch_norms(self, trial: Tensor, dtype: torch.dtype) -> None:
        """Make a convolution and the batch norm that takes its output one convolution, on copies of the weights."""
        hooked = {*self.layers, *([self._stop[0]] if self._stop else [])}
        pairs = [
            (c, n) for c, n in convolutions_and_norms(self.backbone, lambda: self._maps(trial)) if not {c, n} & hooked
        ]
        kept = {name: self.backbone.get_submodule(name) for pair in pairs for name in pair}
        expected = self._maps(trial)
        for convolution, norm in pairs:
            replace_module(self.backbone, convolution, fuse_conv_bn_eval(kept[convolution], kept[norm]))
            replace_module(self.backbone, norm, nn.Identity())
        if not self._gives(expected, trial):  # someone else looks at what is between the two
            for name, module in kept.items():
                replace_module(self.backbone, name, module)
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
