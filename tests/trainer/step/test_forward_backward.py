"""One step: chunks, dropout, autocast, loss scaling, views, what is kept; over ranks and against papers: exactness."""

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gloo
import pytest
import torch
from oracles import oracle_loss
from tiny_model import TinyModel, make_batch, relative_error
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core.distributed import rank, world_size
from trainer.data.names import IMAGE_ID, TEXT
from trainer.objectives.engine import whole_loss
from trainer.objectives.infonce import InfoNCE
from trainer.objectives.nt_xent import NTXent
from trainer.objectives.objective import IMAGE, IMAGE2, Block, Objective, Rows
from trainer.objectives.siglip import SigLIP
from trainer.step.forward_backward import StepResult, forward_backward, unwrap

ROWS = 12


def step(model: nn.Module, num_chunks: int, **options: Any) -> StepResult:
    """One step of the model's objective on a seeded batch, in this process."""
    bare: Any = unwrap(model)
    batch = make_batch(ROWS, bare.objective, has_text=bare.text is not None)
    return forward_backward(model, batch.chunks(num_chunks), batch.given, bare.objective, {}, **options)


def gradients_of(model: TinyModel, num_chunks: int, **options: Any) -> dict[str, Tensor]:
    step(model, num_chunks, **options)
    return model.gradients()


