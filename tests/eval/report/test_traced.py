"""Every number of a report comes from a file: it moves when the file's numbers move, and with none of them fixed."""

from __future__ import annotations

import json
import math
import re
from html import unescape

import numpy as np
import pytest
import torch
from column_folders import add_column
from evaluated_runs import config_of, embed_by_stand_in, write_run
from rich.console import Console
from shard_sets import make_shard_set

from core.config import Choice
from eval.baseline import read_tensors
from eval.early import FEATURES, OF_EACH, RANKS, RESULTS
from eval.evaluate import evaluate
from eval.features import load_features
from eval.ranks import retrieval_ranks
from eval.report import page
from trainer.run.environment import describe_environment
from trainer.run.folder import CONFIG, ENVIRONMENT, EVENTS, read_events, record_event
from trainer.trackers.metrics_csv import METRICS, MetricsCsv, Row, read_metrics

NUMBER = re.compile(r"(?<![\w@.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)")
EVALUATIONS = (
    Choice("same_class"),
    Choice("linear_probe", {"most_iterations": 50}),
    Choice("robustness", {"corruptions": ["gaussian_noise", "contrast"], "severities": [2, 5]}),
    Choice("class_robustness", {"corruptions": ["contrast"], "severities": [3]}),
    Choice("feature_map", {"methods": ["pca"], "most_points": 20}),
    Choice("prompt_templates"),
    Choice("calibration"),
    Choice("modality_gap"),
    Choice("against_knn", {"model": {"tower": "shufflenet_v2_x0_5", "image_size": 32}}),
)
# Keys under which numbers are places, and names of files.
KEPT = ("labels", "right", "picture", "pictures", "format_version", "order_digest")
# Numbers that the page says whatever was measured, in brackets with the words around them.
FIXED = (
    r"\[95\] %", r"top-\[[15]\]", r"\[1\.000\] [✗✓]", r"mAP@10 is \[100\] %", r"\[20\] % of the training pictures",
    r"Dietterich \[2019\]", r"square over \[5\] to", r"5 to \[40\] %", r"from \[0\] to 1, says", r"to \[1\], says",
    r"\[(5|10)\] nearest", r"k-NN accuracy, \[20\] neighbours", r"excludes \[0\]", r"of \[0\] says that their",
    r"\[2\] is the most", r"Before step \[1\]", r"a ratio of \[1\]", r"\[20\] neighbours",
)  # fmt: skip
# How many things a file lists, and the ratio of two figures that are equal.
COUNTED = (
    r"\[100\.0\] % (gaussian noise|contrast|Other figures)",
    r"the \[5\] images of the set", r"\[3\] classes", r"\[1\] prompt", r"\[33\.3\] % chance", r"in \[\d\] ways? at",
    r"at \[\d\] severit", r"\[10\] templates? together", r"all \[10\] together", r"\[1\] epoch", r"\[1\] instability",
    r"\[20\] of 24 pictures, drawn", r"class and nothing else",
)  # fmt: skip


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A run with a history, all of whose evaluations that need no files of their own were measured, and a baseline."""
    folder = tmp_path_factory.mktemp("reported")
    train = make_shard_set(folder / "train", 30, num_captions=2, seed=4, source="train")
    val = make_shard_set(folder / "val", 24, num_captions=[1 + n % 3 for n in range(24)], split="val")
    for url, count in ((train, 30), (val, 24)):
        add_column(url, "labels", (np.arange(count) % 3).astype("<i4"), classes=("cat", "dog", "cow"))
    torch.manual_seed(4)
    for name in ("before", "run"):
        write_run(folder / name, data={"train": [train], "columns": {}})
    with pytest.MonkeyPatch.context() as patch:
        embed_by_stand_in(patch)
        quiet = Console(quiet=True)
        evaluate(config_of(folder / "before", val, None), quiet)
        more = {
            "baseline": folder / "before", "queries": ("a cat", "a dog"), "classes": ("cat", "dog"),
            "labelled_shards": (val,), "num_examples": 2,
            "evaluations": (*EVALUATIONS, Choice("against", {"of": str(folder / "before")})),
        }  # fmt: skip
        evaluate(config_of(folder / "run", val, None, **more), quiet)
    write_history(folder / "run")
    return folder / "run"


def write_history(folder):
    csv = MetricsCsv(folder, None)
    csv.log({"check/grad_ratio_head": 1.0000001}, 0, 0)
    for step in range(1, 21):
        speed = {"perf/verdict": "decode-bound", "perf/wait_share": 0.31, "perf/images_per_s": 2345.6, "perf/mfu": 0.27}
        csv.log({"train/loss": 5 / step, "perf/peak_memory_gib": 17.25, **speed}, step, step * 40)
    csv.log({"val/loss": 2.0, "val/text_to_image/recall@10": 0.4}, 20, 800)
    record_event(folder, "epoch covered", 20, epoch=0, declared=811, seen=801, repeated=3, missed=13, dropped=5,
                 substituted=7, order_digest=255)  # fmt: skip
    record_event(folder, "loss spike", 17, loss=23.75, usual=3.125)
    (folder / "environment.json").write_text(json.dumps(describe_environment(2)))
    (folder / "config.yaml").write_text("global_batch_size: 4321\noptim: {lr: 0.0123}\n")


class Report:
    """The files of a report, and what its text says."""

    def __init__(self, folder):
        self.folder = folder
        self.given = {
            RESULTS: json.loads((folder / RESULTS).read_text()) | {"seconds": 123.4},  # a quick one says 1 and 1 again
            METRICS: read_metrics(folder / METRICS),
            EVENTS: read_events(folder),
            ENVIRONMENT: json.loads((folder / ENVIRONMENT).read_text()),
            CONFIG: (folder / CONFIG).read_text(),
        }

    def text(self, *moved):
        """The page without its pictures, when the numbers in these files are others."""
        given = {file: other(value) if file in moved else value for file, value in self.given.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(page, "_both_themes", lambda *given: {})
            html = page.render(
                given[RESULTS], self.folder / "pictures", rows=given[METRICS], events=given[EVENTS],
                environment=given[ENVIRONMENT], config=given[CONFIG],
            )  # fmt: skip
        html = re.sub(r"<(style|script).*?</\1>", " ", html, flags=re.DOTALL)
        return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def other(value):
    """The same with other numbers of the same signs; places and names of things stay."""
    if isinstance(value, dict):
        return {key: item if key in KEPT else other(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [other(item) for item in value]
    if isinstance(value, Row):
        return Row(other(value.step), other(value.samples_seen), value.time * 3, other(value.metrics))
    if isinstance(value, str):
        return re.sub(r"\d", lambda digit: str((int(digit.group()) + 3) % 10), value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if isinstance(value, int):
        return value * 3
    factor = 1.2 + 0.4 * math.modf(abs(value) * 7919)[0]  # another one for each, or ratios would stay
    return value and value * factor + math.copysign(0.0137, value)


def without_numbers(text):
    """The text with all numbers alike, however long they are."""
    return re.sub(r"\d[\d,]*(\.\d+)?(e[-+]?\d+)?", "#", text)


def sources(report):
    """`{place in the text: files}` of every number; and each with the words around it, by place."""
    before = report.text()
    numbers = list(NUMBER.finditer(before))
    words = {
        n: f"{before[max(0, found.start() - 40) : found.start()]}[{found.group()}]{before[found.end() :][:30]}"
        for n, found in enumerate(numbers)
    }
    files = {n: [] for n in words}
    for file in report.given:
        after = report.text(file)
        assert without_numbers(after) == without_numbers(before), f"other numbers in {file} change words"
        for n, found in enumerate(NUMBER.finditer(after)):
            if found.group() != numbers[n].group():
                files[n].append(file)
    return files, words, [found.group() for found in numbers]


def test_every_number_moves_with_one_file(reported):
    files, words, numbers = sources(Report(reported))
    assert not [words[n] for n, found in files.items() if len(found) > 1]
    known = re.compile("|".join(FIXED + COUNTED))
    is_zero = re.compile(r"[-+]?0(\.0*)?")
    fixed = [words[n] for n, found in files.items() if not found and not is_zero.fullmatch(numbers[n])]
    assert [one for one in fixed if not known.search(one)] == []
    for file, least in ((RESULTS, 300), (METRICS, 6), (EVENTS, 8), (ENVIRONMENT, 4), (CONFIG, 2)):
        assert sum(found == [file] for found in files.values()) >= least, file


def test_figures_of_the_results_are_those_of_the_files_of_each_query(reported):
    figures = json.loads((reported / RESULTS).read_text())["figures"]
    of_each, _ = read_tensors(reported / OF_EACH)
    assert {"knn/accuracy", "zero_shot/accuracy", "linear_probe/accuracy", "same_class/map@10"} <= of_each.keys()
    for name, values in of_each.items():
        assert figures[name] == pytest.approx(values.astype(float).mean(), abs=1e-6), name
    ranks, _ = read_tensors(reported / RANKS)
    pairs = load_features(reported / FEATURES).features
    counted = retrieval_ranks(pairs)
    for direction in ("image_to_text", "text_to_image"):
        assert np.array_equal(ranks[direction], getattr(counted, direction))
        for k in (1, 5, 10):
            assert figures[f"{direction}/recall@{k}"] == np.mean(ranks[direction] <= k)
