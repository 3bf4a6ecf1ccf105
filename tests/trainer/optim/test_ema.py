"""The averaged weights: how they follow, when they stand still, and how they come back from a checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.optim.ema import AveragedModel

FINITE, NOT_FINITE = torch.tensor(True), torch.tensor(False)


def move(model: nn.Sequential, update: int) -> None:
    """Give weights, statistics and the batch norm's counter values of this update."""
    with torch.no_grad():
        model[0].weight.fill_(update**2)
        model[1].running_mean.fill_(-update)
        model[1].num_batches_tracked.fill_(update)


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_averaged_weights_follow_the_model_slower_and_slower() -> None:
    model = make_model()
    averaged = AveragedModel(model, decay=0.5)
    expected = None
    for update in range(20):
        move(model, update)
        averaged.update(model, FINITE)
        keep = 0.0 if expected is None else min(0.5, (1 + update) / (10 + update))
        expected = keep * (expected or 0.0) + (1 - keep) * update**2
        assert averaged.module[0].weight[0, 0].item() == pytest.approx(expected, rel=1e-5)
    assert averaged.num_updates == 20
    assert -19 < averaged.module[1].running_mean[0] < -17
    assert averaged.module[1].num_batches_tracked == 19
    assert not averaged.module.training and not any(p.requires_grad for p in averaged.module.parameters())


@pytest.mark.parametrize("updates_before", [0, 3])
def test_a_step_that_is_not_finite_leaves_the_average_as_it_was(updates_before: int) -> None:
    model = make_model()
    averaged = AveragedModel(model, decay=0.9)
    for update in range(updates_before):
        move(model, update)
        averaged.update(model, FINITE)
    before = {name: tensor.clone() for name, tensor in averaged.module.state_dict().items()}
    move(model, 100)
    averaged.update(model, NOT_FINITE)
    for name, tensor in averaged.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert averaged.num_updates == updates_before


def test_one_that_goes_on_from_a_checkpoint_ends_as_the_unbroken_one() -> None:
    model = make_model()
    whole, before = AveragedModel(model, decay=0.9), AveragedModel(model, decay=0.9)
    for update in range(4):
        move(model, update)
        whole.update(model, FINITE)
        before.update(model, FINITE)
    after = AveragedModel(make_model(), decay=0.9)
    after.load(before.module.state_dict(), before.num_updates)
    for update in range(4, 8):
        move(model, update)
        whole.update(model, FINITE)
        after.update(model, FINITE)
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(after.module.state_dict()[name], tensor), name
