"""Which towers there are, told from the installed libraries' sources: importing them takes seconds, a typo does not."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from core.errors import ConfigError, did_you_mean

# GoogLeNet and Inception end in several outputs while training; SqueezeNet has no linear layer to take off.
NO_TOWERS = ("googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1")
FAMILIES = ("torchvision", "timm")
_REGISTERED = re.compile(r'^@register_model\((?:name="(\w+)")?\)$.*?^def (\w+)', re.MULTILINE | re.DOTALL)
_WORD = re.compile(r"\w+")


def expect_tower(tower: str) -> None:
    """Raise where no library has a tower of this name. What it says no word against may still be refused by them.

    Raises:
        ConfigError: no such family, torchvision has no such classifier, or timm is not here or nowhere has the word.
    """
    family, name = tower.split(":", 1) if ":" in tower else ("torchvision", tower)
    if family not in FAMILIES:
        raise ConfigError(f"the family of model.tower: unknown name '{family}'.{did_you_mean(family, FAMILIES)}")
    if family == "torchvision" and name not in torchvision_names():
        raise unknown_torchvision(name, torchvision_names())
    if family == "timm":
        if find_spec("timm") is None:
            raise timm_is_missing(tower)
        if name.partition(".")[0] not in _words_of("timm"):
            raise ConfigError(f"model.tower: timm has no model '{name}'. `timm.list_models()` lists them.")


def unknown_torchvision(name: str, known: tuple[str, ...]) -> ConfigError:
    """The sentence for a name that torchvision does not know."""
    kin = [other for other in known if other.split("_")[0] == name.split("_")[0]]  # vit_small: not a convnext_small
    return ConfigError(f"model.tower: torchvision has no image classifier '{name}'.{did_you_mean(name, kin or known)}")


def timm_is_missing(tower: str) -> ConfigError:
    """The sentence for a tower of timm where it is not installed."""
    return ConfigError(f"model.tower: {tower} needs timm, which is not installed: run `pip install 'shardclip[timm]'`.")


@cache
def torchvision_names() -> tuple[str, ...]:
    """Torchvision's image classifiers that can be towers, sorted."""
    found = [name for text in _sources("torchvision") for name in _REGISTERED.findall(text)]
    return tuple(sorted({named or function for named, function in found} - set(NO_TOWERS)))


@cache
def _words_of(library: str) -> frozenset[str]:
    return frozenset(word for text in _sources(library) for word in _WORD.findall(text))


def _sources(library: str) -> list[str]:
    """The files of a library's models, without those of other tasks, which lie in folders of their own."""
    spec = find_spec(library)
    assert spec is not None and spec.origin is not None, f"{library} is installed"
    return [path.read_text() for path in sorted((Path(spec.origin).parent / "models").glob("*.py"))]
