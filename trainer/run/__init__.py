"""One run: opening it, its parts, its folder, its state."""
