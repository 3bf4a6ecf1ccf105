"""What of a training recipe can be known to fail without torch, from the recipe and the disk, before anything starts.

`launch.early` adds what the command line and the evaluations know. What passes here is checked again where it is used:
these are the cheap ones, said within a second.
"""

from __future__ import annotations

from pathlib import Path

from core.errors import CheckpointError, ConfigError, WeightsError
from core.places import RUN, expect_folder_of_ours, expect_no_common_folder
from core.shard_set import ShardSet
from core.storage import is_local
from trainer.checkpoint.folder import latest_checkpoint, resolve_checkpoint
from trainer.config import TrainConfig
from trainer.models.config import SUFFIXES, BareTower, is_path
from trainer.models.thaw import freezing
from trainer.models.tower_names import expect_tower
from trainer.optim.schedule import lr_at
from trainer.run.folder import CHECKPOINTS, expect_to_go_on
from trainer.samplers.order import sampled
from trainer.samplers.slices import expect_whole_chunks, steps_per_epoch
from trainer.trackers.opening import check_trackers
from trainer.trackers.wandb_tracker import choose_mode


def check_places(config: TrainConfig, processes: int | None) -> None:
    """The run's folder is nobody else's, and may be begun or gone on with; so is the cache's."""
    expect_folder_of_ours(config.run_dir, "run_dir", RUN)
    if config.data.cache_dir is not None:
        expect_no_common_folder(config.data.cache_dir, "data.cache_dir")
    expect_to_go_on(config.run_dir, config.resume)


def check_beginning(config: TrainConfig, processes: int | None) -> None:
    """What the run goes on from or begins with is there."""
    if config.resume not in ("auto", "no"):
        resolve_checkpoint(Path(config.resume))
    start = config.start_from
    _expect_file(config.model.weights)
    if start is None or latest_checkpoint(config.run_dir / CHECKPOINTS):
        return  # of a run that goes on, what it began with need not be there any more
    if Path(start).suffix in SUFFIXES and not Path(start).exists():
        raise WeightsError(f"start_from: there is no file {start}; name a run, a checkpoint or a state dict.")
    if not Path(start).is_file():
        try:
            resolve_checkpoint(Path(start))
        except CheckpointError as error:
            raise CheckpointError(f"start_from: {error}") from error


def check_tower(config: TrainConfig, processes: int | None) -> None:
    """A tower of this name is known, and its library is here."""
    expect_tower(config.model.tower)


def expect_bare_tower(tower: BareTower) -> None:
    """The same of a tower by itself: it is known, and the file of its weights is there.

    Raises:
        ConfigError, WeightsError: it is not.
    """
    expect_tower(tower.tower)
    _expect_file(tower.weights)


def _expect_file(weights: str) -> None:
    if is_path(weights) and not Path(weights).is_file():
        raise WeightsError(f"model.weights: there is no file {weights}; give the path of the tower's state dict.")


def check_data(config: TrainConfig, processes: int | None) -> None:
    """The sets are there and whole, fit each other, and fill steps that the processes can share.

    Those of a bucket are left to the run: asking for them takes longer than torch.
    """
    if not all(map(is_local, (*config.data.train, *config.data.val))):
        return
    train = ShardSet.open(config.data.train, config.data.cache_dir, config.data.text)
    steps = steps_per_epoch(len(train), config.global_batch_size, processes or 1)
    expect_whole_chunks(config.global_batch_size, processes or 1, config.accumulate)
    total = config.epochs * steps if config.max_steps is None else min(config.epochs * steps, config.max_steps)
    lr_at(0, total, config.optim)
    freezing(config.model.freeze, config.model.thaw, total)
    compares_stored = config.build_objective().needs_text and config.build_text() is None
    if compares_stored:
        train.embed_dim  # noqa: B018  raises
    sampled(config.data.sampler, train, config.global_batch_size, steps, config.seed, epoch=0)
    further = [*config.data.columns.values(), *filter(None, [config.data.image_features])]
    for name in further:
        train.column(name)
    if config.data.val:
        val = ShardSet.open(config.data.val, config.data.cache_dir, config.data.text)
        if compares_stored:
            expect_same_captions(config, train, val)


def expect_same_captions(config: TrainConfig, train: ShardSet, val: ShardSet) -> None:
    """Raise ConfigError where two sets' captions were embedded by different encoders."""
    if val.text_encoder != train.text_encoder:
        raise ConfigError(
            f"{config.data.val[0]}: captions were embedded by {val.text_encoder}, those of training by "
            f"{train.text_encoder}. Build both sets with the same text_encoder."
        )


def check_tracking(config: TrainConfig, processes: int | None) -> None:
    """A tracker that was asked for by name can be had here, where rank 0 runs; what `auto` comes to, the run says."""
    check_trackers(config.tracking)
    if config.tracking.wandb in ("online", "offline"):
        choose_mode(config.tracking, lambda sentence: None)


CHECKS = (check_places, check_beginning, check_tower, check_tracking, check_data)
