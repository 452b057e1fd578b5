"""All patterns by name: fields of heights that textures start from."""

from __future__ import annotations

from generation.patterns import cells, drawn, noise, rounded, straight
from generation.patterns.fields import Field, Pattern, Rng, fractal, log_uniform, soft, unit


def _layers(rng: Rng) -> Field:
    """Two patterns, one showing where the other has come off."""
    first, second = (PATTERNS[i][1](rng) for i in rng.choice(len(PATTERNS) - 1, 2, replace=False))
    bare = soft(fractal(rng, log_uniform(rng, 2, 8), 5, 0.6) - rng.uniform(-0.5, 0.5), log_uniform(rng, 0.1, 1.5))
    return unit(first * (1 - bare) + (second * rng.uniform(0.3, 1) + rng.uniform(-0.5, 0.5)) * bare)


# the order decides which texture an index means
PATTERNS: tuple[tuple[str, Pattern], ...] = (
    ("noise", noise.clouds), ("stripes", straight.stripes), ("checks", straight.checks), ("cells", cells.cells),
    ("cracks", cells.cracks), ("dots", cells.dots), ("gradient", noise.gradient), ("marble", noise.marble),
    ("ridges", noise.ridges), ("agate", noise.agate), ("labyrinth", noise.labyrinth), ("blotches", noise.blotches),
    ("sand", noise.sand), ("brushed", noise.brushed), ("folds", noise.folds), ("bands", straight.bands),
    ("zigzag", straight.zigzag), ("blocks", straight.blocks), ("plaid", straight.plaid), ("lattice", straight.lattice),
    ("bricks", straight.bricks), ("weave", straight.weave), ("knit", straight.knit),
    ("herringbone", straight.herringbone), ("linen", straight.linen), ("halftone", straight.halftone),
    ("moire", straight.moire), ("ornament", straight.ornament), ("honeycomb", cells.honeycomb),
    ("crystals", cells.crystals), ("leather", cells.leather), ("bumps", cells.bumps), ("mesh", cells.mesh),
    ("wood", rounded.wood), ("rings", rounded.rings), ("rays", rounded.rays), ("bubbles", rounded.bubbles),
    ("stains", rounded.stains), ("scratches", drawn.scratches), ("crosshatch", drawn.crosshatch),
    ("fibres", drawn.fibres), ("webs", drawn.webs), ("flecks", drawn.flecks),
    ("layers", _layers),  # last: it draws from those before it
)  # fmt: skip
