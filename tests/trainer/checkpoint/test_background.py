"""The copy of a state, and the one save that is under way: what is copied stays, nobody overtakes, errors are told."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.errors import CheckpointError, StorageError
from trainer.checkpoint.background import Saver
from trainer.checkpoint.snapshot import HostMemory
from trainer.checkpoint.tensor_tree import encode_tree, map_tensors


def state(device: str = "cpu") -> dict[str, Any]:
    """What a checkpoint holds: parameters of every layout, moments, counters, and plain values in every container."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)).to(device)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 8, 8, device=device)).sum().backward()
    optimizer.step()
    values = {"step": 3, "rng": [(3, (1, 2), None)], "scale": torch.tensor(2.5, dtype=torch.float16, device=device)}
    odd = [torch.tensor([True, False, True]), torch.empty(0, 3), torch.arange(6.0).reshape(2, 3).T]
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": values, "odd": odd}


def addresses(tree: Any) -> list[int]:
    found: list[int] = []
    map_tensors(tree, lambda tensor: found.append(tensor.data_ptr()))
    return found


def spoil(tree: Any) -> None:
    """What training on would do, and more."""
    map_tensors(tree, Tensor.zero_)
    tree["state"]["step"] = 4
    tree["state"]["rng"].append("later")


def test_a_copy_is_the_state_to_the_bit_and_keeps_it_while_training_goes_on() -> None:
    tree, memory = state(), HostMemory()
    expected = b"".join(encode_tree(tree))
    copied = memory.copy(tree).tree()
    spoil(tree)
    assert b"".join(encode_tree(copied)) == expected  # types, keys, dtypes, bits, strides


def test_the_next_copy_lies_where_the_last_one_lay_unless_other_tensors_came() -> None:
    tree, memory = state(), HostMemory()
    first = addresses(memory.copy(tree).tree())
    tree["odd"][0].logical_not_()
    second = memory.copy(tree).tree()
    assert addresses(second) == first and torch.equal(second["odd"][0], torch.tensor([False, True, False]))
    tree["more"] = torch.ones(3)
    third = memory.copy(tree).tree()
    assert encode_tree(third) == encode_tree(tree)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="copies are asynchronous on GPUs alone")
def test_a_gpu_copies_into_page_locked_memory_before_the_next_step_writes() -> None:
    tree, memory = state("cuda"), HostMemory()
    expected = b"".join(encode_tree(tree))
    for _ in range(3):
        torch.cuda._sleep(200_000_000)  # cycles: the copies begin when the host is long past this
        snapshot = memory.copy(tree)
        kept = map_tensors(tree, Tensor.clone)
        map_tensors(tree, Tensor.zero_)
        copied = snapshot.tree()
        assert b"".join(encode_tree(copied)) == expected
        assert copied["model"]["0.weight"].is_pinned()
        tree = kept


class Held:
    """A `write` that waits until it is let go, as on a slow disk."""

    def __init__(self, log: list[Any]) -> None:
        self.log, self.begun, self.may_end = log, threading.Event(), threading.Event()

    def __call__(self, tree: Any) -> None:
        self.begun.set()
        self.may_end.wait(20)
        self.log.append(tree["value"].tolist())


def test_a_second_save_waits_for_the_first_and_both_are_made() -> None:
    saver, log = Saver(), []
    held = Held(log)
    value = torch.tensor([1.0])
    saver.start({"value": value}, held)
    assert held.begun.wait(20)
    value.add_(1)  # training goes on
    second = threading.Thread(
        target=saver.start, args=({"value": value}, lambda tree: log.append(tree["value"].tolist()))
    )
    second.start()
    second.join(0.2)
    assert second.is_alive() and log == []
    held.may_end.set()
    second.join(20)
    saver.wait()
    assert log == [[1.0], [2.0]] and not saver.has_failed


def fail(tree: Any) -> None:
    raise StorageError("disk: cannot be written.")


def test_an_error_is_seen_without_waiting_and_told_once_to_the_one_who_waits() -> None:
    saver = Saver()
    saver.start({}, fail)
    saver._thread.join(20)  # type: ignore[union-attr]
    assert saver.has_failed
    with pytest.raises(StorageError, match="disk: cannot be written"):
        saver.wait()
    assert not saver.has_failed
    saver.wait()


def test_an_error_that_nobody_foresaw_is_one_that_every_rank_hears_of() -> None:
    saver = Saver()
    saver.start({}, lambda tree: 1 / 0)
    with pytest.raises(CheckpointError, match="could not be saved: ZeroDivisionError: division by zero") as caught:
        saver.wait()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_the_next_save_is_not_begun_where_the_one_before_failed() -> None:
    saver, log = Saver(), []
    saver.start({}, fail)
    with pytest.raises(StorageError):
        saver.start({}, log.append)
    saver.wait()
    assert log == []


def test_closing_waits_and_gives_the_error_that_nobody_was_told() -> None:
    saver, log = Saver(), []
    held = Held(log)
    saver.start({"value": torch.ones(1)}, held)
    threading.Timer(0.1, held.may_end.set).start()
    assert saver.close() is None and log == [[1.0]]
    saver.start({}, fail)
    assert isinstance(saver.close(), StorageError) and saver.close() is None
