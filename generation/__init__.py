"""Generated images: procedural textures, demo data, test sets of weak defects."""
