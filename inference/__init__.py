"""A trained model in use: from a checkpoint and an image to a decision."""
