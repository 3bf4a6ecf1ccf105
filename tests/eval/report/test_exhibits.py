"""Pictures for people come from any of several sets, each by its own codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from shard_sets import make_shard_set

from core.shard_set import ShardSet
from eval.report.exhibits import Shelf


def test_thumbnails_of_sets_of_two_codecs(tmp_path: Path) -> None:
    urls = [make_shard_set(tmp_path / codec, 4, codec=codec, seed=3) for codec in ("jpeg", "raw")]
    shelf = Shelf(ShardSet.open(urls), tmp_path / "pictures", "sample")
    first, second = (np.asarray(Image.open(tmp_path / "pictures" / shelf.picture(n)), float) for n in (1, 5))
    assert np.abs(first - second).mean() < 12  # the same picture, stored twice
