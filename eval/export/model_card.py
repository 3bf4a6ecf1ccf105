"""The card that goes with an exported encoder: how to load it, what it was measured at, data and recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.config import dump_yaml
from core.manifest import MANIFEST_NAME, load_manifest
from core.storage import exists, join
from eval.encoder import LoadedEncoder
from eval.report.page import RESULTS
from trainer.telemetry import names
from trainer.telemetry.names import DIRECTIONS, RECALL_KS
from trainer.trackers.metrics_csv import METRICS, read_metrics

_FITS = {
    "crop": "the middle square of the picture, resized to {size} x {size}",
    "squash": "the whole picture, resized to {size} x {size} whatever its shape",
    "pad": "the longer side resized to {size}, the rest filled with grey (127) to a square of {size} x {size}",
}


def model_card(encoder: LoadedEncoder, form: str, code: str) -> str:
    """README.md of the folder.

    Args:
        code: as a form returns it.
    """
    run_dir = encoder.path.parent.parent
    about = (_pictures(encoder), _measured(encoder, run_dir), _data(encoder))
    parts = (_opening(encoder, form, run_dir), _loading(code), *about)
    recipe = dump_yaml(encoder.identity["config"])
    return "\n".join([*(line for part in parts for line in part), f"## Recipe\n\n```yaml\n{recipe}```"]) + "\n"


def _opening(encoder: LoadedEncoder, form: str, run_dir: Path) -> Iterator[str]:
    yield f"---\nlibrary_name: {form}\npipeline_tag: image-feature-extraction\ntags: [shardclip, {form}]\n---\n"
    yield f"# {run_dir.name}\n"
    model = encoder.identity["model"]
    head = "and a head of two linear layers" if model["keeps_head"] else "before its head, which served training alone"
    yield (
        f"An image encoder trained with shardclip: the tower `{model['tower']}` {head}, {encoder.embed_dim}-wide unit "
        f"vectors, objective `{encoder.objective_name}`, {encoder.path.name}."
    )
    if encoder.compares_text:
        yield (
            f"\nIts vectors are compared (dot product) with those of captions by {encoder.text_name}. Probabilities "
            f"are the softmax of {encoder.logit_scale:.4f} (1 / temperature) times the similarities."
        )


def _loading(code: str) -> Iterator[str]:
    yield f'\n## Loading\n\n```python\nfrom pathlib import Path\n\nFOLDER = Path(".")  # this one\n\n{code}\n```\n'
    yield "`encode` takes `(B, 3, S, S)` RGB floats from 0 to 1 and gives `(B, D)` vectors of unit length."
    yield "`encoder.json` holds every number of this page for programs.\n"


def _pictures(encoder: LoadedEncoder) -> Iterator[str]:
    stored, image = encoder.stored_image, encoder.identity["image"]
    yield "## Pictures\n"
    yield f"1. {_FITS[stored.fit].format(size=stored.size)} (Pillow's bicubic filter, antialiased)"
    if image["size"] != stored.size:
        yield f"2. resized to {image['size']} x {image['size']} (bilinear, antialiased)"
    yield f"\nS is {image['size']}. `encode` itself takes the mean {image['mean']} off and divides by {image['std']}.\n"


def _measured(encoder: LoadedEncoder, run_dir: Path) -> Iterator[str]:
    yield "## Measured\n"
    results = _results(encoder, run_dir)
    figures: Mapping[str, Any] = results.get("figures", {})
    where = ", ".join(f"{Path(shards['url']).name} ({shards['split']})" for shards in results.get("shards", ()))
    if not figures:
        figures, where = _validation(encoder, run_dir), "the validation set, in training"
    if not figures:
        yield "Not measured: `shardclip eval` measures it, and another export then says the figures here.\n"
        return
    captions = f"; captions of {results['captions_from']}" if results.get("captions_from") else ""
    yield f"On {where}{'; ' + results['protocol'] if 'protocol' in results else captions}:\n"
    recalls = {d: [figures.get(names.of_direction(d, names.recall(k))) for k in RECALL_KS] for d in DIRECTIONS}
    if all(value is not None for values in recalls.values() for value in values):
        yield f"| | {' | '.join(f'R@{k}' for k in RECALL_KS)} |\n| --- |{' ---: |' * len(RECALL_KS)}"
        for direction, values in recalls.items():
            yield f"| {direction.replace('_', ' ')} | {' | '.join(f'{100 * float(v or 0):.1f} %' for v in values)} |"
    if names.KNN in figures:
        yield f"\nk-NN accuracy over classes: {100 * float(figures[names.KNN]):.1f} %"
    yield ""


def _results(encoder: LoadedEncoder, run_dir: Path) -> dict[str, Any]:
    """The evaluation of these very weights, in the run folder or a folder in it."""
    for path in sorted([*run_dir.glob(RESULTS), *run_dir.glob(f"*/{RESULTS}")]):
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if results.get("encoder") == encoder.fingerprint:
            return results
    return {}


def _validation(encoder: LoadedEncoder, run_dir: Path) -> dict[str, Any]:
    step = int(encoder.path.name.removeprefix("step-"))
    prefix = names.val("")
    rows = read_metrics(run_dir / METRICS) if (run_dir / METRICS).exists() else []
    measured = next((row.metrics for row in rows if row.step == step), {})
    return {name.removeprefix(prefix): value for name, value in measured.items() if name.startswith(prefix)}


def _data(encoder: LoadedEncoder) -> Iterator[str]:
    yield "## Data\n"
    for url in encoder.identity["config"].get("data", {}).get("train", ()):
        if exists(join(url, MANIFEST_NAME)):
            manifest = load_manifest(url)
            yield f"- {Path(url).name}: {manifest.num_samples:,} pictures, {manifest.num_captions:,} captions"
        else:
            yield f"- {Path(url).name}"
    yield ""
