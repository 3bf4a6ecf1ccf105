"""What moves the weights: AdamW, its schedule, and a running average."""
