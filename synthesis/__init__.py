"""The paper's two ideas: anomalies in the image (LAS) and in the features (GAS)."""
