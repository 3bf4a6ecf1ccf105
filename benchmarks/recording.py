"""What a commit computes, to the bit: `python -m benchmarks.recording HEAD~1 before.json`, later `... HEAD after.json`.

Four trainings with every step's loss, the sha256 of each tensor of the last checkpoint, the recalls, and the sha256 of
each tar and index: the demo, 30 steps of `make real`'s recipe, one with `accumulate=3` and one with two processes.
`python -m benchmarks.recording --compare before.json after.json` names what differs. Some ten minutes on 2 cores.
`--overrides optim.ema_decay=0.9 ...`, at the end of a line that records, goes to every training.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SHARDCLIP_DATA", ROOT.parent / "shared" / "data")).resolve()
SMALL = ["global_batch_size=192", "max_steps=20", "optim.warmup_steps=4", "log_every=1"]  # of the demo's recipe


def record(commit: str, overrides: list[str]) -> dict[str, Any]:
    """Check the commit out beside this one, and do everything there; only commands are used, no imports."""
    with tempfile.TemporaryDirectory() as folder:
        tree, work = Path(folder) / "tree", Path(folder) / "work"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", "--quiet", tree, commit], check=True)
        try:
            found = {"commit": _output(tree, "git", "rev-parse", "HEAD"), **_demo(tree, work / "demo", overrides)}
            if overrides:
                found["overrides"] = overrides
            if (DATA / "flickr8k").is_dir():
                found |= _photographs(tree, work / "photographs", overrides)
            return found
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """`place: before -> after` for every value that is not the same."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = [*before, *(name for name in after if name not in before)]
        return [line for name in names for line in differences(before.get(name), after.get(name), f"{where}/{name}")]
    return [] if before == after else [f"{where}: {before} -> {after}"]


def with_parts(recording: Any) -> Any:
    """A recording whose checkpoints had no named parts yet, with the tensors under the names they have in parts."""
    if not isinstance(recording, dict):
        return recording
    return {_in_its_part(name): with_parts(value) for name, value in recording.items()}


def _in_its_part(name: str) -> str:
    file, _, tensor = name.partition(": ")
    is_scale = tensor == "logit_scale"
    if file == "model":
        return f"{'objective' if is_scale else 'encoder'}: {tensor}"
    if file == "ema" and not tensor.startswith(("encoder.", "learned.")):
        return f"ema: {'learned' if is_scale else 'encoder'}.{tensor}"
    return name


def _demo(tree: Path, work: Path, overrides: list[str]) -> dict[str, Any]:
    sets = {split: work / f"shards-{split}" for split in ("train", "val")}
    for split, out in sets.items():
        recipe = f"configs/build/demo_{split}.yaml"
        _shardclip(
            tree, "build", recipe, f"source.folder={work / 'scenes'}", f"cache_dir={work / 'cache'}", f"out={out}"
        )
    shards = [f"data.train={sets['train']}", f"data.val={sets['val']}"]
    found = {f"bytes of demo {split}": _bytes(out) for split, out in sets.items()}
    for name, options in {
        "demo": ["--processes", "2", "log_every=1"],
        "accumulate": ["--processes", "1", "accumulate=3", *SMALL],
        "two processes": ["--processes", "2", *SMALL],
    }.items():
        run = work / name
        _shardclip(tree, "train", "configs/train/demo.yaml", *options, f"run_dir={run}", *shards, *overrides)
        found[name] = _trained(run)
    out = work / "eval"
    _shardclip(
        tree, "eval", "configs/eval/demo.yaml", f"checkpoint={work / 'demo'}", f"shards={sets['val']}", f"out={out}"
    )
    found["demo"]["recalls"] = _recalls(out)
    return found


def _photographs(tree: Path, work: Path, overrides: list[str]) -> dict[str, Any]:
    sets = {split: work / f"shards-{split}" for split in ("train", "val")}
    source = [f"source.images={DATA}/flickr8k/Images", f"source.captions={DATA}/flickr8k/captions.txt"]
    for split, out in sets.items():
        names = f"source.names={DATA}/flickr8k/{split}.txt"
        recipe = f"configs/build/flickr8k_sample_{split}.yaml"
        _shardclip(tree, "build", recipe, *source, names, f"cache_dir={work / 'cache'}", f"out={out}")
    run, weights = work / "run", f"model.weights={DATA}/weights/mobilenet_v2_imagenet.pth"
    shards = [f"data.train={sets['train']}", f"data.val={sets['val']}"]
    short = ["max_steps=30", "log_every=1", f"run_dir={run}", *overrides]
    _shardclip(tree, "train", "configs/train/flickr8k_sample.yaml", "--processes", "2", weights, *short, *shards)
    _shardclip(tree, "eval", "configs/eval/flickr8k_sample.yaml", f"checkpoint={run}", f"shards={sets['val']}")
    real = {**_trained(run), "recalls": _recalls(run)}
    return {**{f"bytes of photographs {split}": _bytes(out) for split, out in sets.items()}, "real": real}


def _shardclip(tree: Path, *words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(tree), "WANDB_MODE": "disabled"}
    subprocess.run([sys.executable, "-m", "launch.cli", *words], cwd=tree, env=environment, check=True)


def _trained(run: Path) -> dict[str, Any]:
    with open(run / "metrics.csv") as file:
        losses = {row["step"]: row["train/loss"] for row in csv.DictReader(file) if row.get("train/loss")}
    checkpoint = sorted((run / "checkpoints").glob("step-*"))[-1]
    tensors = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in sorted(file.keys()):
                tensors[f"{path.stem}: {name}"] = hashlib.sha256(file.get_tensor(name).tobytes()).hexdigest()
    return {"losses": losses, "tensors": tensors}


def _recalls(out: Path) -> dict[str, Any]:
    results = json.loads((out / "results.json").read_text())
    return {direction: results[direction] for direction in ("image_to_text", "text_to_image")}


def _bytes(shards: Path) -> dict[str, str]:
    files = sorted([*shards.glob("*.tar"), *shards.glob("*.idx")])
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _output(folder: Path, *command: str) -> str:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Record a commit, or compare two recordings; exit code 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("first", help="a commit; with --compare a recording")
    parser.add_argument("second", type=Path, help="the recording to write; with --compare the other one")
    parser.add_argument("--overrides", nargs="+", default=[], metavar="key=value", help="for every training")
    options = parser.parse_args()
    if not options.compare:
        options.second.write_text(json.dumps(record(options.first, options.overrides), indent=1) + "\n")
        return
    before, after = (with_parts(json.loads(Path(path).read_text())) for path in (options.first, options.second))
    lines = differences({**before, "commit": ""}, {**after, "commit": ""})
    print("\n".join(lines) or f"the same to the bit: {before['commit'][:12]} and {after['commit'][:12]}")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
