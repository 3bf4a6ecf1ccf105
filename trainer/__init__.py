"""Shards -> checkpoint: data, augmentation, models, losses, the step, its proof, and the training loop."""
