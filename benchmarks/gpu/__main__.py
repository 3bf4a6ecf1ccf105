"""The GPU kit's command line.

    python -m benchmarks.gpu prepare FOLDER                                       (where the photographs are)
    python -m benchmarks.gpu run FOLDER --minutes 9 --out OUT                     (where the GPU is)
    python -m benchmarks.gpu run FOLDER --minutes 9 --resume OUT --out OUT2       (what there was no time for)

Exit codes of `run`: 0 whatever was made is as expected; 1 something failed or missed its expectation; 2 a mistake.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT
from core.errors import ConfigError, ShardclipError, did_you_mean


def main(arguments: Sequence[str]) -> int:
    """Run one verb; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.verb == "prepare":
            return _prepare(options)
        if options.verb == "run":
            return _run(options)
        return _measure(options)
    except ShardclipError as error:
        print(f"gpu kit: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    prepare = verbs.add_parser("prepare", help="build the shard set that travels; needs no GPU")
    prepare.add_argument("folder", type=Path)
    data = Path(os.environ.get("SHARDCLIP_DATA", ROOT.parent / "shared" / "data"))
    prepare.add_argument("--data", type=Path, default=data, help="the folder that holds flickr8k")
    prepare.add_argument("--photos", type=int, help="how many of them")
    run = verbs.add_parser("run", help="measure")
    run.add_argument("folder", type=Path, help="what `prepare` made")
    run.add_argument("--out", type=Path, required=True, help="where the results go; at most five files")
    run.add_argument("--minutes", type=float, default=9.0, help="after which it ends, with what is known by then")
    run.add_argument("--only", help="names with commas between them")
    run.add_argument("--resume", type=Path, metavar="EARLIER", help="an earlier OUT: what it knows is taken over")
    run.add_argument("--size", choices=("small", "full"), help="small: of everything a little (default without a GPU)")
    measure = verbs.add_parser("measure", help="one measurement, as `run` starts it")
    measure.add_argument("name")
    measure.add_argument("task", type=Path)
    return parser


def _prepare(options: argparse.Namespace) -> int:
    from benchmarks.gpu.prepare import NUM_PHOTOS, prepare

    num_bytes = prepare(options.folder.resolve(), options.data, options.photos or NUM_PHOTOS)
    print(f"{options.folder}: {num_bytes / 1e6:.1f} MB. Take it along: python -m benchmarks.gpu run {options.folder}")
    return 0


def _run(options: argparse.Namespace) -> int:
    began = time.monotonic()
    import torch

    from benchmarks.gpu.measure import SIZES
    from benchmarks.gpu.report import REPORT
    from benchmarks.gpu.results import RESULTS, known, read
    from benchmarks.gpu.runner import Job, run
    from core.manifest import load_manifest
    from trainer.run.environment import describe_environment

    device: Any = "cuda" if torch.cuda.is_available() else "cpu"
    size = SIZES[options.size or ("full" if device == "cuda" else "small")]
    if (size.name, device) == ("full", "cpu"):
        raise ConfigError("--size is full, and there is no GPU: it would take days. Leave it out, or name small.")
    if (options.out / RESULTS).exists():
        raise ConfigError(
            f"--out is {options.out}, which holds results. Name a new folder, and --resume {options.out}."
        )
    load_manifest(str(options.folder))  # says in one sentence what is missing
    earlier = known(read(options.resume), size.name, device) if options.resume else []
    job = Job(
        prepared=options.folder.resolve(),
        out=options.out.resolve(),
        measures=_chosen(options.only),
        size=size,
        device=device,
        earlier=earlier,
        deadline=began + 60 * options.minutes,
        environment=describe_environment(1),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a measurement's processes end with this one
    results = run(job)
    print(f"{options.out / REPORT}")
    return 1 if any(result.verdict in ("failed", "missed") for result in results) else 0


def _chosen(only: str | None) -> list[Any]:
    from benchmarks.gpu.measures import BY_NAME, MEASURES

    names = only.split(",") if only else list(BY_NAME)
    for name in names:
        if name not in BY_NAME:
            raise ConfigError(f"--only: unknown measurement '{name}'.{did_you_mean(name, BY_NAME)}")
    return [measure for measure in MEASURES if measure.name in names]


def _measure(options: argparse.Namespace) -> int:
    from benchmarks.gpu.runner import work

    work(options.name, options.task)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
