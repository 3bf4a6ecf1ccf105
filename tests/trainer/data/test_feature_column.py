"""Features are the tower's outputs, picture by picture; workers leave no trace, and the origin says which tower."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from column_sets import add, adopt_set
from encoders import encoder_of
from photo_folders import folder_bytes
from shard_sets import make_shard_set

from core.columns import load_head
from core.errors import ConfigError, DataError, ManifestError
from core.image import decode_into
from core.shard_set import ShardSet
from trainer.data import feature_column
from trainer.data.feature_column import state_sha256, tower_origin
from trainer.models.config import ModelConfig

TOWER = "shufflenet_v2_x0_5"


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of a tower whose batch norms have seen something."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(TOWER)
    model(torch.randn(8, 3, 64, 64))
    path = tmp_path_factory.mktemp("weights") / "tower.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def options(weights: Path) -> dict[str, Any]:
    return {"tower": TOWER, "weights": str(weights), "normalize": "imagenet", "image_size": 64, "num_workers": 0}


def by_hand(url: str, weights: Path) -> np.ndarray:
    """Each picture alone through torchvision's own model, its last layer off."""
    model = torchvision.models.get_model(TOWER)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.fc = torch.nn.Identity()
    shard_set, rows = ShardSet.open(url), []
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for sample in range(len(shard_set)):
        pixels = np.empty((64, 64, 3), np.uint8)
        decode_into(shard_set.member(sample, "image"), shard_set.image, pixels)
        picture = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
        with torch.no_grad():
            rows.append(model.eval()(picture[None])[0].numpy())
    return np.stack(rows)


def test_features_are_the_towers_outputs(tmp_path: Path, weights: Path, options: dict[str, Any]) -> None:
    url = make_shard_set(tmp_path / "set", 23, size=64)
    (head,) = add("features", url, cache=tmp_path, batch_size=7, **options)
    assert (head.name, head.dtype, head.shape) == (f"features.{TOWER}", "<f4", (1024,))
    rows = ShardSet.open(url).column(head.name).all_rows()
    np.testing.assert_allclose(rows, by_hand(url, weights), rtol=1e-4, atol=1e-4)
    assert len({row.tobytes() for row in rows}) == 23


def test_a_timm_towers_features_are_called_by_family_and_name(tmp_path: Path, options: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'shardclip[timm]'")
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "whole.pth")
    url = make_shard_set(tmp_path / "set", 5, size=64)
    tower = {"tower": "timm:mobilenetv3_small_050", "weights": str(tmp_path / "whole.pth")}
    (head,) = add("features", url, cache=tmp_path, **{**options, **tower})
    assert (head.name, head.shape) == ("features.timm.mobilenetv3_small_050", (1024,))
    assert head.origin["tower"]["name"] == "timm:mobilenetv3_small_050"


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_workers_leave_no_trace(tmp_path: Path, options: dict[str, Any], num_workers: int) -> None:
    url = make_shard_set(tmp_path / "set", 23, size=32)
    made = []
    for workers in (0, num_workers):
        add("features", url, cache=tmp_path, **{**options, "num_workers": workers})
        made.append(folder_bytes(tmp_path / "set" / "columns"))
        shutil.rmtree(tmp_path / "set" / "columns")
    assert made[0] == made[1]


