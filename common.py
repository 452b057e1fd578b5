"""From images to feature maps and from patch scores to anomaly maps: the cut backbone, pooling, and the segmentor."""

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
    """Ends the backbone's forward pass once all maps are final."""


@dataclass
class _Pass:
    """The maps that one forward pass has computed so far, and how often each hooked module was called."""

    maps: dict[str, Tensor] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)


class _ExactConvolutions(AbstractContextManager):
    """While any thread is in this context, cuDNN does not round float32 convolutions to TF32."""

    def __init__(self) -> None:
        self._lock, self._threads, self._previous = threading.Lock(), 0, ""

    def __enter__(self) -> None:
        convolutions = torch.backends.cudnn.conv
        with self._lock:
            if not self._threads:
                self._previous, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                torch.backends.cudnn.conv.fp32_precision = self._previous


_EXACT = _ExactConvolutions()


class NetworkFeatureAggregator(nn.Module):
    """The backbone up to the last layer used; computes the maps of the given layers.

    A layer's map is the final content of its output tensor: an activation that works in place on it (VGG, AlexNet)
    changes the map, so the cut comes after the activation. A trial image shows where that is: the network is cut at
    the end of the first module after which no map changes any more.

    Args:
        backbone: the whole network, as `backbones.load` returns it. It is not changed, but shares its weights with
            this module unless it is trained.
        layers: dotted module names, e.g. `layer2`, `blocks.5`, `layer2.3.conv2`.
        device: of the computation.
        input_shape: (3, H, W) of the images.
        train_backbone: compute gradients, and update the statistics of batch norms in train mode.
        dtype: bfloat16 uses torch's autocast, which applies it wherever it is safe; the maps are float32 in any case.

    Raises:
        InputError: an unknown layer, an image size that the network cannot process, an output that is not a map or not
            finite, or missing weights.
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
        # cutting compares maps before and after, which takes float32; `dtype` is set at the end
        self.layers, self.dtype = tuple(layers), torch.float32
        self._memory_format, self._device = torch.contiguous_format, torch.device(device)
        self.train_backbone = train_backbone
        self.input_shape = tuple(input_shape)
        self._state = threading.local()
        origin = getattr(backbone, "origin", None)
        self.name = origin.name if origin else type(backbone).__name__
        # the module tree is copied, since it will be cut; frozen weights are shared with the given network, unless they
        # have to move to another device, which would move the given network as well
        tensors = (*backbone.parameters(), *backbone.buffers())
        target = torch.empty(0, device=device).device
        shared = {} if train_backbone or any(t.device != target for t in tensors) else {id(t): t for t in tensors}
        self.backbone = copy.deepcopy(backbone, shared).to(device).eval()
        if callable(getattr(self.backbone, "set_input_size", None)):  # timm's transformers are built for one image size
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
        """(B, 3, H, W) → [(B, C_l, H_l, W_l), …], one map per layer in the order of `layers`, float32."""
        with torch.set_grad_enabled(self.train_backbone and self.training and torch.is_grad_enabled()):
            return self._run(images)

    def train(self, mode: bool = True) -> NetworkFeatureAggregator:
        """A frozen backbone stays in eval mode."""
        super().train(mode)
        self.backbone.train(mode and self.train_backbone)
        return self

    def _run(self, images: Tensor) -> list[Tensor]:
        self._state.current = current = _Pass()
        reduced = self.dtype != torch.float32
        try:
            with self.exact(), torch.autocast(images.device.type, self.dtype if reduced else None, enabled=reduced):
                self.backbone(images.contiguous(memory_format=self._memory_format))
        except _LastLayerReached:
            pass
        finally:
            self._state.current = None
        return [self._layouts[name].to_map(current.maps[name].float()) for name in self.layers]

    def exact(self) -> AbstractContextManager[None]:
        """A context in which float32 convolutions are not rounded to TF32; torch's setting is restored at its end."""
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
        """Run one image through the whole network and watch its modules.

        Returns:
            The layers' outputs; name and number of the call after which they are final, None if that is the end of the
            network; and the names of the modules that are not needed until then.
        """
        watch = Watch(self.backbone, self.layers)
        try:
            with watch.hooked():
                self.backbone(trial)
        except Exception as error:  # a network of any library may raise anything at a size it cannot process
            # a failure after the layers used does not matter, since that part is cut off
            if not watch.complete:
                reason = str(error).strip().splitlines()
                raise InputError(
                    f"backbone {self.name!r} cannot process images of {size_text(self.input_shape)} up to layers "
                    f"{', '.join(self.layers)}: {reason[0] if reason else type(error).__name__}"
                ) from error
        if not watch.complete:
            never_run = [name for name in self.layers if name not in watch.outputs]
            raise InputError(f"backbone {self.name!r} never runs layer {', '.join(never_run)}; choose another")
        self.largest_output = watch.largest  # bytes, for one image in float32
        return watch.outputs, watch.stop, watch.unused()

    def _hook(self) -> None:
        for name in {*self.layers, *([self._stop[0]] if self._stop else [])}:
            self.backbone.get_submodule(name).register_forward_hook(self._make_hook(name))

    def _make_hook(self, name: str) -> Callable[..., None]:
        # the network refers to its hooks: a hook that referred to the aggregator would keep both alive until the cyclic
        # garbage collector runs, and with them the weights of every model that a run has finished with
        reference = weakref.ref(self)

        def hook(_module: nn.Module, _inputs: tuple, output: object) -> None:
            aggregator = reference()
            current = getattr(aggregator._state, "current", None) if aggregator is not None else None
            if current is None:
                return
            current.calls[name] += 1
            if name in aggregator._layouts:
                current.maps[name] = tensor_of(output)
            if aggregator._stop == (name, current.calls[name]):
                raise _LastLayerReached

        return hook

    def _drop(self, unused: list[str], trial: Tensor, outputs: dict[str, Tensor]) -> None:
        """Remove the modules after the cut: all at once, or one by one if the maps show that one of them is needed."""
        expected = [self._layouts[name].to_map(outputs[name]) for name in self.layers]
        originals = {name: self.backbone.get_submodule(name) for name in unused}
        for names in (unused, *([name] for name in unused)):
            for name in names:
                replace_module(self.backbone, name, nn.Identity())
            if self._computes(expected, trial):
                if names is unused:
                    return
            else:
                for name in reversed(names):
                    replace_module(self.backbone, name, originals[name])

    def _fold_batch_norms(self, trial: Tensor, dtype: torch.dtype) -> None:
        """Fold batch norms into the convolutions before them, on copies of the weights."""
        hooked = {*self.layers, *([self._stop[0]] if self._stop else [])}
        pairs = [
            (c, n) for c, n in convolutions_and_norms(self.backbone, lambda: self._maps(trial)) if not {c, n} & hooked
        ]
        originals = {name: self.backbone.get_submodule(name) for pair in pairs for name in pair}
        expected = self._maps(trial)
        for convolution, norm in pairs:
            replace_module(self.backbone, convolution, fuse_conv_bn_eval(originals[convolution], originals[norm]))
            replace_module(self.backbone, norm, nn.Identity())
        if not self._computes(expected, trial):  # another module uses the convolution's own output
            for name, module in originals.items():
                replace_module(self.backbone, name, module)
        elif pairs:
            self._memory_format = faster_format(trial.device, dtype)
            self.backbone.to(memory_format=self._memory_format)
            for convolution, _ in pairs:  # otherwise autocast would convert the weights in every pass
                self.backbone.get_submodule(convolution).to(dtype)

    def _computes(self, expected: list[Tensor], trial: Tensor) -> bool:
        """Whether the maps of the trial image are the expected ones, up to rounding."""
        try:
            maps = self._maps(trial)
        except Exception:  # a parent may use attributes of a child without calling it, so any error is possible
            return False
        return all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(maps, expected, strict=True))

    def _require_finite(self, outputs: dict[str, Tensor], weights: str) -> None:
        for name, output in outputs.items():
            if not output.isfinite().all():
                source = f" ({weights})" if weights else ""
                raise InputError(
                    f"backbone {self.name!r} gives values that are not finite (NaN or infinity) in layer {name}: its "
                    f"weights{source} are damaged, or belong to another network"
                )

    def _require_weights(self, missing: frozenset[str]) -> None:
        needed = sorted(missing & self.backbone.state_dict().keys())
        if needed:
            more = f" and {len(needed) - 5} more" if len(needed) > 5 else ""
            raise InputError(
                f"the weights of backbone {self.name!r} lack tensors that layers {', '.join(self.layers)} need: "
                f"{', '.join(needed[:5])}{more}; give a file that contains them"
            )


