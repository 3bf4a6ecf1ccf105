"""What a run measures of itself, and what the figures are called."""
