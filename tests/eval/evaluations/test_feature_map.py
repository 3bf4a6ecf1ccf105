"""Maps of features against scikit-learn and umap-learn called directly, and what the page makes of them."""

import json
import re
import time
from dataclasses import replace
from importlib.util import find_spec

import gloo
import numpy as np
import pytest
from evaluated_runs import config_of, write_run
from rich.console import Console
from shard_sets import make_shard_set

import eval.evaluations.feature_map as feature_map
from core.config import Choice
from core.errors import ConfigError, DataError
from core.shard_set import ShardSet
from eval.evaluate import evaluate
from eval.evaluations import chosen
from eval.evaluations.evaluation import Subject
from eval.evaluations.feature_map import FeatureMap, nearest, scaled, trustworthiness
from eval.labels import Labels
from eval.report.map_html import map_html, script_json
from eval.report.marks import grouped
from eval.report.measured import part_of
from eval.report.page import write_report
from launch.columns import column

manifold = pytest.importorskip("sklearn.manifold", reason="scikit-learn is not installed: pip install 'shardclip[viz]'")
decomposition = pytest.importorskip("sklearn.decomposition")
limits = pytest.importorskip("threadpoolctl").threadpool_limits
HOSTILE = '</script><script>alert("x")</script> <!-- & "quotes" \' $data ${x} \u2028 end'
QUICK = FeatureMap(methods=("pca",))


def rows_of(count=60, width=12, seed=0, classes=4):
    """Unit rows around a few centres, float32."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(classes, width))[np.arange(count) % classes] + 0.6 * rng.normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def subject_of(count=60, **more):
    return Subject(rows_of(count), samples=np.arange(count), **more)


class Shelf:
    """Captions out of a list, and no pictures."""

    def __init__(self, captions):
        self.captions = captions

    def text(self, caption):
        return self.captions[caption["sample"]]

    def sheet(self, samples, side, columns):
        self.asked = samples, side, columns
        return "thumbnails/sheet.jpg"


def points_of(measured, method):
    return np.array(measured.shown["maps"][method]).T


def expect_peer(method, peer):
    """The map of 60 points is the peer's, moved to 0..1 by one factor; it is the same a second time."""
    options = FeatureMap(methods=(method,), perplexity=11, num_neighbours=7, seed=3)
    found = options.measure(subject_of())
    with limits(1):
        expected = peer.fit_transform(rows_of())
    moved = points_of(found, method) - points_of(found, method).mean(axis=0)
    wanted = (expected - expected.mean(axis=0)) / np.ptp(expected, axis=0).max()
    np.testing.assert_allclose(moved, wanted, atol=1.01e-3)
    assert options.measure(subject_of()) == found
    trust = manifold.trustworthiness(rows_of(), expected, n_neighbors=7)
    assert found.figures[f"feature_map/{method}/trustworthiness"] == pytest.approx(trust, abs=1e-9)
    assert 0.6 < trust < 1


def test_the_plane_of_pca_is_that_of_scikit_learn():
    peer = decomposition.PCA(2, svd_solver="full")
    expect_peer("pca", peer)
    found = QUICK.measure(subject_of()).figures["feature_map/pca/explained"]
    assert found == pytest.approx(peer.explained_variance_ratio_.sum(), abs=1e-6)


def test_the_map_of_t_sne_is_that_of_scikit_learn():
    expect_peer("tsne", manifold.TSNE(2, perplexity=11, init="pca", random_state=3))


def test_the_map_of_umap_is_that_of_umap_learn():
    umap = pytest.importorskip("umap", reason="umap-learn is not installed: pip install 'shardclip[viz]'")
    expect_peer("umap", umap.UMAP(n_neighbors=7, random_state=3, n_jobs=1))


@pytest.mark.parametrize(("count", "k", "block"), [(9, 4, 1 << 20), (40, 5, 2000), (101, 50, 30_000)])
def test_trustworthiness_is_that_of_scikit_learn_whatever_the_blocks(count, k, block, monkeypatch):
    monkeypatch.setattr(feature_map, "_BLOCK_BYTES", block)
    images, points = rows_of(count), np.random.default_rng(1).normal(size=(count, 2))
    for plane in (points, images[:, :2]):
        expected = manifold.trustworthiness(images, plane, n_neighbors=k)
        assert trustworthiness(images, plane, k) == pytest.approx(expected, abs=1e-12)


