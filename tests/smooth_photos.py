"""Pictures with what corruptions act on: large and small structures, full black and white, flat parts."""

import numpy as np
from scipy import ndimage


def photo(size, seed=0):
    """`(3, S, S)` uint8."""
    rng = np.random.default_rng(seed)
    picture = ndimage.gaussian_filter(rng.normal(size=(3, size, size)), (0, size / 20, size / 20))
    picture = 128 + 90 * picture / picture.std() + rng.normal(0, 8, picture.shape)
    picture[:, : size // 8, : size // 3] = 255
    picture[:, -size // 8 :, -size // 3 :] = 0
    return np.clip(picture, 0, 255).astype(np.uint8)
