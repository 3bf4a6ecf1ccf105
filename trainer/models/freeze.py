"""Freezing a tower up to a stage."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from core.errors import ConfigError, did_you_mean

NOTHING, TOWER = "nothing", "tower"


def stages(tower: nn.Module) -> list[str]:
    """The parts of a tower that freezing can end at, in order: `conv1 bn1 layer1 ..`, `features.0 features.1 ..`."""
    total = sum(p.numel() for p in tower.parameters())

    def split(module: nn.Module, prefix: str) -> list[str]:
        names = []
        for name, child in module.named_children():
            size = sum(p.numel() for p in child.parameters())
            # Look inside the one part that holds nearly everything, and inside a sequence of stages.
            if (size > 0.9 * total and list(child.children())) or _holds_stages(child):
                names += split(child, f"{prefix}{name}.")
            elif size:
                names.append(prefix + name)
        return names

    return split(tower, "")


def num_frozen(tower: nn.Module, until: str, key: str = "model.freeze") -> int:
    """How many of the tower's parameters, counted from the first, belong to the stage `until` and all before it.

    Args:
        until: a stage, or "tower": all of them, or "nothing".
        key: of the recipe, for the sentence of an error.

    Raises:
        ConfigError: the tower has no such stage.
    """
    names = [name for name, _ in tower.named_parameters()]
    if until == NOTHING:
        return 0
    if until == TOWER:
        return len(names)
    known = stages(tower)
    if until not in known:
        raise ConfigError(f"{key}: this tower has no stage '{until}'.{did_you_mean(until, [NOTHING, TOWER, *known])}")
    return max(i for i, name in enumerate(names) if name.startswith(until + ".")) + 1


def expect_thawing(tower: nn.Module, freeze: str, thaw: Sequence[str]) -> None:
    """Raise where a stage of `thaw`, in their order, does not let more of the tower train than the one before it.

    Raises:
        ConfigError: it does not, or the tower has no such stage.
    """
    before, frozen = freeze, num_frozen(tower, freeze)
    for until in thaw:
        left = num_frozen(tower, until, "model.thaw")
        if left >= frozen:
            raise ConfigError(
                f"model.thaw: '{until}' comes after '{before}', but leaves no less of the tower frozen. Its stages, "
                f"from the pictures on: {', '.join(stages(tower))}."
            )
        before, frozen = until, left


def frozen_modules(tower: nn.Module) -> list[str]:
    """Names of the modules without a trainable parameter.

    They must stay in eval mode, or batch norms and dropout change what a frozen part computes.
    """
    return [name for name, module in tower.named_modules() if _is_frozen(module)]


def _holds_stages(module: nn.Module) -> bool:
    sequence, children = (nn.Sequential, nn.ModuleList), list(module.children())
    return isinstance(module, sequence) and len(children) > 1 and all(isinstance(child, sequence) for child in children)


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)
