"""timm's image models as towers: `model.tower: timm:mobilenetv3_small_050`. The only file that imports timm."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from core.errors import ConfigError, WeightsError, did_you_mean
from trainer.models.config import is_path
from trainer.models.tower_names import timm_is_missing
from trainer.models.towers.tower import Tower, built_for, expect_whole_patches, reason_of
from trainer.models.towers.weights import TO_BE_A_PATH, fill, read_state_dict, shapes
from trainer.pictures.normalization import Normalization

PRETRAINED = "pretrained"  # the weights that timm itself would take
_CELL = 32  # pixels behind a cell of the last feature map: in every network of fixed size that has patches of its own


def timm_tower(name: str, weights: str, image_size: int) -> Tower:
    """The model without classifier (`num_classes=0`)."""
    called = f"timm:{name}"
    timm = _library(called)
    _expect_known(timm, name)
    published = None if weights == "none" or is_path(weights) else _published(timm, name, weights)
    with built_for(called, image_size):
        module = timm.create_model(name, num_classes=0, **_size_options(timm, name, image_size))
        _expect_whole_patches(timm, module, name, image_size)
    if weights != "none":
        if published is None:
            state = _fitted(timm, read_state_dict(Path(weights)), module, name, image_size)
        else:
            state = _download(timm, published, image_size)
        fill(module, _without_classifier(timm, state, module, name), called, weights)
    normalization = None if published is None else Normalization(tuple(published.mean), tuple(published.std))
    return Tower(called, module, image_size, normalization)


def save_timm_tower(tower: Tower, normalization: Normalization, folder: Path) -> None:
    """A tower as timm itself saves models: `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it."""
    timm = _library(tower.name)
    size = tower.image_size
    timm.models.save_for_hf(
        tower.module,
        folder,
        model_args=_size_options(timm, tower.name.partition(":")[2], size),
        data_config={"input_size": (3, size, size), "mean": normalization.mean, "std": normalization.std},
        safe_serialization=True,
    )


def _library(called: str) -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise timm_is_missing(called) from error
    return timm


def _expect_known(timm: Any, name: str) -> None:
    known = timm.list_models()
    if name in known:
        return
    architecture, _, tag = name.partition(".")
    if tag and architecture in known:
        raise ConfigError(
            f"model.tower: timm:{name} names weights too. Set model.tower=timm:{architecture} and model.weights={tag}."
        )
    nearest = get_close_matches(name, known, n=1, cutoff=0)[0]  # always one: there are too many names to list
    raise ConfigError(f"model.tower: timm has no model '{name}'. The nearest of its {len(known)} is '{nearest}'.")


def _size_options(timm: Any, name: str, image_size: int) -> dict[str, Any]:
    """Networks of a fixed size are built for this one; all others take any, or say that they do not."""
    return {"img_size": image_size} if timm.get_pretrained_cfg(name).fixed_input_size else {}


def _expect_whole_patches(timm: Any, module: nn.Module, name: str, image_size: int) -> None:
    """timm would leave a rim of the picture unseen, and not say so."""
    first = next((part for part in module.modules() if isinstance(part, timm.layers.PatchEmbed)), None)
    if first is not None:
        patch_size = 1 if first.dynamic_img_pad else first.patch_size[0]
    else:
        published = timm.get_pretrained_cfg(name)
        takes_any = not published.fixed_input_size or image_size == published.input_size[-1]
        patch_size = 1 if takes_any else _CELL
    expect_whole_patches(f"timm:{name}", image_size, patch_size)


def _published(timm: Any, name: str, weights: str) -> Any:
    """What timm says of its weights of this name: where they are, mean, standard deviation, classes."""
    known = timm.models.get_arch_pretrained_cfgs(name)
    tags = {key.partition(".")[2]: cfg for key, cfg in known.items() if cfg.has_weights}
    if not tags:
        raise WeightsError(
            f"model.weights: timm publishes no weights for {name}: set model.weights to none or the path of a file."
        )
    if weights == PRETRAINED:
        return timm.get_pretrained_cfg(name)
    if weights not in tags:
        raise WeightsError(
            f"model.weights: timm has no weights '{weights}' for {name}, and it is not the path of a file "
            f"{TO_BE_A_PATH}.{did_you_mean(weights, ['none', PRETRAINED, *tags])}"
        )
    return tags[weights]


def _download(timm: Any, published: Any, image_size: int) -> Mapping[str, Tensor]:
    """The whole model's state, from the hub's cache or the hub, fitted to the size of the pictures.

    With its classifier: only then does timm insist that every tensor is there.
    """
    name = published.architecture
    full_name = f"{name}.{published.tag}" if published.tag else name
    try:
        size = _size_options(timm, name, image_size)
        whole = timm.create_model(name, pretrained=True, pretrained_cfg=published.to_dict(), **size)
    except (OSError, SafetensorError, pickle.UnpicklingError) as error:
        download = f"import timm; timm.create_model('{full_name}', pretrained=True)"
        raise WeightsError(
            f"model.weights: timm's {full_name} is not in {_cached_at(published)} and cannot be downloaded "
            f'({reason_of(error)}); run `python -c "{download}"` where there is a network and copy it to that place.'
        ) from error
    except (AssertionError, LookupError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"model.weights: timm's {full_name} cannot be loaded for pictures of {image_size} pixels "
            f"({reason_of(error)}). Set another image_size."
        ) from error
    return whole.state_dict()


def _cached_at(published: Any) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE  # the hub's client comes with timm

    if published.hf_hub_id:
        return Path(HF_HUB_CACHE) / f"models--{published.hf_hub_id.replace('/', '--')}"
    return Path(torch.hub.get_dir()) / "checkpoints" / str(published.url).rsplit("/", 1)[-1]


def _without_classifier(timm: Any, state: Mapping[str, Tensor], module: nn.Module, name: str) -> Mapping[str, Tensor]:
    """The part of a whole model's `state` that a tower has."""
    own = module.state_dict()
    with torch.device("meta"):
        classifier = timm.create_model(name).state_dict().keys() - own.keys()
    return {key: tensor for key, tensor in state.items() if key not in classifier}


def _fitted(
    timm: Any, state: Mapping[str, Tensor], module: nn.Module, name: str, image_size: int
) -> Mapping[str, Tensor]:
    """A file's state for pictures of this size: timm's own loader interpolates positions and windows."""
    size = _size_options(timm, name, image_size)
    given, own = shapes(state), shapes(module.state_dict())
    if not size or own.keys() - given.keys() or all(given[key] == shape for key, shape in own.items()):
        return state
    classifier = timm.get_pretrained_cfg(name).classifier
    last_layer = f"{classifier if isinstance(classifier, str) else (classifier or ('',))[0]}.weight"
    num_classes = len(state[last_layer]) if last_layer in state else 0
    source = {"state_dict": dict(state), "num_classes": num_classes, "label_offset": 0}
    try:
        whole = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, num_classes=num_classes, **size)
    except (AssertionError, LookupError, RuntimeError, ValueError):
        return state  # of another tower: `fill` says what does not fit
    return whole.state_dict()
