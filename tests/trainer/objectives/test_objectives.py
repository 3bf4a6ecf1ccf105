"""What each objective says of itself: options, learned scalars, terms, figures, state; its loss: test_engine."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from objective_rows import assert_same, found, make_values
from torch import Tensor

from core.config import Choice
from core.errors import ConfigError
from core.parts import build
from trainer.objectives import OBJECTIVES
from trainer.objectives.infonce import InfoNCE
from trainer.objectives.nt_xent import NTXent
from trainer.objectives.objective import Block, Objective, Rows
from trainer.objectives.siglip import SigLIP
from trainer.objectives.supcon import SupCon

ROOT = Path(__file__).resolve().parents[3]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("infonce", {"label_smoothing": 1.0}, "infonce: label_smoothing is 1.0: it is a share. Use 0 to below 1."),
    ("infonce", {"label_smoothing": -0.1}, "infonce: label_smoothing is -0.1: it is a share. Use 0 to below 1."),
    ("infonce", {"max_caption_similarity": 1.5}, "infonce: max_caption_similarity is 1.5: it is a cosine. Use above 0"),
    ("infonce", {"max_caption_similarity": 0.0}, "infonce: max_caption_similarity is 0.0: it is a cosine. Use above 0"),
    ("infonce", {"positives": "all"}, "'all'"),
    ("infonce", {"captions": "some"}, "'some'"),
    ("infonce", {"init_temperature": 0.001}, "infonce: init_temperature is 0.001: give at least 1 / max_logit_scale"),
    (
        "infonce",
        {"init_temperature": 0.0},
        "infonce: init_temperature is 0.0: give at least 1 / max_logit_scale = 0.01, and at most 1.",
    ),
    (
        "infonce",
        {"init_temperature": 2.0},
        "infonce: init_temperature is 2.0: give at least 1 / max_logit_scale = 0.01, and at most 1.",
    ),
    ("infonce", {"max_logit_scale": 0}, "infonce: max_logit_scale is 0.0: give at least 1, as 100."),
    ("siglip", {"init_temperature": -1.0}, "siglip: init_temperature is -1.0: give at least 1 / max_logit_scale"),
    ("siglip", {"init_bias": math.inf}, "siglip: init_bias is inf: give a finite number"),
    ("siglip", {"positives": "none"}, "'none'"),
    ("nt_xent", {"temperature": 0.0}, "nt_xent: temperature is 0.0: give a number above 0."),
    ("nt_xent", {"temperature": -1.0}, "nt_xent: temperature is -1.0: give a number above 0."),
    ("supcon", {"temperature": 0.0}, "supcon: temperature is 0.0: give a number above 0."),
    ("supcon", {"temperature": -1.0}, "supcon: temperature is -1.0: give a number above 0."),
    ("supcon", {"views": 3}, "supcon: views is 3. Use 1 or 2."),
    ("supcon", {"views": 0}, "supcon: views is 0. Use 1 or 2."),
    ("supcon", {"label_smoothing": 0.1}, "unknown option 'label_smoothing'"),
    *((name, {"block_size": -1}, "block_size is -1: give a number of rows, or 0") for name in OBJECTIVES),
]


@pytest.mark.parametrize(("name", "options", "sentence"), REFUSED)
def test_a_wrong_option_is_refused_in_one_sentence(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(OBJECTIVES, Choice(name, options), "objective")
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("objective", "sentence"),
    [
        (lambda: InfoNCE(positives="all"), "infonce: positives is 'all'. Use 'mask' or 'multi'."),  # type: ignore[arg-type]
        (lambda: InfoNCE(captions="some"), "infonce: captions is 'some'. Use 'drawn' or 'all'."),  # type: ignore[arg-type]
        (lambda: SigLIP("none"), "siglip: positives is 'none'. Use 'mask' or 'multi'."),  # type: ignore[arg-type]
    ],
)
def test_so_it_is_from_python(objective: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        objective()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_values_at_the_edge_of_their_range_are_taken(name: str) -> None:
    edges: dict[str, dict[str, Any]] = {
        "infonce": {"label_smoothing": 0.99, "max_caption_similarity": 1, "init_temperature": 0.01, "block_size": 0},
        "siglip": {"init_temperature": 0.02, "max_logit_scale": 50, "init_bias": 0, "block_size": 1},
        "nt_xent": {"temperature": 1e-3},
        "supcon": {"temperature": 2, "views": 1},
    }
    built: Any = build(OBJECTIVES, Choice(name, edges[name]), "objective")
    assert {key: getattr(built, key) for key in edges[name]} == edges[name]


def test_the_table_and_its_defaults() -> None:
    assert list(OBJECTIVES.items()) == [
        ("infonce", InfoNCE),
        ("nt_xent", NTXent),
        ("siglip", SigLIP),
        ("supcon", SupCon),
    ]
    assert all(objective().block_size == 512 for objective in OBJECTIVES.values())
    assert [(o().views, o().needs_text, o().keeps_head, o().head_dims) for o in OBJECTIVES.values()] == [
        (1, True, True, None),
        (2, False, False, (2048, 128)),
        (1, True, True, None),
        (2, False, False, (2048, 128)),
    ]
    assert [o().columns for o in OBJECTIVES.values()] == [("image_id",), ("image_id",), ("image_id",), ("label",)]
    assert SupCon(views=1).features == ("image",) and SupCon().features == ("image", "image2")
    assert InfoNCE(captions="all").all_captions and not InfoNCE().all_captions


def test_recipes_are_checked_before_torch_is_loaded() -> None:
    program = "import sys; from trainer.objectives import OBJECTIVES; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_learned_scalars_start_at_their_options_and_have_bounds() -> None:
    siglip = SigLIP(init_temperature=0.05, init_bias=-4, max_logit_scale=30)
    parameters = {name: torch.tensor(value, dtype=torch.float64) for name, value in siglip.parameters().items()}
    assert {name: float(x) for name, x in siglip.scalars(parameters).items()} == pytest.approx(
        {"scale": 20, "bias": -4}
    )
    assert siglip.bounds() == {"logit_scale": (0, pytest.approx(math.log(30)))}
    infonce = InfoNCE()
    scale = infonce.scalars({"logit_scale": torch.tensor(infonce.parameters()["logit_scale"])})["scale"]
    assert float(scale) == pytest.approx(1 / 0.07)
    assert infonce.bounds() == {"logit_scale": (0, pytest.approx(math.log(100)))}
    for fixed in (NTXent(), SupCon()):
        assert fixed.parameters() == fixed.bounds() == fixed.scalars({}) == fixed.initial_state(8) == {}
    assert set(infonce.parameters()) == {"logit_scale"} and set(siglip.parameters()) == {"logit_scale", "logit_bias"}


def test_scalars_are_not_the_parameters_themselves() -> None:
    bias = torch.nn.Parameter(torch.tensor(-4.0))
    assert SigLIP().scalars({"logit_scale": torch.tensor(0.0), "logit_bias": bias})["bias"] is not bias


@pytest.mark.parametrize(
    ("labels", "with_positive"),
    [([0, 0, 1, 2], 2), ([0, 0, 1, 1, 1], 5), ([-1, -1, 3], 0), ([2, -1, 2, -1, 0, 2], 3), ([5], 0), ([1, 0, 1], 2)],
)
def test_supcon_divides_by_the_views_that_have_a_positive(labels: list[int], with_positive: int) -> None:
    columns = {"image": torch.zeros(len(labels), 2), "label": torch.tensor(labels)}
    assert int(SupCon(views=1).num_terms(columns)) == max(with_positive, 1)
    assert SupCon().num_terms(columns) == 2 * len(labels)


def test_the_others_divide_by_rows_of_both_sides() -> None:
    columns = {"image": torch.zeros(7, 2), "text": torch.zeros(7, 2), "image_id": torch.zeros(7)}
    assert [int(o().num_terms(columns)) for o in (InfoNCE, NTXent, SigLIP)] == [14, 14, 7]


def test_features_without_information_give_log_n() -> None:
    values = make_values(InfoNCE(), 6, num_images=10**6)
    for feature in values.features.values():
        feature.detach()[:] = torch.tensor([1.0, 0, 0, 0, 0])
    assert float(found(InfoNCE(), values).detach()) == pytest.approx(math.log(6), abs=1e-12)
    values = make_values(NTXent(), 6, num_images=10**6)
    for feature in values.features.values():
        feature.detach()[:] = torch.tensor([1.0, 0, 0, 0, 0])
    assert float(found(NTXent(), values).detach()) == pytest.approx(math.log(11), abs=1e-12)


@pytest.mark.parametrize("objective", [InfoNCE(0.1, "multi", block_size=3), NTXent(block_size=3), SupCon(block_size=3)])
def test_swapping_the_two_sides_changes_nothing(objective: Objective) -> None:
    values = make_values(objective, 8)
    one, other = objective.features
    swapped = {**values.features, one: values.features[other], other: values.features[one]}
    back = type(values)(swapped, values.given, values.scalars)
    assert_same(found(objective, values), found(objective, back), values)


def figures(objective: Objective, values: Any, start: int = 0, stop: int | None = None) -> dict[str, float]:
    return {name: float(x) for name, x in objective.figures(values.rows(start, stop), values.scalars).items()}


def test_figures_are_scalars_and_the_negatives() -> None:
    counted = "rows_with_counted_false_negative"
    negatives = {"false_negative_rate", "valid_negatives", "rows_with_false_negative", counted}
    for objective, learned in ((InfoNCE(), {"logit_scale"}), (SigLIP(), {"logit_scale", "logit_bias"})):
        shown = figures(objective, make_values(objective, 8))
        assert set(shown) == learned | negatives
        assert shown["logit_scale"] == pytest.approx(1 / objective.init_temperature)  # type: ignore[attr-defined]
    assert figures(SigLIP(), make_values(SigLIP(), 8))["logit_bias"] == -10
    assert figures(NTXent(), make_values(NTXent(), 8)) == {}


def test_supcon_shows_how_many_samples_share_a_label() -> None:
    values = make_values(SupCon(), 6)
    values.given["label"] = torch.tensor([0, 0, 0, 1, -1, -1])
    assert figures(SupCon(), values)["samples_of_the_class"] == pytest.approx((3 * 3 + 1) / 6)
    assert figures(SupCon(), values, 3, 6)["samples_of_the_class"] == pytest.approx(1 / 3)


def test_an_objective_that_says_nothing_has_plain_answers() -> None:
    rows = Rows({"x": torch.zeros(2)}, {"x": torch.zeros(4)}, 2)
    scalars = {"scale": torch.tensor(1.0)}
    with pytest.raises(TypeError, match="terms"):
        Objective()  # type: ignore[abstract]

    class Plain(Objective):
        def terms(self, block: Block) -> Iterator[Tensor]:
            yield torch.zeros(())

    plain = Plain()
    assert plain.parameters() == plain.bounds() == plain.initial_state(4) == {}
    assert plain.scalars(scalars) == plain.figures(rows, scalars) == plain.next_state(rows, scalars) == scalars
    assert not plain.needs_text and (plain.views, plain.all_captions, plain.keeps_head) == (1, False, True)


def test_similar_captions_of_a_trained_tower_pass_no_gradient_through_the_mask() -> None:
    objective = InfoNCE(max_caption_similarity=0.3)
    values = make_values(objective, 6, num_images=10**6)

    def loss(*features: Tensor) -> Tensor:
        same = type(values)(dict(zip(values.features, features)), values.given, values.scalars)
        return found(objective, same)

    assert torch.autograd.gradcheck(loss, tuple(values.features.values()))
