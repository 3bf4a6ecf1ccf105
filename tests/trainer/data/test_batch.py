"""A batch on its way: everything a device needs moves, what the host needs stays, and damage is named in few words."""

from __future__ import annotations

import pytest
import torch

from trainer.data.batch import Batch, Ragged, too_many_damaged

HOST, AWAY = torch.device("cpu"), torch.device("meta")


def batch(images: bool = True) -> Batch:
    columns = {"image_id": torch.arange(3), "text": Ragged(torch.ones(5, 4), torch.tensor([1, 3, 1]))}
    pictures = torch.zeros(3, 3, 2, 2, dtype=torch.uint8) if images else None
    return Batch(pictures, columns, samples=torch.arange(3), draws=torch.arange(3) + 9, epoch=2, step=1)


@pytest.mark.parametrize("images", [True, False])
def test_what_the_device_needs_moves_and_the_rest_stays(images: bool) -> None:
    here, moved = batch(images), batch(images).to(AWAY)
    assert [tensor.device for tensor in moved.device_tensors()] == [AWAY] * (2 + images)
    assert moved.ragged("text").counts.device == moved.samples.device == moved.draws.device == HOST
    assert [t.shape for t in moved.device_tensors()] == [t.shape for t in here.device_tensors()]
    assert (moved.images is None) != images and (moved.epoch, moved.step, len(moved)) == (2, 1, 3)


@pytest.mark.parametrize("images", [True, False])
def test_all_that_moves_goes_the_one_way_between_host_and_device(images: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr("core.transfer._sent", lambda x, device: sent.append(x) or x.clone())
    here = batch(images)
    moved = here.to(AWAY)
    assert [id(x) for x in sent] == [id(x) for x in here.device_tensors()]
    assert not {x.data_ptr() for x in moved.device_tensors()} & {x.data_ptr() for x in here.device_tensors()}


def test_the_device_gets_pictures_and_values_but_no_counts() -> None:
    whole = batch()
    found = {id(tensor) for tensor in whole.device_tensors()}
    assert found == {id(whole.images), id(whole.column("image_id")), id(whole.ragged("text").values)}


def test_a_column_is_not_taken_for_one_of_another_kind() -> None:
    with pytest.raises(AssertionError, match="text is ragged"):
        batch().column("text")
    with pytest.raises(AssertionError, match="image_id has one value for each sample"):
        batch().ragged("image_id")


@pytest.mark.parametrize(
    ("damaged", "named"), [(2, "a, b. "), (5, "a, b, c, d, e. "), (6, "a, b, c, d, e and 1 more. "), (9, " 4 more. ")]
)
def test_the_first_five_damaged_samples_are_named_and_the_others_counted(damaged: int, named: str) -> None:
    message = str(too_many_damaged("abcdefghi"[:damaged], 1))
    assert message.startswith(f"{damaged} damaged samples, max_damaged is 1: a, b") and named in message
