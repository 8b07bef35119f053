"""A run's model for others: the official layout, the model card, the upload."""
