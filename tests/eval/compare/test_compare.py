"""Comparisons: differences are those of the figures, nothing is told of equal runs, and text stays text."""

import io
import json
import re
import shutil

import numpy as np
import pytest
from compared_runs import CLASSES, NUM_CAPTIONS, NUM_IMAGES, write_evaluated
from evaluated_runs import config_of, write_run
from page_of import Page
from rich.console import Console
from safetensors.numpy import load_file, save_file
from shard_sets import make_shard_set

from core.errors import ConfigError, DamagedError, DataError, StorageError
from eval.compare.compare import compare
from eval.compare.early import expect_comparable
from eval.compare.figures import differences, not_comparable
from eval.compare.queries import FOUND, swapped
from eval.compare.recipes import differing_keys
from eval.evaluate import evaluate
from eval.evaluations import EVALUATIONS
from eval.evaluations.eccv_caption import ECCVCaption
from eval.metrics import percentile_interval
from trainer.telemetry.names import is_share

QUIET = Console(quiet=True)
NASTY = '<script>alert("x")</script> & “quotes”'


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    make_shard_set(folder / "val", NUM_IMAGES, num_captions=NUM_CAPTIONS, split="val")
    lines = [{"image_id": str(i), "captions": [f"{NASTY} {i}", f"a dog {i}"]} for i in range(NUM_IMAGES)]
    (folder / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for seed, name in enumerate(("first", "second", "third")):
        recipe = {"optim": {"lr": 0.1 * 2**seed, "betas": [0.9, 0.98]}} | ({"epochs": 3} if seed == 2 else {})
        write_evaluated(folder / name, str(folder / "val"), seed, folder / "own.jsonl", **recipe)
    return folder


def run(folders, out, **options):
    found = compare(expect_comparable(folders, out, **options), out, QUIET, **options)
    assert json.loads((out / "compare.json").read_text()) == found
    return found, (out / "compare.html").read_text()


def test_differences_are_those_of_the_figures_with_paired_intervals(places, tmp_path):
    found, _ = run([places / "first", places / "second"], tmp_path / "out")
    before, after = (json.loads((places / n / "results.json").read_text())["figures"] for n in ("first", "second"))
    assert [row["figure"] for row in found["figures"]] == list(before)
    known_of_each = []
    for row in found["figures"]:
        name, (gain,) = row["figure"], row["gains"]
        assert row["values"] == [before[name], after[name]] and gain["estimate"] == after[name] - before[name]
        if "low" in gain:
            known_of_each.append(name)
            assert gain["low"] <= gain["estimate"] <= gain["high"]
    assert set(before) - set(known_of_each) == {"image_to_text/median_rank", "text_to_image/median_rank"}
    # The interval by hand, of a figure of pictures: no groups.
    lists = [load_file(places / n / "of_each.safetensors")["knn1/accuracy"] for n in ("first", "second")]
    generator, drawn = np.random.default_rng(0), []
    for _ in range(2000):
        chosen = generator.integers(NUM_IMAGES, size=NUM_IMAGES)
        drawn.append(np.mean([float(lists[1][i]) - float(lists[0][i]) for i in chosen]))
    gain = next(row["gains"][0] for row in found["figures"] if row["figure"] == "knn1/accuracy")
    wanted = percentile_interval(gain["estimate"], np.array(drawn), NUM_IMAGES)
    assert [gain["low"], gain["high"]] == pytest.approx([wanted.low, wanted.high])


def test_a_run_against_itself_differs_in_nothing(places, tmp_path):
    found, html = run([places / "first"] * 2, tmp_path / "out")
    assert found["figures"] and all(
        value == 0 for row in found["figures"] for gain in row["gains"] for value in gain.values()
    )
    assert found["recipes"] == [] and found["environment"] == [] and found["not_comparable"] == []
    assert [way["queries"] for way in found["queries"]] == [[], []]
    assert [one["name"] for one in found["runs"]] == [str(places / "first"), f"{places / 'first'} (2)"]
    assert "The recipes do not differ." in html


def test_the_table_for_people_shows_brackets_as_they_are(places, tmp_path):
    folder = tmp_path / "[red]second"
    shutil.copytree(places / "second", folder)
    console = Console(record=True, width=200, file=io.StringIO())
    runs = expect_comparable([places / "first", folder], tmp_path / "out")
    found = compare(runs, tmp_path / "out", console)
    said = console.export_text()
    assert "[red]second" in said and "recipes differ in: optim.lr" in said
    assert all(row["figure"] in said for row in found["figures"])
    assert f"{100 * found['figures'][0]['gains'][0]['low']:+.1f}, " in said


def test_three_runs_are_held_against_the_first(places, tmp_path):
    found, html = run([places / name for name in ("first", "second", "third")], tmp_path / "out")
    assert all(len(row["values"]) == 3 and len(row["gains"]) == 2 for row in found["figures"])
    assert [(way["finds"], way["misses"]) for way in found["queries"]] == [(1, 0), (0, 1), (2, 0), (0, 2)]
    recipes = {row["key"]: row["values"] for row in found["recipes"]}
    assert recipes == {"optim.lr": ["0.1", "0.2", "0.4"], "epochs": ["not said", "not said", "3"]}
    assert found["metrics"] == ["train/loss", "val/text_to_image/recall@10", "train/only_mine"]
    assert html.count('alt="train/loss over samples seen"') == 1


def test_captions_and_classes_are_text_and_never_markup(places, tmp_path):
    page = Page(run([places / "first", places / "second"], tmp_path / "out")[1])
    shown = [
        query for way in json.loads((tmp_path / "out/compare.json").read_text())["queries"] for query in way["queries"]
    ]
    nasty = [query for query in shown if NASTY in query["text"]]
    assert nasty and page.text.count(NASTY) == len(nasty) and CLASSES[1] in page.text
    assert page.scripts == 0 and all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert len([address for address in page.addresses if address.startswith("data:image/jpeg")]) == len(shown) * 11


def test_queries_are_those_whose_rank_changes_most():
    random = np.random.default_rng(3)
    for _ in range(50):
        found, lost = random.integers(1, 12, 40), random.integers(1, 12, 40)
        image_of_text = np.sort(random.integers(0, 12, 40))
        wanted, taken = [], set()
        for row in sorted(range(40), key=lambda i: (found[i] - lost[i], i)):
            if found[row] <= FOUND < lost[row] and image_of_text[row] not in taken:
                wanted.append(row)
                taken.add(image_of_text[row])
        assert swapped(found, lost, image_of_text, count=4).tolist() == wanted[:4]


def test_each_side_shows_what_it_finds(places, tmp_path):
    found, _ = run([places / "first", places / "second"], tmp_path / "out")
    ranks = {n: load_file(places / n / "ranks.safetensors")["text_to_image"] for n in ("first", "second")}
    for way in found["queries"]:
        for query in way["queries"]:
            row = query["caption"]["sample"] * NUM_CAPTIONS + query["caption"]["place"]
            finds, misses = query["found"]
            assert (finds["run"], misses["run"]) == (way["finds"], way["misses"])
            assert [finds["rank"], misses["rank"]] == [
                ranks[("first", "second")[i]][row] for i in (finds["run"], misses["run"])
            ]
            assert [answer["is_right"] for answer in finds["answers"]].index(True) == finds["rank"] - 1
            assert not any(answer["is_right"] for answer in misses["answers"])


def test_without_the_shards_figures_stand_and_pictures_are_said_to_be_missing(places, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(places / name, tmp_path / name)
        results = json.loads((tmp_path / name / "results.json").read_text())
        results["shards"][0]["url"] = str(tmp_path / "gone")
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    found, html = run([tmp_path / "first", tmp_path / "second"], tmp_path / "out")
    assert found["figures"] and "not where they were" in found["pictures"]
    page = Page(html)
    assert "not where they were" in page.text and not any("jpeg" in address for address in page.addresses)


def changed(places, tmp_path, **values):
    folder = tmp_path / "changed"
    shutil.copytree(places / "second", folder)
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, **values}))
    return folder


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"shards": [{"url": "data/else", "fingerprint": "f"}]},
            r"was measured on other shards \(data/else\) than .*first",
        ),
        (
            {"captions_from": "else.jsonl"},
            r"was measured with captions of else.jsonl, .*first with captions of own.jsonl",
        ),
        ({"protocol": "COCO 5k"}, r"was measured by the protocol 'COCO 5k', .*first by the protocol 'full gallery'"),
    ],
)
def test_other_shards_captions_and_protocols_are_refused_and_their_curves_compared(places, tmp_path, values, sentence):
    folders = [places / "first", changed(places, tmp_path, **values)]
    with pytest.raises(DataError, match=sentence + r".*--curves-only\.$"):
        expect_comparable(folders, tmp_path / "out")
    found, html = run(folders, tmp_path / "out", curves_only=True)
    assert "figures" not in found and found["metrics"] and found["recipes"] and 'id="figures"' not in html


