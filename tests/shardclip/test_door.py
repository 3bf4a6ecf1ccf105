"""`import shardclip` is quick, loads nothing heavy, and leads to everything that it names."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

import shardclip

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "torchvision", "transformers", "webdataset", "numpy", "PIL"}
IMPORT_S = 0.5


def test_the_import_is_quick_and_loads_nothing_heavy() -> None:
    program = (
        "import sys, time; began = time.perf_counter(); import shardclip; took = time.perf_counter() - began; "
        "print(took, sorted(name.split('.')[0] for name in sys.modules))"
    )
    times = []
    for _ in range(3):  # of a busy machine the quickest counts
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
        took, _, loaded = done.stdout.partition(" ")
        times.append(float(took))
        assert not HEAVY & set(eval(loaded))
    assert min(times) < IMPORT_S


def test_opening_a_set_needs_no_torch(tmp_path: Path) -> None:
    from shard_sets import make_shard_set

    url = make_shard_set(tmp_path, 3)
    program = (
        f"import sys, shardclip; shards = shardclip.open_shards({url!r}); shards[1]; print('torch' in sys.modules)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
    assert time.perf_counter() - began < 60


def test_every_name_leads_somewhere() -> None:
    for name in shardclip.__all__:
        assert getattr(shardclip, name).__doc__
    assert dir(shardclip) == sorted(shardclip.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        _ = shardclip.lode  # type: ignore[attr-defined]


def test_its_types_are_for_others_too() -> None:
    found = importlib.util.find_spec("shardclip")
    assert found and found.origin and (Path(found.origin).parent / "py.typed").exists()
