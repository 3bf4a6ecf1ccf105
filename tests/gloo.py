"""Run a function of a test file in real gloo processes: `results = run(2, worker, *args)`; or start it, to kill it."""

import importlib.util
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

TIMEOUT_S = 120
# Imported once, by the server, with what DDP and a training run would import later; it forks in milliseconds, because
# importing them starts no threads.
PRELOADED = ["torch", "torch._dynamo", "torch.nn.parallel", "pytest", "trainer.train", "eval.validation"]


@dataclass(frozen=True)
class Group:
    """Processes that were started together, in rank order."""

    processes: list[Any]
    folder: Path
    deadline: float

    @property
    def is_running(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def send(self, number: signal.Signals) -> None:
        """Signal every process; those that have ended already are left out."""
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    def kill(self) -> None:
        """SIGKILL to all, at once."""
        self.send(signal.SIGKILL)
        for process in self.processes:
            process.join()

    def results(self) -> list[Any]:
        """Wait for the end; what each returned, in rank order.

        The first error of a process is raised here with its traceback.
        """
        while any(process.is_alive() for process in self.processes) and time.monotonic() < self.deadline:
            if any(process.exitcode for process in self.processes):
                time.sleep(1)  # the others' own errors, if they come, say more
                break
            time.sleep(0.01)
        errors = [path.read_text() for path in sorted(self.folder.glob("error-*"))]
        if errors:
            raise RuntimeError("\n".join(errors))
        codes = [process.exitcode for process in self.processes]
        assert codes == [0] * len(self.processes), f"processes ended with {codes} (None: had to be killed)"
        return [torch.load(self.folder / f"result-{rank}", weights_only=False) for rank in range(len(self.processes))]


def run(world_size: int, worker: Callable[..., Any], *args: Any, timeout_s: float = TIMEOUT_S) -> list[Any]:
    """Call `worker(*args)` in `world_size` processes of one group; returns what each returned, in rank order.

    `worker` is a top-level function of a test file; arguments and results are picklable or tensors. The first error of
    a process is raised here with its traceback; processes that do not end in time are killed.
    """
    with started(world_size, worker, *args, timeout_s=timeout_s) as group:
        return group.results()


@contextmanager
def started(world_size: int, worker: Callable[..., Any], *args: Any, timeout_s: float = TIMEOUT_S) -> Iterator[Group]:
    """The same as `run`, while it runs; what still lives at the end of the block is killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        job = (world_size, Path(worker.__code__.co_filename), worker.__name__, args, Path(folder), timeout_s)
        # Daemons would die with this process, but may not have children: loaders have.
        processes = [context.Process(target=_process, args=(rank, *job)) for rank in range(world_size)]
        try:
            for process in processes:
                process.start()
            yield Group(processes, Path(folder), time.monotonic() + timeout_s)
        finally:
            for process in processes:
                process.kill()
                process.join()


def wait_at_most(seconds: float) -> None:
    """In a worker: how long a collective waits for the others from now on; all call it, and begin together."""
    torch.distributed.barrier()
    torch.distributed.set_timeout(timedelta(seconds=seconds), None)


def _process(rank: int, world_size: int, file: Path, name: str, args: tuple, folder: Path, timeout_s: float) -> None:
    try:
        torch.set_num_threads(1)
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
        torch.save(getattr(module, name)(*args), folder / f"result-{rank}")
        torch.distributed.destroy_process_group()
    except BaseException:
        (folder / f"error-{rank}").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        sys.exit(1)
