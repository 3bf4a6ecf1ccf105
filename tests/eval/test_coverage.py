"""Intervals hold the truth as often as they say, for runs whose recall is known; resamples are those of a loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.coverage import Setting, coverage, draw_ranks, plain_percentiles
from eval.metrics import Interval, _tail, basic_interval, bootstrap, group_sums, percentile_interval, resampled_sums


def means_by_a_loop(values, groups, num_resamples, seed):
    """One resample at a time, one group at a time."""
    members = [values[groups == group] for group in np.unique(groups)]
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(num_resamples):
        drawn = generator.integers(len(members), size=len(members))
        rows = np.concatenate([members[group] for group in drawn])
        means.append(rows.mean())
    return np.array(means)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 999), st.integers(1, 200))
def test_resamples_are_those_of_a_loop_whatever_the_block(num_groups, num_resamples, seed, at_once):
    rng = np.random.default_rng(seed)
    groups = rng.integers(num_groups, size=3 * num_groups) * 7
    values = rng.random(len(groups))
    sums = group_sums(np.stack([values, np.ones(len(values))]), groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.metrics._DRAWN_AT_ONCE", at_once)
        drawn, sizes = resampled_sums(sums, num_resamples, seed)
    np.testing.assert_allclose(drawn / sizes, means_by_a_loop(values, groups, num_resamples, seed), rtol=1e-12)
    whole = resampled_sums(sums, num_resamples, seed)
    np.testing.assert_array_equal(whole, [drawn, sizes])


def test_few_groups_are_given_students_tails():
    stats = pytest.importorskip("scipy.stats")
    for num_groups in (5, 10, 20, 100, 5000):
        t = stats.t.ppf(0.975, num_groups - 1) * (num_groups / (num_groups - 1)) ** 0.5
        assert _tail(0.95, num_groups) == pytest.approx(stats.norm.cdf(-t), rel=0.05)
    assert _tail(0.95, 10**9) == pytest.approx(0.025, rel=1e-6)
    assert bootstrap(np.array([0.3, 0.5]), np.array([4, 4])) == Interval(0.4, 0.4, 0.4)  # one group alone


def test_a_basic_interval_lies_the_other_way_round_and_holds_its_estimate():
    resampled = np.linspace(1.0, 3.0, 2001)
    skewed, basic = percentile_interval(1.5, resampled, 5000), basic_interval(1.5, resampled, 5000)
    assert (basic.low, basic.high) == pytest.approx((max(0.0, 3 - skewed.high), 3 - skewed.low))
    assert basic_interval(0.9, resampled, 5000).high == 0.9 and basic_interval(0.9, resampled, 5000).low == 0


def test_drawn_runs_have_the_recall_they_were_given_and_captions_of_an_image_go_together():
    ranks_a, ranks_b, image = draw_ranks(Setting(40_000, 0.3, 0.37), seed=1)
    hits_a, hits_b = ranks_a <= 10, ranks_b <= 10
    assert hits_a.mean() == pytest.approx(0.30, abs=0.006) and hits_b.mean() == pytest.approx(0.37, abs=0.006)
    within = np.corrcoef(hits_a[0::5], hits_a[1::5])[0, 1]
    between = np.corrcoef(hits_a, hits_b)[0, 1]
    assert 0.25 < within < 0.6 and 0.3 < between < 0.7 and len(set(image)) == 40_000


def test_intervals_of_few_images_hold_the_truth_more_often_than_plain_percentiles():
    setting = Setting(12, 0.5, 0.6)
    ours, plain = coverage(setting, 250), plain_percentiles(setting, 250)
    assert all(ours[name] > plain[name] and 0.91 <= ours[name] <= 0.99 for name in ours), (ours, plain)


def test_intervals_of_recall_near_1_hold_it_though_every_answer_may_be_right():
    setting = Setting(20, 0.95, 0.97)
    ours, plain = coverage(setting, 250), plain_percentiles(setting, 250)
    assert ours["share_interval"] >= 0.91 > plain["share_interval"], (ours, plain)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("num_images", [20, 100, 300])
@pytest.mark.parametrize(("recall_a", "recall_b"), [(0.30, 0.33), (0.60, 0.70)])
def test_of_a_thousand_pairs_of_runs_93_to_97_in_100_intervals_hold_the_truth(num_images, recall_a, recall_b):
    found = coverage(Setting(num_images, recall_a, recall_b), 1000)
    assert all(0.93 <= share <= 0.97 for share in found.values()), found
