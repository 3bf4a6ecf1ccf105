"""What every test may use: real photographs where they are, one torch thread, no hubs."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("MTEB_CACHE", str(Path(tempfile.gettempdir()) / "shardclip-tests-mteb"))  # made at its import

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".peers"  # made by `make peers`; last on the path, so that it hides nothing of ours
if PEERS.is_dir():
    sys.path.append(str(PEERS))
SHARED_DATA = Path(os.environ.get("SHARDCLIP_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photographs; the test skips, visibly, where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real photographs at {SHARED_DATA} (set SHARDCLIP_DATA)")
    return SHARED_DATA


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> None:
    """Two cores are shared by processes of distributed tests: one thread each is quicker and repeatable."""
    import torch

    torch.set_num_threads(1)