def test_neighbours_among_other_galleries_are_not_compared(places, tmp_path):
    folder = changed(places, tmp_path, knn={"labels": "the same", "gallery": {"fingerprint": "else"}})
    found, html = run([places / "first", folder], tmp_path / "out")
    gains = {row["figure"]: row["gains"] for row in found["figures"]}
    assert gains["knn/accuracy"] == gains["knn1/accuracy"] == [None] and gains["image_to_text/recall@1"] != [None]
    assert found["not_comparable"] == ["k-NN of changed was measured with another gallery than that of first."]
    assert "not comparable" in html
    moved = [
        changed(places, tmp_path / place, knn={"labels": "x", "gallery": {"shards": [place], "fingerprint": "f"}})
        for place in ("here", "there")
    ]
    assert run(moved, tmp_path / "out")[0]["not_comparable"] == []


@pytest.mark.parametrize(
    ("figure", "part", "why"),
    [
        ("same_class/map@10", {"knn": {"labels": "x", "gallery": "else"}}, "same-class retrieval .* another gallery"),
        ("linear_probe/mean_per_class", {"knn": {"labels": "y", "gallery": "g"}}, "linear probe .* other labels"),
        ("prompt_templates/gain", {"knn": {"labels": "y", "gallery": "g"}}, "prompt templates .* other labels"),
        ("class_robustness/retained", {"knn": {"labels": "y", "gallery": "g"}}, ".* other labels"),
        ("zero_shot/top5", {"zero_shot_labelled": {"classes": ["b"]}}, "zero-shot accuracy .* other classes"),
        ("zero_shot/accuracy", {"zero_shot_labelled": {"templates": ["b"]}}, "zero-shot accuracy .* other prompts"),
    ],
)
def test_other_labels_galleries_and_prompts_are_not_compared(places, tmp_path, figure, part, why):
    name = figure.split("/")[0]
    same = {
        "knn": {"labels": "x", "gallery": "g"},
        "zero_shot_labelled": {"fingerprint": "f", "classes": ["a"], "templates": ["t"]},
        "figures": {figure: 0.5}, "evaluations": {name: [{"figures": {figure: 0.5}}]},
    }  # fmt: skip
    other = {key: {**same[key], **part.get(key, {})} for key in ("knn", "zero_shot_labelled")}
    first, alike = (changed(places, tmp_path / place, **same) for place in ("first", "alike"))
    unlike = changed(places, tmp_path / "unlike", **{**same, **other})
    for folder, gains in ((alike, [{"estimate": 0.0}]), (unlike, [None])):
        compared = expect_comparable([first, folder], tmp_path / "out")
        (row,) = differences(compared, None)
        assert row["gains"] == gains
    (said,) = not_comparable(expect_comparable([first, unlike], tmp_path / "out"))
    assert re.match(why, said)


