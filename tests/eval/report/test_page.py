"""The report: whole in one file, honest about what is absent, and safe with any text."""

import json
import re

import numpy as np
import pytest
from page_of import Page
from PIL import Image

from core.errors import DamagedError, StorageError
from eval.report.page import write_report
from trainer.run.folder import record_event
from trainer.trackers.metrics_csv import MetricsCsv

NASTY = '<script>alert("x")</script> & “quotes”'


def results_of(**more):
    direction = {
        "recall@1": 0.25,
        "recall@5": 0.5,
        "recall@10": 0.75,
        "median_rank": 5.0,
        "mean_rank": 9.5,
        "map@10": 0.3,
    }
    interval = {k: {"estimate": 0.5, "low": 0.4, "high": 0.6} for k in ("1", "5", "10")}
    answers = [{"picture": "thumbnails/a.jpg", "score": 0.5, "is_right": right} for right in (True, False, None)]
    return {
        "run": "tiny", "run_dir": ".", "checkpoint": "step-00000007", "embed_dim": 8, "hardware": "2 cores",
        "text_encoder": "minilm (1, 8 wide)", "seconds": 3.0, "evaluated": "2026-11-20 10:00:00", "config": {"a": 1},
        "shards": [{"url": "data/x", "split": "val", "num_samples": 20, "num_captions": 100,
                    "skipped": {"too_small": 3}, "fingerprint": "f" * 64}],
        "protocol": "full gallery: 20 images x 100 captions", "image_to_text": direction, "text_to_image": direction,
        "intervals": {"image_to_text": interval, "text_to_image": interval}, "other_protocols": [],
        "val_loss": {"value": 1.5, "batch_size": 20},
        "rank_bands": {"edges": [1, 2, 6, 30], "image_to_text": [5, 6, 9], "text_to_image": [25, 25, 50]},
        "queries": [{"query": NASTY, "answers": answers}],
        "examples": {"captions": [{"query": NASTY, "rank": 3, "answers": answers[:2]}],
                     "images": [{"picture": "thumbnails/a.jpg", "rank": 1,
                                 "answers": [{"text": NASTY, "score": 0.4, "is_right": True}]}]},
        **more,
    }  # fmt: skip


def write(folder, results):
    (folder / "pictures" / "thumbnails").mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "pictures" / "thumbnails" / "a.jpg")
    (folder / "results.json").write_text(json.dumps(results))
    return Page(write_report(folder).read_text())


def write_history(folder):
    csv = MetricsCsv(folder, None)
    csv.log({"check/grad_ratio_head": 1.0000001}, 0, 0)
    for step in range(1, 80):
        csv.log({"train/loss": 5 / step, "perf/verdict": "decode-bound", "perf/wait_share": 0.31}, step, step * 10)
    csv.log({"val/loss": 2.0, "val/text_to_image/recall@10": 0.4}, 79, 790)
    record_event(folder, "epoch covered", 79, epoch=0, declared=790, seen=790, repeated=0, missed=0, dropped=5,
                 substituted=0, order_digest=255)  # fmt: skip


def test_the_report_needs_no_other_file_and_no_network(tmp_path):
    write_history(tmp_path)
    page = write(tmp_path, results_of())
    assert page.scripts == 0
    assert len(page.addresses) > 10
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)


def test_captions_are_text_and_never_markup(tmp_path):
    assert write(tmp_path, results_of()).text.count(NASTY) == 3


def test_the_headline_shows_the_figures_and_their_protocol(tmp_path):
    text = " ".join(write(tmp_path, results_of()).text.split())
    assert "Protocol: full gallery: 20 images x 100 captions." in text
    assert "R@125.0%R@550.0%R@1075.0%" in text.replace(" ", "")
    assert "3 too small" in text


def test_an_evaluation_without_its_run_says_what_is_absent_and_what_makes_it(tmp_path):
    text = write(tmp_path, results_of(queries=[])).text
    for absent in (
        "queries were given",
        "classes were given",
        "metrics.csv",
        "gradient check",
        "epoch",
        "events.jsonl",
    ):
        assert f"No {absent}" in text
    assert "shardclip train configs/train/RECIPE.yaml" in text


