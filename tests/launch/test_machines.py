"""Machines meet before a process starts, agree on what they were told, or say in one sentence what does not fit."""

from __future__ import annotations

import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core.errors import ConfigError
from launch import meeting as module
from launch.machines import Machines, machines_of, plan_of
from launch.meeting import meet

EXAMPLES = Path(module.__file__).parent / "accelerate"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ((None, None, None), Machines()),
        ((1, 0, None), Machines()),
        ((2, 1, "node-1"), Machines(2, 1, "node-1", 29500)),
        ((2, 0, "10.0.0.1:4000"), Machines(2, 0, "10.0.0.1", 4000)),
        ((2, 0, "fd00::1"), Machines(2, 0, "fd00::1", 29500)),
        ((2, 0, "[fd00::1]:4000"), Machines(2, 0, "fd00::1", 4000)),
    ],
)
def test_the_words_of_the_command_line(words: tuple, found: Machines) -> None:
    assert machines_of(*words) == found


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((0, None, None), "--num-machines 0: a run needs at least one machine"),
        ((None, 1, None), "--machine-rank 1 is for runs on several machines. Give --num-machines too"),
        ((1, None, "node-1"), "--main-address node-1 is for runs on several machines"),
        ((2, None, "node-1"), "--num-machines 2: give --machine-rank too, from 0 to 1"),
        ((2, 2, "node-1"), "--machine-rank 2: 2 machines have ranks from 0 to 1"),
        ((2, -1, "node-1"), "--machine-rank -1: 2 machines"),
        ((2, 1, None), "--num-machines 2: give --main-address too"),
        ((2, 1, "node-1:http"), "--main-address node-1:http: http is no port"),
    ],
)
def test_words_that_do_not_fit(words: tuple, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        machines_of(*words)


def test_the_examples_for_accelerate_are_read(tmp_path: Path) -> None:
    assert plan_of(EXAMPLES / "gpu_1.yaml", None, None, None) == (Machines(), 1, {})
    assert plan_of(EXAMPLES / "gpu_8.yaml", None, None, None) == (Machines(), 8, {})
    second = Machines(2, 1, "node-1", 29500)
    assert plan_of(EXAMPLES / "two_nodes.yaml", None, 1, "node-1") == (second, 8, {})
    with pytest.raises(ConfigError, match="give --main-address too"):
        plan_of(EXAMPLES / "two_nodes.yaml", None, 1, None)
    with pytest.raises(ConfigError, match="num_processes is 16, which 3 machines cannot share equally"):
        plan_of(EXAMPLES / "two_nodes.yaml", 3, 1, "node-1")
    path = tmp_path / "of_accelerate.yaml"
    path.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\ngpu_ids: 2,3\nuse_cpu: true\nmachine_rank: 0\n")
    environment = {"CUDA_VISIBLE_DEVICES": "2,3", "ACCELERATE_USE_CPU": "true"}
    assert plan_of(path, None, None, None) == (Machines(), 2, environment)
    path.write_text("distributed_type: DEEPSPEED\n")
    with pytest.raises(ConfigError, match="distributed_type is DEEPSPEED"):
        plan_of(path, None, None, None)


def test_machines_that_were_told_the_same_meet_and_part() -> None:
    port = free_port()
    assert come((2, 0, port, 4), (2, 1, port, 4)) == [port, port]


def test_one_machine_listens_where_no_other_can_call() -> None:
    meeting = meet(Machines(), 2)
    socket.create_connection(("127.0.0.1", meeting.port)).close()
    with socket.socket() as elsewhere:  # the port of another address of this machine is free
        elsewhere.bind(("127.0.0.2", meeting.port))


@pytest.mark.parametrize(
    ("second", "sentences"),
    [
        (
            (2, 1, 3),
            ["machine 1 was told of 2 machines and 3 processes on each, machine 0 of 2 and 4. Give all", "told"],
        ),
        ((3, 1, 4), ["machine 1 was told of 3 machines", "machine 2 of 3 has not come within 2 s"]),
        ((2, 0, 4), ["machine 1 of 2 has not come", "of this machine cannot be listened on .Address already in use"]),
    ],
)
def test_machines_that_were_told_different_things_all_end(
    monkeypatch: pytest.MonkeyPatch, second: tuple[int, int, int], sentences: list[str]
) -> None:
    monkeypatch.setattr(module, "MEET_S", 2.0)
    monkeypatch.setattr(module, "PART_S", 2.0)
    port = free_port()
    count, rank, processes = second
    said = come((2, 0, port, 4), (count, rank, port, processes))
    if rank == 0:  # whoever comes first listens
        said.sort(key=lambda error: "has not come" not in str(error))
    for error, sentence in zip(said, sentences, strict=True):
        assert isinstance(error, ConfigError) and re.search(sentence, str(error)), error


def test_a_rank_that_is_given_twice_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEET_S", 2.0)
    monkeypatch.setattr(module, "PART_S", 2.0)
    port = free_port()
    said = sorted(map(str, come((3, 0, port, 4), (3, 1, port, 4), (3, 1, port, 4))))
    assert said[0] == "--machine-rank 1 is given on two machines. Give each its own."
    assert all("machine 2 of 3 has not come" in sentence for sentence in said[1:])


def test_a_machine_that_is_alone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEET_S", 1.0)
    monkeypatch.setattr(module, "PART_S", 1.0)
    port = free_port()
    (first,) = come((2, 0, port, 1))
    assert str(first) == "machine 1 of 2 has not come within 1 s. Start it there too."
    nowhere = free_port()
    (second,) = come((2, 1, nowhere, 1))
    assert f"machine 1 cannot reach machine 0 at 127.0.0.1:{nowhere}" in str(second)


def come(*told: tuple[int, int, int, int]) -> list[int | ConfigError]:
    """Let machines of these counts, ranks, ports and processes meet; their ports, or what they say."""

    def act(count: int, rank: int, port: int, processes: int) -> int | ConfigError:
        try:
            meeting = meet(Machines(count, rank, "127.0.0.1", port), processes)
        except ConfigError as error:
            return error
        meeting.part()
        return meeting.port

    with ThreadPoolExecutor() as pool:
        return [job.result(60) for job in [pool.submit(act, *words) for words in told]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