def test_how_often_it_is_measured_while_training_is_no_option(places, tmp_path):
    figures = {"robustness/recall": 0.5}
    folders = [
        changed(
            places, tmp_path / str(number), figures=figures, evaluations={"robustness": [{"figures": figures}]},
            config={"captions": None, "evaluations": [{"name": "robustness", **more}]},
        )
        for number, more in enumerate(({"every": 5}, {"seed": 0}, {"seed": 1}))
    ]  # fmt: skip
    found = differences(expect_comparable(folders, tmp_path / "out"), None)
    assert found[0]["gains"] == [{"estimate": 0.0}, None]


def test_every_figure_is_a_share_or_known_as_something_else():
    evaluations = [kind() for name, kind in EVALUATIONS.items() if name != "eccv_caption"]
    evaluations.append(ECCVCaption.__new__(ECCVCaption))  # whose files are not here
    figures = {figure for evaluation in evaluations for figure in evaluation.figures()}
    others = {figure.split("/")[-1] for figure in figures if not is_share(figure)}
    assert others == {
        "median_rank", "mean_rank", "trustworthiness", "ece", "brier", "brier_skill", "distance", "cosine_of_pairs",
        "cosine_of_others", "alignment", "uniformity_image", "uniformity_text",
    }  # fmt: skip


