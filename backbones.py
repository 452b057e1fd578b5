"""Backbones: from a name to a frozen network with its weights.

The names are those of the published code, that of the embedded network, whose weights are installed with the
requirements, and `timm:NAME` or `torchvision:NAME` for any other model of the two libraries.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torchvision
from torch import nn

from networks import lite0
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
# name in the published code: name in timm 1.x, with the tag of the weights that it meant (resnet200 never had weights)
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
EMBEDDED = "efficientnet_lite0"  # the network of networks/lite0.py, whose weights are installed with the requirements
EMBEDDED_DIMENSION = 152  # default for both embeddings with the published pooling: the number of its channels
REMOVED = {  # names of earlier versions: what to say about a model that was trained with them
    "resnet18_half": "was removed in version 1.1.0: use version 1.0.0 for what was trained with it, or train again "
    f"with -b {EMBEDDED}"
}
NAMES = (*TORCHVISION, *TIMM, EMBEDDED)
AUTO, PREFERRED = "auto", "wideresnet50"
DEFAULT_DIMENSION = 1536  # default for both embeddings, from the paper
DOWNLOAD_TIMEOUT = 20  # seconds without an answer


@dataclass(frozen=True)
class Origin:
    """Where a backbone and its weights come from.

    Attributes:
        name: of the backbone.
        weights: `pretrained`, `random` or a path.
        missing: keys of its state dict that the weights file does not contain. Whether they matter depends on the
            layers used, so the feature aggregator checks that: it refuses the backbone if it needs one of them.
    """

    name: str
    weights: str
    missing: frozenset[str] = frozenset()


def split_seed(name: str) -> tuple[str, int | None]:
    """`resnet18.seed-3` → (`resnet18`, 3); a name without the suffix → (name, None)."""
    match = re.fullmatch(r"(.+)\.seed-(\d+)", name)
    return (match[1], int(match[2])) if match else (name, None)


def resolve(name: str) -> tuple[str, str]:
    """The library and the model that a backbone name stands for, e.g. (`torchvision`, `wide_resnet50_2`).

    Raises:
        InputError: the name is unknown, or that of a network that was removed.
    """
    if name == EMBEDDED:
        return "embedded", name
    if name in REMOVED:
        raise InputError(f"backbone {name!r} {REMOVED[name]}")
    library, _, model = name.partition(":")
    if model and library == "timm":
        import timm  # slow, and needed for its own models alone

        if timm.is_model(model):
            return "timm", model
        close = ", ".join(timm.list_models(f"*{model.split('.')[0]}*")[:8]) or "see timm.list_models()"
        raise InputError(f"unknown timm model {model!r}; similar names: {close}")
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
    """The default for both embedding dimensions; smaller for the embedded network, which has fewer channels."""
    return EMBEDDED_DIMENSION if name == EMBEDDED else DEFAULT_DIMENSION


def default_pooling(name: str) -> str:
    """The default of the setting `pooling`; the few channels of the embedded network are kept apart."""
    return "channels" if name == EMBEDDED else "published"


def choose(loaded: dict[str, nn.Module] | None = None) -> tuple[str, str]:
    """The backbone that `auto` stands for: the paper's network if its weights are available, else the embedded one.

    Args:
        loaded: networks by name. The paper's network has to be loaded to find out, and is added here.

    Returns:
        The name and the reason.
    """
    loaded = {} if loaded is None else loaded
    try:
        loaded[PREFERRED] = loaded[PREFERRED] if PREFERRED in loaded else load(PREFERRED)
    except WorkError as error:
        cause = error.__cause__ or error
        lines = str(cause).strip().splitlines()
        reason = f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
        return EMBEDDED, (
            f"it is installed with the project, and the weights of {PREFERRED}, the paper's network, are not in the "
            f"cache and cannot be downloaded ({reason[:160]})"
        )
    return PREFERRED, "the paper's network"


def load(name: str, weights: str | Path = "pretrained", seed: int = 0) -> nn.Module:
    """Build a backbone in eval mode.

    Args:
        name: one of `NAMES`, `timm:NAME` or `torchvision:NAME`.
        weights: `pretrained` (ImageNet weights, V1 for torchvision; for the embedded network those of its package),
            `random`, or the path of a state dict (.pth or .safetensors), which may end after the last layer used.
        seed: of the random weights; the global random state does not change.

    Returns:
        The whole network with an `origin` attribute.

    Raises:
        InputError: an unknown name, or a weights file that cannot be used.
        WorkError: the weights are not in the cache and cannot be downloaded, or the package that contains those of the
            embedded network is missing or damaged.
    """
    library, model = resolve(name)
    missing: frozenset[str] = frozenset()
    with seeded(seed):
        backbone = _build(library, model)
    if str(weights) == "pretrained" and library == "embedded":
        backbone.load_state_dict(lite0.pretrained_state())
    elif str(weights) == "pretrained":
        state = _fetch(name, library, model, backbone)
        try:
            backbone.load_state_dict(state)  # strict: checks the name and shape of every tensor
        except RuntimeError as error:
            raise WorkError(
                f"the cached file of ImageNet weights of backbone {name!r} belongs to another network; delete it from "
                f"{Path(torch.hub.get_dir()) / 'checkpoints'} so that it is downloaded again"
            ) from error
    elif str(weights) != "random":
        missing = _load_file(backbone, name, Path(weights))
    backbone.origin = Origin(name, str(weights), missing)
    return backbone.eval()


def _build(library: str, model: str) -> nn.Module:
    if library == "embedded":
        return lite0.EfficientNetLite0()
    if library == "timm":
        import timm  # slow, and needed for its own models alone

        return timm.create_model(model, pretrained=False)
    # without the auxiliary classifier, and with the scaling of the input that the ImageNet weights were trained with
    inception = model in ("googlenet", "inception_v3")
    extra = {"aux_logits": False, "init_weights": True, "transform_input": True} if inception else {}
    return torchvision.models.get_model(model, weights=None, **extra)


def _fetch(name: str, library: str, model: str, backbone: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of the ImageNet weights, from the cache or downloaded."""
    if library == "torchvision":
        versions = torchvision.models.get_model_weights(model).__members__
        # a few large models have no V1 weights, only others
        url = versions.get("IMAGENET1K_V1", next(iter(versions.values()))).url
        folder, file = Path(torch.hub.get_dir()) / "checkpoints", url.rsplit("/", 1)[1]
    else:
        import huggingface_hub  # slow, and needed for the weights of timm alone
        import timm

        repo, url = (backbone.pretrained_cfg.get(key) for key in ("hf_hub_id", "url"))
        if not repo and not url:
            raise InputError(f"timm has no weights for backbone {name!r}; give --weights PATH or another -b")
        folder, file = Path(torch.hub.get_dir()) / "checkpoints", str(url).rsplit("/", 1)[-1]
        if repo:
            url = huggingface_hub.hf_hub_url(repo, "model.safetensors")
            folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
            file = f"model.safetensors of {repo}"
    previous_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # a firewall may drop packets without an answer
    try:
        if library == "torchvision":
            state = torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
        else:
            if repo and not any(folder.glob("snapshots/*/*")):
                # without a network connection this fails at once, whereas timm would retry for a minute
                huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repo, "config.json"))
            state = timm.create_model(model, pretrained=True).state_dict()
    except Exception as error:  # no connection, a proxy's refusal, a damaged download: each library has its own errors
        raise WorkError(
            f"backbone {name!r} needs its ImageNet weights, {file}, which are not in {folder} and cannot be downloaded "
            f"from {url} ({type(error).__name__}: {_first_line(error)}); download them on another machine and give "
            f"--weights PATH: a state dict up to the last layer used is enough (--weights random works without, with "
            f"poor results)"
        ) from error
    finally:
        socket.setdefaulttimeout(previous_timeout)
    damaged = not_finite(state)
    if damaged:
        raise WorkError(
            f"the cached file of ImageNet weights of backbone {name!r} holds values that are not finite "
            f"({damaged[0]}); delete it from {folder} so that it is downloaded again"
        )
    expected = backbone.state_dict()
    # some torchvision files (inception_v3, googlenet) also contain auxiliary classifiers, which are not built
    return {key: value for key, value in state.items() if key in expected}


