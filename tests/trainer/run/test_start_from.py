"""`start_from`: which weights a run takes over, from what, and what it says of those it leaves."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from old_checkpoints import save_as_before
from safetensors.torch import save_file

from core.config import from_mapping
from core.errors import CheckpointError, ConfigError, ShardclipError
from core.manifest import TextEncoderSpec
from trainer.checkpoint.folder import save_checkpoint
from trainer.config import TrainConfig
from trainer.models.build import build_encoder
from trainer.models.trained import TrainedModel
from trainer.pictures.normalization import CLIP, IMAGENET
from trainer.run.start_from import Start, fill, read_source

MEAN_OF_IMAGENET = list(IMAGENET.mean)


def config_of(folder: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "run_dir": folder / "new",
        "data": {"train": "shards"},
        "global_batch_size": 8,
        "model": {"tower": "resnet18", "hidden_dim": 16},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
    return from_mapping(TrainConfig, values, "test")


def model_of(config: TrainConfig, embed_dim: int = 8, seed: int = 0) -> TrainedModel:
    torch.manual_seed(seed)
    objective = config.build_objective()
    width = embed_dim if objective.needs_text else None
    return TrainedModel(build_encoder(config.model, objective, width, 32), objective)


def trained(config: TrainConfig, seed: int = 7) -> TrainedModel:
    """Weights, statistics and scalars that no fresh model has."""
    model = model_of(config, seed=seed)
    with torch.no_grad():
        for parameter in model.learned.values():
            parameter.add_(0.25)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.fill_(0.5)
    return model


def saved(
    folder: Path, config: TrainConfig, step: int = 1, *, averaged: bool = False, is_best: bool = False,
    text_encoder: TextEncoderSpec | None = None,
) -> Path:  # fmt: skip
    """A checkpoint in `folder`, a run folder; returns its path."""
    model = trained(config, seed=step)
    objective = {**dict(model.learned.items()), "queue": torch.ones(4, 8)}
    parts: dict[str, Any] = {"encoder": model.encoder.state_dict(), "objective": objective}
    if averaged:
        parts["ema"] = trained(config, seed=100 + step).state_dict()
    identity = {
        "model": {**model.encoder.describe(), "mean": MEAN_OF_IMAGENET, "std": list(IMAGENET.std)},
        "config": {"objective": {"name": config.objective.name}},
        "text_encoder": asdict(text_encoder) if text_encoder else None,
    }
    values: dict[str, Any] = {"optimizer_state": {}, "state": {"step": step}, "identity": identity, "keep_last": 9}
    return save_checkpoint(folder / "checkpoints", parts=parts, is_best=is_best, **values)


def started(config: TrainConfig, **options: Any) -> tuple[TrainedModel, Start]:
    source = read_source(config)
    assert source is not None
    model = model_of(config, **options)
    start = fill(model, source, config)
    assert start is not None
    return model, start


def same(model: TrainedModel, other: TrainedModel, prefix: str = "") -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith(prefix))


TOWER, HEAD, LEARNED = "encoder.image_encoder.tower.", "encoder.image_encoder.head.", "learned."


def test_a_run_its_best_its_latest_or_a_checkpoint_may_be_named(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    best = saved(tmp_path / "run", config, 1, is_best=True)
    saved(tmp_path / "run", config, 2)
    for named, step in {"run": 1, "run/best": 1, "run/latest": 2, f"run/checkpoints/{best.name}": 1}.items():
        model, start = started(config_of(tmp_path, start_from=str(tmp_path / named)))
        assert same(model, trained(config, seed=step)), named
        assert start.left == {}
        assert start.taken == {"tower": 120, "head": 4, "logit_scale": 1}
    assert str(start) == f"starts from {best}: 125 tensors taken (tower 120, head 4, logit_scale 1); left: nothing"


def test_averaged_weights_are_taken_where_there_are_any(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    saved(tmp_path / "run", config, averaged=True)
    model, _ = started(config_of(tmp_path, start_from=str(tmp_path / "run")))
    assert same(model, trained(config, seed=101))


@pytest.mark.parametrize("averaged", [False, True])
def test_checkpoints_of_before_may_be_started_from(tmp_path: Path, averaged: bool) -> None:
    config = config_of(tmp_path)
    save_as_before(tmp_path / "run", trained(config), averaged=trained(config, seed=8) if averaged else None)
    model, start = started(config_of(tmp_path, start_from=str(tmp_path / "run")))
    assert same(model, trained(config, seed=8 if averaged else 7))
    assert start.left == {} and start.taken["logit_scale"] == 1


@pytest.mark.parametrize(("parts", "prefix"), [("tower", TOWER), ("head", HEAD)])
def test_a_part_may_be_taken_alone_and_the_rest_is_named(tmp_path: Path, parts: str, prefix: str) -> None:
    config = config_of(tmp_path)
    saved(tmp_path / "run", config)
    model, start = started(config_of(tmp_path, start_from=str(tmp_path / "run"), start_parts=parts))
    other = "head" if parts == "tower" else "tower"
    assert list(start.taken) == [parts]
    assert start.left == {other: f"start_parts={parts}", "logit_scale": f"start_parts={parts}"}
    source, fresh = trained(config, seed=1), model_of(config)
    assert same(model, source, prefix)
    for untouched in {TOWER, HEAD, LEARNED} - {prefix}:
        assert same(model, fresh, untouched), untouched


def test_scalars_of_another_objective_are_left_and_named(tmp_path: Path) -> None:
    saved(tmp_path / "run", config_of(tmp_path))
    config = config_of(tmp_path, start_from=str(tmp_path / "run"), objective="siglip")
    model, start = started(config)
    assert same(model, model_of(config), LEARNED) and same(model, trained(config_of(tmp_path), seed=1), TOWER)
    assert start.left["logit_scale"] == "of the objective infonce, this run's is siglip"
    assert start.left["logit_bias"] == "not there: this run's begins anew"


def test_pictures_are_normalised_as_the_weights_know_them(tmp_path: Path) -> None:
    saved(tmp_path / "run", config_of(tmp_path))
    start_from = str(tmp_path / "run")
    for parts, expected in {"all": IMAGENET, "tower": IMAGENET, "head": None}.items():
        source = read_source(config_of(tmp_path, start_from=start_from, start_parts=parts))
        assert source is not None and source.normalization == expected
    config = config_of(tmp_path)
    assert build_encoder(config.model, config.build_objective(), 8, 32, None, IMAGENET).normalization == IMAGENET
    assert build_encoder(config.model, config.build_objective(), 8, 32).normalization == CLIP
    chosen = config_of(tmp_path, model={"normalize": "clip"})
    assert build_encoder(chosen.model, chosen.build_objective(), 8, 32, None, IMAGENET).normalization == CLIP


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("kind", ["encoder", "tower", "classifier"])
def test_a_state_dict_may_be_an_encoders_or_a_bare_towers(tmp_path: Path, suffix: str, kind: str) -> None:
    config = config_of(tmp_path, start_from=str(tmp_path / f"weights{suffix}"), model={"normalize": "half"})
    encoder = trained(config).encoder
    state = dict(encoder.state_dict() if kind == "encoder" else encoder.image_encoder.tower.state_dict())
    if kind == "classifier":  # as published, with the layer that towers are without
        state |= {"fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)}
    write = torch.save if suffix != ".safetensors" else save_file
    write(
        {name: x.clone(memory_format=torch.contiguous_format) for name, x in state.items()},
        tmp_path / f"weights{suffix}",
    )
    model, start = started(config)
    assert same(model, trained(config), TOWER)
    assert same(model, trained(config) if kind == "encoder" else model_of(config), HEAD)
    why = "not there: this run's begins anew"
    assert start.left == {"logit_scale": why} | ({"head": why} if kind != "encoder" else {})


def test_a_head_for_the_embeddings_of_another_text_encoder_is_refused_though_it_fits(tmp_path: Path) -> None:
    theirs, ours = (TextEncoderSpec(f"sentence:{name}", "main", 8, name * 32) for name in ("aa", "bb"))
    saved(tmp_path / "run", config_of(tmp_path), text_encoder=theirs)

    def start(text_encoder: TextEncoderSpec | None, **changes: Any) -> Start | None:
        config = config_of(tmp_path, start_from=str(tmp_path / "run"), **changes)
        source = read_source(config)
        assert source is not None
        return fill(model_of(config), source, config, text_encoder)

    for parts in ("all", "head"):
        with pytest.raises(
            ConfigError, match=r"sentence:aa .*; those of this set .* by sentence:bb .*start_parts=tower\.$"
        ):
            start(ours, start_parts=parts)
    alone = start(ours, start_parts="tower")
    assert alone is not None and alone.left["head"] == "start_parts=tower"
    moved = replace(theirs, name="sentence:/a/copy", revision="local")  # the same weights, from another place
    for fitting in (theirs, moved, None):
        whole = start(fitting)
        assert whole is not None and whole.taken["head"] == 4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model": {"hidden_dim": 32}},
            r"image_encoder\.head\.1\.weight is \(16, 512\), this recipe's is \(32, 512\)\. .*start_parts=tower",
        ),
        ({"model": {"tower": "resnet34"}}, r"has the tower resnet18, the recipe resnet34\. Set model\.tower=resnet18"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_sentence(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    saved(tmp_path / "run", config_of(tmp_path))
    with pytest.raises(ConfigError, match=sentence):
        started(config_of(tmp_path, start_from=str(tmp_path / "run"), **changes))
    if "hidden_dim" in changes["model"]:
        started(config_of(tmp_path, start_from=str(tmp_path / "run"), start_parts="tower", **changes))


def test_a_tower_of_another_depth_or_without_a_tensor_is_refused(tmp_path: Path) -> None:
    path, half = tmp_path / "w.pth", {"normalize": "half"}
    deep = config_of(tmp_path, start_from=str(path), model={"tower": "resnet34", **half})
    shallow = config_of(tmp_path, start_from=str(path), model=half)
    torch.save(model_of(deep).encoder.image_encoder.tower.state_dict(), path)
    with pytest.raises(ConfigError, match=r"has image_encoder\.tower\.layer1\.2\.\S+, which this recipe's model"):
        started(shallow)
    torch.save(model_of(shallow).encoder.image_encoder.tower.state_dict(), path)
    with pytest.raises(ConfigError, match=r"has no image_encoder\.tower\.layer1\.2\.\S+\. Set model\.tower"):
        started(deep)
    with pytest.raises(ConfigError, match=r"has no head. Take what it has: start_parts=tower"):
        started(config_of(tmp_path, start_from=str(path), start_parts="head", model=half))


def test_what_is_not_there_or_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"no tensors")
    for named, words in {
        "nowhere": "no checkpoint there",
        "nowhere.pth": "start_from: there is no file",
        "bad.pth": "start_from: .* is damaged",
    }.items():
        with pytest.raises(ShardclipError, match=words):
            read_source(config_of(tmp_path, start_from=str(tmp_path / named)))
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"does not say how its pictures were normalised: set model\.normalize"):
        read_source(config_of(tmp_path, start_from=str(tmp_path / "w.pth")))


def test_a_run_that_has_a_checkpoint_goes_on_from_its_own(tmp_path: Path) -> None:
    config = config_of(tmp_path, start_from=str(tmp_path / "gone"))
    own = saved(tmp_path / "new", config_of(tmp_path))
    source = read_source(config)  # `gone` need not be there any more
    assert source is not None and source.is_own and source.path == own and source.normalization == IMAGENET
    model = model_of(config)
    assert fill(model, source, config) is None
    assert same(model, trained(config, seed=1), TOWER)  # a stored tower's features are checked against it
    (own / "encoder.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors: damaged .* start again in another run_dir"):
        read_source(config)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"start_parts": "tower"}, "start_parts is tower, but nothing is started from"),
        (
            {"start_from": "runs/a", "model": {"weights": "IMAGENET1K_V1"}},
            r"start_from is runs/a and model\.weights IMAGENET1K_V1: both give the tower its weights",
        ),
        (
            {"model": {"weights": "runs/a/latest"}},
            r"model\.weights is the run or .*start_from=runs/a/latest",
        ),
        ({"model": {"weights": "runs/a/checkpoints/step-00000010"}}, r"start_from=runs/a/checkpoints/step-00000010"),
        ({"resume": "runs/b/latest"}, r"which is not in run_dir .*/new: .* another run .* start_from=runs/b/latest"),
    ],
)
def test_two_beginnings_are_refused_before_anything_is_read(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config_of(tmp_path, **changes)


def test_a_run_folder_is_no_weights_of_a_tower_and_an_encoder_neither(tmp_path: Path) -> None:
    path = saved(tmp_path / "run", config_of(tmp_path))
    for folder in (tmp_path / "run", path):
        with pytest.raises(ConfigError, match=f"start_from={folder} .start_parts=tower for its tower alone"):
            config_of(tmp_path, model={"weights": str(folder)})
    file = path / "encoder.safetensors"
    with pytest.raises(ShardclipError, match=f"an encoder of a run: take it over with start_from={file}"):
        model_of(config_of(tmp_path, model={"weights": str(file), "normalize": "half"}))


def test_a_checkpoint_in_run_dir_may_be_resumed_by_any_of_its_names(tmp_path: Path) -> None:
    for name in ("", "latest", "checkpoints/step-00000001", "../new/best"):
        assert config_of(tmp_path, resume=str(tmp_path / "new" / name)).resume
