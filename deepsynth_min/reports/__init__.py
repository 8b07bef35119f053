"""Metrics for people: charts, one HTML page, TensorBoard and Weights & Biases."""
