"""A trained model in use: from a checkpoint and a picture to a decision."""
