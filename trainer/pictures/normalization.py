"""How pictures are normalised for a tower; stated here and nowhere else."""

from typing import NamedTuple


class Normalization(NamedTuple):
    """What the tower expects: (pixel / 255 - mean) / std, for red, green and blue."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CLIP = Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NORMALIZATIONS = {"clip": CLIP, "imagenet": IMAGENET, "half": HALF}
