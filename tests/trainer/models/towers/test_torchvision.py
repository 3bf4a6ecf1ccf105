"""Torchvision's towers: widths, sizes, names and weights."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from encoders import encoder_of
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

from core.errors import ConfigError, WeightsError
from trainer.models.config import ModelConfig
from trainer.models.towers.torchvision import NAMES, torchvision_tower
from trainer.pictures.augment import Normalize
from trainer.pictures.normalization import CLIP, IMAGENET


def images(batch: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


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
        ("vit_b_32", 768, 64),
        ("maxvit_t", 512, 224),
    ],
)
def test_a_tower_gives_the_features_before_the_classifiers_last_layer(name: str, width: int, size: int) -> None:
    torch.manual_seed(0)
    tower = torchvision_tower(name, "none", size)
    options = {"image_size": size} if name.startswith("vit") else {}
    classifier = torchvision.models.get_model(name, **options).eval()
    classifier.load_state_dict(tower.module.state_dict(), strict=False)
    last_layer = [name for name, part in classifier.named_modules() if isinstance(part, nn.Linear)][-1]
    seen = []
    classifier.get_submodule(last_layer).register_forward_hook(lambda _module, args, _output: seen.append(args[0]))
    with torch.inference_mode():
        features = tower.module.eval()(images(size=size)).flatten(1)
        classifier(images(size=size))
    assert features.shape == (2, width) and tower.width == width
    torch.testing.assert_close(features, seen[0])


def test_an_unknown_tower_is_told_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"no image classifier 'resnet5'\. Did you mean 'resnet50'\?"):
        encoder_of(ModelConfig(tower="resnet5"), embed_dim=8, image_size=32)
    assert "inception_v3" not in NAMES and "fasterrcnn_resnet50_fpn" not in NAMES


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file_fill_the_tower_whatever_its_classes(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(3)
    classifier, path = torchvision.models.resnet18(num_classes=7), tmp_path / f"weights{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(classifier.state_dict(), path)
    model = encoder_of(
        ModelConfig(tower="resnet18", weights=str(path), normalize="imagenet"), embed_dim=4, image_size=32
    )
    loaded = model.image_encoder.tower.state_dict()
    assert model.normalization == IMAGENET
    assert loaded and all(torch.equal(tensor, classifier.state_dict()[name]) for name, tensor in loaded.items())


def test_weights_of_another_tower_are_named_with_the_tower_they_look_like(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet34().state_dict(), path)
    with pytest.raises(WeightsError) as error:
        encoder_of(ModelConfig(tower="resnet18", weights=str(path), normalize="imagenet"), embed_dim=4, image_size=32)
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
        encoder_of(
            ModelConfig(tower="resnet18", weights=f"{tmp_path}/weights.pth", normalize="clip"),
            embed_dim=4,
            image_size=32,
        )


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
        encoder_of(ModelConfig(tower="resnet18", weights=str(path), normalize="imagenet"), embed_dim=4, image_size=32)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    config = ModelConfig(tower="resnet18", weights=str(tmp_path / "no.pth"), normalize="imagenet")
    with pytest.raises(WeightsError, match=r"there is no file .*no\.pth"):
        encoder_of(config, embed_dim=4, image_size=32)


def test_unknown_published_weights_are_told_the_nearest_name() -> None:
    with pytest.raises(WeightsError, match=r"no weights 'IMAGENET1K_V3' for resnet50.*Did you mean 'IMAGENET1K_V"):
        encoder_of(ModelConfig(tower="resnet50", weights="IMAGENET1K_V3"), embed_dim=4, image_size=32)


def test_published_weights_bring_their_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda self, **options: state)
    assert (
        encoder_of(ModelConfig(tower="resnet18", weights="IMAGENET1K_V1"), embed_dim=4, image_size=32).normalization
        == IMAGENET
    )
    assert encoder_of(ModelConfig(tower="resnet18"), embed_dim=4, image_size=32).normalization == CLIP


def test_weights_that_cannot_be_downloaded_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError) as error:
        encoder_of(ModelConfig(tower="resnet50", weights="IMAGENET1K_V2"), embed_dim=4, image_size=32)
    message = str(error.value)
    assert f"resnet50 IMAGENET1K_V2 is not in {tmp_path}/checkpoints and cannot be downloaded" in message
    assert "get_model('resnet50', weights='IMAGENET1K_V2')" in message
    assert message.endswith("where there is a network and copy resnet50-11ad3fa6.pth into that folder.")


def test_real_mobilenet_weights_classify_real_photos(shared_data: Path) -> None:
    path = shared_data / "weights" / "mobilenet_v2_imagenet.pth"
    model = encoder_of(
        ModelConfig(tower="mobilenet_v2", weights=str(path), normalize="half"), embed_dim=4, image_size=224
    ).eval()
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


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_b_16", 100, r"vit_b_16 cuts pictures into patches of 16 pixels, .* Set image_size to 96 or 112\."),
        ("maxvit_t", 96, r"maxvit_t does not take pictures of 96 pixels \(.*not divisible by partition size 7"),
        ("alexnet", 32, r"alexnet does not take pictures of 32 pixels \("),
    ],
)
def test_a_size_that_a_tower_cannot_have_is_one_sentence(name: str, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        torchvision_tower(name, "none", size)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def vit_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("vit") / "vit.pth"
    torch.save(torchvision.models.vit_b_32().state_dict(), path)
    return path


def test_a_transformer_is_built_for_the_size_asked_and_its_positions_interpolated(vit_weights: Path) -> None:
    tower = torchvision_tower("vit_b_32", str(vit_weights), 96)
    theirs = torchvision.models.vit_b_32(image_size=96).eval()
    state = torch.load(vit_weights, weights_only=True)
    theirs.load_state_dict(interpolate_embeddings(96, 32, state))
    theirs.heads.head = nn.Identity()
    with torch.inference_mode():
        assert torch.equal(tower.module.eval()(images(size=96)), theirs(images(size=96)))
    assert tower.width == 768 and tower.image_size == 96
    same = torchvision_tower("vit_b_32", str(vit_weights), 224).module.encoder.pos_embedding
    assert torch.equal(same, torch.load(vit_weights, weights_only=True)["encoder.pos_embedding"])


def test_positions_of_another_transformer_do_not_pass(vit_weights: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"does not fit vit_b_16: .*It looks like vit_b_32: set model\.tower=vit_b_32"
    ):
        torchvision_tower("vit_b_16", str(vit_weights), 96)