def test_a_collapsed_encoder_is_one_point_that_nobody_can_trust():
    images = np.repeat(rows_of(1), 20, axis=0) * (1 + 1e-7 * np.arange(20, dtype=np.float32)[:, None])
    found = FeatureMap(methods=("pca", "tsne")).measure(Subject(images, samples=np.arange(20)))
    assert set(found.figures.values()) == {0.0}
    assert (points_of(found, "tsne") == 0.5).all()


def test_a_map_keeps_its_proportions():
    moved = scaled(np.array([[10.0, 1.0], [30.0, 2.0], [20.0, 1.0]]))
    assert moved.tolist() == [[0.0, 0.475], [1.0, 0.525], [0.5, 0.475]]


def test_the_nearest_are_those_of_a_double_loop():
    images = rows_of(15)
    neighbours, cosines = nearest(images, 3)
    for i in range(15):
        others = sorted((-float(images[i] @ images[j]), j) for j in range(15) if j != i)[:3]
        assert neighbours[i].tolist() == [j for _, j in others]
        np.testing.assert_allclose(cosines[i], [-cosine for cosine, _ in others], atol=1e-6)


def test_more_pictures_than_asked_for_are_drawn_by_the_seed_alone():
    found = replace(QUICK, most_points=20).measure(subject_of())
    drawn = np.sort(np.random.default_rng((0, 20)).permutation(60)[:20])
    assert found.shown["samples"] == drawn.tolist() and found.shown["of"] == 60
    assert "20 of 60 pictures, drawn at random" in FeatureMap.section(part_of(found)).lead
    assert replace(QUICK, most_points=20, seed=1).measure(subject_of()).shown["samples"] != drawn.tolist()
    assert "All 60 pictures" in FeatureMap.section(part_of(QUICK.measure(subject_of()))).lead


