"""Training pictures from stored ones, on the device, a batch at a time."""
