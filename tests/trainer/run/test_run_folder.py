"""Run folders: one writer, no run overwritten by another, changes shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError, DamagedError, StorageError
from core.journal import append_json, append_line, cut_torn_line, read_json_lines, read_lines
from trainer.run.environment import describe_environment, git_state, hardware
from trainer.run.folder import (
    Parent,
    RunFolder,
    open_run_folder,
    read_events,
    record_event,
    set_state,
)
from trainer.trackers.metrics_csv import MetricsCsv

CONFIG = {"seed": 3, "optim": {"lr": 0.1, "warmup_steps": 10}}


def test_a_new_run_writes_down_what_it_was_started_with(tmp_path: Path) -> None:
    with open_run_folder(tmp_path / "a", CONFIG, environment={"host": "x"}) as run:
        assert run.config_changes == () and run.name == "a"
        set_state(run, "finished")
    assert (tmp_path / "a" / "config.yaml").read_text() == "seed: 3\noptim:\n  lr: 0.1\n  warmup_steps: 10\n"
    assert json.loads((tmp_path / "a" / "environment.json").read_text()) == {"host": "x"}
    assert [e["event"] for e in read_events(tmp_path / "a")] == ["started", "finished"]


def test_a_run_is_continued_under_its_id_and_changes_are_shown(tmp_path: Path) -> None:
    with open_run_folder(tmp_path, CONFIG, environment={"host": "x", "started": "1"}, resume="auto") as first:
        assert first.config_changes == ()
    changed = {"seed": 3, "optim": {"lr": 0.2}}
    with open_run_folder(tmp_path, changed, environment={"host": "y", "started": "2"}, resume="auto") as run:
        assert run.run_id == first.run_id
        assert run.config_changes == ("optim.lr: 0.1 -> 0.2", "optim.warmup_steps: 10 -> None")
    events = read_events(tmp_path)
    assert [e["event"] for e in events] == ["started", "environment changed", "continued"]
    assert events[1]["changes"] == ["host: x -> y"] and events[2]["config_changes"] == list(run.config_changes)
    checkpoint = tmp_path / "checkpoints" / "step-00000001"
    with open_run_folder(tmp_path, changed, environment={}, resume=str(checkpoint)) as again:
        assert again.run_id == first.run_id and again.config_changes == ()


def go_on(folder: Path, config: Any, resumed_from: int) -> RunFolder:
    with open_run_folder(folder, config, environment={}, resume="auto", resumed_from=resumed_from) as run:
        return run


def test_another_recipe_after_an_older_checkpoint_is_another_run(tmp_path: Path) -> None:
    full = {**CONFIG, "data": {"num_workers": 2}, "tracking": {"wandb": "auto"}, "log_every": 5}
    with open_run_folder(tmp_path, full, environment={}) as first:
        metrics = MetricsCsv(tmp_path, None)
        for step in range(1, 11):
            metrics.log({"train/loss": 1.0}, step, step)
    assert go_on(tmp_path, full, 5).run_id == first.run_id  # the same recipe repeats what was measured
    quieter = {**full, "tracking": {"wandb": "disabled"}, "data": {"num_workers": 9}, "log_every": 7}
    assert go_on(tmp_path, quieter, 5).run_id == first.run_id
    changed = {**quieter, "seed": 4}
    assert go_on(tmp_path, changed, 10).run_id == first.run_id  # nothing of the old recipe lies after step 10

    branch = go_on(tmp_path, {**changed, "seed": 5}, 5)
    assert branch.run_id != first.run_id and branch.parent == Parent(first.run_id, 5)
    assert branch.name == f"{tmp_path.name} from step 5"
    assert read_events(tmp_path)[-1] | {"time": ""} == {
        "time": "", "event": "branched off", "step": 5, "run_id": branch.run_id, "parent": first.run_id,
    }  # fmt: skip
    again = go_on(tmp_path, {**changed, "seed": 5}, 5)  # killed before its first step
    assert (again.run_id, again.parent, again.name) == (branch.run_id, branch.parent, branch.name)
    other = go_on(tmp_path, {**changed, "seed": 6}, 5)  # a third recipe from there has the same past
    assert other.run_id not in (branch.run_id, first.run_id) and other.parent == branch.parent


def test_what_was_measured_counts_though_a_restart_has_cut_it(tmp_path: Path) -> None:
    with open_run_folder(tmp_path, CONFIG, environment={}) as first:
        metrics = MetricsCsv(tmp_path, None)
        for step in range(1, 11):
            metrics.log({"train/loss": 1.0}, step, step)
    assert go_on(tmp_path, CONFIG, 5).run_id == first.run_id
    MetricsCsv(tmp_path, 5)  # as the start above does, before it fails
    branch = go_on(tmp_path, {**CONFIG, "seed": 4}, 5)
    assert branch.run_id != first.run_id and branch.parent == Parent(first.run_id, 5)


@pytest.mark.parametrize(("state", "words"), [("finished", "a finished run"), (None, "a run that was cut off")])
def test_a_folder_with_a_run_is_not_started_afresh(tmp_path: Path, state: str | None, words: str) -> None:
    with open_run_folder(tmp_path, CONFIG, environment={}) as run:
        if state:
            set_state(run, "finished")
    with pytest.raises(ConfigError, match=rf"holds {words} .*resume=auto"):
        with open_run_folder(tmp_path, CONFIG, environment={}, resume="no"):
            pass


def test_strange_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "slurm-12.out").touch()  # a log that was there first is no obstacle
    with open_run_folder(tmp_path, CONFIG, environment={}):
        pass
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DamagedError, match=r"run.json: damaged"):
        with open_run_folder(tmp_path, CONFIG, environment={}, resume="auto"):
            pass
    (tmp_path / "run.json").unlink()
    with pytest.raises(ConfigError, match=r"holds other things \(environment.json, events.jsonl\) and not a run"):
        with open_run_folder(tmp_path, CONFIG, environment={}, resume="auto"):
            pass
    for name in ("environment.json", "events.jsonl"):
        (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=r"holds config.yaml, but no run.json"):
        with open_run_folder(tmp_path, CONFIG, environment={}, resume="auto"):
            pass


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    with open_run_folder(tmp_path / "a", CONFIG, environment={}):
        with pytest.raises(StorageError, match="in use by training run a .process"):
            with open_run_folder(tmp_path / "a", CONFIG, environment={}, resume="auto"):
                pass


def test_events_outlive_a_torn_line(tmp_path: Path) -> None:
    record_event(tmp_path, "spike", step=3, loss=2.5)
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"event": "sto')
    assert len(read_events(tmp_path)) == 1
    record_event(tmp_path, "stopped", step=4)
    assert [(e["event"], e["step"]) for e in read_events(tmp_path)] == [("spike", 3), ("stopped", 4)]


@pytest.mark.parametrize("text", ["", "a", "a\n", "a\nb", "a\nb\n"])
def test_a_torn_line_is_all_that_goes(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    assert read_lines(path) == [line[:-1] for line in whole]
    cut_torn_line(path)
    assert path.read_text() == "".join(whole)
    append_line(path, "ö")
    append_json(path, {"a": "ä\n"})
    assert read_lines(path)[-2] == "ö" and read_json_lines(tmp_path / "none") == []
    assert json.loads(read_lines(path)[-1]) == {"a": "ä\n"}


def test_the_environment_names_hardware_versions_and_commit(tmp_path: Path) -> None:
    environment = describe_environment(world_size=2)
    json.dumps(environment)
    assert environment["packages"]["torch"] and environment["cpu_cores"] >= 1 and environment["world_size"] == 2
    cpu_only = {**environment, "gpus": []}
    assert hardware(cpu_only).startswith(f"{environment['cpu_cores']} cores of ")
    assert hardware({**environment, "gpus": [{"name": "NVIDIA H200"}]}) == "2 x NVIDIA H200"
    assert git_state(tmp_path) == {"commit": None, "uncommitted_changes": None}


def test_a_run_killed_while_it_was_opened_for_the_first_time_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(value: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("trainer.run.folder.dump_yaml", killed)
        with open_run_folder(tmp_path, CONFIG, environment={}, resume="auto"):
            pass
    with open_run_folder(tmp_path, CONFIG, environment={}, resume="auto") as run:
        assert run.config_changes == () and (tmp_path / "config.yaml").exists()
