"""Weights without an optimizer: the averages where there are any, and what a checkpoint is not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import encoder_of
from old_checkpoints import save_as_before
from torch import Tensor

from core.errors import CheckpointError
from trainer.checkpoint.files import MANIFEST
from trainer.checkpoint.folder import check_identity, load_latest, save_checkpoint
from trainer.checkpoint.weights import read_weights
from trainer.models.config import ModelConfig
from trainer.models.trained import TrainedModel
from trainer.objectives.infonce import InfoNCE

IDENTITY: dict[str, Any] = {"model": {"tower": "resnet18"}, "config": {"objective": "siglip"}}


def saved(folder: Path, step: int = 1, keep_last: int = 1, **given: dict[str, Tensor]) -> Path:
    parts, state = given or {"encoder": {"w": torch.ones(1)}}, {"step": step}
    return save_checkpoint(
        folder, parts=parts, optimizer_state={}, state=state, identity=IDENTITY, keep_last=keep_last, is_best=False
    )


def test_the_averages_go_before_the_weights_they_are_of(tmp_path: Path) -> None:
    plain = {"encoder": {"head.w": torch.ones(2)}, "objective": {"logit_scale": torch.tensor(3.0)}}
    weights = read_weights(saved(tmp_path / "plain", **plain))
    assert weights.encoder["head.w"].tolist() == [1, 1] and weights.learned["logit_scale"] == 3
    ema = {"encoder.head.w": torch.zeros(2), "learned.logit_scale": torch.tensor(2.0)}
    averaged = read_weights(saved(tmp_path / "averaged", **plain, ema=ema))
    assert averaged.encoder["head.w"].tolist() == [0, 0] and averaged.learned["logit_scale"] == 2
    assert averaged.fingerprint != weights.fingerprint


@pytest.mark.parametrize(("number", "more"), [(3, ""), (4, "(and 1 more fields)"), (5, "(and 2 more fields)")])
def test_the_first_three_differences_are_named_and_the_others_counted(number: int, more: str) -> None:
    wanted, found = ({f"field{n}": value for n in range(number)} for value in (1, 2))
    with pytest.raises(CheckpointError) as error:
        check_identity(found, wanted, Path("here"))
    assert "field2 is 2, 1 is needed" in str(error.value) and "field3" not in str(error.value)
    assert ("more fields" in str(error.value)) == bool(more) and more in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, encoder={"w": torch.ones(1)})
    (path / "encoder.safetensors").unlink()
    (path / "encoder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors: cannot be read"):
        read_weights(path)


def test_where_nothing_is_saved_there_is_no_latest(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None


def test_the_newest_whole_one_before_a_damaged_one_is_offered(tmp_path: Path) -> None:
    paths = [saved(tmp_path, step, keep_last=3) for step in (1, 2, 3)]
    (paths[-1] / "encoder.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"before it is step-00000002: continue with resume={paths[1]}"):
        load_latest(tmp_path)


def test_a_step_that_is_saved_again_still_lets_older_ones_go(tmp_path: Path) -> None:
    for step, keep_last in ((1, 2), (2, 2), (2, 1)):  # killed between publishing and removing
        saved(tmp_path, step, keep_last)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("has_average", [False, True])
def test_a_checkpoint_of_before_is_read_as_what_it_would_be_today(tmp_path: Path, has_average: bool) -> None:
    torch.manual_seed(0)
    config = ModelConfig(tower="shufflenet_v2_x0_5", hidden_dim=4)
    model, averaged = (TrainedModel(encoder_of(config, 4, 32), InfoNCE()) for _ in range(2))
    weights = read_weights(save_as_before(tmp_path, model, averaged=averaged if has_average else None))
    right = (averaged if has_average else model).encoder.state_dict()
    assert all(torch.equal(weights.encoder[name], tensor) for name, tensor in right.items())
    assert weights.learned.keys() == {"logit_scale"} and weights.identity["config"]["objective"] == {"name": "infonce"}
    assert weights.identity["model"]["keeps_head"] is True


def test_a_file_of_another_length_says_both_and_every_manifest_its_format(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert json.loads((path / MANIFEST).read_text())["format_version"] == 1
    file = path / "encoder.safetensors"
    length = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=f"damaged \\({length - 3} bytes, {length} were written"):
        read_weights(path)