def _load_file(backbone: nn.Module, name: str, path: Path) -> frozenset[str]:
    """Load the weights of a file into the backbone; returns the keys that the file does not contain."""
    if not path.is_file():
        raise InputError(f"--weights {path}: no such file; possible: pretrained, random, or the path of a state dict")
    state = _read_state_dict(path)
    if name == EMBEDDED:
        state = lite0.in_names_of_timm(state)
    expected = backbone.state_dict()
    shared = expected.keys() & state.keys()
    if not shared:
        raise InputError(
            f"--weights {path} does not fit backbone {name!r}: none of its keys ({', '.join(list(state)[:3])}, …) "
            f"is among those of the network ({', '.join(list(expected)[:3])}, …)"
        )
    for key in sorted(shared):
        if expected[key].shape != state[key].shape:
            raise InputError(
                f"--weights {path} does not fit backbone {name!r}: {key} is {tuple(state[key].shape)} in the file and "
                f"{tuple(expected[key].shape)} in the network"
            )
    damaged = not_finite({key: state[key] for key in sorted(shared)})
    if damaged:
        raise InputError(
            f"--weights {path} holds values that are not finite (NaN or infinity) in {', '.join(damaged[:3])}: the "
            "file is damaged, or the training that wrote it diverged; give another file"
        )
    backbone.load_state_dict({key: state[key] for key in shared}, strict=False)
    # num_batches_tracked only matters to a batch norm without momentum, in training
    return frozenset(key for key in expected.keys() - shared if not key.endswith("num_batches_tracked"))


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise errors of many types for a damaged or foreign file
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
