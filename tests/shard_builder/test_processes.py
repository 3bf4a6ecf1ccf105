"""The processes engine: every result once, one clear error for every kind of failure, no orphan, no hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import engine_tasks
import pytest
from engine_tasks import Parts

from core.errors import ConfigError, DataError, ShardclipError
from core.image import imaging_library
from shard_builder.engines.processes import ProcessesEngine, pillow_simd_folder

ROOT = Path(__file__).resolve().parents[2]


def ignore(position: int) -> None:
    pass


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_task_gives_its_result_once(workers: int) -> None:
    tasks = [Parts(str(number)) for number in range(7)]
    with ProcessesEngine(workers) as engine:
        results = {task.name: result for task, result in engine.run(engine_tasks.count, tasks, ignore)}
    assert {name: result[0] for name, result in results.items()} == {task.name: task.name for task in tasks}
    assert len({pid for _, pid in results.values()}) <= workers


def test_progress_ends_at_the_sum_of_the_parts() -> None:
    told: list[int] = []
    with ProcessesEngine(2) as engine:
        list(engine.run(engine_tasks.count, [Parts("a", 4), Parts("b", 5), Parts("c", 6)], told.append))
    assert told[-1] == 15
    assert told == sorted(told)


def test_an_error_keeps_its_kind_and_names_task_and_part() -> None:
    with ProcessesEngine(2) as engine, pytest.raises(DataError, match="a is no good") as caught:
        list(engine.run(engine_tasks.fail_at_second, [Parts("a")], ignore))
    assert "a: part 1" in caught.value.__notes__[0]
    assert "fail_at_second" in caught.value.__notes__[0]


def test_an_error_that_cannot_travel_is_reported_all_the_same() -> None:
    with ProcessesEngine(1) as engine, pytest.raises(RuntimeError, match=r"LocalError\('odd'\)") as caught:
        list(engine.run(engine_tasks.raise_unpicklable, [Parts("a")], ignore))
    assert "a: part 2" in caught.value.__notes__[0]


def test_a_killed_worker_is_one_clear_error_and_no_hang() -> None:
    tasks = [Parts(name) for name in "abcd"]
    with ProcessesEngine(2) as engine:
        with pytest.raises(ShardclipError, match=r"worker process ended with SIGKILL .*memory.* at b: part 1"):
            list(engine.run(engine_tasks.die_at_second, tasks, ignore))


def test_leaving_the_block_ends_busy_workers() -> None:
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ProcessesEngine(1) as engine:
        worker = engine.call(engine_tasks.pid)
        for _ in engine.run(engine_tasks.sleep, [Parts("a")], interrupt):
            pass
    assert time.monotonic() - start < 20
    assert not Path(f"/proc/{worker}").exists()


def interrupt(position: int) -> None:
    raise KeyboardInterrupt


def test_a_worker_leaves_at_once_when_its_parent_is_killed() -> None:
    program = (
        "import engine_tasks, sys\n"
        "from shard_builder.engines.processes import ProcessesEngine\n"
        "engine = ProcessesEngine(1)\n"
        "print(engine.call(engine_tasks.pid), flush=True)\n"
        "list(engine.run(engine_tasks.sleep, [engine_tasks.Parts('a')], lambda position: None))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(0.3)  # it sleeps in its task now
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 5
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(worker)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_import_neither_torch_nor_the_parents_main() -> None:
    with ProcessesEngine(1) as engine:
        engine.call(imaging_library)
        modules = engine.call(engine_tasks.modules)
    assert not {"torch", "transformers", "torchvision", "pytest"} & set(modules)


def test_a_task_that_imports_torch_is_found_out() -> None:
    with ProcessesEngine(1) as engine, pytest.raises(AssertionError, match="imported torch into an image worker"):
        list(engine.run(engine_tasks.import_torch, [Parts("a")], ignore))


def test_workers_use_pillow_simd_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDCLIP_PILLOW_SIMD", "")
    assert pillow_simd_folder() is None
    with ProcessesEngine(1) as engine:
        assert engine.call(imaging_library).startswith("pillow ")
    monkeypatch.setenv("SHARDCLIP_PILLOW_SIMD", str(tmp_path))
    with pytest.raises(ConfigError, match="SHARDCLIP_PILLOW_SIMD is .*: no PIL is there"):
        pillow_simd_folder()
    monkeypatch.delenv("SHARDCLIP_PILLOW_SIMD")
    if pillow_simd_folder() is None:
        pytest.skip("pillow-simd is not installed")
    with ProcessesEngine(1) as engine:
        assert engine.call(imaging_library).startswith("pillow-simd ")
