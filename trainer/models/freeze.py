"""Freezing a tower up to a stage."""

from __future__ import annotations

from torch import nn

from core.errors import ConfigError, did_you_mean


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


def freeze(tower: nn.Module, until: str) -> list[str]:
    """Stop the gradients of the stage `until` and of all that comes before it ("tower": of everything).

    Returns:
        Names of the modules without a trainable parameter: they must stay in eval mode, or batch norms and dropout
        change what a frozen part computes.
    """
    if until == "nothing":
        return []
    names = [name for name, _ in tower.named_parameters()]
    if until == "tower":
        last = len(names)
    elif until in stages(tower):
        last = max(i for i, name in enumerate(names) if name.startswith(until + ".")) + 1
    else:
        known = ["nothing", "tower", *stages(tower)]
        raise ConfigError(f"model.freeze: this tower has no stage '{until}'.{did_you_mean(until, known)}")
    for name in names[:last]:
        tower.get_parameter(name).requires_grad_(False)
    return [name for name, module in tower.named_modules() if _is_frozen(module)]


def _holds_stages(module: nn.Module) -> bool:
    sequence, children = (nn.Sequential, nn.ModuleList), list(module.children())
    return isinstance(module, sequence) and len(children) > 1 and all(isinstance(child, sequence) for child in children)


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)
