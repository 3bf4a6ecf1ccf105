"""Samples a second, on one core, to a batch that is ready for the device: `python -m benchmarks.loader`.

This loader against open_clip's recipe, FFCV, DALI, litdata, mosaicml-streaming, a folder of files and JPEG decoding
alone, on the same photographs; then over several cores, and the start on 1,000,000 samples. Each contender's recipe is
a file of `benchmarks/loader_peers/` and runs in a process of its own. The peers come from `make peers`; one that is not
installed has a row that says so.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.loader_peers.inputs import build_inputs
from benchmarks.measure import ROOT, Comparison, compare, in_own_process, is_installed, pin, publish, take_turns

UNIT = "samples/s on one core"
JPEG, RAW, ALL_HERE = "shardclip jpeg", "shardclip raw", "shardclip jpeg + crop on this core"

LIBRARIES = (
    *("shardclip", "simplejpeg", "torch", "torchvision", "pillow", "open-clip-torch", "ffcv"),
    *("nvidia-dali-cuda130", "litdata", "mosaicml-streaming"),
)


@dataclass(frozen=True)
class Contender:
    """A stream of `benchmarks/loader_peers/<module>.py`."""

    name: str
    module: str
    form: str = "jpeg"
    workers: int = 0
    package: str = ""  # the peer's name in the package registry; empty: needs the product alone
    note: str = ""

    def samples_per_s(self, folder: Path, seconds: float, batches: dict[str, str]) -> float:
        """Run it once; notes in `batches` what its batches are."""
        options = ["--form", self.form, "--workers", str(self.workers), "--seconds", str(seconds)]
        module = f"benchmarks.loader_peers.{self.module}"
        result = in_own_process(module, str(folder), *options, peers=bool(self.package), timeout_s=300)
        batches[self.name] = result["batch"]
        return float(result["samples_per_s"])

    @property
    def missing(self) -> bool:
        return bool(self.package) and not is_installed(self.package)


OURS = (
    Contender(JPEG, "ours", note="in-process; the crop is left to the device"),
    Contender("shardclip jpeg, 1 worker", "ours", workers=1, note="worker and trainer share the core"),
    Contender(RAW, "ours", "raw", note="in-process; the crop is left to the device"),
    Contender("shardclip raw, 1 worker", "ours", "raw", workers=1, note="worker and trainer share the core"),
    Contender(ALL_HERE, "ours", "jpeg+augment", note="crop, flip and normalise, which belong on the device"),
    Contender("shardclip crop, flip, normalise alone", "ours", "augment", note="of stored pictures, batched"),
)
DECODING = Contender("JPEG decoding alone", "decode_alone", note="simplejpeg into a buffer that is used again")
STANDARD = Contender(
    "open_clip's webdataset loader", "webdataset_recipe", package="open-clip-torch", note="PIL, crop, flip, normalise"
)
WHOLE = (  # those that crop, flip and normalise on the host
    Contender("DALI on the CPU", "dali_recipe", package="nvidia-dali-cuda130", note="fused crop, resize, normalise"),
    Contender("litdata", "litdata_recipe", package="litdata", note="its JPEG decoder, crop, flip, normalise"),
    Contender("mosaicml-streaming", "mosaic_recipe", package="mosaicml-streaming", note="PIL, crop, flip, normalise"),
    STANDARD,
    Contender("folder of files, torchvision", "folder", note="ImageFolder: PIL, crop, flip, normalise"),
)
FFCV = (
    Contender("FFCV jpg", "ffcv_recipe", "jpg", package="ffcv", note="crop and flip; normalised on the device"),
    Contender("FFCV raw", "ffcv_recipe", "raw", package="ffcv", note="crop and flip; normalised on the device"),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, default=ROOT / "data/bench/loader", help="built there unless it is there")
    parser.add_argument("--copies", type=int, default=3, help="of each photograph")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="that each contender is measured in a round")
    options = parser.parse_args(arguments)
    shown = build_inputs(options.input, options.copies)
    measure = partial(_in_turn, folder=options.input, seconds=options.seconds, rounds=options.rounds, shown=shown)
    scaling = _scaling(measure)  # before this process is kept on one core
    pin()
    startup = _startup(options.input, options.rounds)
    publish(
        "loader",
        [*_per_core(measure), *scaling, startup],
        LIBRARIES,
    )


Measure = Callable[[Sequence[Contender]], Callable[..., Comparison]]


def _in_turn(
    contenders: Sequence[Contender], folder: Path, seconds: float, rounds: int, shown: str
) -> Callable[..., Comparison]:
    """Measure them all; the result makes a table of some of them: `table(title, names, ours)`."""
    batches: dict[str, str] = {}
    present = [c for c in contenders if not c.missing]
    calls = {c.name: partial(c.samples_per_s, folder, seconds, batches) for c in present}
    # Each process warms itself up; in the first round it also writes what its peer reads, which is not counted.
    figures = take_turns(calls, rounds, warm_up=False)
    notes = {c.name: "; ".join(filter(None, (c.note, batches[c.name]))) for c in present}
    absent = {c.name: f"skipped: {c.package} is not installed (make peers)" for c in contenders if c.missing}

    def table(title: str, chosen: Sequence[Contender], ours: str, **options: Any) -> Comparison:
        runs = {c.name: figures.get(c.name, []) for c in chosen}
        return compare(title, runs, ours=ours, input=shown, notes={**notes, **absent}, **{"unit": UNIT, **options})

    return table


def _per_core(measure: Measure) -> list[Comparison]:
    jpeg, jpeg_worker, raw, raw_worker, whole, crop_alone = OURS
    ffcv_jpg, ffcv_raw = FFCV
    table = measure([*OURS, DECODING, *FFCV, *WHOLE])
    return [
        table("JPEG to a batch ready for the device", [jpeg, jpeg_worker, DECODING, ffcv_jpg, *WHOLE], JPEG),
        table("Raw pixels to a batch ready for the device", [raw, raw_worker, ffcv_raw], RAW),
        table("Crop, flip and normalisation on the same core too", [whole, crop_alone, *WHOLE], ALL_HERE),
    ]


def _scaling(measure: Measure) -> list[Comparison]:
    """Workers on as many cores as there are; this process takes the batches on one of them."""
    cores = len(os.sched_getaffinity(0))
    counts = [0, *(2**power for power in range(cores.bit_length()) if 2**power <= cores)]
    tables = []
    for contender in (OURS[0], STANDARD):
        with_workers = [
            Contender(_spoken(count), contender.module, contender.form, count, contender.package) for count in counts
        ]
        table = measure(with_workers)
        title, unit = f"{contender.name}: more workers", f"samples/s on {cores} core{'s' if cores > 1 else ''}"
        # The ratio the other way round is the speed-up.
        tables.append(table(title, with_workers, with_workers[0].name, unit=unit, less_is_better=True))
    return tables


def _spoken(workers: int) -> str:
    return f"{workers} worker{'s' if workers > 1 else ''}" if workers else "in-process"


def _startup(folder: Path, rounds: int) -> Comparison:
    opened: dict[str, float] = {}

    def first_batch_s(name: str, workers: int) -> float:
        result = in_own_process("benchmarks.loader_startup", str(folder), "--workers", str(workers))
        opened[name] = result["open_s"]
        return float(result["first_batch_s"])

    rows = {"in-process": 0, "2 workers": 2}
    seconds = take_turns({name: partial(first_batch_s, name, workers) for name, workers in rows.items()}, rounds, False)
    return compare(
        "Opening 1,000,000 samples, to the first batch",
        seconds,
        ours="in-process",
        unit="seconds on one core",
        input="2,000 shards, every index verified; files in the page cache, a new process, imports not counted",
        less_is_better=True,
        notes={name: f"of which opening {opened[name]:.2f} s" for name in rows},
    )


if __name__ == "__main__":
    main()
