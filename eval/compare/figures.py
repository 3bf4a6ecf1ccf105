"""Differences of every figure that two runs have, with paired intervals where it is known of each query."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from core.config import Choice, convert
from core.errors import ConfigError, DamagedError
from core.parts import settings
from eval.baseline import read_tensors
from eval.compare.early import ComparedRun
from eval.early import OF_EACH, RANKS
from eval.evaluations import ALWAYS, EVALUATIONS
from eval.metrics import bootstrap
from trainer.telemetry import names
from trainer.telemetry.names import DIRECTIONS, RECALL_KS, TEXT_TO_IMAGE

# Where one of these values of a part of `results.json` differs, figures by labels or by prompts cannot be compared.
_OF_LABELS = ("knn", {"labels": "other labels", "gallery": "another gallery"})
_OF_PROMPTS = (
    "zero_shot_labelled",
    {"fingerprint": "other pictures", "classes": "other classes", "templates": "other prompts"},
)
_SPOKEN = {"knn": "k-NN", "zero_shot": "zero-shot accuracy"}  # of evaluations without a title
_AGAIN = "Run `shardclip eval` again."
_SAME = 1e-9  # a figure and the mean of its queries


def differences(runs: Sequence[ComparedRun], text_groups: np.ndarray | None) -> list[dict[str, Any]]:
    """Each figure that the first run and another have: the values of all, and what each further run gains on the first.

    Args:
        text_groups: `(T,)` which captions are drawn together; None where captions play no part.

    Returns:
        `{"figure": ..., "values": [...], "gains": [{"estimate": ..., "low": ..., "high": ...}, ...]}`, a gain for each
        run but the first. A value is None where a run lacks it, a gain where it cannot be compared; there is no low
        and high where the figure is not known of each query.

    Raises:
        DamagedError: what is known of each query is of another evaluation.
    """
    reference, *others = runs
    each = [_of_each(run) for run in runs]
    rows = []
    for figure, value in _all_figures(reference).items():
        values = [value, *(_all_figures(run).get(figure) for run in others)]
        if all(other is None for other in values[1:]):
            continue
        groups = text_groups if figure.startswith(TEXT_TO_IMAGE) else None
        gains: list[dict[str, float] | None] = []
        for run, other, own in zip(others, values[1:], each[1:], strict=True):
            if other is None or _differing(figure, reference, run):
                gains.append(None)
                continue
            gain = {"estimate": other - value}
            if figure in own and figure in each[0]:
                before, now = _expect_of_figure(each[0], reference, figure), _expect_of_figure(own, run, figure)
                if len(before) != len(now):
                    raise DamagedError(f"compare: {run.folder} and {reference.folder} have other queries. {_AGAIN}")
                interval = bootstrap(now - before, groups)
                gain |= {"low": interval.low, "high": interval.high}
            gains.append(gain)
        rows.append({"figure": figure, "values": values, "gains": gains})
    return rows


def by_class(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """Zero-shot accuracy of each class by all runs, those first that change most; empty where one lacks it."""
    parts = [run.results.get("zero_shot_labelled") for run in runs]
    found = [dict(zip(part["classes"], part["per_class"], strict=True)) for part in parts if part]
    if len(found) < len(runs) or any(part.keys() != found[0].keys() for part in found):
        return []
    rows = [{"class": name, "values": [part[name] for part in found]} for name in found[0]]
    whole = [row for row in rows if None not in row["values"]]
    return sorted(whole, key=lambda row: min(-abs(value - row["values"][0]) for value in row["values"]))


def not_comparable(runs: Sequence[ComparedRun]) -> list[str]:
    """Sentences on the figures that runs have and that cannot be compared."""
    reference, *others = runs
    said = [
        f"{evaluation} of {run.name} was measured with {why} than that of {reference.name}."
        for run in others
        for figure in _all_figures(reference)
        if figure in _all_figures(run)
        for evaluation, why in _differing(figure, reference, run)
    ]
    return list(dict.fromkeys(said))


def _differing(figure: str, reference: ComparedRun, run: ComparedRun) -> list[tuple[str, str]]:
    """Which evaluation was measured otherwise, and how: none where the figure can be compared."""
    name = next((name for name in EVALUATIONS if figure in _figures_of(run, name)), None)
    if name is None:
        return []
    spoken = _SPOKEN.get(name, EVALUATIONS[name].title.lower())
    needs = EVALUATIONS[name].needs
    for part, conditions in (*(_OF_LABELS,) * ("labels" in needs), *(_OF_PROMPTS,) * ("prompts" in needs)):
        ours, theirs = (one.results.get(part, {}) for one in (reference, run))
        for key, what in conditions.items():
            if key not in ours or key not in theirs or _without_place(ours[key]) != _without_place(theirs[key]):
                return [(spoken, what)]
    return [(spoken, "other options")] if _options(reference, name) != _options(run, name) else []


def _figures_of(run: ComparedRun, name: str) -> Collection[str]:
    """The figures of an evaluation, as the run's recipe lists it, or those that it always has."""
    parts = run.results.get("evaluations", {}).get(name, ())
    return EVALUATIONS[name]().figures() if name in ALWAYS else {figure for part in parts for figure in part["figures"]}


