"""Class-balanced batches: exact classes in each, exact shares over an epoch, each label's samples equally often."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from epochs import epoch_of
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ConfigError
from trainer.samplers.class_balanced import class_balanced

LABELS = st.lists(st.integers(-1, 5), min_size=40, max_size=120).map(lambda labels: np.array(labels, dtype=np.int32))


@settings(deadline=None, max_examples=60)
@given(LABELS, st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))
def test_batches_and_epochs_have_exact_shares(labels: np.ndarray, classes: int, each: int, seed: int) -> None:
    num_classes = len(set(labels.tolist()) - {-1})
    epoch = epoch_of(classes * each, labels=labels, seed=seed, number=2)
    order = class_balanced(epoch, classes, each)
    assert order.dtype == np.int64 and len(order) == epoch.steps * epoch.global_batch_size
    turns = Counter(dict.fromkeys(set(labels.tolist()) - {-1}, 0))
    visits = Counter(dict.fromkeys(np.flatnonzero(labels >= 0).tolist(), 0))
    for batch in order.reshape(epoch.steps, -1):
        found = Counter(labels[batch].tolist())
        assert len(found) == classes and set(found.values()) == {each}
        turns.update(found.keys())
        visits.update(batch.tolist())
        for label in found:  # no sample twice in a batch where its class has enough
            own = batch[labels[batch] == label].tolist()
            assert len(set(own)) == min(each, int((labels == label).sum()))
    assert sum(turns.values()) == epoch.steps * classes
    assert max(turns.values()) - min(turns.values()) <= 1 and len(turns) == num_classes
    for label in turns:
        own = [visits[sample] for sample in np.flatnonzero(labels == label).tolist()]
        assert max(own) - min(own) <= 1


def test_seed_and_epoch_change_the_order_and_nothing_else_does() -> None:
    labels = np.arange(60) % 6
    orders = [
        class_balanced(epoch_of(8, labels=labels, seed=s, number=e), 4, 2).tolist()
        for s, e in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert orders[0] == orders[1] != orders[2] != orders[3] != orders[0]


def test_ranks_get_a_mix_of_classes() -> None:
    labels = np.arange(400) % 4
    order = class_balanced(epoch_of(40, labels=labels), 2, 20)
    halves = [set(labels[batch[:20]].tolist()) for batch in order.reshape(-1, 40)]
    assert all(len(half) == 2 for half in halves)


@pytest.mark.parametrize(
    ("classes", "each", "complaint"),
    [
        (3, 2, "3 classes x 2 samples are 6, global_batch_size is 8. Make them equal"),
        (0, 8, "0 classes x 8"),
        (8, 1, "num_classes is 8, only 6 classes have samples. Set it to at most 6"),
    ],
)
def test_a_batch_that_cannot_be_filled_is_refused(classes: int, each: int, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        class_balanced(epoch_of(8, labels=np.arange(60) % 6), classes, each)
