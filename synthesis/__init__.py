"""The paper's two ideas: anomalies on the image (LAS) and on the features (GAS)."""
