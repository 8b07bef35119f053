"""What a model is, in numbers: shapes, presets, config.json in and out."""
