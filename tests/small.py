"""A model that is built in milliseconds, for what does not depend on a network's size."""

from collections import OrderedDict

import torch
from torch import nn

from glass import GLASS

LAYERS, WIDTH, SIDE = ("layer1", "layer2"), 32, 32


def block(inside, outside, stride=2):
    """Convolution, batch norm, activation."""
    convolution = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside), nn.ReLU(inplace=True))


def small_network(seed=0):
    """Two layers of 32 channels, at 1/4 and 1/8 of the picture's sides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = (("stem", block(3, 16)), ("layer1", block(16, WIDTH)), ("layer2", block(WIDTH, WIDTH)))
        return nn.Sequential(OrderedDict(parts)).eval()


def small_glass(seed=0, size=(SIDE, SIDE), **settings):
    """A GLASS of the small network on the CPU."""
    settings = {
        "pretrain_embed_dimension": WIDTH, "target_embed_dimension": WIDTH, "dsc_hidden": 16, "step": 5,
    } | settings  # fmt: skip
    return GLASS("cpu").load(
        backbone=small_network(seed), layers_to_extract_from=LAYERS, device="cpu", input_shape=(3, *size), **settings
    )


def small_batch(model, images=2, seed=0):
    """Images, the same with anomalies, masks: the inputs of a step; the model has its centre afterwards."""
    size = tuple(model.input_shape[1:])
    pictures = torch.randn(2, images, 3, *size, generator=torch.Generator().manual_seed(seed))
    masks = torch.zeros(images, *model.grid)
    masks[:, 1:3, 1:3] = 1
    with torch.no_grad():
        model.set_centre(model._embed(pictures[0])[0].unflatten(0, (images, -1)).mean(0))
    return (*pictures, masks)
