"""The GPU kit: its results, its verdicts, its time, what it imports; and its small form on the CPU."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from shard_sets import make_shard_set

from benchmarks.gpu import runner
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.measure import SIZES, SMALL, Context, Figures, Measure, Size
from benchmarks.gpu.measures import BY_NAME, MEASURES, watching
from benchmarks.gpu.measures.resuming import _differences
from benchmarks.gpu.measures.suite import counted, marked_files
from benchmarks.gpu.repeat import repeat
from benchmarks.gpu.report import write_report
from benchmarks.gpu.results import Result, add, judge, known, read
from core.config import Choice
from core.distributed import on_main
from core.errors import DataError
from core.parts import build
from core.shard_index import IMAGE, JSON, TXT, scan_tar
from core.shard_set import ShardSet
from trainer.objectives import OBJECTIVES

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT: dict[str, Any] = {
    "started": "now", "python": "3.12", "packages": {"torch": "2.11.0"}, "commit": "0" * 40, "gpus": [],
    "cpu_cores": 2, "cpu": "a CPU", "memory_gib": 8, "world_size": 1,
}  # fmt: skip
# What a GPU machine has; everything else that is imported there comes with these.
BARE = {
    "torch", "torchvision", "accelerate", "transformers", "numpy", "safetensors", "xxhash", "psutil", "rich", "yaml",
    "fsspec", "matplotlib", "simplejpeg", "pytest", "PIL",
}  # fmt: skip


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `prepare` makes, of drawn pictures."""
    return Path(make_shard_set(tmp_path_factory.mktemp("kit") / "prepared", 24, size=64))


def test_a_repeated_set_is_whole_and_has_new_keys_and_image_ids(prepared: Path, tmp_path: Path) -> None:
    repeat(prepared, tmp_path / "many", 60)
    given, many = ShardSet.open(str(prepared)), ShardSet.open(str(tmp_path / "many"))
    assert len(many) == 60 and len({many.key(n) for n in range(60)}) == 60
    assert len(set(many.image_ids(np.arange(60)).tolist())) == 60
    for number in range(60):  # every member against its checksum
        for member in (IMAGE, TXT):
            assert bytes(many.member(number, member)) == bytes(given.member(number % 24, member))
        np.testing.assert_array_equal(many.embeddings(number), given.embeddings(number % 24))
        assert json.loads(bytes(many.member(number, JSON)))["image_id"] == f"copy-{number}"
    tars = sorted((tmp_path / "many").glob("*.tar"))
    assert [sample.key for tar in tars for sample in scan_tar(tar)] == [many.key(number) for number in range(60)]


def test_every_image_count_of_a_size_is_a_whole_number_of_its_batches() -> None:
    for size in SIZES.values():
        assert all(size.images % batch_size == 0 for batch_size in size.batch_sizes)
        assert size.images // max(size.batch_sizes) >= 4, "two windows to warm up, and some that count"
        assert size.num_samples % max(size.batch_sizes) == 0


def test_the_docs_list_every_measurement_with_what_it_expects() -> None:
    docs = (ROOT / "docs/benchmarks.md").read_text()
    for measure in MEASURES:
        assert f"| `{measure.name}` | {measure.shows} | {measure.expects} | {measure.least_s} |" in docs, measure.name


def test_an_expectation_is_judged_on_a_gpu_at_full_size_or_where_it_holds_everywhere() -> None:
    fast = _measure("fast", is_met=lambda f: f["speed"] >= 10)
    assert judge(fast, {"speed": 10}, "full", "cuda") == "met"
    assert judge(fast, {"speed": 9}, "full", "cuda") == "missed"
    assert judge(fast, {"speed": 9}, "small", "cuda") == judge(fast, {"speed": 99}, "small", "cpu") == "measured"
    exact = replace(fast, holds_everywhere=True)
    assert judge(exact, {"speed": 9}, "small", "cpu") == "missed"


