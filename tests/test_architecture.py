"""The house's rules: imports point left, and each outward-facing library enters through one door."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("core", "shard_builder", "trainer", "eval", "search", "launch", "shardclip")
MAY_IMPORT = {
    "core": {"core"},
    "shard_builder": {"core", "shard_builder"},
    "trainer": {"core", "trainer"},
    "eval": {"core", "trainer", "eval"},
    "search": {"core", "trainer", "eval", "search"},
    "launch": {"core", "shard_builder", "trainer", "eval", "search", "launch"},
    "shardclip": {"core", "shard_builder", "trainer", "eval", "search", "shardclip"},  # beside launch: for Python
}
DOORS = {  # library -> the only files that may import it
    "fsspec": {"core/storage.py"},
    "torch.distributed": {
        "core/distributed.py",
        "launch/meeting.py",
    },  # the latter: the store over which machines meet
    "transformers": {"core/text_encoders/pretrained.py"},
    "wandb": {"trainer/trackers/wandb_tracker.py"},
    "tensorboard": {"trainer/trackers/tensorboard_tracker.py"},
    "torch.utils.tensorboard": {"trainer/trackers/tensorboard_tracker.py"},
    "pycocotools": {"shard_builder/readers/coco.py"},
    "simplejpeg": {"core/image.py"},
    "webdataset": {"core/webdataset_library.py"},
    "onnx": {"eval/export/onnx.py"},
    "onnxruntime": {"eval/export/onnx.py"},
    "onnxscript": {"eval/export/onnx.py"},
    "sklearn": {
        "eval/evaluations/feature_map.py",
        "eval/evaluations/linear_probe.py",
        "shard_builder/columns/topics.py",
    },
    "umap": {"eval/evaluations/feature_map.py"},
    "pandas": {"shardclip/tables.py"},
    "mteb": {"eval/export/mteb.py"},
    "faiss": {"search/index.py"},
    "fastapi": {"search/server.py"},
    "timm": {"trainer/models/towers/timm.py", "trainer/optim/timm_optimizers.py"},
    "matplotlib": {
        f"eval/report/drawing/{name}.py"
        for name in (
            "curves",
            "gap",
            "intervals",
            "matrices",
            "pictures",
            "reliability",
            "scatter",
            "severities",
            "style",
        )
    },
    "jinja2": {"eval/report/page.py"},
}
TORCH_FREE = (  # what the builder's image workers import
    "core/column_kind.py",
    "core/column_values.py",
    "core/columns.py",
    "core/config.py",
    "core/parts.py",
    "core/journal.py",
    "core/errors.py",
    "core/image.py",
    "core/manifest.py",
    "core/seeding.py",
    "core/shard_index.py",
    "core/shard_set.py",
    "core/storage.py",
    "shard_builder/caption_cache.py",
    "shard_builder/writer.py",
)
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 70
ALL_FILES = sorted(path for room in (*STAGES, "tests", "benchmarks") for path in (ROOT / room).rglob("*.py"))
FILES = sorted(path for stage in STAGES for path in (ROOT / stage).rglob("*.py"))


def test_there_is_a_house() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_left(path: Path) -> None:
    stage = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imported_names(path)} & set(STAGES)
    assert ours <= MAY_IMPORT[stage], f"{stage} must not import {ours - MAY_IMPORT[stage]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_library_enters_through_its_door(path: Path) -> None:
    here = str(path.relative_to(ROOT))
    for library, doors in DOORS.items():
        uses = [name for name in imported_names(path) if name == library or name.startswith(library + ".")]
        assert not uses or here in doors, f"{here} imports {uses[0]}; the door is {doors}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "line 1 is a docstring"
    assert path.stem not in ("utils", "helpers", "misc", "common")


@pytest.mark.parametrize("name", TORCH_FREE)
def test_image_workers_stay_free_of_torch(name: str) -> None:
    reached, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        reached.add(current)
        for module in imported_names(ROOT / current, top_level_only=True):
            assert module.split(".")[0] != "torch", f"{name} reaches torch through {current}"
            file = module.replace(".", "/") + ".py"
            if (ROOT / file).exists() and file not in reached:
                waiting.append(file)


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= MAX_FILE_LINES, "split it: one subject a file"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines: give its parts names"


def test_the_rule_can_fail(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text("from trainer.train import train\nfrom torch import distributed\nimport fsspec\n")
    assert {"trainer.train", "torch.distributed", "fsspec"} <= set(imported_names(planted))


def imported_names(path: Path, top_level_only: bool = False) -> list[str]:
    """Modules that a file imports, `from a import b` also as `a.b`."""
    tree = ast.parse(path.read_text())
    names: list[str] = []
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names
