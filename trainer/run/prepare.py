"""The model on its device, wrapped for several processes, with the optimizer of all that will ever train."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from core.distributed import world_size
from trainer.config import TrainConfig
from trainer.models.thaw import Freezing
from trainer.models.trained import TrainedModel
from trainer.optim.build import build_optimizer
from trainer.optim.ema import AveragedModel
from trainer.run.parts import expect_possible_sync
from trainer.run.state import Holders


def prepare(
    config: TrainConfig, model: TrainedModel, accelerator: Accelerator, freezing: Freezing, steps_done: int
) -> tuple[nn.Module, Holders]:
    """The model, wrapped, and all that a run goes on from; collective.

    Args:
        steps_done: what is frozen after so many is what has no gradient now.

    Raises:
        ConfigError: a learning rate for what is never trained, or batch norms that cannot be synchronised here.
    """
    device = accelerator.device
    bare = _placed(model, config, device)
    averaged = AveragedModel(bare, config.optim.ema_decay) if config.optim.ema_decay else None
    # The optimizer knows all that will ever train: what is frozen for now has no gradient, and is passed over.
    bare.encoder.image_encoder.freeze_until(freezing.last)
    of_all = build_optimizer(bare, config.optim)
    bare.encoder.image_encoder.freeze_until(freezing.at(steps_done))
    wrapped, optimizer = accelerator.prepare(bare, of_all)
    state = bare.objective.initial_state(bare.encoder.describe()["embed_dim"])
    on_device = {name: tensor.to(device) for name, tensor in state.items()}
    return wrapped, Holders(bare, on_device, averaged, optimizer)


def wrapped_anew(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A prepared model in a new wrapper, where it has one; collective.

    DistributedDataParallel reduces what had gradient when it was made.
    """
    if not isinstance(model, DistributedDataParallel):
        return model
    devices: dict[str, Any] = {"device_ids": model.device_ids, "output_device": model.output_device}
    options = accelerator.ddp_handler.to_kwargs() if accelerator.ddp_handler is not None else {}
    anew = DistributedDataParallel(model.module, **devices, **options)
    # Accelerate keeps what it has prepared, and so the old wrapper's buckets: as large as its gradients.
    accelerator._models[:] = [anew if known is model else known for known in accelerator._models]
    return anew


def _placed(model: TrainedModel, config: TrainConfig, device: torch.device) -> TrainedModel:
    model = model.to(device)
    if config.model.channels_last:
        model = model.to(memory_format=torch.channels_last)
    expect_possible_sync(config, device, world_size())
    if config.model.sync_batchnorm and world_size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model