def test_results_are_known_again_by_size_device_and_verdict(tmp_path: Path) -> None:
    verdicts = ("met", "missed", "measured", "skipped", "failed")
    for verdict in verdicts:
        add(tmp_path, Result(f"a-{verdict}", verdict, "", "", "full", "cuda", figures={"x": 1.5}))  # type: ignore[arg-type]
    add(tmp_path, Result("a-small", "met", "", "", "small", "cuda"))
    found = read(tmp_path)
    assert [result.name for result in known(found, "full", "cuda")] == ["a-met", "a-missed", "a-measured"]
    assert found[0].figures == {"x": 1.5}
    with pytest.raises(DataError, match="--resume EARLIER"):
        read(tmp_path / "nowhere")


def test_a_report_shows_figures_expectations_verdicts_and_tables(tmp_path: Path) -> None:
    figures: Figures = {
        "images_per_s": 2913.4,
        "peak_memory_gib": 20.25,
        "wait_share": 0.0123,
        "rows": [{"name": "a|b", "seconds": 0.12345}],
    }
    results = [
        Result("train_1024", "met", "Batches.", "At least 2,500.", "full", "cuda", 12.0, figures),
        Result(
            "ranks", "skipped", "Ranks.", "Within 10 s.", "full", "cuda", reason="takes 40 s at least, 3 s are left"
        ),
    ]
    write_report(tmp_path, results, ENVIRONMENT | {"commit": None})  # of a bare tree
    report = (tmp_path / "report.md").read_text()
    assert "| images/s 2,913; peak memory GiB 20.2; wait share 1.2 % | At least 2,500. | **met** |" in report
    assert "| - | Within 10 s. | **skipped**: takes 40 s at least, 3 s are left |" in report
    assert "## train_1024: rows\n\n| name | seconds |\n| --- | --- |\n| a\\|b | 0.123 |" in report
    assert "1 met, 1 skipped" in report and "commit unknown" in report


