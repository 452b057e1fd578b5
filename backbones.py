"""Backbone names and their weights: name → frozen feature network.

Names are the published ones, that of the network that comes with the project, and `timm:NAME` or `torchvision:NAME` for
any other model of the two libraries.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1

from networks.weights import not_finite, unreadable
from utils import InputError, WorkError, seeded

TORCHVISION = {
    "alexnet": "alexnet",
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "resnext101": "resnext101_32x8d",
    "vgg11": "vgg11",
    "vgg19": "vgg19",
    "vgg19_bn": "vgg19_bn",
    "wideresnet50": "wide_resnet50_2",
    "wideresnet101": "wide_resnet101_2",
}
# right: the name in timm 1.x with the tag of the weights that the old name stood for (resnet200 never had any)
TIMM = {
    "resnet200": "resnet200",
    "resnest50": "resnest50d_4s2x40d.in1k",
    "resnetv2_50_bit": "resnetv2_50x3_bit.goog_in21k_ft_in1k",
    "resnetv2_50_21k": "resnetv2_50x3_bit.goog_in21k",
    "resnetv2_101_bit": "resnetv2_101x3_bit.goog_in21k_ft_in1k",
    "resnetv2_101_21k": "resnetv2_101x3_bit.goog_in21k",
    "resnetv2_152_bit": "resnetv2_152x4_bit.goog_in21k_ft_in1k",
    "resnetv2_152_21k": "resnetv2_152x4_bit.goog_in21k",
    "resnetv2_152_384": "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384",
    "resnetv2_101": "resnetv2_101.a1h_in1k",
    "mnasnet_100": "mnasnet_100.rmsp_in1k",
    "mnasnet_a1": "semnasnet_100.rmsp_in1k",
    "mnasnet_b1": "mnasnet_100.rmsp_in1k",
    "densenet121": "densenet121.ra_in1k",
    "densenet201": "densenet201.tv_in1k",
    "inception_v4": "inception_v4.tf_in1k",
    "vit_small": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_base": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "vit_large": "vit_large_patch16_224.augreg_in21k_ft_in1k",
    "vit_r50": "vit_large_r50_s32_224.augreg_in21k_ft_in1k",
    "vit_deit_base": "deit_base_patch16_224.fb_in1k",
    "vit_deit_distilled": "deit_base_distilled_patch16_224.fb_in1k",
    "vit_swin_base": "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    "vit_swin_large": "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    "efficientnet_b7": "tf_efficientnet_b7.ra_in1k",
    "efficientnet_b5": "tf_efficientnet_b5.ra_in1k",
    "efficientnet_b3": "tf_efficientnet_b3.aa_in1k",
    "efficientnet_b1": "tf_efficientnet_b1.aa_in1k",
    "efficientnetv2_m": "tf_efficientnetv2_m.in1k",
    "efficientnetv2_l": "tf_efficientnetv2_l.in1k",
    "efficientnet_b3a": "efficientnet_b3.ra2_in1k",
}
EMBEDDED = "resnet18_half"  # the network that is part of the project, made by tools/distil.py
EMBEDDED_FILE = Path(__file__).parent / "weights" / f"{EMBEDDED}.safetensors"
EMBEDDED_WIDTH = 32  # channels of its layer1; ResNet-18 has 64
EMBEDDED_DIMENSION = 192  # of its embeddings: a patch of layer2 has 576 values
NAMES = (*TORCHVISION, *TIMM, EMBEDDED)
AUTO, PREFERRED = "auto", "wideresnet50"
DEFAULT_DIMENSION = 1536  # of both embeddings, the paper's
PATIENCE = 20  # seconds without an answer from the network


class HalfResNet18(nn.Module):
    """ResNet-18 (He et al., CVPR 2016) with half as many channels everywhere, up to layer3; no classifier.

    layer1, layer2, layer3 give 32, 64, 128 channels at a stride of 4, 8, 16.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, EMBEDDED_WIDTH, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(EMBEDDED_WIDTH)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _blocks(EMBEDDED_WIDTH, EMBEDDED_WIDTH, 1)
        self.layer2 = _blocks(EMBEDDED_WIDTH, 2 * EMBEDDED_WIDTH, 2)
        self.layer3 = _blocks(2 * EMBEDDED_WIDTH, 4 * EMBEDDED_WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → layer3's (B, 128, H/16, W/16)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer3(self.layer2(self.layer1(x)))


def _blocks(channels: int, out: int, stride: int) -> nn.Sequential:
    shortcut = nn.Sequential(conv1x1(channels, out, stride), nn.BatchNorm2d(out)) if stride > 1 else None
    return nn.Sequential(BasicBlock(channels, out, stride, shortcut), BasicBlock(out, out))


@dataclass(frozen=True)
class Origin:
    """Where a backbone came from.

    `missing` are keys of its state dict that the weights file lacks. Whether that matters depends on the
    layers used, which only the feature aggregator knows: it refuses the backbone if one of them is needed.
    """

    name: str
    weights: str
    missing: frozenset[str] = frozenset()


def split_seed(name: str) -> tuple[str, int | None]:
    """`resnet18.seed-3` → (`resnet18`, 3); a name without the suffix → (name, None)."""
    match = re.fullmatch(r"(.+)\.seed-(\d+)", name)
    return (match[1], int(match[2])) if match else (name, None)


def resolve(name: str) -> tuple[str, str]:
    """The library and the model a backbone name stands for, e.g. (`torchvision`, `wide_resnet50_2`).

    Raises:
        InputError: the name is not known.
    """
    if name == EMBEDDED:
        return "embedded", name
    library, _, model = name.partition(":")
    if model and library == "timm":
        if timm.is_model(model):
            return "timm", model
        close = ", ".join(timm.list_models(f"*{model.split('.')[0]}*")[:8]) or "see timm.list_models()"
        raise InputError(f"unknown timm model {model!r}; close to it: {close}")
    if model and library == "torchvision":
        if model in torchvision.models.list_models(module=torchvision.models):
            return "torchvision", model
        known = ", ".join(torchvision.models.list_models(module=torchvision.models))
        raise InputError(f"unknown torchvision model {model!r}; possible: {known}")
    if name in TORCHVISION:
        return "torchvision", TORCHVISION[name]
    if name in TIMM:
        return "timm", TIMM[name]
    raise InputError(f"unknown backbone {name!r}; possible: {', '.join(NAMES)}, timm:NAME, torchvision:NAME")


def default_dimension(name: str) -> int:
    """Of the embeddings, where none is asked for: more than a narrow network has to tell would only cost time."""
    return EMBEDDED_DIMENSION if name == EMBEDDED else DEFAULT_DIMENSION


def choose(loaded: dict[str, nn.Module] | None = None) -> tuple[str, str]:
    """What `auto` stands for, and why: the paper's network where its weights are to be had, else the embedded one.

    To find out, the network is loaded: it stays in `loaded`, by its name, so that nobody has to load it again.
    """
    loaded = {} if loaded is None else loaded
    try:
        loaded[PREFERRED] = loaded[PREFERRED] if PREFERRED in loaded else load(PREFERRED)
    except WorkError as error:
        why = str(error.__cause__ or error).strip().splitlines()
        reason = f"{type(error.__cause__ or error).__name__}: {why[0]}" if why else type(error.__cause__).__name__
        return EMBEDDED, (
            f"it comes with the project, and the weights of {PREFERRED}, the paper's network, are neither in the "
            f"cache nor to be fetched ({reason[:160]})"
        )
    return PREFERRED, "the paper's network"


def load(name: str, weights: str | Path = "pretrained", seed: int = 0) -> nn.Module:
    """Build a backbone in eval mode.

    Args:
        name: one of `NAMES`, `timm:NAME` or `torchvision:NAME`.
        weights: `pretrained` (ImageNet; torchvision's V1; of the embedded network those in the project), `random`, or
            the path of a state dict (.pth or .safetensors) that may end after the last layer used.
        seed: of the random weights; the global random state is left as it was.

    Returns:
        The whole network with an `origin` attribute.

    Raises:
        InputError: unknown name, unusable weights file.
        WorkError: the weights are neither in the cache nor to be fetched.
    """
    library, model = resolve(name)
    missing: frozenset[str] = frozenset()
    with seeded(seed):
        backbone = _build(library, model)
    if str(weights) == "pretrained" and library == "embedded":
        missing = _load_file(backbone, name, EMBEDDED_FILE)
    elif str(weights) == "pretrained":
        # every tensor's name and shape is checked; the classifier is the network's own
        state = _fetch(name, library, model, backbone)
        try:
            backbone.load_state_dict(state)
        except RuntimeError as error:
            raise WorkError(
                f"the file kept as ImageNet weights of backbone {name!r} is not of that network; delete it from "
                f"{Path(torch.hub.get_dir()) / 'checkpoints'} and have it fetched anew"
            ) from error
    elif str(weights) != "random":
        missing = _load_file(backbone, name, Path(weights))
    backbone.origin = Origin(name, str(weights), missing)
    return backbone.eval()


def _build(library: str, model: str) -> nn.Module:
    if library == "embedded":
        return HalfResNet18()
    if library == "timm":
        return timm.create_model(model, pretrained=False)
    # without the auxiliary classifier; its ImageNet weights want the input scaled as torchvision does with them
    inception = model in ("googlenet", "inception_v3")
    extra = {"aux_logits": False, "init_weights": True, "transform_input": True} if inception else {}
    return torchvision.models.get_model(model, weights=None, **extra)


def _fetch(name: str, library: str, model: str, backbone: nn.Module) -> dict[str, torch.Tensor]:
    """The ImageNet state dict from the cache or the network."""
    if library == "torchvision":
        sets = torchvision.models.get_model_weights(model).__members__
        # a few large models have no V1 set, only others
        url = sets.get("IMAGENET1K_V1", next(iter(sets.values()))).url
        folder, file = Path(torch.hub.get_dir()) / "checkpoints", url.rsplit("/", 1)[1]
    else:
        repo, url = (backbone.pretrained_cfg.get(key) for key in ("hf_hub_id", "url"))
        if not repo and not url:
            raise InputError(f"timm has no weights for backbone {name!r}; give --weights PATH or another -b")
        folder, file = Path(torch.hub.get_dir()) / "checkpoints", str(url).rsplit("/", 1)[-1]
        if repo:
            url = huggingface_hub.hf_hub_url(repo, "model.safetensors")
            folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
            file = f"model.safetensors of {repo}"
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)  # a firewall may swallow what it does not let through
    try:
        if library == "torchvision":
            state = torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
        else:
            if repo and not any(folder.glob("snapshots/*/*")):
                # without a network this fails at once, where timm would try for a minute
                huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repo, "config.json"))
            state = timm.create_model(model, pretrained=True).state_dict()
    except Exception as error:  # no network, a proxy's refusal, a damaged download: each library has its own kinds
        raise WorkError(
            f"backbone {name!r} needs its ImageNet weights, {file}, which is neither to be had from {folder} nor "
            f"from {url} ({type(error).__name__}: {_first_line(error)}); fetch it where there is a network and give "
            f"--weights PATH: a state dict that reaches to the last layer used will do (--weights random runs "
            f"without, badly)"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    damaged = not_finite(state)
    if damaged:
        raise WorkError(
            f"the file kept as ImageNet weights of backbone {name!r} holds values that are not finite ({damaged[0]}); "
            f"delete it from {folder} and have it fetched anew"
        )
    own = backbone.state_dict()
    # some torchvision files (inception_v3, googlenet) also hold the auxiliary classifiers that are not built
    return {key: value for key, value in state.items() if key in own}


def _load_file(backbone: nn.Module, name: str, path: Path) -> frozenset[str]:
    """Load what the file holds; returns the keys that it lacks."""
    if not path.is_file():
        raise InputError(f"--weights {path}: no such file; possible: pretrained, random, or a state dict's path")
    state = _read_state_dict(path)
    own = backbone.state_dict()
    shared = own.keys() & state.keys()
    if not shared:
        raise InputError(
            f"--weights {path} does not fit backbone {name!r}: none of its keys ({', '.join(list(state)[:3])}, …) "
            f"is among the network's ({', '.join(list(own)[:3])}, …)"
        )
    for key in sorted(shared):
        if own[key].shape != state[key].shape:
            raise InputError(
                f"--weights {path} does not fit backbone {name!r}: {key} is {tuple(state[key].shape)} there, "
                f"{tuple(own[key].shape)} in the network"
            )
    damaged = not_finite({key: state[key] for key in sorted(shared)})
    if damaged:
        raise InputError(
            f"--weights {path} holds values that are not finite (NaN or infinity) in {', '.join(damaged[:3])}: the "
            "file is damaged, or the training that wrote it diverged; give another"
        )
    backbone.load_state_dict({key: state[key] for key in shared}, strict=False)
    # a count that only matters to a training batch norm without momentum
    return frozenset(key for key in own.keys() - shared if not key.endswith("num_batches_tracked"))


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise half a dozen kinds for a damaged or foreign file
        raise InputError(
            f"--weights {path} is not a state dict that can be read safely: {unreadable(error)}"
        ) from error
    for wrapper in ("state_dict", "model", "teacher"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise InputError(f"--weights {path} holds a {type(state).__name__}, not a state dict")
    tensors = {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise InputError(f"--weights {path} holds no tensors")
    return tensors


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
