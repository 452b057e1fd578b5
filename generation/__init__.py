"""Pictures that are made and not taken: textures, demo parts, weak defects."""
