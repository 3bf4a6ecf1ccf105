"""The workers behind a loader: how far they are ahead, how they die, what they measure."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from shard_sets import make_shard_set

from core.errors import DataError
from core.shard_index import IMAGE
from core.shard_set import ShardSet
from trainer.data import stream, workers
from trainer.data.batch import Batch
from trainer.data.columns import BatchColumns
from trainer.data.loader import TrainLoader

N, G = 47, 8


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_shard_set(tmp_path_factory.mktemp("set"), N, num_captions=1)


@pytest.fixture
def shard_set(url: str) -> ShardSet:
    return ShardSet.open(url)


@pytest.mark.parametrize(("num_workers", "prefetch"), [(1, 2), (1, 5), (2, 4), (3, 1)])
@pytest.mark.parametrize("part_rows", [3, 128])
def test_as_many_batches_are_decoded_ahead_as_asked_for_and_buffers_suffice(
    shard_set: ShardSet, num_workers: int, prefetch: int, part_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_MAX_PART_ROWS", part_rows)
    asked: list[int] = []

    def plan() -> Iterator[stream.PlannedBatch]:
        for step in range(60):
            asked.append(step)
            samples = np.arange(step, step + G) % N
            yield stream.PlannedBatch(0, step, samples, samples)

    batches = stream.BatchStream(
        shard_set,
        BatchColumns({}, "drawn"),
        max_rows=G,
        num_workers=num_workers,
        prefetch=prefetch,
        pin_memory=False,
        max_damaged=0,
    )
    batches.start(plan())
    waiting = 2 * num_workers // -(-G // part_rows)  # every worker has a task, and one that waits
    kept: deque[Batch] = deque(maxlen=3)  # the batch in use, and two on their way to the device
    for taken in range(1, 41):
        kept.append(batches.take())
        assert max(prefetch, waiting) <= len(asked) - taken <= max(prefetch, 2 * num_workers) + 2
    for batch in kept:
        assert batch.samples.tolist() == (np.arange(batch.step, batch.step + G) % N).tolist()
        pixels = simplejpeg.decode_jpeg(bytes(shard_set.member(int(batch.samples[-1]), IMAGE)))
        assert batch.images is not None and (batch.images[-1].permute(1, 2, 0).numpy() == pixels).all()
    batches.close()


def test_memory_grows_with_prefetch_and_not_with_workers_times_the_batch() -> None:
    for num_workers in (0, 1, 4, 16):
        assert stream.max_in_flight(4096, num_workers, 3) <= 2 + 3
        assert stream.max_in_flight(256, num_workers, 3) <= 2 + max(3, num_workers)


def test_a_killed_worker_is_an_error_and_no_hang(shard_set: ShardSet) -> None:
    # torch's own handler raises where the signal finds the process: within the loader, or now and then just outside.
    kinds = [_error_of_a_killed_worker(shard_set) for _ in range(4)]
    assert kinds.count(DataError) >= 1, kinds


def _error_of_a_killed_worker(shard_set: ShardSet) -> type[BaseException]:
    others = set(children())
    loader = TrainLoader(shard_set, global_batch_size=G, num_workers=2)
    batches = loader.epoch(0)
    next(batches)
    start = time.monotonic()
    with pytest.raises((DataError, RuntimeError), match="worker") as caught:
        os.kill((set(children()) - others).pop(), signal.SIGKILL)
        for epoch in range(1, 100_000):
            list(batches)
            batches = loader.epoch(epoch)
    assert time.monotonic() - start < 20
    assert caught.type is not DataError or "memory" in str(caught.value)
    loader.close()
    return caught.type


def test_workers_outlive_signals_of_the_scheduler_but_not_their_trainer(shard_set: ShardSet) -> None:
    others = set(children())
    loader = TrainLoader(shard_set, global_batch_size=G, num_workers=1)
    next(loader.epoch(0))
    (worker,) = set(children()) - others
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        subprocess.run(["kill", f"-{number.value}", str(worker)], check=True)  # another process than the trainer
    time.sleep(0.2)
    assert len(list(loader.epoch(1))) == N // G
    loader.close()
    gc.collect()
    assert worker not in children()


def test_a_worker_ends_when_its_trainer_says(shard_set: ShardSet) -> None:
    others = set(children())
    loader = TrainLoader(shard_set, global_batch_size=G, num_workers=1)
    next(loader.epoch(0))
    (worker,) = set(children()) - others
    os.kill(worker, signal.SIGTERM)  # as Python does at its end with daemons that were forgotten
    deadline = time.monotonic() + 10
    while (ended := os.waitid(os.P_PID, worker, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is None:
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.01)
    assert (ended.si_code, ended.si_status) == (os.CLD_EXITED, 0)
    loader.close()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "DataLoader worker (pid 7) is killed by signal: Killed. ",
            "died: (pid 7) is killed by signal: Killed. If kil",
        ),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "died: (pid(s) 7, 8) exited unexpectedly. If killed"),
        ("CUDA error: out of memory", None),
    ],
)
def test_only_the_death_of_a_worker_is_explained(
    shard_set: ShardSet, words: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's words for it, without the death itself: that is above."""

    def fails(loader: object) -> Iterator[object]:
        raise RuntimeError(words)

    monkeypatch.setattr(stream.DataLoader, "__iter__", fails)
    with pytest.raises(DataError if expected else RuntimeError) as caught:
        next(TrainLoader(shard_set, global_batch_size=G).epoch(0))
    assert (expected or words) in str(caught.value)


