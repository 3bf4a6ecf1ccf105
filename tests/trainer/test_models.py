"""Towers, weights, freezing and the contrastive model around them."""

from __future__ import annotations

import math
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from core.errors import ConfigError, WeightsError
from trainer.models import ModelConfig, build_model, rebuild_model
from trainer.models.tower import TOWERS, build_tower, stages
from trainer.pictures.augment import CLIP, HALF, IMAGENET, Normalize

TINY = ModelConfig(tower="mobilenet_v3_small", hidden_dim=16)


def images(batch: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_features_are_unit_vectors_in_float32_even_under_autocast() -> None:
    model = build_model(TINY, embed_dim=24).eval()
    with torch.autocast("cpu", torch.bfloat16):
        features, logit_scale = model(images())
    assert features.shape == (2, 24) and features.dtype == logit_scale.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    assert logit_scale.item() == pytest.approx(1 / 0.07)
    assert torch.equal(model.image_encoder(images()), model(images())[0])


def test_logit_scale_stays_between_one_and_its_maximum() -> None:
    model = build_model(TINY, embed_dim=8)
    for stored, expected in ((10.0, 100.0), (-3.0, 1.0), (math.log(50), 50.0)):
        model.logit_scale.data.fill_(stored)
        model.clamp_logit_scale()
        assert model.logit_scale.exp().item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "width", "size"),
    [
        ("resnet18", 512, 32),
        ("resnet50", 2048, 32),
        ("mobilenet_v2", 1280, 32),
        ("convnext_tiny", 768, 32),
        ("efficientnet_b0", 1280, 32),
        ("regnet_y_400mf", 440, 32),
        ("densenet121", 1024, 32),
        ("vgg11", 4096, 32),
        ("swin_t", 768, 32),
        ("vit_b_32", 768, 224),
    ],
)
def test_a_tower_gives_the_features_before_the_classifiers_last_layer(name: str, width: int, size: int) -> None:
    torch.manual_seed(0)
    tower, tower_dim, last_layer = build_tower(name)
    classifier = torchvision.models.get_model(name).eval()
    classifier.load_state_dict(tower.state_dict(), strict=False)
    seen = []
    classifier.get_submodule(last_layer).register_forward_hook(lambda _module, args, _output: seen.append(args[0]))
    with torch.inference_mode():
        features = tower.eval()(images(size=size))
        classifier(images(size=size))
    assert features.shape == (2, width) and tower_dim == width
    torch.testing.assert_close(features, seen[0])


def test_an_unknown_tower_is_told_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"no image classifier 'resnet5'\. Did you mean 'resnet50'\?"):
        build_model(ModelConfig(tower="resnet5"), embed_dim=8)
    assert "inception_v3" not in TOWERS and "fasterrcnn_resnet50_fpn" not in TOWERS


def test_the_head_is_two_layers_as_wide_as_the_tower_unless_told() -> None:
    head = build_model(ModelConfig(tower="resnet18", dropout=0.3), embed_dim=8).image_encoder.head
    assert [type(layer) for layer in head] == [nn.Dropout, nn.Linear, nn.GELU, nn.Dropout, nn.Linear]
    assert head[1].weight.shape == (512, 512) and head[4].weight.shape == (8, 512) and head[0].p == head[3].p == 0.3


def test_stages_are_listed_in_the_order_they_run() -> None:
    assert stages(build_tower("resnet18")[0]) == ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    assert stages(build_tower("mobilenet_v2")[0]) == [f"features.{i}" for i in range(19)]


@pytest.mark.parametrize("freeze", ["layer2", "tower"])
def test_what_is_frozen_neither_learns_nor_moves_its_batch_statistics(freeze: str) -> None:
    model = build_model(ModelConfig(tower="resnet18", hidden_dim=8, freeze=freeze), embed_dim=4)
    model.eval().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for group in model.parameter_groups().values() for p in group], lr=0.1)
    features, logit_scale = model(images(4))
    (logit_scale * features[:, 0].sum()).backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    frozen = ("conv1", "bn1", "layer1", "layer2") + (("layer3", "layer4") if freeze == "tower" else ())
    opens = tuple(f"image_encoder.tower.{stage}." for stage in frozen)
    assert not any(name.startswith(opens) for name in moved)
    trained = {name for name in before if not name.startswith(opens)}
    assert {name for name in trained if name.endswith((".weight", "running_mean", "logit_scale"))} <= moved
    assert all(p.grad is None for name, p in model.named_parameters() if name.startswith(opens))


def test_a_frozen_tower_keeps_no_activations_for_the_backward_pass() -> None:
    model = build_model(ModelConfig(tower="resnet18", freeze="tower"), embed_dim=4)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        model(images(3))
    assert all(len(shape) <= 2 for shape in saved)
    assert model.parameter_groups()["tower"] == []


def test_frozen_parts_stay_in_eval_mode_when_batch_norms_are_synchronised() -> None:
    model = build_model(ModelConfig(tower="resnet18", freeze="layer1"), embed_dim=4)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    tower = model.image_encoder.tower
    assert isinstance(tower.bn1, nn.SyncBatchNorm)
    assert not tower.bn1.training and not tower.layer1[0].bn1.training and tower.layer2[0].bn1.training


def test_an_unknown_stage_is_told_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"no stage 'layer_2'\. Did you mean 'layer2'\?"):
        build_model(ModelConfig(tower="resnet18", freeze="layer_2"), embed_dim=4)


def test_a_description_rebuilds_the_model() -> None:
    torch.manual_seed(1)
    model = build_model(ModelConfig(tower="resnet18", hidden_dim=12, dropout=0.2, normalize="half"), embed_dim=6)
    again = rebuild_model(model.describe())
    again.load_state_dict(model.state_dict())
    assert again.normalization == HALF and not again.training
    assert torch.equal(again(images())[0], model.eval()(images())[0])


