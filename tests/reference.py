"""The slow, obvious form of what the product does fast. Written from the method, one statement a sentence of it."""

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F


def neighbourhoods(x, p):
    """(B, C, H, W) → (B, H, W, C·p²): each location's p×p neighbourhood in (channel, row, column) order."""
    batch, channels, height, width = x.shape
    padded = F.pad(x, [p // 2] * 4)
    out = x.new_empty(batch, height, width, channels * p * p)
    for row in range(height):
        for column in range(width):
            out[:, row, column] = padded[:, :, row : row + p, column : column + p].reshape(batch, -1)
    return out


def adaptive_pool(x, size):
    """(…, L) → (…, size): bin i averages entries floor(i·L/size) to ceil((i+1)·L/size)."""
    length = x.shape[-1]
    bins = [(i * length // size, math.ceil((i + 1) * length / size)) for i in range(size)]
    return torch.stack([x[..., a:b].mean(-1) for a, b in bins], dim=-1)


def unfold_embed(maps, p, pretrain_dim, target_dim):
    """The embedding by unfolding, as the published code does it, with torch's operations: the speed reference."""
    grid = maps[0].shape[2:]
    layers = []
    for x in maps:
        batch, channels, height, width = x.shape
        y = F.unfold(x, p, padding=p // 2).reshape(batch, channels, p, p, height, width)
        if (height, width) != tuple(grid):
            y = y.reshape(-1, 1, height, width)
            y = F.interpolate(y, size=grid, mode="bilinear", align_corners=False)
            y = y.reshape(batch, channels, p, p, *grid)
        y = y.permute(0, 4, 5, 1, 2, 3).reshape(-1, 1, channels * p * p)
        layers.append(F.adaptive_avg_pool1d(y, pretrain_dim).squeeze(1))
    features = torch.stack(layers, dim=1).reshape(len(layers[0]), 1, -1)
    return F.adaptive_avg_pool1d(features, target_dim).squeeze(1)


def embed(maps, p, pretrain_dim, target_dim):
    """Steps 2 to 5 of the patch embedding: [(B, C_l, H_l, W_l), …] → (B·H'·W', C)."""
    grid = maps[0].shape[2:]
    layers = []
    for x in maps:
        described = neighbourhoods(x, p).permute(0, 3, 1, 2)
        if described.shape[2:] != grid:
            described = F.interpolate(described, size=grid, mode="bilinear", align_corners=False)
        layers.append(adaptive_pool(described.permute(0, 2, 3, 1), pretrain_dim))
    return adaptive_pool(torch.cat(layers, dim=-1), target_dim).flatten(0, 2)


def embed_channels(maps, p):
    """The embedding that keeps channels apart: [(B, C_l, H_l, W_l), …] → (B·H'·W', sum of C_l)."""
    grid = maps[0].shape[2:]
    layers = []
    for x in maps:
        described = neighbourhoods(x, p).unflatten(3, (x.shape[1], p * p)).mean(4).permute(0, 3, 1, 2)
        if described.shape[2:] != grid:
            described = F.interpolate(described, size=grid, mode="bilinear", align_corners=False)
        layers.append(described.permute(0, 2, 3, 1))
    return torch.cat(layers, dim=-1).flatten(0, 2)


def quantile(x, q):
    return torch.tensor(np.quantile(x.detach().double().numpy(), q), dtype=torch.float32)


def onto_ring(x, q, low, high):
    h = x - q
    norm = torch.sqrt((h * h).sum(1))
    return q + h * (torch.clamp(norm, low, high) / (norm + 1e-10))[:, None]


def train_loss(discriminator, t, u, c, mask, noise, *, svd, step, mining, radius, p, margin):
    """One training step up to its loss. t, u, c, noise (N, C), mask (N,) bool. Returns the figures, loss with graph."""
    n = len(t)
    r_t = quantile(torch.cat([(u[~mask] - c[~mask]).norm(dim=1), (t - c).norm(dim=1)]), radius)
    r_f = quantile((u[mask] - c[mask]).norm(dim=1), radius)
    g = t + noise
    r_g = None
    for k in range(step + 1):
        s = discriminator(torch.cat([t, g]))[:, 0]
        loss_n = -torch.log(1 - s[:n]).mean()
        loss_g = -torch.log(s[n:]).mean()
        if k == step or not mining:
            break
        gradient = torch.autograd.grad(loss_g, g, retain_graph=True)[0]
        g = g + 0.001 * gradient.detach() / (gradient.detach().norm(dim=1, keepdim=True) + 1e-10)
        if (k + 1) % 5 == 0:
            r_g = quantile((g - c).norm(dim=1), radius)
            g = onto_ring(g, c, r_t, 2 * r_t) if svd else onto_ring(g, t, 0.5, 1.0)
    if r_g is None:
        r_g = quantile((g - c).norm(dim=1), radius)
    if svd:
        moved = onto_ring(u, c, 2 * r_t, 4 * r_t)
        u = torch.stack([moved[i] if mask[i] else u[i] for i in range(n)])
    v = discriminator(u)[:, 0]
    d = (v - mask.float()) ** 2
    hard = d >= quantile(d, p) if p > 0 else torch.ones(n, dtype=bool)
    y = torch.stack([(~mask).float(), mask.float()], dim=1).clamp(1e-5, 1 - 1e-5)
    pt = (y * torch.stack([1 - v, v], dim=1)).sum(1)[hard] + 1e-5
    loss = loss_n + loss_g + (-((1 - pt) ** 2) * torch.log(pt)).mean()
    true, fake = torch.cat([s[:n], v[~mask]]), torch.cat([s[n:], v[mask]])
    return {
        "loss": loss,
        "p_true": (true < margin).float().mean(),
        "p_fake": (fake >= margin).float().mean(),
        "r_t": r_t, "r_g": r_g, "r_f": r_f,
    }  # fmt: skip


def project_to_ring(x, centre, low, high):
    """Rows of x moved along their ray from `centre` so that their distance lies in [low, high]."""
    offset = x - centre
    norm = offset.norm(dim=1, keepdim=True)
    return centre + offset * (norm.clamp(low, high) / (norm + 1e-10))


def both_halves(discriminator, true, fake):
    scores = discriminator(torch.cat([true, fake])).squeeze(1)
    return scores[: len(true)], scores[len(true) :]


def direct_gas(discriminator, true, noise, centre, *, r_t, svd, step, mining, radius):
    """Gradient ascent on the features themselves, D asked anew for each update: the speed reference."""
    fake, r_g = true + noise, None
    for k in range(1, (step if mining else 0) + 1):
        start = fake.detach().requires_grad_(True)
        scores = both_halves(discriminator, true.detach(), start)[1]
        (gradient,) = torch.autograd.grad(F.binary_cross_entropy(scores, torch.ones_like(scores)), start)
        fake = fake + 0.001 * gradient / (gradient.norm(dim=1, keepdim=True) + 1e-10)
        if k % 5 == 0:
            r_g = torch.quantile((fake - centre).detach().norm(dim=1), radius)
            ring = (centre, r_t, 2 * r_t) if svd else (true, 0.5, 1.0)
            fake = project_to_ring(fake, *ring)
    if r_g is None:
        r_g = torch.quantile((fake - centre).detach().norm(dim=1), radius)
    s_t, s_g = both_halves(discriminator, true, fake)
    loss = F.binary_cross_entropy(s_t, torch.zeros_like(s_t)) + F.binary_cross_entropy(s_g, torch.ones_like(s_g))
    return loss, s_t, s_g, r_g


def direct_step(model, embed, image, aug, mask_s):
    """A training step of a model in the direct form, its parts by torch's own operations: the speed reference."""
    for optimiser in model.optimisers.values():
        optimiser.zero_grad()
    model.discriminator.train()
    project = model.pre_projection or torch.nn.Identity()
    true, local = project(embed(image)), project(embed(aug))
    mask = mask_s.flatten() > 0
    centre = model.c.repeat(len(image), 1)
    distance = (local.detach() - centre).norm(dim=1)
    r_t = torch.quantile(torch.cat([distance[~mask], (true.detach() - centre).norm(dim=1)]), model.radius)
    r_f = torch.quantile(distance[mask], model.radius)
    noise = torch.randn(true.shape, generator=model.generator) * model.noise
    settings = dict(r_t=r_t, svd=model.svd, step=model.step, mining=model.mining, radius=model.radius)
    loss, s_t, s_g, r_g = direct_gas(model.discriminator, true, noise, centre, **settings)
    if model.svd:
        local = torch.where(mask[:, None], project_to_ring(local, centre, 2 * r_t, 4 * r_t), local)
    v = model.discriminator(local).squeeze(1)
    difficulty = (v.detach() - mask.float()) ** 2
    hard = difficulty >= torch.quantile(difficulty, model.p) if model.p > 0 else torch.ones_like(mask)
    y = torch.stack([~mask, mask], dim=1).float().clamp(1e-5, 1 - 1e-5)
    pt = (y * torch.stack([1 - v, v], dim=1)).sum(1)[hard] + 1e-5
    loss = loss + (-((1 - pt) ** 2) * torch.log(pt)).mean()
    loss.backward()
    for optimiser in model.optimisers.values():
        optimiser.step()
    true_scores, fake_scores = torch.cat([s_t, v[~mask]]).detach(), torch.cat([s_g, v[mask]]).detach()
    return {
        "loss": loss.detach(),
        "p_true": (true_scores < model.dsc_margin).float().mean(),
        "p_fake": (fake_scores >= model.dsc_margin).float().mean(),
        "r_t": r_t, "r_g": r_g, "r_f": r_f,
    }  # fmt: skip


def segment(scores, size):
    """The anomaly map of an image from its patch scores: bilinear, then scipy's Gaussian."""
    from scipy.ndimage import gaussian_filter

    large = F.interpolate(scores[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    return gaussian_filter(large.numpy(), sigma=4)


def pro(masks, maps, limit):
    """PRO with every distinct score a threshold, region by region, interpolated at the limit."""
    regions = []
    for mask, one_map in zip(masks, maps, strict=True):
        count, labels = cv2.connectedComponents((mask > 0).astype(np.uint8), connectivity=8)
        regions += [one_map[labels == i] for i in range(1, count)]
    normal = np.concatenate([one_map[mask == 0] for mask, one_map in zip(masks, maps, strict=True)])
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        rates.append((normal >= threshold).mean())
        overlaps.append(np.mean([(region >= threshold).mean() for region in regions]))
    at_limit = np.interp(limit, rates, overlaps)
    inside = [i for i, rate in enumerate(rates) if rate <= limit]
    x = [rates[i] for i in inside] + [limit]
    y = [overlaps[i] for i in inside] + [at_limit]
    return sum((x[i + 1] - x[i]) * (y[i + 1] + y[i]) / 2 for i in range(len(x) - 1)) / limit


def pro_published(masks, maps):
    """The published variant with every thresholded map dilated."""
    low, high = maps.min(), maps.max()
    points = []
    for threshold in np.arange(low, high, (high - low) / 200):
        overlaps = []
        for mask, one_map in zip(masks, maps, strict=True):
            wide = cv2.dilate((one_map > threshold).astype(np.uint8), np.ones((5, 5), np.uint8))
            count, labels = cv2.connectedComponents((mask > 0).astype(np.uint8), connectivity=8)
            overlaps += [wide[labels == i].mean() for i in range(1, count)]
        points.append(((maps[masks == 0] > threshold).mean(), np.mean(overlaps)))
    points = sorted(point for point in points if point[0] < 0.3)
    rates, overlaps = np.array(points).T
    rates = (rates - rates.min()) / (rates.max() - rates.min() + 1e-10)
    return np.trapezoid(overlaps, rates)


def perlin_noise(angles, size, cells):
    """Perlin noise pixel by pixel from the angles of the corner gradients."""
    height, width = math.ceil(size[0] / cells[0]), math.ceil(size[1] / cells[1])

    def fade(t):
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    def lerp(a, b, w):
        return a + w * (b - a)

    out = np.empty(size)
    for row in range(size[0]):
        for column in range(size[1]):
            i, j = row // height, column // width
            y, x = row % height / height, column % width / width
            corner = {
                (a, b): math.cos(angles[i + a, j + b]) * (y - a) + math.sin(angles[i + a, j + b]) * (x - b)
                for a in (0, 1)
                for b in (0, 1)
            }
            top = lerp(corner[0, 0], corner[1, 0], fade(y))
            bottom = lerp(corner[0, 1], corner[1, 1], fade(y))
            out[row, column] = math.sqrt(2) * lerp(top, bottom, fade(x))
    return out


def perlin_noise_repeated(rng, size, cells):
    """Perlin noise as the published code makes it: the corners' gradients repeated for each pixel, in float64."""
    height, width = (-(-size[i] // cells[i]) * cells[i] for i in (0, 1))
    steps = cells[0] / height, cells[1] / width
    offset = np.mgrid[0 : cells[0] : steps[0], 0 : cells[1] : steps[1]].transpose(1, 2, 0)[:height, :width] % 1
    angles = 2 * np.pi * rng.random((cells[0] + 1, cells[1] + 1))
    gradients = np.dstack((np.cos(angles), np.sin(angles)))

    def corner(a, b):
        part = gradients[a : cells[0] + a, b : cells[1] + b]
        part = np.repeat(np.repeat(part, height // cells[0], axis=0), width // cells[1], axis=1)
        return (np.dstack((offset[..., 0] - a, offset[..., 1] - b)) * part).sum(axis=-1)

    fade = 6 * offset**5 - 15 * offset**4 + 10 * offset**3
    left = corner(0, 0) + fade[..., 0] * (corner(1, 0) - corner(0, 0))
    right = corner(0, 1) + fade[..., 0] * (corner(1, 1) - corner(0, 1))
    return (math.sqrt(2) * (left + fade[..., 1] * (right - left)))[: size[0], : size[1]]


def perlin_mask(rng, size, rotate):
    """Two thresholded, rotated noises: their union, their intersection or the first."""
    masks = []
    for _ in range(2):
        cells = [int(c) for c in 2 ** rng.integers(0, 6, size=2)]
        masks.append(rotate(perlin_noise_repeated(rng, size, cells), rng.uniform(-90, 90)) > 0.5)
    kind = rng.integers(3)
    return (masks[0] | masks[1], masks[0] & masks[1], masks[0])[kind]


def training_sample(rng, image_path, texture_path, size, grid, operations, rotate):
    """A training sample made directly: both files read, each transformed by torchvision, the mask, the blend."""
    import torchvision.transforms as T
    from PIL import Image

    finish = [T.CenterCrop(size), T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    image = T.Compose([T.Resize(size), *finish])(Image.open(image_path).convert("RGB"))
    texture = T.Resize(size)(Image.open(texture_path).convert("RGB"))
    for index in rng.choice(len(operations), 3, replace=False):
        texture = operations[index](texture, rng)
    texture = T.Compose(finish)(texture)
    mask_s = torch.zeros(1)
    while not mask_s.any():
        mask = torch.from_numpy(perlin_mask(rng, (size, size), rotate)).float()
        mask_s = F.adaptive_max_pool2d(mask[None], grid)
    beta = float(np.clip(rng.normal(0.5, 0.1), 0.2, 0.8))
    return image, image * (1 - mask) + (1 - beta) * texture * mask + beta * image * mask, mask_s[0]


def regions(anomaly_map, threshold, min_area=1):
    """The regions above a threshold by flood fill: (box, area, centre, peak), the highest peak first."""
    height, width = anomaly_map.shape
    left, found = {(y, x) for y in range(height) for x in range(width) if anomaly_map[y, x] > threshold}, []
    while left:
        waiting, region = [left.pop()], []
        while waiting:
            y, x = waiting.pop()
            region.append((y, x))
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= around
            waiting += around
        if len(region) < min_area:
            continue
        ys, xs = zip(*region, strict=True)
        box = (min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1)
        peak = max(float(anomaly_map[y, x]) for y, x in region)
        found.append((box, len(region), (sum(xs) / len(xs), sum(ys) / len(ys)), peak))
    return sorted(found, key=lambda region: (-region[3], region[0][1], region[0][0], region[2]))