def _without_place(value: Any) -> Any:
    """A gallery is what it holds, wherever it lies."""
    return {key: item for key, item in value.items() if key != "shards"} if isinstance(value, Mapping) else value


def _options(run: ComparedRun, name: str) -> Any:
    """Of an evaluation, with defaults, but how often it is measured while training; of a file what it says.

    A run of another version may know other options: then they are as its recipe listed them.
    """
    listed = convert(run.results.get("config", {}).get("evaluations") or (), tuple[Choice, ...], "evaluations")
    choice = next((one for one in listed if one.name == name), Choice(name))
    try:
        options = settings(EVALUATIONS, choice, "evaluations")
    except ConfigError:
        options = {"name": choice.name, **choice.options}
    parts = run.results.get("evaluations", {}).get(name, ())
    said = [[row["template"] for row in part["templates"]] for part in parts if "templates" in part]
    return {key: value for key, value in options.items() if key not in ("every", "templates_file")}, said


def _all_figures(run: ComparedRun) -> Mapping[str, float]:
    """And those of protocols beside the whole gallery, under the protocol's name."""
    figures = dict(run.results["figures"])
    for protocol in run.results.get("other_protocols", ()):
        for direction in DIRECTIONS:
            for figure, value in protocol[direction].items():
                figures.setdefault(f"{protocol['protocol']}: {names.of_direction(direction, figure)}", value)
    return figures


def _of_each(run: ComparedRun) -> dict[str, np.ndarray]:
    """What is known of each query, by figure: its mean is the figure."""
    found: dict[str, np.ndarray] = {}
    if (run.folder / OF_EACH).exists():
        found |= {figure: values.astype(float) for figure, values in read_tensors(run.folder / OF_EACH)[0].items()}
    if (run.folder / RANKS).exists() and names.IMAGE_TO_TEXT in run.results:
        ranks = read_tensors(run.folder / RANKS)[0]
        for direction in DIRECTIONS:
            own = ranks[direction]
            found[names.of_direction(direction, names.MEAN_RANK)] = own.astype(float)
            found |= {names.of_direction(direction, names.recall(k)): (own <= k).astype(float) for k in RECALL_KS}
    return found


def _expect_of_figure(each: Mapping[str, np.ndarray], run: ComparedRun, figure: str) -> np.ndarray:
    """The queries, whose mean is what `results.json` says."""
    values, said = each[figure], run.results["figures"][figure]
    if abs(values.mean() - said) > _SAME * max(1.0, abs(said)):
        raise DamagedError(
            f"compare: {run.folder}: {figure} is {said:.6g}, but the mean of its queries is {values.mean():.6g}: these "
            f"files are of two evaluations. {_AGAIN}"
        )
    return values
