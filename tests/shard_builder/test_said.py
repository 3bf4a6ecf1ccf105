"""What is said reaches the terminal as it was meant: brackets of extras, paths and classes are no markup."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from foreign_tars import write_tars
from photo_folders import picture
from rich.console import Console

from core.heif import HEIC_REMEDY
from core.manifest import ImageSpec, Manifest
from core.spoken import counted
from launch.examine import Finding, _say
from shard_builder.index_tars import index_shards
from shard_builder.progress import summary_table
from shard_builder.verify import verify

EXTRAS = ("heif", "timm", "viz", "onnx", "tensorboard")


def printed(what: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("extra", EXTRAS)
def test_extras_keep_their_brackets(extra: str) -> None:
    remedy = f"pip install 'shardclip[{extra}]'"
    console = Console(file=io.StringIO(), width=40)
    _say([Finding("warning", remedy, remedy)], console)
    assert console.file.getvalue().count(remedy) == 2  # type: ignore[attr-defined]
    manifest = Manifest("train", 0, 0, ImageSpec(32), None, (), (), 1, {"[red]": 1})
    table = printed(summary_table(manifest, [("in", f"/data/[{extra}]/set"), ("see", HEIC_REMEDY)]))
    assert f"/data/[{extra}]/set" in table and HEIC_REMEDY in table and "1 [red]" in table


def test_pictures_that_others_broke_are_not_mended_by_indexing(tmp_path: Path) -> None:
    samples = [{"__key__": f"{n}", "jpg": picture(n, (40, 40))[: 200 + 9999 * n], "txt": "a text"} for n in range(3)]
    tars = write_tars(tmp_path / "others", samples)
    console = Console(file=io.StringIO(), width=500)
    index_shards(str(tars), size=32, workers=1, console=console)
    (fault,) = verify(str(tars), console, workers=1)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert fault.sample == "0" and "others: 1 fault " in said
    assert "Restore the tars" in said and "data.max_damaged" in said and "index-shards" not in said


def test_one_is_not_spoken_of_as_many() -> None:
    assert [counted(n, "fault") for n in (0, 1, 2000)] == ["0 faults", "1 fault", "2,000 faults"]
    assert counted(2, "sample was", "samples were") == "2 samples were"
