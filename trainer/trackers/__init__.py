"""Where metrics go: `metrics.csv` in the run folder, always (the truth), and wandb and TensorBoard (views of it)."""