# ----------------------------------------------------------------------------------- patch pooling


class Preprocessing(nn.Module):
    """Pools the neighbourhood vectors of a layer to a common length (general form of the pooling).

    Args:
        output_dim: `pretrain_embed_dimension`.
    """

    def __init__(self, output_dim: int) -> None:
        super().__init__()
        self.output_dim = output_dim

    def forward(self, patches: Tensor) -> Tensor:
        """(B, P, C_l·p²) → (B, P, output_dim), with the bins of torch's adaptive average pooling."""
        return F.adaptive_avg_pool1d(patches, self.output_dim)


class Aggregator(nn.Module):
    """Concatenates the vectors of all layers and pools them to the length of the patch features (general form).

    Args:
        target_dim: `target_embed_dimension`, C.
    """

    def __init__(self, target_dim: int) -> None:
        super().__init__()
        self.target_dim = target_dim

    def forward(self, layers: list[Tensor]) -> Tensor:
        """[(B, P, pretrain_embed_dimension), …], all on the same grid → (B·P, C)."""
        features = torch.cat(layers, dim=2).flatten(0, 1)  # (B·P, layers·pretrain_embed_dimension)
        return F.adaptive_avg_pool1d(features.unsqueeze(1), self.target_dim).squeeze(1)


# ------------------------------------------------------------------------------------ anomaly map


class RescaleSegmentor:
    """Patch scores → anomaly map: a bilinear resize to the size of the image, then a Gaussian filter with σ = 4 pixels.

    Both are linear and separable, so the map is rows @ scores @ columnsᵀ with two matrices that are computed once.

    Args:
        device: of the computation.
        target_size: (H, W) of the image.
        smoothing: σ in pixels; 0 means no filter.
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
        """(B, H', W') → (B, H, W) as a NumPy array."""
        return self(patch_scores).cpu().numpy()


def _resize_and_smooth(n: int, size: int, sigma: float) -> NDArray[np.float32]:
    """The (size, n) matrix of a bilinear resize (align_corners=False) and scipy's Gaussian filter along one axis."""
    eye = torch.eye(n, dtype=torch.float64).unsqueeze(0)  # (1, n, n)
    matrix = F.interpolate(eye, size=size, mode="linear", align_corners=False)[0].T.numpy()
    if sigma > 0:
        matrix = gaussian_filter1d(matrix, sigma, axis=0, mode="reflect", truncate=4.0)
    return np.ascontiguousarray(matrix, dtype=np.float32)