def test_adopted_sets_need_no_captions_embedded(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = adopt_set(tmp_path)
    (head,) = add("features", folder, cache=tmp_path, **options)
    assert ShardSet.open(str(folder)).column(head.name).all_rows().shape == (12, 1024)


def test_the_origin_is_what_a_training_run_finds_of_its_own_tower(
    tmp_path: Path, weights: Path, options: dict[str, Any]
) -> None:
    url = make_shard_set(tmp_path / "set", 5, size=32)
    (head,) = add("features", url, cache=tmp_path, **options)
    config = ModelConfig(TOWER, str(weights), normalize="imagenet", freeze="tower")
    model = encoder_of(config, embed_dim=8, image_size=64)
    mean, std = model.normalization
    found = tower_origin(
        model.image_encoder.tower, name=TOWER, weights=str(weights), size=64, mean=mean, std=std, precision="no"
    )
    assert head.origin == {"tower": found, "fit": "crop", "stored_size": 32}


def test_one_changed_weight_is_another_tower() -> None:
    tower = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    before = state_sha256(tower)
    assert state_sha256(tower.to(memory_format=torch.contiguous_format)) == before
    with torch.no_grad():
        tower[0].weight[0, 0] += 1e-6
    assert state_sha256(tower) != before


def test_a_recipe_names_the_tower_and_options_win(tmp_path: Path, weights: Path) -> None:
    url = make_shard_set(tmp_path / "set", 5, size=32)
    recipe = tmp_path / "x.yaml"
    recipe.write_text(
        f"run_dir: {tmp_path}/run\ndata: {{train: {url}}}\nglobal_batch_size: 4\nimage_size: 48\nprecision: 'no'\n"
        f"model: {{tower: {TOWER}, weights: {weights}, normalize: half}}\n"
    )
    (head,) = add("features", url, cache=tmp_path, recipe=str(recipe), num_workers=0)
    assert (head.origin["tower"]["size"], head.origin["tower"]["mean"]) == (48, [0.5, 0.5, 0.5])
    with pytest.raises(ManifestError, match=r"is another column \(origin.tower.size: 48 -> 64\)"):
        add("features", url, cache=tmp_path, recipe=str(recipe), image_size=64)


def test_a_tower_without_weights_is_refused(tmp_path: Path, weights: Path) -> None:
    url = make_shard_set(tmp_path / "set", 5, size=32)
    with pytest.raises(ConfigError, match="has no weights, and random ones say nothing of a picture"):
        add("features", url, cache=tmp_path, tower=TOWER)
    with pytest.raises(ConfigError, match="needs a tower"):
        add("features", url, cache=tmp_path, weights=str(weights))
    with pytest.raises(ConfigError, match="torchvision has no image classifier 'resnet5'. Did you mean 'resnet50'"):
        add("features", url, cache=tmp_path, tower="resnet5", weights=str(weights), normalize="half")


def test_a_picture_without_finite_features_is_named(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_shard_set(tmp_path / "set", 23, size=32)
    real, seen = feature_column._forward, []

    def broken(frozen: Any, images: torch.Tensor) -> np.ndarray:
        features = real(frozen, images).copy()
        seen.append(len(features))
        if sum(seen) - seen[-1] <= 17 + seen[0] * 2 < sum(seen):  # the first two calls measure the width
            features[17 + seen[0] * 2 - sum(seen[:-1]), 3] = np.nan
        return features

    monkeypatch.setattr(feature_column, "_forward", broken)
    with pytest.raises(DataError, match=r"train-00001.tar: sample 0*17: its features are not finite"):
        add("features", url, cache=tmp_path, batch_size=5, **options)
    assert not (Path(url) / "columns").exists()


def test_a_frozen_imagenet_tower_tells_real_classes_apart(shared_data: Path, tmp_path: Path) -> None:
    from photo_folders import quick_recipe

    from core.config import Choice
    from shard_builder.build import build_shards
    from shard_builder.config import ImageConfig

    folder = tmp_path / "photos"
    for name in ("airplanes", "Leopards", "Motorbikes"):
        source = shared_data / "caltech15" / "val" / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
    classes = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if len(classes) < 2:
        pytest.skip(f"caltech15 at {shared_data} has not the classes this test knows")
    parts = {"source": Choice("image_folder", {"folder": str(folder)}), "text_encoder": Choice("minilm")}
    build_shards(quick_recipe(folder, tmp_path / "set", tmp_path / "cache", image=ImageConfig(size=96), **parts))
    url = str(tmp_path / "set")
    path = shared_data / "weights" / "mobilenet_v2_imagenet.pth"
    (head,) = add("features", url, cache=tmp_path, tower="mobilenet_v2", weights=str(path), normalize="half")
    shard_set = ShardSet.open(url)
    rows, labels = shard_set.column(head.name).all_rows(), shard_set.column("labels").all_rows()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = rows @ rows.T - 2 * np.eye(len(rows))
    assert (labels[similarity.argmax(axis=1)] == labels).mean() > 0.9
    assert load_head(url, "labels").classes == tuple(classes)