def test_a_process_that_fails_or_hangs_takes_no_other_measurement_with_it(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = {
        "works": "import json,sys; from pathlib import Path; t=Path(sys.argv[1]); "
        "(t.parent/'figures.json').write_text(json.dumps({'figures': {'x': 1}}))",
        "fails": "raise ValueError('out of memory')",
        "hangs": "import time; print('began', flush=True); time.sleep(600)",
        "absent": "import sys; from pathlib import Path; t=Path(sys.argv[1]); "
        "(t.parent/'figures.json').write_text('{\"skipped\": \"no library\"}')",
    }
    _start_instead(monkeypatch, programs)
    monkeypatch.setattr(runner, "_LONGEST_SMALL_S", 3)
    results = runner.run(
        _job(prepared, tmp_path / "out", [_measure(name) for name in ("fails", "hangs", "absent", "works")])
    )
    found = {result.name: (result.verdict, result.reason) for result in results}
    assert found["works"] == ("measured", "")
    assert found["fails"] == ("failed", "ended with 1: ValueError: out of memory")
    assert found["hangs"][0] == "failed" and "not done after 3 s" in found["hangs"][1]
    assert found["absent"] == ("skipped", "no library")
    assert [result.verdict for result in read(tmp_path / "out")] == ["failed", "failed", "skipped", "measured"]
    with zipfile.ZipFile(tmp_path / "out" / "logs.zip") as logs:
        assert logs.read("hangs.txt") == b"began\n" and b"out of memory" in logs.read("fails.txt")
    assert len(list((tmp_path / "out").iterdir())) <= 6


def test_a_stopped_run_leaves_no_process_behind(prepared: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "run", str(prepared), "--out", str(tmp_path / "out")]
    run = subprocess.Popen(
        [*command, "--size", "small", "--only", "objectives"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    begun: list[psutil.Process] = []
    while not begun and run.poll() is None:
        time.sleep(0.05)
        with suppress(psutil.ZombieProcess):  # it had another child before, which has just ended
            begun = [p for p in psutil.Process(run.pid).children() if "measure" in p.cmdline()]
    run.terminate()
    assert run.wait(timeout=60) == 143
    _, alive = psutil.wait_procs(begun, timeout=10)
    assert begun and not alive


def test_without_time_measurements_are_skipped_visibly_and_an_earlier_out_is_taken_over(
    prepared: Path, tmp_path: Path
) -> None:
    late = replace(_job(prepared, tmp_path / "out", [_measure("a"), _measure("b", needs_gpu=True)]), deadline=0.0)
    earlier = Result("a", "measured", "", "", "small", "cpu", 1.0, {"x": 1})
    results = runner.run(replace(late, measures=[_measure("a"), _measure("b"), _measure("c")], earlier=[earlier]))
    assert results[0] == earlier == read(tmp_path / "out")[0]
    assert [(r.name, r.verdict) for r in results[1:]] == [("b", "skipped"), ("c", "skipped")]
    assert "0 s are left" in results[1].reason
    assert runner.run(replace(late, out=tmp_path / "gpu"))[1].reason == "needs a GPU"


def test_mistakes_end_in_one_sentence(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main(["run", str(prepared), *out, "--only", "rank"]) == 2
    assert "unknown measurement 'rank'. Did you mean 'ranks'?" in capsys.readouterr().err
    assert main(["run", str(tmp_path), *out]) == 2
    assert "no manifest.json" in capsys.readouterr().err
    assert main(["prepare", str(tmp_path / "kit"), "--data", str(tmp_path)]) == 2
    assert "--data FOLDER" in capsys.readouterr().err


def test_differences_between_checkpoints_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    weights = torch.ones(4)
    runs = {Path("a"): [("w", weights)], Path("b"): [("w", weights + torch.tensor([0, 0, 0, 0.5]))]}
    monkeypatch.setattr("benchmarks.gpu.measures.resuming._tensors", lambda run_dir: runs[run_dir])
    same, other = _differences("x", Path("a"), Path("a")), _differences("x", Path("a"), Path("b"))
    assert same == {"tensors": 1, "x_differ": 0, "x_mean_difference": 0.0}
    assert other == {"tensors": 1, "x_differ": 1, "x_mean_difference": 0.125}


def test_waits_are_counted_at_the_place_in_the_product() -> None:
    def waits() -> None:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    with watching._noted_waits() as places:
        for _ in range(3):
            on_main(lambda: build({"waits": waits}, Choice("waits"), "part"))  # the innermost of two places
        waits()
    inside = {place: count for place, count in places.items() if place.startswith("core/parts.py:")}
    assert list(inside.values()) == [3] and next(iter(inside)).split(" through ")[1].startswith("test_gpu_kit.py:")
    assert sum(places.values()) == 4


def test_between_log_lines_something_begins_and_ends_but_not_after_the_last() -> None:
    class Run:
        total_steps = 6

        def log(self, step: int) -> None:
            seen.append(f"log {step}")

    seen: list[str] = []
    run = Run()
    watching._between_log_lines(run, lambda: seen.append("begin"), lambda: seen.append("end"))
    for step in (2, 4, 6):
        run.log(step)
    assert seen == ["log 2", "begin", "end", "log 4", "begin", "end", "log 6"]


def test_pytests_last_line_is_counted() -> None:
    assert counted("x\n3 passed, 1 failed, 2 skipped, 1 error in 4.2s\n") == {
        "passed": 3, "failed": 1, "skipped": 2, "errors": 1,
    }  # fmt: skip
    assert counted("") == {"passed": 0, "failed": 0, "skipped": 0, "errors": 0}


def test_what_runs_on_a_gpu_machine_imports_only_what_is_there() -> None:
    starts = [
        *(ROOT / "benchmarks/gpu").rglob("*.py"), ROOT / "launch/train.py", *marked_files(), ROOT / "tests/conftest.py",
        ROOT / "trainer/run/opening.py", ROOT / "trainer/train.py", ROOT / "eval/validation.py",
        ROOT / "core/text_encoders/sentence.py",
    ]  # fmt: skip
    assert any("test_prefetch" in path.name for path in starts)
    reached, foreign, waiting = set(), {}, list(starts)
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        for module in _imported_at_once(path):
            files = [
                place / (module.replace(".", "/") + end)
                for place in (ROOT, ROOT / "tests")
                for end in (".py", "/__init__.py")
            ]
            ours = [file for file in files if file.exists()]
            waiting += ours
            top = module.split(".")[0]
            is_ours = any((place / top).exists() or (place / f"{top}.py").exists() for place in (ROOT, ROOT / "tests"))
            if not is_ours and top not in sys.stdlib_module_names | BARE:
                foreign[str(path.relative_to(ROOT))] = module
    assert not foreign and len(reached) > 80


def test_a_training_is_measured_in_processes_of_its_own(prepared: Path, tmp_path: Path) -> None:
    (result,) = _small_form(prepared, tmp_path / "out", "train_1024").values()
    assert result.verdict == "measured", result.reason
    assert result.figures["images_per_s"] > 0 and 0 <= result.figures["wait_share"] < 1
    assert "| **train_1024**" in (tmp_path / "out" / "report.md").read_text()


def test_quick_measurements_are_made_on_the_cpu(prepared: Path, tmp_path: Path) -> None:
    usual = {"images_per_s": 100.0, "wait_share": 0.0}
    context = Context(prepared, tmp_path, tmp_path, "cpu", SMALL, {"train_1024": usual})
    found = {name: BY_NAME[name].function(context) for name in ("ranks", "objectives", "many_pairs", "plain_loop")}
    assert found["ranks"]["largest_difference"] <= 1 < found["ranks"]["median_rank"]
    assert found["objectives"]["all_finite"] and len(found["objectives"]["objectives"]) == len(OBJECTIVES)
    assert found["many_pairs"]["all_finite"] and 1 < found["many_pairs"]["most_memory_growth"] < 4
    plain = found["plain_loop"]
    assert plain["ours_over_plain"] == 100 / plain["plain_images_per_s"] and np.isfinite(plain["plain_last_loss"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_small_form_is_made_on_the_cpu(prepared: Path, tmp_path: Path) -> None:
    results = _small_form(prepared, tmp_path / "out", None)
    assert [*results] == [measure.name for measure in MEASURES]
    for name, result in results.items():
        if BY_NAME[name].needs_gpu:
            assert (result.verdict, result.reason) == ("skipped", "needs a GPU")
        elif name == "resume_deterministic" and result.verdict == "skipped":
            assert "know no `deterministic`" in result.reason
        else:
            assert result.verdict == ("met" if BY_NAME[name].holds_everywhere else "measured"), result.reason
    assert results["resume"].figures["resumed_differ"] == 0
    with zipfile.ZipFile(tmp_path / "out" / "traces.zip") as traces:
        assert json.loads(traces.read("training_steps.json"))["traceEvents"]
    assert len(list((tmp_path / "out").iterdir())) <= 6


def _small_form(prepared: Path, out: Path, only: str | None) -> dict[str, Result]:
    chosen = ["--only", only] if only else []
    command = [sys.executable, "-m", "benchmarks.gpu", "run", str(prepared), "--out", str(out), "--size", "small"]
    subprocess.run([*command, *chosen], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    return {result.name: result for result in read(out)}


def _measure(name: str, is_met: Callable[[Figures], bool] = lambda figures: True, needs_gpu: bool = False) -> Measure:
    return Measure(name, "what", "that", is_met, 0, lambda context: {}, needs_gpu=needs_gpu, reads_shards=False)


def _job(prepared: Path, out: Path, measures: list[Measure], size: Size = SMALL) -> runner.Job:
    return runner.Job(prepared, out, measures, size, "cpu", [], time.monotonic() + 60, ENVIRONMENT)


def _start_instead(monkeypatch: pytest.MonkeyPatch, programs: dict[str, str]) -> None:
    """Let measurements' processes run these programs."""
    start = subprocess.Popen

    def replaced(command: list[str], **options: Any) -> Any:
        return start([sys.executable, "-c", programs[command[-2]], command[-1]], **options)

    monkeypatch.setattr(runner.subprocess, "Popen", replaced)


def _imported_at_once(path: Path) -> list[str]:
    """Modules that a file imports when it is imported itself; `from a import b` also as `a.b`."""
    names: list[str] = []
    waiting: list[ast.stmt] = list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Try):
            waiting += node.body
    return names
