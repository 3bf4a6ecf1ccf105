"""core/distributed.py: gathers and reductions in real processes, and without any group."""

import gloo
import pytest
import torch

from core import distributed
from core.errors import DataError

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def everything(dtype: torch.dtype) -> dict:
    """What one rank sees of each function; its rows are filled with its rank + 1."""
    own = distributed.rank() + 1
    x = torch.full((2, 3), own, dtype=dtype, requires_grad=True)
    gathered = distributed.all_gather_with_grad(x)
    weights = torch.arange(gathered.numel()).reshape(gathered.shape).to(dtype) * own
    (gathered * weights).sum().backward()
    distributed.barrier()
    return {
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "is_main": distributed.is_main(),
        "gathered": gathered.detach(),
        "grad": x.grad,
        "plain": distributed.all_gather(x),
        "strided": distributed.all_gather(torch.full((3, 2), own).T),
        "rows": distributed.all_gather_rows(torch.full((distributed.rank() * 2, 2), own)),
        "no_rows": distributed.all_gather_rows(torch.empty(0, 2)),
        "sum": distributed.all_reduce_sum(x),
        "max": distributed.all_reduce_max(x),
        "object": distributed.broadcast_object({"from": own}, source=distributed.world_size() - 1),
        "objects": distributed.gather_objects(("rank", own)),
    }


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_rank_sees_the_rows_of_all_in_rank_order(world_size: int) -> None:
    ranks = gloo.run(world_size, everything, torch.float32)
    values = torch.arange(1, world_size + 1)
    for rank, seen in enumerate(ranks):
        assert (seen["rank"], seen["world_size"], seen["is_main"]) == (rank, world_size, rank == 0)
        expected = values.float().repeat_interleave(2)[:, None].expand(-1, 3)
        assert torch.equal(seen["gathered"], expected)
        assert torch.equal(seen["plain"], expected) and not seen["plain"].requires_grad
        assert torch.equal(seen["strided"], values.repeat_interleave(2)[:, None].expand(-1, 3))
        assert torch.equal(seen["rows"], values.repeat_interleave(2 * (values - 1))[:, None].expand(-1, 2))
        assert seen["no_rows"].shape == (0, 2)
        assert torch.equal(seen["sum"], torch.full((2, 3), float(values.sum())))
        assert torch.equal(seen["max"], torch.full((2, 3), float(world_size)))
        assert seen["object"] == {"from": world_size}
        assert seen["objects"] == [("rank", int(value)) for value in values]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_gather_passes_back_the_gradients_of_all_ranks(dtype: torch.dtype) -> None:
    for rank, seen in enumerate(gloo.run(2, everything, dtype)):
        own_positions = torch.arange(rank * 6, rank * 6 + 6).reshape(2, 3)
        assert torch.equal(seen["grad"], (own_positions * (1 + 2)).to(dtype))  # weights of rank 0 and of rank 1


def test_one_process_needs_no_group() -> None:
    seen = everything(torch.float32)
    assert (seen["rank"], seen["world_size"], seen["is_main"]) == (0, 1, True)
    for name in ("gathered", "plain", "sum", "max"):
        assert torch.equal(seen[name], torch.ones(2, 3)), name
    assert torch.equal(seen["grad"], torch.arange(6.0).reshape(2, 3))
    assert seen["rows"].shape == (0, 2)
    assert seen["object"] == {"from": 1}
    assert seen["objects"] == [("rank", 1)]


def fail_on_rank_one() -> None:
    if distributed.rank() == 1:
        raise ValueError("planted")
    distributed.barrier()


def test_an_error_in_one_process_ends_the_others_and_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"rank 1:\n(.|\n)*ValueError: planted"):
        gloo.run(2, fail_on_rank_one)


def act_apart() -> int:
    def act() -> int:
        if distributed.rank() == 1:
            raise ValueError("planted")
        return distributed.rank()

    return distributed.act_together(act)


def test_an_error_in_the_share_of_one_rank_is_raised_on_all() -> None:
    with pytest.raises(RuntimeError) as raised:
        gloo.run(2, act_apart)
    said = str(raised.value)
    assert "ValueError: planted" in said.split("rank 1:")[1]
    assert "DistributedError: Rank 1 could not do its share: ValueError: planted" in said


def act_alike() -> int:
    return distributed.act_together(distributed.rank)


def test_each_rank_keeps_the_result_of_its_own_share() -> None:
    assert gloo.run(2, act_alike) == [0, 1]
    assert act_alike() == 0


def say_twice() -> tuple[bool, bool]:
    return distributed.is_first_to_say("one sentence"), distributed.is_first_to_say(f"of rank {distributed.rank()}")


def test_a_sentence_is_said_by_one_process_whichever_has_it() -> None:
    said = gloo.run(2, say_twice)
    assert sorted(same for same, _ in said) == [False, True] and all(own for _, own in said)
    assert say_twice() == (True, True)


def fail_on_main(kind: type[Exception]) -> str:
    def act() -> None:
        raise kind("planted")

    try:
        distributed.on_main(act)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_an_error_of_the_main_rank_is_raised_on_all_whatever_it_is() -> None:
    assert gloo.run(2, fail_on_main, DataError) == ["DataError: planted"] * 2
    others = "DistributedError: Rank 0 could not do its share: ZeroDivisionError: planted"
    assert gloo.run(2, fail_on_main, ZeroDivisionError) == ["ZeroDivisionError: planted", others]
    assert fail_on_main(ZeroDivisionError) == "ZeroDivisionError: planted"