def test_channels_last_is_a_setting_of_the_weights() -> None:
    for channels_last in (True, False):
        model = build_model(ModelConfig(tower="resnet18", channels_last=channels_last), embed_dim=4)
        weight = model.image_encoder.tower.layer1[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file_fill_the_tower_whatever_its_classes(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(3)
    classifier, path = torchvision.models.resnet18(num_classes=7), tmp_path / f"weights{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(classifier.state_dict(), path)
    model = build_model(ModelConfig(tower="resnet18", weights=str(path), normalize="imagenet"), embed_dim=4)
    loaded = model.image_encoder.tower.state_dict()
    assert model.normalization == IMAGENET
    assert loaded and all(torch.equal(tensor, classifier.state_dict()[name]) for name, tensor in loaded.items())


def test_a_file_does_not_say_how_its_pictures_were_normalised() -> None:
    with pytest.raises(ConfigError, match=r"w\.pth, which does not say .*set model\.normalize to imagenet"):
        ModelConfig(weights="w.pth")


def test_weights_of_another_tower_are_named_with_the_tower_they_look_like(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet34().state_dict(), path)
    with pytest.raises(WeightsError) as error:
        build_model(ModelConfig(tower="resnet18", weights=str(path), normalize="imagenet"), embed_dim=4)
    message = str(error.value)
    assert "layer1.2.conv1.weight is not in resnet18" in message and "more." in message
    assert message.endswith("It looks like resnet34: set model.tower=resnet34.")


def test_one_wrong_shape_and_one_missing_tensor_are_named(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    del state["bn1.bias"]
    state["conv1.weight"] = state["conv1.weight"][:, :1]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(
        WeightsError, match=r"bn1\.bias is missing; conv1\.weight is \(64, 1, 7, 7\), not \(64, 3, 7, 7\)"
    ):
        build_model(ModelConfig(tower="resnet18", weights=f"{tmp_path}/weights.pth", normalize="clip"), embed_dim=4)


class Payload:
    """Something that only an unsafe load would bring back."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a file of tensors", "is damaged or holds more than tensors"),
        ({"model": {"a": torch.zeros(1)}}, r"is no state dict of tensors \(it holds keys model\)"),
        ([torch.zeros(1)], r"is no state dict of tensors \(it holds list\)"),
        ({"a": Payload()}, "is damaged or holds more than tensors"),
    ],
)
def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(WeightsError, match=message):
        build_model(ModelConfig(tower="resnet18", weights=str(path), normalize="imagenet"), embed_dim=4)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    config = ModelConfig(tower="resnet18", weights=str(tmp_path / "no.pth"), normalize="imagenet")
    with pytest.raises(WeightsError, match=r"there is no file .*no\.pth"):
        build_model(config, embed_dim=4)


def test_unknown_published_weights_are_told_the_nearest_name() -> None:
    with pytest.raises(WeightsError, match=r"no weights 'IMAGENET1K_V3' for resnet50.*Did you mean 'IMAGENET1K_V"):
        build_model(ModelConfig(tower="resnet50", weights="IMAGENET1K_V3"), embed_dim=4)


def test_published_weights_bring_their_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda self, **options: state)
    assert build_model(ModelConfig(tower="resnet18", weights="IMAGENET1K_V1"), embed_dim=4).normalization == IMAGENET
    assert build_model(ModelConfig(tower="resnet18"), embed_dim=4).normalization == CLIP


def test_weights_that_cannot_be_downloaded_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError) as error:
        build_model(ModelConfig(tower="resnet50", weights="IMAGENET1K_V2"), embed_dim=4)
    message = str(error.value)
    assert f"resnet50 IMAGENET1K_V2 is not in {tmp_path}/checkpoints and cannot be downloaded" in message
    assert "get_model('resnet50', weights='IMAGENET1K_V2')" in message
    assert message.endswith("where there is a network and copy resnet50-11ad3fa6.pth into that folder.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.0}, r"model\.dropout is 1\.0"),
        ({"hidden_dim": -1}, r"model\.hidden_dim is -1"),
        ({"init_temperature": 0.001}, r"init_temperature is 0\.001: give at least 1 / max_logit_scale = 0\.01"),
    ],
)
def test_impossible_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**options)


def test_real_mobilenet_weights_classify_real_photos(shared_data: Path) -> None:
    path = shared_data / "weights" / "mobilenet_v2_imagenet.pth"
    model = build_model(ModelConfig(tower="mobilenet_v2", weights=str(path), normalize="half"), embed_dim=4).eval()
    state = torch.load(path, weights_only=True)
    classes = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    normalize = Normalize(224, *model.normalization)
    right = {"Leopards": "leopard jaguar cheetah", "grand_piano": "grand piano", "starfish": "starfish"}
    for folder, names in right.items():
        paths = sorted((shared_data / "caltech15" / "val" / folder).glob("*.jpg"))[:8]
        batch = torch.stack([_centre_crop(path) for path in paths])
        with torch.inference_mode():
            features = model.image_encoder.tower(normalize(batch))
            logits = features @ state["classifier.1.weight"].T + state["classifier.1.bias"]
        named = [classes[i] for i in logits.argmax(dim=1)]
        assert sum(name in names for name in named) >= 6, (folder, named)


def _centre_crop(path: Path) -> torch.Tensor:
    picture = torchvision.transforms.functional.resize(Image.open(path).convert("RGB"), 224)
    picture = torchvision.transforms.functional.center_crop(picture, 224)
    return torchvision.transforms.functional.pil_to_tensor(picture)
