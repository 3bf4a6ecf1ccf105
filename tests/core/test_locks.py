"""A lock names its owner, leaves no file, and is free as soon as its owner is dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import StorageError
from core.locks import lock


def test_a_lock_names_its_owner_and_leaves_no_file(tmp_path: Path) -> None:
    with lock(tmp_path / ".lock", "building shards"):
        with pytest.raises(StorageError, match=rf"in use by building shards \(process {os.getpid()} on "):
            with lock(tmp_path / ".lock", "another"):
                pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("child", ["", "os.fork() or time.sleep(5);"])  # a loader's worker, which outlives its owner
def test_the_lock_of_a_killed_owner_is_free(tmp_path: Path, child: str) -> None:
    code = "import os,sys,time; from core.locks import lock; from pathlib import Path\n"
    code += f"with lock(Path(sys.argv[1]), 'x'):\n {child} print('held', flush=True); time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / ".lock")], stdout=subprocess.PIPE)
    assert owner.stdout is not None and owner.stdout.readline() == b"held\n"
    with pytest.raises(StorageError, match=f"process {owner.pid}"):
        with lock(tmp_path / ".lock", "y"):
            pass
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with lock(tmp_path / ".lock", "y"):
        assert (tmp_path / ".lock").exists()
