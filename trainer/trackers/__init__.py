"""Where metrics go: `metrics.csv` in the run folder, always (the truth), and wandb (a view of it)."""
