"""Which checkpoint is the best, and how a wrong `best_by` is answered."""

import gloo
import pytest
from training_runs import SMALL_TOWER, last_checkpoint, recipe, train_worker

from core.errors import ConfigError
from eval.best import SIX_RECALLS, check_best_by, score
from trainer.trackers.metrics_csv import read_metrics

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


def test_a_run_that_goes_on_by_another_metric_forgets_the_earlier_score(tmp_path):
    values = recipe(tmp_path, model=SMALL_TOWER)
    assert gloo.run(1, train_worker, values, 4) == [75]  # stopped at its first validation, with a mean recall above 0
    assert last_checkpoint(tmp_path / "run").state["best_score"] > 0
    assert gloo.run(1, train_worker, {**values, "best_by": "val/loss"}) == [0]
    losses = [row.metrics["val/loss"] for row in read_metrics(tmp_path / "run" / "metrics.csv") if row.step in (8, 12)]
    assert last_checkpoint(tmp_path / "run").state["best_score"] == pytest.approx(-min(losses))
