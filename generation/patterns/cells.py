"""Patterns of cells around scattered points: cracks, crystals, dots.

Each function draws one pattern, a field of heights (CANVAS, CANVAS) in [0, 1], from a random generator.
"""

from __future__ import annotations

import numpy as np

from generation.patterns.fields import (
    CANVAS,
    COLUMNS,
    ROWS,
    Field,
    Rng,
    cell_values,
    find_regions,
    fractal,
    log_uniform,
    scatter,
    soft,
    spread,
    unit,
    wobble,
)


def cells(rng: Rng) -> Field:
    """Cells of different shades with edges between them."""
    regions = find_regions(scatter(rng, log_uniform(rng, 4, 36), rng.uniform(0.5, 1)))
    edge = soft(regions.border - rng.uniform(0, 4), rng.uniform(1, 6))
    return unit(edge * cell_values(rng, regions, rng.uniform(0.1, 0.9), 1) + rng.uniform(-0.2, 0.2) * (1 - edge))


def honeycomb(rng: Rng) -> Field:
    """Nearly hexagonal hollows."""
    across = log_uniform(rng, 5, 30)
    regions = find_regions(scatter(rng, across, rng.uniform(0, 0.25), staggered=True))
    depth = np.clip(regions.border / (CANVAS / across * rng.uniform(0.15, 0.5)), 0, 1)
    return unit(depth ** rng.uniform(0.3, 2) * cell_values(rng, regions, rng.uniform(0.5, 1), 1))


def cracks(rng: Rng) -> Field:
    """Rough ground with cracks of several generations."""
    across, ground = log_uniform(rng, 3, 14), spread(fractal(rng, 8, 6, 0.65), 3)
    height = 0.75 + rng.uniform(0.1, 0.5) * (ground - 0.5)
    for level in range(rng.integers(1, 4)):
        regions = find_regions(scatter(rng, across * 2.2**level, 1))
        width = rng.uniform(0.8, 5) / (level + 1) * (0.4 + 1.2 * ground)  # a crack is not equally wide everywhere
        gap = 1 - soft(regions.border - width, rng.uniform(1, 3))
        height = height * (1 - gap * 0.8**level) + rng.uniform(0, 0.06) * cell_values(rng, regions)
    return unit(wobble(rng, height.astype(np.float32), rng.uniform(2, 7), rng.uniform(8, 25)))


def crystals(rng: Rng) -> Field:
    """Tilted facets."""
    regions = find_regions(scatter(rng, log_uniform(rng, 3, 20), 1) * np.float32(rng.uniform(0.8, 1.2)))
    lean = rng.normal(0, 1, (len(regions.points), 2)).astype(np.float32)[regions.label]
    offset = [(axis - regions.points[:, i][regions.label]) for i, axis in enumerate((COLUMNS, ROWS))]
    facet = lean[..., 0] * offset[0] + lean[..., 1] * offset[1]
    return unit(spread(facet / facet.std()) + rng.uniform(0.2, 1) * cell_values(rng, regions))


def leather(rng: Rng) -> Field:
    """Fine and coarse grain, as of leather."""
    across = log_uniform(rng, 14, 50)
    fine, coarse = (find_regions(scatter(rng, n, 1)).border for n in (across, across / rng.uniform(2, 4)))
    height = np.clip(fine / (CANVAS / across * 0.4), 0, 1) ** 0.6 * soft(coarse - 1, 4)
    return unit(wobble(rng, height.astype(np.float32), 2.5, 20) + 0.08 * fractal(rng, 60, 3))


def bumps(rng: Rng) -> Field:
    """Round or conical bumps."""
    across = log_uniform(rng, 5, 36)
    regions = find_regions(scatter(rng, across, rng.choice([0.0, rng.uniform(0, 0.8)]), bool(rng.random() < 0.6)))
    slope = np.clip(1 - regions.near / (CANVAS / across * rng.uniform(0.45, 0.75)), 0, 1)
    round_top = rng.random() < 0.6
    return unit((np.sqrt(slope * (2 - slope)) if round_top else slope) * cell_values(rng, regions, 0.8, 1))


def dots(rng: Rng) -> Field:
    """Flat dots of different sizes."""
    across = log_uniform(rng, 4, 40)
    regions = find_regions(scatter(rng, across, rng.choice([0.0, rng.uniform(0, 0.7)]), bool(rng.random() < 0.5)))
    radius = CANVAS / across * cell_values(rng, regions, rng.uniform(0.1, 0.4), 0.4)
    inside = soft(radius - regions.near, rng.uniform(1, 5))
    return unit(inside * cell_values(rng, regions, rng.uniform(0.3, 1), 1))


def mesh(rng: Rng) -> Field:
    """A sheet with holes."""
    across = log_uniform(rng, 8, 45)
    regions = find_regions(scatter(rng, across, rng.uniform(0, 0.3), bool(rng.random() < 0.7)))
    hole = soft(CANVAS / across * rng.uniform(0.3, 0.5) - regions.near, 2)
    return unit(1 - hole + 0.15 * fractal(rng, 60, 2) * (1 - hole))