def test_evaluations_with_other_options_are_not_compared(places, tmp_path):
    figures = json.loads((places / "first/results.json").read_text())["figures"] | {"against/knn/accuracy": 0.5}
    folders = []
    for of in ("a", "b"):
        folder = changed(
            places, tmp_path / of, figures=figures,
            evaluations={"against_knn": [{"figures": {"against/knn/accuracy": 0}}]},
            config={"captions": None, "evaluations": ["against", {"name": "against_knn", "of": of}]},
        )  # fmt: skip
        shutil.copy(places / "first/of_each.safetensors", folder)
        shutil.copy(places / "first/ranks.safetensors", folder)
        folders.append(folder)
    for pair, gain in ((folders, None), ([folders[0]] * 2, {"estimate": 0.0})):
        rows = differences(expect_comparable(pair, tmp_path / "out"), None)
        assert rows[-1] == {"figure": "against/knn/accuracy", "values": [0.5, 0.5], "gains": [gain]}


def test_files_of_two_evaluations_are_refused(places, tmp_path):
    folder = changed(places, tmp_path)
    ranks = load_file(folder / "ranks.safetensors")
    save_file({**ranks, "text_to_image": ranks["text_to_image"][::-1] + 1}, folder / "ranks.safetensors")
    with pytest.raises(DamagedError, match=r"text_to_image/.* are of two evaluations\. Run `shardclip eval` again\."):
        run([places / "first", folder], tmp_path / "out")


def test_mistakes_end_in_one_sentence(places, tmp_path):
    first = places / "first"
    (tmp_path / "bare").mkdir()
    for folders, error, sentence in (
        ([first], ConfigError, r"first alone is named\. Name two run folders or more"),
        ([first, tmp_path / "none"], StorageError, r"there is no folder .*none\. Name one that `shardclip eval`"),
        (
            [first, tmp_path / "bare"],
            StorageError,
            r"bare was not evaluated, nor is it a run\. Run `shardclip eval RECIPE",
        ),
    ):
        with pytest.raises(error, match=sentence):
            expect_comparable(folders, tmp_path / "out")
    folder = changed(places, tmp_path)
    (folder / "ranks.safetensors").unlink()
    with pytest.raises(StorageError, match=r"ranks.safetensors is missing\. Run `shardclip eval` again\."):
        expect_comparable([first, folder], tmp_path / "out")
    with pytest.raises(ConfigError, match=r"--out is .*val, which holds other things"):
        expect_comparable([first, first], places / "val")


def test_lists_and_nested_options_are_told_apart_by_key():
    old = {"objective": {"name": "infonce", "x": 1}, "betas": [0.9, 0.98], "run_dir": "a"}
    new = {"objective": "siglip", "betas": [0.9, 0.95], "run_dir": "b"}
    assert {row["key"]: row["values"] for row in differing_keys([old, new])} == {
        "objective": ["infonce", "siglip"], "objective.x": ["1", "not said"], "betas": ["0.9, 0.98", "0.9, 0.95"],
    }  # fmt: skip


def test_two_evaluations_are_compared_as_they_lie(tmp_path):
    shards = make_shard_set(tmp_path / "val", 12, num_captions=3, split="val")
    for name in ("a", "b"):
        write_run(tmp_path / name)
        evaluate(config_of(tmp_path / name, shards, tmp_path / name / "eval"), QUIET)
    found, html = run([tmp_path / "a/eval", tmp_path / "b/eval"], tmp_path / "out")
    assert [one["name"] for one in found["runs"]] == ["a/eval", "b/eval"]
    assert sum("low" in row["gains"][0] for row in found["figures"]) == 10  # all but two medians
    assert found["pictures"] == "" and "caption" in html
