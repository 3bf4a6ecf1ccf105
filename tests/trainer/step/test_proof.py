"""The proof before step 1 lets right paths pass and leaves no trace; what it finds: test_proof_defects."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import gloo
import pytest
import torch
from accelerate import Accelerator
from tiny_model import EMBED_DIM, IMAGE_SIZE, NUM_TOKENS, TinyModel
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from wrong_steps import Queue

import trainer.step.proof
from core.errors import DistributedError
from trainer.data.names import IMAGE_ID, LABEL, NUM_CAPTIONS, TEXT
from trainer.objectives.infonce import InfoNCE
from trainer.objectives.nt_xent import NTXent
from trainer.objectives.objective import IMAGE, IMAGE2, Objective
from trainer.objectives.siglip import SigLIP
from trainer.objectives.supcon import SupCon
from trainer.step.proof import ProofInputs, prove_gradients

PICTURE = (3, IMAGE_SIZE, IMAGE_SIZE)
TOKENS = torch.randint(NUM_TOKENS, (30, 2), generator=torch.Generator().manual_seed(0))
ALL_CAPTIONS = InfoNCE(captions="all")
OBJECTIVES: dict[str, Objective] = {
    "infonce": InfoNCE(),
    "infonce, smoothed": InfoNCE(label_smoothing=0.2),
    "infonce, multi": InfoNCE(positives="multi"),
    "infonce, similar": InfoNCE(max_caption_similarity=0.7),
    "infonce, all captions": ALL_CAPTIONS,
    "siglip": SigLIP(),
    "siglip, multi": SigLIP("multi"),
    "nt_xent": NTXent(),
    "supcon": SupCon(),
    "supcon, one view": SupCon(views=1),
    "queue": Queue(),
}


def inputs_of(objective: Objective, has_text: bool) -> ProofInputs:
    captions = 2 if objective.all_captions else 0
    return ProofInputs(PICTURE, None, TOKENS, captions) if has_text else ProofInputs(PICTURE, EMBED_DIM, None, captions)


def proven(
    name: str, accumulate: int, has_text: bool = False, is_noisy: bool = True, **options: Any
) -> dict[str, float]:
    """The ratios of a right path, by DDP where there is a group."""
    objective = OBJECTIVES[name]
    model: Any = TinyModel(objective, is_noisy=is_noisy, has_text=has_text)
    if torch.distributed.is_initialized():
        model = DistributedDataParallel(model)
    state = objective.initial_state(EMBED_DIM)
    return prove_gradients(model, objective, state, inputs_of(objective, has_text), accumulate=accumulate, **options)


def groups_of(objective: Objective, has_text: bool = False) -> set[str]:
    return {"tower", "head", *(["text"] if has_text else []), *objective.parameters()}


def proven_by_a_rank(cases: list[tuple[str, int, bool]]) -> list[dict[str, float]]:
    return [proven(*case) for case in cases]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_right_paths_pass(num_processes: int) -> None:
    cases = [
        (name, accumulate, has_text)
        for name, objective in OBJECTIVES.items()
        for has_text in ((False, True) if objective.needs_text else (False,))
        for accumulate in (1, 3)
    ]
    for ratios in gloo.run(num_processes, proven_by_a_rank, cases):
        for (name, _, has_text), found in zip(cases, ratios, strict=True):
            assert found == {group: pytest.approx(1, abs=1e-4) for group in groups_of(OBJECTIVES[name], has_text)}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_works_without_a_process_group_and_in_float64(name: str) -> None:
    objective = OBJECTIVES[name]
    model = TinyModel(objective, torch.float64)
    state = objective.initial_state(EMBED_DIM)
    ratios = prove_gradients(model, objective, state, inputs_of(objective, False), accumulate=2, tolerance=1e-9)
    assert set(ratios) == groups_of(objective)


@pytest.mark.parametrize("defect", [1.0, 2.0], ids=["passes", "fails"])
def test_the_proof_leaves_no_trace(defect: float, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Queue()
    model = TinyModel(objective, is_noisy=True)
    model.tower[2].eval()
    model({IMAGE: torch.randn(4, *PICTURE)})[0][IMAGE].sum().backward()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    state = objective.initial_state(EMBED_DIM)
    kept = {name: value.clone() for name, value in state.items()}
    torch.manual_seed(random.randrange(1000))
    random_state = torch.get_rng_state()
    real = trainer.step.proof.forward_backward

    def scaled(*args: Any) -> Any:
        return real(*args, backward=lambda loss: (defect * loss).backward())

    monkeypatch.setattr(trainer.step.proof, "forward_backward", scaled)
    torch.set_float32_matmul_precision("high")
    try:
        if defect == 1:
            prove_gradients(model, objective, state, inputs_of(objective, False), accumulate=2)
        else:
            with pytest.raises(DistributedError):
                prove_gradients(model, objective, state, inputs_of(objective, False), accumulate=3)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [part.training for part in model.modules()] == modes
    if defect == 1:
        assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert all(torch.equal(state[name], value) for name, value in kept.items()) and state.keys() == kept.keys()


def test_frozen_groups_are_left_out() -> None:
    model = TinyModel()
    model.tower.requires_grad_(False)
    ratios = prove_gradients(model, InfoNCE(), {}, inputs_of(InfoNCE(), False), accumulate=2)
    assert set(ratios) == {"head", "logit_scale"}


def ratios_under_accelerate() -> tuple[dict[str, float], bool]:
    """With the autocast that accelerate hides in the forward, whose rounding would look like a wrong gradient."""
    model = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(TinyModel())
    ratios = prove_gradients(model, InfoNCE(), {}, inputs_of(InfoNCE(), False), accumulate=3)
    x = {IMAGE: torch.randn(4, *PICTURE)}
    still_rounds = not torch.equal(model(x)[0][IMAGE], TinyModel()(x)[0][IMAGE])
    return ratios, still_rounds


def test_accelerates_autocast_is_kept_out_and_put_back() -> None:
    [(ratios, still_rounds)] = gloo.run(1, ratios_under_accelerate)
    assert ratios == {name: pytest.approx(1, abs=1e-4) for name in groups_of(InfoNCE())}
    assert still_rounds


class Recorder(TinyModel):
    """Keeps what it is given."""

    seen: list[Mapping[str, Tensor]]

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        assert not self.training and not self.tower.training
        self.seen.append(inputs)
        return super().forward(inputs)


def batch_of(objective: Objective, has_text: bool, **options: Any) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
    """What the model takes and the objective is given of the proof's whole batch."""
    model = Recorder(objective, has_text=has_text)
    model.seen, given = [], []
    real = trainer.step.proof.forward_backward

    def noting(model: Any, chunks: Any, values: Any, *rest: Any) -> Any:
        given.append(dict(values))
        return real(model, chunks, values, *rest)

    trainer.step.proof.forward_backward = noting
    try:
        prove_gradients(model, objective, {}, inputs_of(objective, has_text), **options)
    finally:
        trainer.step.proof.forward_backward = real
    return max(model.seen, key=lambda inputs: len(inputs[IMAGE])), given[0]