def test_points_have_their_class_else_their_topic_else_one_colour():
    labels = np.where(np.arange(60) % 7 == 0, -1, 2 * (np.arange(60) % 2))
    topics = Labels(np.arange(60) % 3, ("topic 0: a dog", "topic 1", "topic 2: " + 40 * "far "))
    by_class = QUICK.measure(
        subject_of(labels=labels, classes=("cat", "none of it", "dog"), topics=lambda: topics)
    ).shown
    assert by_class["coloured_by"] == "class" and by_class["classes"] == ["cat", "dog"]
    assert by_class["labels"] == np.where(labels < 0, -1, labels // 2).tolist()
    by_topic = QUICK.measure(replace(subject_of(), samples=np.arange(60)[::-1], topics=lambda: topics)).shown
    assert by_topic["coloured_by"] == "topic" and by_topic["labels"] == (np.arange(60)[::-1] % 3).tolist()
    assert by_topic["classes"][2].endswith("far…") and len(by_topic["classes"][2]) <= 90
    for without in (subject_of(), subject_of(topics=lambda: None)):
        assert QUICK.measure(without).shown["classes"] == []


def test_many_classes_share_an_entry_and_no_two_entries_look_alike():
    labels = [k for k in range(40) for _ in range(41 - k)] + [-1, -1]
    groups = grouped(labels, [f"class {k}" for k in range(40)])
    assert [group.name for group in groups[:2]] == ["class 0", "class 1"]
    assert [group.name for group in groups[24:]] == ["16 other classes", "no class"]
    assert sorted(row for group in groups for row in group.rows) == list(range(len(labels)))
    assert len({(group.colour, group.shape) for group in groups[:24]}) == 24


def data_in(html):
    """What the script of a map reads, found as a browser finds it: up to the first end of the element."""
    return json.loads(re.search(r'<script type="application/json">(.*?)</script', html, re.DOTALL)[1])


def test_captions_and_classes_are_data_whatever_they_say():
    shelf = Shelf([f"{HOSTILE} {n}" for n in range(60)])
    texts = np.array([[sample, place] for sample in range(60) for place in (0, 1)])
    subject = subject_of(labels=np.arange(60) % 2, classes=(HOSTILE, "dog"), captions=texts, shelf=shelf)
    section = FeatureMap.section(part_of(QUICK.measure(subject)))
    found = data_in(section.html)
    plain = " ".join(HOSTILE.split())
    assert found["captions"][59] == f"{plain} 59" and found["classes"][0] == found["groups"][0]["name"] == plain
    assert section.html.count("<script") == 2 and "<!--" not in section.html
    assert json.loads(script_json(HOSTILE)) == HOSTILE and "\u2028" not in script_json(HOSTILE)
    assert section.pictures == ("thumbnails/sheet.jpg",) and shelf.asked == (list(range(60)), 64, 20)
    assert not re.search(r"(https?:|url\(|@import|\bfetch|\.innerHTML|\bsrc=)", section.html)


def test_wrong_options_and_missing_libraries_are_one_sentence(monkeypatch):
    for options, said in (
        ({"methods": ("pca", "mds")}, "name some of pca, tsne, umap, each once"),
        ({"methods": ()}, "name some of pca"),
        ({"most_points": 10_001}, "most_points is 10001: from 8 to 10,000 are possible"),
        ({"perplexity": 0.5}, "perplexity is 0.5"),
        ({"num_neighbours": 1}, "num_neighbours is 1"),
        ({"seed": -1}, "seed is -1"),
    ):
        with pytest.raises(ConfigError, match=said):
            chosen([Choice("feature_map", options)])
    with pytest.raises(DataError, match="7 pictures are too few for a map: at least 8"):
        QUICK.measure(subject_of(7))
    monkeypatch.setattr(feature_map, "find_spec", lambda name: None if name == "umap" else find_spec(name))
    with pytest.raises(ConfigError, match=r"'umap' needs umap-learn, .*: run `pip install 'shardclip\[viz\]'`"):
        FeatureMap()
    assert FeatureMap(methods=("pca", "tsne")).title


def measure_here(methods):
    return FeatureMap(methods=methods).measure(subject_of(labels=np.arange(60) % 4, classes=tuple("abcd")))


def test_two_processes_find_what_one_finds():
    alone = measure_here(("pca", "tsne"))
    assert gloo.run(2, measure_here, ("pca", "tsne")) == [alone, alone]


@pytest.mark.slow
def test_four_processes_find_what_one_finds():
    alone = measure_here(("pca", "tsne", "umap"))
    assert gloo.run(4, measure_here, ("pca", "tsne", "umap"), timeout_s=300) == [alone] * 4


def test_an_evaluation_maps_topics_with_captions_and_thumbnails_and_the_report_can_be_written_again(tmp_path):
    run_dir, shards = tmp_path / "run", make_shard_set(tmp_path / "val", 30, num_captions=2, split="val")
    write_run(run_dir)
    column(["topics", shards, "num_topics=3"], tmp_path / "cache", Console(quiet=True))
    config = config_of(run_dir, shards, tmp_path / "out", evaluations=(Choice("feature_map", {"methods": ("pca",)}),))
    results = evaluate(config, Console(quiet=True))
    (part,) = results["evaluations"]["feature_map"]
    shard_set = ShardSet.open(shards)
    assert part["captions"] == [shard_set.captions(sample)[0] for sample in part["samples"]]
    assert part["coloured_by"] == "topic" and len(part["classes"]) == 3 and part["classes"][0].startswith("topic 0: ")
    assert part["labels"] == shard_set.column("topics").all_rows().tolist()
    assert (tmp_path / "out" / "pictures" / "feature_map.pca_map.png").stat().st_size > 2000
    report = tmp_path / "out" / "report.html"
    page = report.read_text()
    assert page.count(f'data-picture="{part["sheet"]["picture"]}"') == 1 and len(data_in(page)["captions"]) == 30
    report.unlink()
    write_report(tmp_path / "out")
    assert report.read_text() == page


def test_ten_thousand_points_with_long_captions_stay_small():
    count, rng = 10_000, np.random.default_rng(0)
    part = {
        "maps": {method: rng.random((2, count)).round(3).tolist() for method in ("pca", "tsne", "umap")},
        "labels": rng.integers(0, 100, count).tolist(), "classes": [f"class {k}" for k in range(100)],
        "captions": ["x" * 90] * count, "sheet": None,
        "neighbours": rng.integers(0, count, (count, 3)).tolist(), "cosines": rng.random((count, 3)).round(3).tolist(),
    }  # fmt: skip
    notes = dict.fromkeys(part["maps"], "")
    assert 1e6 < len(map_html(part, notes, notes)) < 2.5e6


def mapped_slowly():
    """Where a collective waits for 3 s, and all maps take 5."""
    import sklearn.manifold  # noqa: F401  (now, and not for the first map)

    gloo.wait_at_most(3)

    def slow(method, images, *settings):
        time.sleep(1.7)
        return images[:, :2], 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_map, "plane", slow)
        return dict(FeatureMap().measure(subject_of()).figures)


@pytest.mark.slow
def test_processes_wait_for_one_map_at_a_time():
    first, second = gloo.run(2, mapped_slowly)
    assert first == second and len(first) == 4
