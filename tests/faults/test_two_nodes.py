"""A run on two nodes: the same losses as on one; link down, a node killed or stopped, packets late, connections cut.

Two network namespaces stand for the nodes. Each command ends with the exit code that `docs/faults.md` states, in time.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gloo
import pytest
from endless_runs import command_recipe, wait_for_step
from training_runs import end_state, losses, recipe, train_worker
from two_nodes import Node, Wire, two_nodes, why_not

from core.config import dump_yaml, from_mapping
from trainer.config import TrainConfig
from trainer.guard.peer_watch import GRACE_S
from trainer.run.folder import read_events

PEER_TIMEOUT_S = 3.0
MARGIN_S = 10.0  # for last words, and two commands on a core that others use too
KILLED = "ended without a word: it was killed"
SILENT = f"gave no sign of life for {PEER_TIMEOUT_S:g} s: it is stopped, or away"


@pytest.fixture(autouse=True, scope="module")
def namespaces() -> None:
    if reason := why_not():
        pytest.skip(reason)


@dataclass
class Commands:
    """The same command on both nodes."""

    folder: Path
    nodes: tuple[Node, Node]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def ends(self, within_s: float) -> list[tuple[int, str]]:
        """Exit code and words of each, in time."""
        deadline = time.monotonic() + within_s
        found = []
        for command in self.started:
            command.wait(max(0.1, deadline - time.monotonic()))
        for command in self.started:
            _, said = command.communicate()  # loader workers hold the pipe for some seconds more
            found.append((command.returncode, said))
        return found


@contextmanager
def started(folder: Path, values: dict[str, Any], *overrides: str, wire: Wire | None = None) -> Iterator[Commands]:
    path = folder / "recipe.yaml"
    path.write_text(dump_yaml(from_mapping(TrainConfig, values, "test")))
    with two_nodes(wire) as nodes:
        commands = Commands(folder, nodes)
        for rank, node in enumerate(nodes):
            words = ["launch.cli", "train", str(path), *overrides, "--num-machines", "2", "--machine-rank", str(rank)]
            commands.started.append(node.start([*words, "--main-address", nodes[0].address, "--processes", "1"]))
        yield commands


def test_two_nodes_train_as_one_does(tmp_path: Path) -> None:
    values = recipe(tmp_path, epochs=1, eval_every=100, checkpoint_every=100)
    with started(tmp_path, values) as commands:
        for code, said in commands.ends(within_s=240):
            assert code == 0, said
    assert gloo.run(2, train_worker, values | {"run_dir": tmp_path / "one"}) == [0, 0]
    assert losses(tmp_path / "run") == losses(tmp_path / "one")
    assert end_state(tmp_path / "run") == end_state(tmp_path / "one")


@pytest.mark.faults
def test_a_signal_to_one_node_stops_both_with_the_requeue_code(tmp_path: Path) -> None:
    with started(tmp_path, command_recipe(tmp_path, 60.0)) as commands:
        wait_for_step(tmp_path, 3)
        commands.started[1].send_signal(signal.SIGUSR1)
        for code, said in commands.ends(within_s=120):
            assert code == 75, said


@pytest.mark.faults
def test_a_mistake_ends_both_nodes_with_its_sentence(tmp_path: Path) -> None:
    with started(tmp_path, command_recipe(tmp_path, 60.0), "accumulate=3") as commands:
        for code, said in commands.ends(within_s=120):
            assert code == 2 and said.count("shardclip: accumulate is 3") == 1 and "Traceback" not in said, said


def kill_node(commands: Commands) -> None:
    commands.nodes[1].send(signal.SIGKILL)


def kill_first_node(commands: Commands) -> None:
    commands.nodes[0].send(signal.SIGKILL)


def stop_node(commands: Commands) -> None:
    commands.nodes[1].send(signal.SIGSTOP)


def kill_process(commands: Commands) -> None:
    """The training process of the second node, not its command."""
    command = commands.started[1].pid
    children = Path(f"/proc/{command}/task/{command}/children").read_text().split()
    subprocess.run(["kill", "-KILL", *children], check=True)


def unplug(commands: Commands) -> None:
    commands.nodes[1].unplug()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("lose", "is_silent", "codes", "words"),
    [
        (kill_node, False, (3, -9), {0: ("process 1 of 2", KILLED)}),
        (kill_first_node, False, (-9, 3), {1: ("process 0 of 2", KILLED)}),
        (kill_process, False, (3, 3), {0: ("process 1 of 2", KILLED), 1: ("process 1 of 2 was ended by SIGKILL",)}),
        (stop_node, True, (3, None), {0: ("process 1 of 2", SILENT)}),
        (unplug, True, (3, 3), {0: ("process 1 of 2", SILENT), 1: ("process 0 of 2", SILENT)}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_lost_is_named_by_what_is_left(
    tmp_path: Path,
    lose: Callable[[Commands], None],
    is_silent: bool,
    codes: tuple[int | None, int | None],
    words: dict[int, tuple[str, ...]],
) -> None:
    with started(tmp_path, command_recipe(tmp_path, PEER_TIMEOUT_S)) as commands:
        wait_for_step(tmp_path, 3)
        began = time.monotonic()
        lose(commands)
        allowed_s = (PEER_TIMEOUT_S if is_silent else 0) + GRACE_S + MARGIN_S
        for rank, (command, code) in enumerate(zip(commands.started, codes, strict=True)):
            if code is None:  # it is stopped: what it says comes when it goes on
                assert command.poll() is None
                commands.nodes[rank].send(signal.SIGCONT)
                allowed_s += GRACE_S
            assert command.wait(60) == (3 if code is None else code)
            took_s = time.monotonic() - began
            print(f"node {rank}: {took_s:.1f} s")
            assert took_s < allowed_s
        for rank, command in enumerate(commands.started):
            _, said = command.communicate()  # loader workers hold the pipe for some seconds more
            assert all(word in said for word in words.get(rank, ())), said
    noted = [event["error"] for event in read_events(tmp_path / "run") if event["event"] == "failed"]
    assert any("PeerLostError" in error for error in noted)


@pytest.mark.faults
def test_a_run_goes_on_where_packets_are_late(tmp_path: Path) -> None:
    wire = Wire()
    with started(tmp_path, command_recipe(tmp_path, PEER_TIMEOUT_S), wire=wire) as commands:
        wait_for_step(tmp_path, 3)
        wire.delay_s = 0.2
        steps = (tmp_path / "run/metrics.csv").read_text().count("\n") - 1
        wait_for_step(tmp_path, steps + 3)
        wire.delay_s = 0.0
        commands.started[0].send_signal(signal.SIGTERM)
        assert [code for code, _ in commands.ends(within_s=60)] == [75, 75]


@pytest.mark.faults
def test_connections_that_are_cut_end_the_run_on_both_nodes(tmp_path: Path) -> None:
    wire = Wire()
    with started(tmp_path, command_recipe(tmp_path, PEER_TIMEOUT_S), wire=wire) as commands:
        wait_for_step(tmp_path, 3)
        wire.is_cut = True
        ends = commands.ends(within_s=PEER_TIMEOUT_S + GRACE_S + MARGIN_S)
    for (code, said), other in zip(ends, (1, 0), strict=True):
        assert code == 3 and f"process {other} of 2" in said, said
