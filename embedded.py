"""The backbone that comes with the project: a ResNet-18 of half width, made by `tools/distil.py`."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1

NAME = "resnet18_half"
FILE = Path(__file__).parent / "weights" / f"{NAME}.safetensors"
WIDTH = 32  # of layer1; ResNet-18 has 64
DIMENSION = 192  # of the embeddings: a layer2 patch has 576 numbers


class HalfResNet18(nn.Module):
    """ResNet-18 (He et al., CVPR 2016) with half as many channels everywhere, up to layer3; no classifier.

    layer1, layer2, layer3 give 32, 64, 128 channels at a stride of 4, 8, 16.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _blocks(WIDTH, WIDTH, 1)
        self.layer2 = _blocks(WIDTH, 2 * WIDTH, 2)
        self.layer3 = _blocks(2 * WIDTH, 4 * WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → layer3's (B, 128, H/16, W/16)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer3(self.layer2(self.layer1(x)))


def _blocks(channels: int, out: int, stride: int) -> nn.Sequential:
    shortcut = nn.Sequential(conv1x1(channels, out, stride), nn.BatchNorm2d(out)) if stride > 1 else None
    return nn.Sequential(BasicBlock(channels, out, stride, shortcut), BasicBlock(out, out))
