"""Charts: what they show is what they were given; equal data gives equal bytes."""

import numpy as np
import pytest

from eval.report.drawing.curves import Series, curves, rank_histogram, recall_bars
from eval.report.drawing.matrices import confusion_matrix, similarity_matrix
from eval.report.drawing.pictures import PictureRow, class_bars, picture_rows
from eval.report.drawing.scatter import scatter_map
from eval.report.drawing.style import DARK, LIGHT, png_bytes, save_jpeg
from eval.report.marks import ON_DARK, ON_LIGHT, grouped

PICTURE = np.full((8, 8, 3), 200, dtype=np.uint8)


def words(figure):
    """Every text on a figure."""
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [*axes.texts, axes.title, axes.xaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
    return [text.get_text() for text in texts]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_recall_bars_carry_their_figures(theme):
    recalls = {"image_to_text": {1: 0.123, 5: 0.4, 10: 0.6}, "text_to_image": {1: 0.2, 5: 0.5, 10: 0.789}}
    found = words(recall_bars(recalls, {}, "full gallery", theme))
    assert {"12.3", "78.9", "R@5", "full gallery"} <= set(found)


def test_rank_bands_are_named_by_their_ranks():
    counts = {"image_to_text": [3, 2, 1], "text_to_image": [1, 1, 1]}
    assert {"1", "2–5", "6–29"} <= set(words(rank_histogram(counts, [1, 2, 6, 30])))


def test_the_similarity_note_tells_own_from_others():
    note = words(similarity_matrix(np.eye(3), ["a", "b", "c"], [PICTURE] * 3))
    assert any("own caption 1.00, others 0.00" in text for text in note)


def test_a_curve_ends_with_its_value_and_close_ends_do_not_overlap():
    figure = curves("Recall", "", [Series("a", [0, 10], [0.1, 0.50]), Series("b", [0, 10], [0.1, 0.501])], percent=True)
    labels = list(figure.axes[0].texts)
    assert sorted(text.get_text() for text in labels) == ["50.0 %", "50.1 %"]
    heights = sorted(text.xy[1] for text in labels)
    assert heights[1] - heights[0] > 0.02


def test_smoothing_keeps_the_ends_of_a_noisy_curve():
    rng = np.random.default_rng(0)
    y = np.linspace(5, 1, 300) + rng.normal(0, 0.1, 300)
    axes = curves("Loss", "", [Series("train", list(range(300)), list(y))]).axes[0]
    raw, smooth = (line.get_ydata() for line in axes.lines)
    assert smooth[0] == pytest.approx(raw[0]) and smooth[-1] == pytest.approx(raw[-1])
    assert np.abs(np.diff(smooth)).mean() < np.abs(np.diff(raw)).mean() / 2


def test_the_confusion_note_counts_the_diagonal():
    counts = np.array([[3, 1], [0, 4]])
    found = words(confusion_matrix(counts, ["cat", "dog"]))
    assert any("87.5 % right" in text for text in found)
    assert {"3", "4", "1", "cat"} <= set(found)


def test_right_and_wrong_answers_are_told_by_colour_and_by_sign():
    row = PictureRow("a caption", [PICTURE] * 3, ["0.9", "0.8", "0.7"], [True, False, None])
    figure = picture_rows("Captions", "", [row])
    assert {"✓ 0.9", "✗ 0.8", "0.7"} <= set(words(figure))
    edges = [axes.spines["left"].get_edgecolor() for axes in figure.axes]
    assert len(set(edges)) == 3


def test_class_bars_are_ordered_by_likelihood():
    figure = class_bars([PICTURE], np.array([[0.1, 0.7, 0.2]]), ["cat", "dog", "cow"], [1])
    shown = [text.get_text() for text in figure.axes[1].texts]
    assert shown == ["dog", "70 %", "cow", "20 %", "cat", "10 %"]


def test_equal_charts_give_equal_bytes(tmp_path):
    def draw():
        return curves("Loss", "note", [Series("train", [0, 1, 2], [3.0, 2.0, 1.0])])

    assert png_bytes(draw()) == png_bytes(draw())
    save_jpeg(draw(), tmp_path / "a.jpg")
    save_jpeg(draw(), tmp_path / "b.jpg")
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_a_map_has_every_point_once_and_its_classes_beside_it(theme):
    labels = [0, 1, 1, 1, 0, -1, 2]
    points = np.random.default_rng(0).random((7, 2))
    axes = scatter_map(points, grouped(labels, ["cat", "dog", "$cow$"]), "Map", "", theme).axes[0]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["dog  3", "cat  2", r"\$cow\$  1", "no class  1"]
    drawn = np.concatenate([np.asarray(points.get_offsets()) for points in axes.collections])
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, points))
    colours = {tuple(points.get_facecolor()[0]) for points in axes.collections}
    assert len(colours) == 4
    assert scatter_map(points, grouped(labels, []), "Map", "", theme).axes[0].get_legend() is None


def colour_blind(colour):
    """A colour as those see it who lack the green cones (Machado et al. 2009, deuteranopia), linear."""
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    return np.clip(np.array(seen) @ linear, 0, 1)


@pytest.mark.parametrize(("palette", "paper"), [(ON_LIGHT, LIGHT.paper), (ON_DARK, DARK.paper)])
def test_colours_of_classes_stand_out_for_the_colour_blind_too(palette, paper):
    def lightness_and_hue(colour):
        red, green, blue = np.cbrt(colour_blind(colour))
        return np.array([(red + green) / 2, blue])

    seen = [lightness_and_hue(colour) for colour in (*palette, paper)]
    apart = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(apart) > 0.15
