"""timm's towers: measured widths, timm's own features, sizes, names and weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import encoder_of
from safetensors.torch import save_file

from core.errors import ConfigError, WeightsError
from trainer.models.build import rebuild_encoder
from trainer.models.config import ModelConfig
from trainer.models.towers.timm import timm_tower
from trainer.pictures.normalization import CLIP, HALF, IMAGENET

timm: Any = pytest.importorskip("timm", reason="timm is not installed: pip install 'shardclip[timm]'")
huggingface_hub: Any = pytest.importorskip("huggingface_hub")


def images(size: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def whole_model(name: str, num_classes: int = 7, **options: Any) -> Any:
    """A classifier whose every tensor is drawn, batch statistics included."""
    torch.manual_seed(4)
    model = timm.create_model(name, num_classes=num_classes, **options).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if tensor.ndim < 2 else tensor.normal_(0, 0.1)
    return model


def saved(model: Any, path: Path) -> str:
    save_file(model.state_dict(), path) if path.suffix == ".safetensors" else torch.save(model.state_dict(), path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "claimed", "width", "size"),
    [
        ("mobilenetv3_small_050", 288, 1024, 64),
        ("lcnet_050", 256, 1280, 64),
        ("ghostnet_050", 480, 1280, 64),
        ("fasternet_t0", 320, 1280, 64),
        ("inception_next_atto", 320, 960, 64),
        ("hgnetv2_b0", 1024, 2048, 64),
        ("resnet18", 512, 512, 64),
        ("convnext_atto", 320, 320, 64),
        ("edgenext_xx_small", 168, 168, 64),
        ("mobilevit_xxs", 320, 320, 64),
        ("repvit_m0_9", 384, 384, 64),
        ("levit_128s", 384, 384, 96),
        ("vit_tiny_patch16_224", 192, 192, 96),
        ("deit_tiny_distilled_patch16_224", 192, 192, 96),
        ("xcit_nano_12_p16_224", 128, 128, 96),
        ("test_maxvit", 128, 128, 64),
    ],
)
def test_features_are_timms_own_before_the_classifier_and_their_width_is_measured(
    tmp_path: Path, name: str, claimed: int, width: int, size: int
) -> None:
    sized = {"img_size": size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    whole = whole_model(name, **sized)
    tower = timm_tower(name, saved(whole, tmp_path / "whole.pth"), size)
    with torch.inference_mode():
        expected = whole.forward_head(whole.forward_features(images(size)), pre_logits=True).flatten(1)
        features = tower.module.eval()(images(size)).flatten(1)
    assert tower.module.num_features == claimed and tower.width == width == features.shape[1]
    torch.testing.assert_close(features, expected, rtol=1e-6, atol=1e-6)
    assert features.std() > 0 and not torch.equal(features[0], features[1])


def test_building_and_measuring_draw_what_timm_draws() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("test_efficientnet", num_classes=0)
    random_state = torch.get_rng_state()
    torch.manual_seed(0)
    ours = timm_tower("test_efficientnet", "none", 32).module
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("test_vit", 100, r"timm:test_vit cuts pictures into patches of 16 pixels, .* Set image_size to 96 or 112\."),
        ("tnt_s_legacy_patch16_224", 100, r"patches of 32 pixels, .* Set image_size to 96 or 128\."),
        ("test_maxvit", 50, r"timm:test_maxvit cuts pictures into patches of 32 pixels, .* Set image_size to 32 or 64"),
        ("dla34", 100, r"timm:dla34 does not take pictures of 100 pixels \("),
    ],
)
def test_a_size_that_a_tower_cannot_have_is_one_sentence(name: str, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        timm_tower(name, "none", size)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["test_vit", "test_vit_relpos", "levit_128s"])
def test_a_transformer_trains_at_the_size_asked_and_is_rebuilt_at_it(name: str) -> None:
    model = encoder_of(ModelConfig(tower=f"timm:{name}", hidden_dim=8), embed_dim=4, image_size=96)
    features, scale = model(images(96, batch=4))
    (scale * features[:, 0].sum()).backward()
    again = rebuild_encoder(model.describe())
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images(96))[0], model.eval()(images(96))[0])


def test_a_file_of_another_size_is_fitted_as_timm_fits_it(tmp_path: Path) -> None:
    path = saved(whole_model("test_vit"), tmp_path / "whole.pth")
    tower = timm_tower("test_vit", path, 96)
    source = {"file": path, "num_classes": 7}
    theirs = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay=source, img_size=96).eval()
    with torch.inference_mode():
        expected = theirs.forward_head(theirs.forward_features(images(96)), pre_logits=True)
        torch.testing.assert_close(tower.module.eval()(images(96)), expected, rtol=0, atol=1e-6)


def test_a_tower_saved_without_its_classifier_is_loaded_too(tmp_path: Path) -> None:
    whole = whole_model("test_resnet", num_classes=0)
    loaded = timm_tower("test_resnet", saved(whole, tmp_path / "tower.safetensors"), 32).module.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize(
    ("name", "other", "size", "message"),
    [
        ("resnet18", "resnet34", 32, r"whole\.pth does not fit timm:resnet18: layer1\.2\.\S+ is not in timm:resnet18"),
        ("test_vit", "test_vit2", 96, r"whole\.pth does not fit timm:test_vit: "),
        (
            "vit_tiny_patch16_224",
            "vit_small_patch16_224",
            96,
            r"does not fit timm:\w+: cls_token is \(1, 1, 384\)",
        ),
    ],
)
def test_weights_of_another_tower_are_refused(tmp_path: Path, name: str, other: str, size: int, message: str) -> None:
    path = saved(whole_model(other), tmp_path / "whole.pth")
    with pytest.raises(WeightsError, match=message) as error:
        timm_tower(name, path, size)
    assert "\n" not in str(error.value)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    whole = whole_model("test_resnet")
    state = {name: tensor for name, tensor in whole.state_dict().items() if name != "bn1.bias"}
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(WeightsError, match=r"cut\.pth does not fit timm:test_resnet: bn1\.bias is missing"):
        timm_tower("test_resnet", str(tmp_path / "cut.pth"), 32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mobilenetv3_smal_050",
            r"no model 'mobilenetv3_smal_050'\. The nearest of its \d+ is 'mobilenetv3_small_050'\.",
        ),
        ("???", r"timm has no model '\?\?\?'\. The nearest of its \d+ is '\w+'\."),
        ("resnet50.a1_in1k", r"names weights too\. Set model\.tower=timm:resnet50 and model\.weights=a1_in1k\."),
    ],
)
def test_an_unknown_model_is_told_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encoder_of(ModelConfig(tower=f"timm:{name}"), embed_dim=4, image_size=32)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet18", "a1_ink", r"timm has no weights 'a1_ink' for resnet18, and it is not .*Did you mean 'a1_in1k'\?"),
        ("resnet18", "IMAGENET1K_V1", r"timm has no weights 'IMAGENET1K_V1' for resnet18"),
        ("vit_giant_patch14_224", "pretrained", r"timm publishes no weights for vit_giant_patch14_224: set "),
    ],
)
def test_unknown_weights_are_told_the_nearest(name: str, weights: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        timm_tower(name, weights, 224)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_into(hub_cache: Path, name: str, model: Any) -> None:
    """As a download leaves it."""
    place = hub_cache / f"models--timm--{name}"
    snapshot = place / "snapshots" / "00"
    for folder in (snapshot, place / "refs"):
        folder.mkdir(parents=True)
    (place / "refs" / "main").write_text("00")
    saved(model, snapshot / "model.safetensors")


@pytest.mark.parametrize("weights", ["pretrained", "r160_in1k"])
@pytest.mark.parametrize(("name", "size"), [("test_resnet", 64), ("test_vit", 96)])
def test_the_hubs_weights_are_loaded_and_bring_their_normalisation(
    hub_cache: Path, name: str, size: int, weights: str
) -> None:
    whole = whole_model(name, num_classes=1000)
    put_into(hub_cache, f"{name}.r160_in1k", whole)
    model = encoder_of(ModelConfig(tower=f"timm:{name}", weights=weights), embed_dim=4, image_size=size)
    published = timm.get_pretrained_cfg(name)
    assert model.normalization == (tuple(published.mean), tuple(published.std)) and model.normalization != CLIP
    loaded, own = model.image_encoder.tower.state_dict(), whole.state_dict()
    resized = {key for key, tensor in loaded.items() if tensor.shape != own[key].shape}
    assert resized == ({"pos_embed"} if name == "test_vit" else set())
    assert all(torch.equal(tensor, own[key]) for key, tensor in loaded.items() if key not in resized)


def test_normalize_auto_asks_the_weights() -> None:
    for normalize, expected in (("auto", CLIP), ("imagenet", IMAGENET), ("half", HALF)):
        config = ModelConfig(tower="timm:test_resnet", normalize=normalize, hidden_dim=4)
        assert encoder_of(config, embed_dim=4, image_size=32).normalization == expected


def test_weights_that_cannot_be_downloaded_say_how_to_get_them(hub_cache: Path) -> None:
    with pytest.raises(WeightsError) as error:
        timm_tower("mobilenetv3_small_050", "pretrained", 64)
    message, name = str(error.value), "mobilenetv3_small_050.lamb_in1k"
    assert f"timm's {name} is not in {hub_cache}/models--timm--{name} and cannot be downloaded (" in message
    assert f"`python -c \"import timm; timm.create_model('{name}', pretrained=True)\"` where there is a" in message
    assert "\n" not in message


def test_the_hubs_weights_must_be_whole(hub_cache: Path) -> None:
    put_into(hub_cache, "test_resnet.r160_in1k", whole_model("test_efficientnet", num_classes=1000))
    with pytest.raises(WeightsError, match=r"timm's test_resnet\.r160_in1k cannot be loaded for pictures of 64 pixels"):
        timm_tower("test_resnet", "pretrained", 64)


@pytest.mark.parametrize(
    ("tower", "freeze"),
    [("test_efficientnet", "blocks.1"), ("vit_tiny_patch16_224", "blocks.1"), ("test_resnet", "tower")],
)
def test_frozen_stages_neither_learn_nor_move(tower: str, freeze: str) -> None:
    config = ModelConfig(tower=f"timm:{tower}", hidden_dim=8, freeze=freeze)
    model = encoder_of(config, embed_dim=4, image_size=64)
    model.eval().train()
    network = model.image_encoder.tower
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for group in model.parameter_groups().values() for p in group], lr=0.1)
    features, scale = model(images(64, batch=4))
    (scale * features[:, 0].sum()).backward()
    optimizer.step()
    names = [name for name, _ in network.named_parameters()]
    last = len(names) if freeze == "tower" else max(i for i, n in enumerate(names) if n.startswith("blocks.1.")) + 1
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not moved & set(names[:last]) and (freeze == "tower") == (not moved)
    frozen = network if freeze == "tower" else network.get_submodule(freeze)
    assert not any(part.training for part in frozen.modules())
    assert not any(name.startswith(freeze + ".") for name in moved), "batch statistics of a frozen stage moved"


def test_without_timm_one_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm:resnet18 needs timm, .*: run `pip install 'shardclip\[timm\]'`\."):
        encoder_of(ModelConfig(tower="timm:resnet18"), embed_dim=4, image_size=32)
    assert encoder_of(ModelConfig(tower="resnet18"), embed_dim=4, image_size=32) is not None
