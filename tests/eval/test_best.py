"""Which checkpoint is the best, and how a wrong `best_by` is answered."""

import pytest

from core.errors import ConfigError
from eval.best import SIX_RECALLS, check_best_by, score

RECALLS = {name: 0.1 * i for i, name in enumerate(SIX_RECALLS)}


def test_auto_is_the_mean_of_the_six_recalls_where_there_is_text_else_knn_accuracy():
    assert score("auto", {**RECALLS, "val/knn/accuracy": 0.9}) == pytest.approx(0.25)
    assert score("auto", {"val/knn/accuracy": 0.9, "val/knn1/accuracy": 0.1}) == 0.9


@pytest.mark.parametrize(
    ("name", "is_lower_better"),
    [
        ("val/loss", True),
        ("val/image_to_text/median_rank", True),
        ("val/text_to_image/mean_rank", True),
        ("val/image_to_text/recall@1", False),
        ("val/text_to_image/map@10", False),
        ("val/knn1/accuracy", False),
    ],
)
def test_losses_and_ranks_count_downwards(name, is_lower_better):
    assert (score(name, {name: 1.0}) > score(name, {name: 2.0})) is is_lower_better


def test_an_unknown_metric_is_answered_with_the_nearest():
    check_best_by("auto", [])
    check_best_by("val/loss", ["val/loss"])
    with pytest.raises(ConfigError, match=r"best_by: validation measures no 'val/los'. Did you mean 'val/loss'"):
        check_best_by("val/los", ["val/loss", "val/knn/accuracy"])