def test_a_run_without_an_evaluation_has_a_report_too(tmp_path):
    write_history(tmp_path)
    text = Page(write_report(tmp_path).read_text()).text
    assert "Retrieval was not measured." in text
    assert "decode-bound" in text
    assert "1 epoch: 790 of 790 declared samples seen" in text
    assert "No instability" in text


def test_instabilities_stand_out(tmp_path):
    write_history(tmp_path)
    record_event(tmp_path, "loss spike", 12, detail="loss 9, median of the last 11 was 3")
    text = " ".join(Page(write_report(tmp_path).read_text()).text.split())
    assert "1 instability noticed while training" in text
    assert "loss 9, median of the last 11 was 3" in text


def test_an_evaluation_in_a_folder_of_its_own_finds_its_run(tmp_path):
    write_history(tmp_path)
    (tmp_path / "eval").mkdir()
    text = write(tmp_path / "eval", results_of(run_dir="..")).text
    assert "decode-bound" in text


def test_other_protocols_and_a_baseline_are_tables(tmp_path):
    results = results_of()
    other = {**{d: results[d] for d in ("image_to_text", "text_to_image")}, "protocol": "COCO 5k: 5,000 images"}
    gain = {str(k): {"estimate": 0.031, "low": 0.01, "high": 0.05} for k in (1, 5, 10)}
    baseline = {"folder": "runs/before", "image_to_text": gain, "text_to_image": gain}
    text = " ".join(write(tmp_path, results_of(other_protocols=[other], against_baseline=baseline)).text.split())
    assert "COCO 5k: 5,000 images" in text
    assert "Against runs/before" in text and "+3.1 [+1.0, +5.0]" in text


def test_zero_shot_classes_show_accuracy_and_shares(tmp_path):
    example = {"picture": "thumbnails/a.jpg", "probabilities": [0.7, 0.3], "right": 0}
    part = {"classes": ["cat", "dog"], "templates": ["a {}"], "examples": [example]}
    labelled = {"num_images": 4, "top1": 0.5, "top5": 1.0, "mean_per_class": 0.5, "per_class": [1.0, None],
                "confusion": [[2, 0], [1, 1]], "shards": ["x"], **part}  # fmt: skip
    results = results_of(zero_shot_labelled=labelled, zero_shot={**part, "shares": [0.6, 0.4]})
    text = " ".join(write(tmp_path, results).text.split())
    assert "50.0 %top-1" in text.replace("% top", "%top")
    assert "cat 60.0 %, dog 40.0 %" in text


def test_queries_count_what_they_found_and_a_picture_and_its_neighbours_share_a_row(tmp_path):
    one = {"picture": "thumbnails/a.jpg", "class": "cat", "score": 0.9, "is_right": True}
    knn = {"num_images": 9, "num_classes": 2, "gallery": "leave-one-out",
           "neighbours": [{"picture": "thumbnails/a.jpg", "class": "cat", "answers": [one] * 5}]}  # fmt: skip
    page = write(tmp_path, results_of(knn=knn, figures={"knn/accuracy": 0.5}))
    assert "and the 3 images of the set nearest to it" in " ".join(page.text.split())
    html_text = (tmp_path / "report.html").read_text()
    assert html_text.count('<div class="found" style="--columns:6">') == 1  # the picture, and five neighbours
    assert 'class="found" style="--columns:3"' not in html_text  # fewer are no larger than five


def test_a_folder_with_nothing_in_it_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"neither results.json nor a run is there. Run `shardclip eval"):
        write_report(tmp_path)


def test_torn_results_are_named(tmp_path):
    (tmp_path / "results.json").write_text('{"run": "ti')
    with pytest.raises(DamagedError, match=r"results.json: no whole JSON"):
        write_report(tmp_path)


def test_the_template_has_both_themes(tmp_path):
    html_text = (write(tmp_path, results_of()), (tmp_path / "report.html").read_text())[1]
    assert len(re.findall(r'<source media="\(prefers-color-scheme: dark\)"', html_text)) >= 1
    assert "prefers-color-scheme: dark" in html_text.split("</style>")[0]