def test_a_program_that_forgets_to_close_its_loader_ends(url: str) -> None:
    code = (
        "from core.shard_set import ShardSet\nfrom trainer.data.loader import TrainLoader\n"
        f"loader = TrainLoader(ShardSet.open({url!r}), global_batch_size=8, num_workers=2)\n"
        "batches = loader.epoch(0)\nprint(next(batches).step)\n"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_times_are_measured_in_the_workers(shard_set: ShardSet) -> None:
    batch = next(TrainLoader(shard_set, global_batch_size=G).epoch(0))
    assert 0 < batch.read_s < 1 and 0 < batch.decode_s < 1 and 0 < batch.collate_s < 1


@pytest.mark.parametrize("slow", ["read_s", "decode_s"])
def test_reading_and_decoding_are_measured_apart(
    shard_set: ShardSet, slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowed(act: Callable[..., object]) -> Callable[..., object]:
        def slowly(*given: object) -> object:
            time.sleep(0.02)
            return act(*given)

        return slowly

    if slow == "read_s":
        monkeypatch.setattr(ShardSet, "member", slowed(ShardSet.member))
    else:
        monkeypatch.setattr(workers, "decode_into", slowed(workers.decode_into))
    batches = list(TrainLoader(shard_set, global_batch_size=G, columns={}).epoch(0, 3))
    quick = {"read_s": "decode_s", "decode_s": "read_s"}[slow]
    for batch in batches:  # each has its own time, not that of those before it
        assert 0.02 * G <= getattr(batch, slow) < 0.02 * G * 1.9 and getattr(batch, quick) < 0.02 * G


IDLE = """
import sys, time
from core.shard_set import ShardSet
from trainer.data.loader import TrainLoader
loader = TrainLoader(ShardSet.open(sys.argv[1]), global_batch_size=32, num_workers=2)
batches = loader.epoch(0)
next(batches)
print("begun", flush=True)
time.sleep(600)
"""


def test_workers_end_with_a_trainer_that_was_killed(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path / "wide", 256, embed_dim=4096)  # more than a pipe holds: they wait to hand it over
    with subprocess.Popen([sys.executable, "-c", IDLE, url], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None and trainer.stdout.readline() == "begun\n"
        workers = [int(pid) for pid in Path(f"/proc/{trainer.pid}/task/{trainer.pid}/children").read_text().split()]
        time.sleep(2)  # until they have filled the pipe
        trainer.kill()
    deadline = time.monotonic() + 15
    while alive := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"{len(alive)} of {len(workers)} workers wait for nobody"
        time.sleep(0.1)
    assert len(workers) == 2


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def test_more_workers_than_cores_are_no_warning(shard_set: ShardSet) -> None:
    """A machine may have fewer cores than a recipe's default of workers: PyTorch would tell at each run."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        batches = stream.BatchStream(
            shard_set,
            BatchColumns({}, "drawn"),
            max_rows=G,
            num_workers=len(os.sched_getaffinity(0)) + 1,
            prefetch=1,
            pin_memory=False,
            max_damaged=0,
        )
        batches.start([stream.PlannedBatch(0, 0, np.arange(G), np.arange(G))])
        batches.take()
        batches.close()
    assert not said
