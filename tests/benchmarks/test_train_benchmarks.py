"""What the benchmarks of loss, recall and training rest on: peaks are seen, logs read, protocols what they say."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from benchmarks.loss import _growth
from benchmarks.measure import ROOT
from benchmarks.recall import _features
from benchmarks.train import _job
from benchmarks.train_open_clip import _read_log
from eval.metrics import FeatureSet

PEAK = """
import numpy as np
from benchmarks.memory import peak_above
np.ones(50 * 2**20, np.uint8)  # held before, and given back: not to be counted, nor to hide what follows
kept = np.ones(10 * 2**20, np.uint8)
print(peak_above(lambda: len(np.ones(30 * 2**20, np.uint8)) + len(np.ones(20 * 2**20, np.uint8)))[1] / 2**20)
"""
LOG = """
2026-11-21,01:24:49 | INFO | Train Epoch: 0 [ 64/640 (10%)] Data (t): 0.900 Batch (t): 2.000, 25.9/s, 25.9/s/gpu
2026-11-21,01:24:57 | INFO | Train Epoch: 0 [384/640 (60%)] Data (t): 0.300 Batch (t): 1.500, 42.1/s, 42.1/s/gpu
2026-11-21,01:25:00 | INFO | Train Epoch: 0 [512/640 (80%)] Data (t): 0.100 Batch (t): 1.000, 39.9/s, 39.9/s/gpu
2026-11-21,01:25:04 | INFO | Train Epoch: 0 [640/640 (100%)] Data (t): 0.050 Batch (t): 0.500, 39.9/s, 39.9/s/gpu
"""


def test_peak_memory_is_the_most_that_was_held_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 29.5 <= float(done.stdout) <= 33  # the kernel counts in batches of pages


def test_open_clips_log_is_read_after_the_first_steps_each_line_by_its_steps() -> None:
    job = _job("cpu", steps=5, warm_steps=5, workers=1)
    assert _read_log(LOG, job) == pytest.approx({"images_per_s": 4 * 64 / 3, "wait_share": 0.3 / 3})
    with pytest.raises(RuntimeError, match="no line after step 5"):
        _read_log("", job)


def test_memory_that_grows_with_the_square_has_slope_two() -> None:
    assert _growth((512, 1024, 2048), (1, 4, 16)).endswith("log-log slope 2.00")


@pytest.mark.parametrize(
    ("protocol", "num_rows", "num_texts"),
    [("all captions", 1000, 5002), ("one caption per image", 1000, 1000), ("pairs", 5000, 5000)],
)
def test_every_protocol_gives_a_whole_feature_set(protocol: str, num_rows: int, num_texts: int) -> None:
    features = FeatureSet(*_features(1000, protocol))
    assert (len(features.images), len(features.texts)) == (num_rows, num_texts)
    if protocol == "pairs":
        np.testing.assert_array_equal(features.images[0], features.images[4])
