"""Quality of the features of a frozen backbone without any training: nearest neighbours of patches and of textures.

    .venv/bin/python benchmarks/neighbours.py --data MVTEC/bottle --data TILE/magnetic_tile --textures DTD \
        --class_of_textures bumpy --class_of_textures cobwebbed --class_of_textures braided --weights resnet18.pth

For a class, the score of an image is the largest distance of its patches to the nearest of 8,000 patches of good
training images. For textures, it is measured whether the nearest image, by cosine similarity of the mean and standard
deviation of each channel, belongs to the same class. The layers are layer2 and layer3; the networks are
efficientnet_lite0, whose layers of these names are scaled, ResNet-18 with the weights of --weights, and ResNet-18 with
random weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import backbones  # noqa: E402
import metrics  # noqa: E402
from common import NetworkFeatureAggregator  # noqa: E402
from datasets import DATASETS, ImageSettings, TestDataset  # noqa: E402
from datasets.files import read_rgb  # noqa: E402
from datasets.listing import list_images  # noqa: E402
from datasets.settings import normalise  # noqa: E402

LAYERS = ("layer2", "layer3")
KEPT = 8000  # number of patches of good images
TEXTURES = 40  # images per class


class Embedder:
    """A backbone that computes features of images of one size."""

    def __init__(self, backbone: nn.Module, size: int) -> None:
        self.settings = ImageSettings(resize=size, imagesize=size)
        self._maps = NetworkFeatureAggregator(backbone, LAYERS, "cpu", (3, size, size))

    def prepared(self, path: Path) -> Tensor:
        """The image in a file as the network sees it, (3, H, W)."""
        return normalise(np.asarray(self.settings.cropped(read_rgb(path))))

    @torch.no_grad()
    def patches(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, P, C), averaged over 3x3 neighbourhoods."""
        first, second = (F.avg_pool2d(x, 3, 1, 1) for x in self._maps(images))
        second = F.interpolate(second, size=first.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([first, second], 1).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def texture(self, image: Tensor) -> Tensor:
        """(3, H, W) → (C,) with norm 1: mean and standard deviation of each channel."""
        maps = self._maps(image[None])
        return F.normalize(torch.cat([f(x) for x in maps for f in (_mean, _deviation)]), dim=0)


def _mean(x: Tensor) -> Tensor:
    return x.mean((0, 2, 3))


def _deviation(x: Tensor) -> Tensor:
    return x.std((0, 2, 3))


def of_class(embedder: Embedder, folder: Path) -> tuple[float, float]:
    """Image and pixel AUROC of a class in the layout of MVTec AD."""
    layout, name = DATASETS["mvtec"](folder.parent), folder.name
    good = [embedder.patches(embedder.prepared(s.path)[None])[0] for s in layout.train(name)]
    bank = torch.cat(good)
    bank = bank[torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))[:KEPT]]
    tested, side = TestDataset(layout.test(name), embedder.settings), embedder.settings.size[0]
    scores, maps, masks = [], [], []
    for item in (tested[i] for i in range(len(tested))):
        distance = torch.cdist(embedder.patches(item["image"][None])[0], bank).amin(1)
        scores.append(float(distance.max()))
        cells = round(len(distance) ** 0.5)
        large = cv2.resize(distance.reshape(cells, cells).numpy(), (side, side))
        maps.append(cv2.GaussianBlur(large, (0, 0), 4))
        masks.append(item["mask_gt"][0].numpy())
    image = roc_auc_score([s.is_anomaly for s in tested.samples], scores)
    return float(image), metrics.compute_pixelwise_retrieval_metrics(np.stack(maps), np.stack(masks))["auroc"]


def of_textures(embedder: Embedder, folders: Sequence[Path]) -> float:
    """The share of images whose nearest neighbour belongs to the same class."""
    pairs = [(embedder.texture(embedder.prepared(p)), f.name) for f in folders for p in list_images(f)[:TEXTURES]]
    textures = torch.stack([texture for texture, _ in pairs])
    similarity = textures @ textures.T
    nearest = similarity.fill_diagonal_(-2).argmax(1).tolist()
    return float(np.mean([pairs[i][1] == pairs[j][1] for i, j in enumerate(nearest)]))


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--textures", type=Path, help="folder with one folder of images per class")
    parser.add_argument("--class_of_textures", action="append", default=[], help="a folder of --textures")
    parser.add_argument("--weights", default="pretrained", help="of ResNet-18")
    parser.add_argument("--size", type=int, default=288)
    args = parser.parse_args()
    networks = {
        "resnet18": backbones.load("resnet18", args.weights),
        backbones.EMBEDDED: backbones.load(backbones.EMBEDDED),
        "random": backbones.load("resnet18", "random"),
    }
    for name, network in networks.items():
        embedder = Embedder(network, args.size)
        for folder in args.data:
            image, pixel = of_class(embedder, folder)
            print(
                f"{name:18s} {folder.name:16s} image AUROC {100 * image:6.2f}  pixel AUROC {100 * pixel:6.2f}",
                flush=True,
            )
        if args.textures:
            folders = [args.textures / texture for texture in args.class_of_textures]
            share = 100 * of_textures(embedder, folders)
            print(f"{name:18s} textures         nearest neighbour of the same class {share:5.1f} %")


if __name__ == "__main__":
    main()