def test_the_batch_is_of_the_runs_shapes_and_repeats_ids_and_labels() -> None:
    inputs, given = batch_of(SupCon(), False, accumulate=4)
    assert {name: tuple(x.shape) for name, x in inputs.items()} == {IMAGE: (12, *PICTURE), IMAGE2: (12, *PICTURE)}
    assert set(given) == {LABEL} and given[LABEL].unique().tolist() == [0, 1]
    inputs, given = batch_of(InfoNCE(), False, accumulate=4)
    assert set(given) == {IMAGE_ID, TEXT} and set(inputs) == {IMAGE}
    assert given[IMAGE_ID].tolist() == [0, 0, 1, 2, 2, 3, 4, 4, 5, 0, 0, 1]
    torch.testing.assert_close(given[TEXT].norm(dim=1), torch.ones(12))
    assert batch_of(InfoNCE(), False, accumulate=4)[1][TEXT].equal(given[TEXT]), "the same for the same seed"
    assert not batch_of(InfoNCE(), False, accumulate=4, seed=1)[1][TEXT].equal(given[TEXT])


def test_the_batch_has_samples_with_fewer_captions_than_others() -> None:
    _, given = batch_of(ALL_CAPTIONS, False, accumulate=2)
    assert given[NUM_CAPTIONS].tolist() == [1, 2, 1, 2, 1, 2]
    assert given[TEXT].norm(dim=2).round().tolist() == [[1, 0], [1, 1]] * 3
    inputs, given = batch_of(ALL_CAPTIONS, True, accumulate=2)
    assert inputs[TEXT].shape == (6, 2, 2) and TEXT not in given
    rows = {tuple(row) for row in TOKENS.tolist()}
    assert {tuple(row) for row in inputs[TEXT].flatten(0, 1).tolist()} <= rows