def all_reduces_of_a_step(num_chunks: int) -> int:
    """How many gradient buckets travel in a step."""
    model = DistributedDataParallel(TinyModel())
    sent = []

    def note(state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        sent.append(bucket.index())
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    model.register_comm_hook(None, note)
    step(model, num_chunks)
    return len(sent)


@pytest.mark.parametrize("num_chunks", [1, 3])
def test_gradients_travel_once_per_step_whatever_the_number_of_chunks(num_chunks: int) -> None:
    assert gloo.run(1, all_reduces_of_a_step, num_chunks) == [1]


@pytest.mark.parametrize("objective", [InfoNCE(), NTXent()], ids=["one view", "two views"])
def test_chunks_with_dropout_and_batch_norm_equal_one_graph_over_the_same_chunks(objective: Objective) -> None:
    batch = make_batch(ROWS, objective)
    torch.manual_seed(3)
    plain = TinyModel(objective, is_noisy=True)
    outputs = [plain(chunk()) for chunk in batch.chunks(3)]  # all activations kept
    features = {name: torch.cat([part[name] for part, _ in outputs]) for name in outputs[0][0]}
    together = {**features, **batch.given}
    whole_loss(objective, Rows(together, together, 0), outputs[0][1], {}).backward()
    random_after = torch.rand(4)

    torch.manual_seed(3)
    cached = TinyModel(objective, is_noisy=True)
    gradients = gradients_of(cached, 3)
    assert torch.equal(torch.rand(4), random_after)
    for name, right in plain.gradients().items():
        assert relative_error(gradients[name], right) <= 1e-5, name
    for (name, one), (_, other) in zip(cached.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.equal(one, other), name  # running statistics moved once per chunk
    assert cached.tower[2].num_batches_tracked == 3


def test_batch_statistics_move_once_in_a_step_without_chunks() -> None:
    model = TinyModel(is_noisy=True)
    step(model, 1)
    assert model.tower[2].num_batches_tracked == 1


@pytest.mark.parametrize("has_text", [False, True])
@pytest.mark.parametrize("num_chunks", [1, 3])
def test_loss_scaling_comes_in_once(num_chunks: int, has_text: bool) -> None:
    plain = gradients_of(TinyModel(has_text=has_text), num_chunks)
    scaled = gradients_of(TinyModel(has_text=has_text), num_chunks, backward=lambda loss: (loss * 1024).backward())
    for name, right in plain.items():
        assert torch.equal(scaled[name], 1024 * right), name


@pytest.mark.parametrize("num_chunks", [1, 3])
def test_gradients_are_added_to_those_that_are_there(num_chunks: int) -> None:
    once, twice = TinyModel(), TinyModel()
    step(once, num_chunks)
    step(twice, num_chunks)
    step(twice, num_chunks)
    for name, right in once.gradients().items():
        torch.testing.assert_close(twice.gradients()[name], 2 * right, msg=name)


class Watching(InfoNCE):
    """Notes the types of what it is given, and whether autocast is on."""

    def terms(self, block: Block) -> Iterator[Tensor]:
        types = {x.dtype for x in (block.rows[IMAGE], block.columns[IMAGE], block.rows[TEXT], block.columns[TEXT])}
        SEEN.append((types, torch.is_autocast_enabled("cpu")))
        yield from super().terms(block)


SEEN: list[tuple[set[torch.dtype], bool]] = []


def test_autocast_covers_the_model_and_not_the_loss() -> None:
    SEEN.clear()
    batch = make_batch(ROWS)
    given = {**batch.given, TEXT: batch.given[TEXT].half()}  # as stored
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    gradients = []
    for num_chunks in (1, 3):
        model = TinyModel()
        forward_backward(model, batch.chunks(num_chunks), given, Watching(), {}, autocast=autocast)
        gradients.append(model.gradients())
    assert all(seen == ({torch.float32}, False) for seen in SEEN) and len(SEEN) == 2
    full = gradients_of(TinyModel(), 1)
    for name in ("tower", "head", "logit_scale"):
        assert relative_error(gradients[1][name], gradients[0][name]) < 0.02, name
        assert 1e-6 < relative_error(gradients[0][name], full[name]) < 0.05, name  # bfloat16 was at work


@pytest.mark.parametrize("num_chunks", [1, 2])
@pytest.mark.parametrize("objective", [InfoNCE(), NTXent()], ids=["text", "two views"])
def test_the_result_holds_the_batch_without_gradients(num_chunks: int, objective: Objective) -> None:
    model, batch = TinyModel(objective), make_batch(ROWS, objective)
    result = forward_backward(model, batch.chunks(num_chunks), batch.given, objective, {})
    features, scalars = model(batch.inputs)
    assert set(result.rows.own) == set(result.rows.everywhere) == {*objective.features, IMAGE_ID}
    assert result.rows.offset == 0
    for side in (result.rows.own, result.rows.everywhere):
        for name, x in {**features, **batch.given}.items():
            torch.testing.assert_close(side[name], x.detach(), msg=name)
    assert {name: float(x) for name, x in result.scalars.items()} == {
        name: float(x.detach()) for name, x in scalars.items()
    }
    right = oracle_loss(objective, {**features, **batch.given}, scalars, batch.given)
    assert float(result.loss) == pytest.approx(float(right.detach()), rel=1e-5)
    tensors = [result.loss, *result.rows.own.values(), *result.rows.everywhere.values(), *result.scalars.values()]
    assert not any(x.requires_grad for x in tensors)


def test_only_one_chunk_of_activations_is_kept_at_a_time() -> None:
    def kept(num_chunks: int) -> int:
        """Most elements saved for one backward pass."""
        most = saved = 0

        def note(x: Tensor) -> Tensor:
            nonlocal saved
            saved += 0 if isinstance(x, nn.Parameter) else x.numel()
            return x

        def backward(loss: Tensor) -> None:
            nonlocal most, saved
            most, saved = max(most, saved), 0
            loss.backward()

        in_the_model = partial(torch.autograd.graph.saved_tensors_hooks, note, lambda x: x)
        step(TinyModel(), num_chunks, backward=backward, autocast=in_the_model)
        return most

    assert 0 < kept(4) < kept(1) / 3


@pytest.mark.parametrize(("num_chunks", "made"), [(1, [0]), (3, [0, 1, 2, 0, 1, 2])])
def test_chunks_are_made_when_they_are_needed_and_only_one_lives(num_chunks: int, made: list[int]) -> None:
    batch = make_batch(ROWS)
    alive: list[Any] = []
    order = []

    def chunk(number: int) -> Mapping[str, Tensor]:
        assert not any(of() is not None for of in alive), "an earlier chunk is still there"
        order.append(number)
        inputs = {name: x.clone() for name, x in batch.chunks(num_chunks)[number]().items()}
        alive.extend(weakref.ref(x) for x in inputs.values())
        return inputs

    chunks = [partial(chunk, number) for number in range(num_chunks)]
    forward_backward(TinyModel(), chunks, batch.given, InfoNCE(), {})
    assert order == made


def gradients_of_a_rank(num_chunks: int) -> tuple[dict[str, Tensor], Tensor]:
    """With a text tower that is trained; the second step, for DDP rebuilds its buckets after the first."""
    batch = make_batch(ROWS, SigLIP(), has_text=True)
    own = batch[slice(rank() * ROWS // world_size(), (rank() + 1) * ROWS // world_size())]
    model = DistributedDataParallel(TinyModel(SigLIP(), has_text=True))
    for _ in range(2):
        model.zero_grad()
        result = forward_backward(model, own.chunks(num_chunks), own.given, SigLIP(), {})
    assert result.rows.offset == rank() * ROWS // world_size()
    return model.module.gradients(), result.loss


def test_a_trained_text_tower_in_chunks_and_ranks_is_that_of_one_batch() -> None:
    [(alone, loss)] = gloo.run(1, gradients_of_a_rank, 1)
    ranks = gloo.run(2, gradients_of_a_rank, 3)
    assert sum(float(own) for _, own in ranks) / 2 == pytest.approx(float(loss), rel=1e-5)
    assert "text" in alone
    for gradients, _ in ranks:
        for name, right in alone.items():
            assert relative_error(gradients[name], right) < 1e-5, name


@dataclass(frozen=True)
class IdleScalar(InfoNCE):
    """Learns a scalar that its loss does not use."""

    def parameters(self) -> dict[str, float]:
        return {**super().parameters(), "idle": 1.0}

    def scalars(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**super().scalars(parameters), "idle": parameters["idle"] * 2}


def steps_with_an_idle_scalar(num_chunks: int) -> list[float]:
    model = DistributedDataParallel(TinyModel(IdleScalar()))
    for _ in range(3):
        step(model, num_chunks)
    return [float(model.module.learned["idle"].grad), float(model.module.learned["logit_scale"].grad.abs())]


@pytest.mark.parametrize("num_chunks", [1, 2])
def test_a_scalar_that_the_loss_leaves_out_gets_zero_at_every_step(num_chunks: int) -> None:
    for idle, scale in gloo.run(2, steps_with_an_idle_scalar, num_chunks):
        assert idle == 0 and scale > 0


def test_both_views_are_trained() -> None:
    model, objective = TinyModel(NTXent()), NTXent()
    batch = make_batch(ROWS, objective)
    swapped = {IMAGE: batch.inputs[IMAGE2], IMAGE2: batch.inputs[IMAGE]}
    forward_backward(model, batch.chunks(2), batch.given, objective, {})
    right = model.gradients()
    model.zero_grad()
    forward_backward(model, [lambda: swapped], batch.given, objective, {})
    for name, found in model.gradients().items():
        assert relative_error(found, right[name]) < 1e-5, name


def test_unwrap_gives_the_bare_model() -> None:
    model = TinyModel()
    assert unwrap(model) is model


def test_rows_of_a_second_rank_begin_behind_those_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    other, batch = make_batch(ROWS, seed=2), make_batch(ROWS)
    first, _ = TinyModel()(other.inputs)
    elsewhere = [first[IMAGE].detach(), *other.given.values()]  # in the order of the gathers
    module = "trainer.step.forward_backward"
    monkeypatch.setattr(f"{module}.rank", lambda: 1)
    for name in ("all_gather", "all_gather_with_grad"):
        monkeypatch.setattr(f"{module}.{name}", lambda x: torch.cat([elsewhere.pop(0).to(x.dtype), x]))
    given = {name: x.half() if x.is_floating_point() else x for name, x in batch.given.items()}
    result = forward_backward(TinyModel(), batch.chunks(1), given, InfoNCE(), {})
    assert result.rows.offset == ROWS
    assert result.rows.everywhere[IMAGE][ROWS:].equal(result.rows.own[IMAGE])
    assert result.rows.everywhere[TEXT].dtype == torch.float32 and len(result.rows.everywhere[TEXT]) == 2 * ROWS
    assert result.rows.everywhere[IMAGE_ID].tolist() == [*other.given[IMAGE_ID].tolist(), *given[IMAGE_ID].tolist()]
