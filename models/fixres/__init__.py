"""FixRes and FixEfficientNet: fine-tuning and activation statistics at another test size."""
