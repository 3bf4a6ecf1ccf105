"""Our corruptions are those of `imagecorruptions`, which repackages the code of ImageNet-C, at 224 pixels.

Needs the peers (`make peers`); skips without them. Noise is drawn by other generators: its distribution is tested in
tests/eval/test_corruptions.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from smooth_photos import photo

from eval.corruptions import SEVERITIES, corrupt

PEERS = Path(__file__).resolve().parents[2] / ".peers"
# It is older than its libraries: it asks for names that scipy, scikit-image and setuptools have no more.
PROGRAM = """
import sys, types
import numpy as np, scipy.ndimage
missing = types.ModuleType("pkg_resources")
missing.resource_filename = None
sys.modules.setdefault("pkg_resources", missing)
sys.modules.setdefault("scipy.ndimage.interpolation", scipy.ndimage)
import skimage.filters
newer = skimage.filters.gaussian
skimage.filters.gaussian = lambda image, sigma, multichannel: newer(image, sigma=sigma, channel_axis=-1)
from imagecorruptions import corrupt
picture, name, severities = np.load(sys.argv[1]), sys.argv[2], range(1, 6)
np.save(sys.argv[3], np.stack([corrupt(picture, corruption_name=name, severity=s) for s in severities]))
"""


@pytest.mark.parametrize(
    "name", ["gaussian_blur", "defocus_blur", "contrast", "brightness", "jpeg_compression", "pixelate"]
)
def test_pixels_are_those_of_imagecorruptions(tmp_path: Path, name: str) -> None:
    if not (PEERS / "imagecorruptions").is_dir():
        pytest.skip("imagecorruptions is not installed (make peers)")
    picture = photo(224)
    np.save(tmp_path / "picture.npy", picture.transpose(1, 2, 0))
    # In a process of its own: the peers bring other versions of what we use.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "picture.npy"), name, str(tmp_path / "out.npy")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PEERS)},
    )
    assert done.returncode == 0, done.stderr
    theirs = np.load(tmp_path / "out.npy").transpose(0, 3, 1, 2).astype(int)
    for severity, wanted in zip(SEVERITIES, theirs, strict=True):
        found = corrupt(torch.from_numpy(picture)[None], np.array([0]), name, severity)[0].numpy().astype(int)
        # Their rounding errors decide whether a whole level, as in flat parts, is cut to the one below it.
        assert np.isin(found - wanted, (0, 1)).all(), severity
        assert (found != wanted).mean() < 0.15, severity
