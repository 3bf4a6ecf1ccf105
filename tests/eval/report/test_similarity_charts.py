"""Charts of probabilities and of cosines: what they show is what they were given, in both themes."""

import numpy as np
import pytest

from eval.report.drawing.gap import cosine_histogram, two_kinds
from eval.report.drawing.reliability import reliability
from eval.report.drawing.style import DARK, LIGHT, png_bytes

BINS = [{"predicted": p, "right": r, "count": c} for p, r, c in ((0.1, 0.0, 20), (0.4, 0.5, 21), (0.8, 1.0, 20))]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_a_reliability_diagram_has_points_the_diagonal_counts_and_bars(theme):
    figure = reliability({"image_to_text": {"bins": BINS, "histogram": [5, 0, 15]}}, theme)
    upper, lower = figure.axes
    points = next(line for line in upper.lines if line.get_marker() == "o")
    np.testing.assert_array_equal(points.get_xydata(), [[0.1, 0.0], [0.4, 0.5], [0.8, 1.0]])
    assert points.get_color() == theme.image_to_text
    assert any(line.get_linestyle() == "--" and (line.get_xdata() == line.get_ydata()).all() for line in upper.lines)
    assert [text.get_text() for text in upper.get_legend().get_texts()] == ["image to text, 20 to 21 queries a point"]
    assert [bar.get_height() for bar in lower.patches] == [0.25, 0.0, 0.75]
    assert png_bytes(figure)


def test_histograms_are_shares_of_each_kind():
    figure = cosine_histogram({"edges": [0.0, 0.5, 1.0], "pairs": [1, 3], "others": [90, 10]})
    stairs = [patch.get_data().values.tolist() for patch in figure.axes[0].patches]
    assert [0.25, 0.75] in stairs and [0.9, 0.1] in stairs
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["others (100)", "pairs (4)"]


def test_both_kinds_stand_on_the_plane_with_their_middles():
    places = {"images": [[0, 0], [2, 2]], "texts": [[5, 5], [7, 5], [9, 5]], "shares": [0.5, 0.25]}
    figure = two_kinds(places, DARK)
    drawn = [scatter.get_offsets().tolist() for scatter in figure.axes[0].collections]
    assert [[7, 5]] in drawn and [[1, 1]] in drawn and [[0, 0], [2, 2]] in drawn
    assert any("50 % and 25 %" in text.get_text() for text in figure.texts)
