"""The settings of augmentation; free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.errors import ConfigError


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training pictures; evaluation never has any."""

    crop_scale: tuple[float, float] = (0.5, 1.0)  # share of the area that a crop keeps; (1, 1): no crops
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)  # width / height of a crop
    flip: float = 0.5  # probability; 0 where captions say left and right
    jitter: float = 0.0  # probability of the four changes of colour below
    brightness: float = 0.4  # factor between 1 - x and 1 + x
    contrast: float = 0.4  # likewise
    saturation: float = 0.4  # likewise
    hue: float = 0.1  # turns of the colour circle, either way
    grayscale: float = 0.0  # probability
    blur: float = 0.0  # probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels of the training picture

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grayscale", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}: it is a probability, from 0 to 1.")
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"augment.{name} is ({low}, {high}): give 0 < smallest <= largest.")
        if self.crop_scale[1] > 1:
            raise ConfigError(f"augment.crop_scale ends at {self.crop_scale[1]}: a crop keeps at most 1 of the area.")
        for name, largest in (("brightness", math.inf), ("contrast", math.inf), ("saturation", math.inf), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= largest:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}: give a number from 0 to {largest}.")

    @property
    def changes_pictures(self) -> bool:
        """Whether any training picture differs from the stored one."""
        return self.crop_scale != (1, 1) or any(getattr(self, name) for name in ("flip", "jitter", "grayscale", "blur"))
