"""Mutants that were looked at and change nothing that anybody may rely on: (file, before, after) -> the reason."""

_SLOWER = "the same pictures, more slowly"
UNCHANGED: dict[tuple[str, str, str], str] = {
    (
        "trainer/augment.py",
        "if not drawn.moves_pixels(images.shape[-2], images.shape[-1], self.size):",
        "if not drawn.moves_pixels(images.shape[-2], images.shape[1], self.size):",
    ): f"{_SLOWER}: each pixel is its own sum of one tap",
    (
        "trainer/resample.py",
        "num_taps = math.ceil(2 * support.max().item())",
        "num_taps = math.ceil(3 * support.max().item())",
    ): f"{_SLOWER}: the taps that are added have weight 0",
}
