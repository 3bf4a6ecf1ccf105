"""What moves the weights: an optimizer, its schedule, and a running average."""