def test_stored_tower_outputs_may_stand_for_pictures() -> None:
    class OnOutputs(TinyModel):
        def forward(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            assert inputs[IMAGE].shape[1:] == (48,)
            return super().forward(inputs)

    assert set(prove_gradients(OnOutputs(), InfoNCE(), {}, ProofInputs((48,), EMBED_DIM))) == groups_of(InfoNCE())


class SameForAll(TinyModel):
    """As a deep tower before training: every picture and caption gets nearly the same vector."""

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        features, scalars = super().forward(inputs)
        return {name: torch.nn.functional.normalize(x + 9, dim=-1) for name, x in features.items()}, scalars


def test_an_untrained_tower_does_not_make_relations_look_unused() -> None:
    objective = InfoNCE(max_caption_similarity=0.9)
    model = SameForAll(objective, has_text=True)
    assert set(prove_gradients(model, objective, {}, inputs_of(objective, True))) == groups_of(objective, True)


class Wide(TinyModel):
    """Wide features, of which random ones are far apart."""

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        features, scalars = super().forward(inputs)
        wide = torch.randn(EMBED_DIM, 512, generator=torch.Generator().manual_seed(0))
        return {name: torch.nn.functional.normalize(x @ wide, dim=-1) for name, x in features.items()}, scalars


@pytest.mark.parametrize("positives", ["mask", "multi"])
def test_negatives_that_hardly_count_do_not_make_ids_look_unused(positives: Any) -> None:
    objective = SigLIP(positives)
    inputs = ProofInputs(PICTURE, 512)
    assert set(prove_gradients(Wide(objective), objective, {}, inputs)) == groups_of(objective)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_rank_takes_its_own_slice_in_as_many_chunks_as_the_run(
    accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the second of three processes, whose step is not made: nobody is there to gather from."""
    sizes, given = [], []

    def noting(model: Any, chunks: Any, values: Any, *rest: Any) -> Any:
        sizes.extend(len(chunk()[IMAGE]) for chunk in chunks)
        given.append(values[IMAGE_ID].tolist())
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.step.proof, "rank", lambda: 1)
    monkeypatch.setattr(trainer.step.proof, "world_size", lambda: 3)
    monkeypatch.setattr(trainer.step.proof, "forward_backward", noting)
    with pytest.raises(KeyboardInterrupt):
        prove_gradients(TinyModel(), InfoNCE(), {}, inputs_of(InfoNCE(), False), accumulate=accumulate)
    assert sizes == [3] * accumulate
    num_rows = 9 * accumulate
    ids = [row * 2 // 3 % (num_rows // 2) for row in range(num_rows)]
    assert given == [ids[3 * accumulate : 6 * accumulate]]
