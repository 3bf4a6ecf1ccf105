"""A training run: its parts, and what the loop of `trainer.train` asks of them at every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from core.distributed import broadcast_tensors, gather_objects, is_main, on_main, world_size
from core.errors import DataError, DivergedError
from core.shard_set import ShardSet
from trainer.augment import Augment
from trainer.checkpoint import (
    save_checkpoint,
)
from trainer.config import TrainConfig
from trainer.data.batch import IMAGE_FEATURES, IMAGE_ID, Batch
from trainer.data.ledger import CoverageLedger
from trainer.data.loader import TrainLoader
from trainer.data.prefetch import to_device
from trainer.environment import hardware
from trainer.losses.infonce import negatives_report
from trainer.models import ContrastiveModel
from trainer.rng import rng_state
from trainer.run_folder import RegistryLine, RunFolder, State, flush_events, record_event, register_run, set_state
from trainer.signals import StopRequest
from trainer.step import StepResult
from trainer.telemetry import Telemetry
from trainer.trackers.tracker import Metric, RunTrackers

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Validation:
    """What was measured on the validation set; `score` decides which checkpoint is the best."""

    metrics: Mapping[str, float]  # keys open with `val/`; the same on every rank
    score: float  # higher is better
    pictures: tuple[tuple[str, Path, str], ...] = ()  # key, file in the run folder, caption; on rank 0


class MakeValidation(Protocol):
    """Gives the function that measures a model at a step; collective, since every rank takes its share."""

    def __call__(
        self, shard_set: ShardSet, normalize: Callable[[Tensor], Tensor], loss_fn: Any, config: TrainConfig,
        accelerator: Accelerator,
    ) -> Callable[[nn.Module, int], Validation]: ...  # fmt: skip


@dataclass
class Run:
    """The parts of one process's run, and what the loop asks of them."""

    config: TrainConfig
    accelerator: Accelerator
    folder: RunFolder
    resources: ExitStack  # run folder's lock, loader's workers, signal handlers
    stop: StopRequest
    loader: TrainLoader
    ledger: CoverageLedger
    augment: Augment
    model: nn.Module  # wrapped for several processes
    bare_model: ContrastiveModel
    averaged: AveragedModel | None  # of the weights; evaluated and saved beside them
    optimizer: Any
    loss_fn: Any
    validate: Callable[[nn.Module, int], Validation] | None
    telemetry: Telemetry
    trackers: RunTrackers
    identity: Mapping[str, Any]
    order_identity: Mapping[str, Any]  # what the order of the samples is computed from
    environment: Mapping[str, Any]
    total_steps: int
    start_step: int = 0
    best_score: float | None = None
    earlier_seconds: float = 0.0  # of the processes before this one
    summary: dict[str, Any] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)
    _done: int = 0  # the last step that was counted

    @property
    def steps_per_epoch(self) -> int:
        return self.loader.steps_per_epoch

    @property
    def seconds(self) -> float:
        """Time spent on the run so far, by all processes that continued it one after the other."""
        return self.earlier_seconds + time.monotonic() - self._began

    def batches(self) -> Iterator[Batch]:
        """This rank's batches on the device, from the first step that is not done to the last, across epochs."""
        return self.telemetry.watch(to_device(self._host_batches(), self.accelerator.device))

    def inputs(self, batch: Batch) -> Tensor:
        """What the model takes: training pictures, or the stored outputs of its frozen tower."""
        if batch.images is None:
            return batch.column(IMAGE_FEATURES)
        return self.augment(batch.images, batch.epoch, batch.draws)

    def is_due(self, step: int, every: int) -> bool:
        """Whether something that happens every so many steps (0: every epoch) happens after `step`."""
        return step % (every or self.steps_per_epoch) == 0

    def count(self, step: int, batch: Batch, result: StepResult, grad_norm: Tensor) -> None:
        """Note what the step used; at the end of an epoch, hold the ledger against what was declared."""
        self.telemetry.add(
            loss=result.loss, grad_norm=grad_norm, num_samples=len(batch),
            read_s=batch.read_s, decode_s=batch.decode_s, collate_s=batch.collate_s,
        )  # fmt: skip
        self._done = step
        for damage in batch.damaged:
            record_event(self.folder.path, "damaged sample", step, **asdict(damage))
        self.ledger.add(batch)
        if step % self.steps_per_epoch == 0:
            epoch = step // self.steps_per_epoch - 1
            report = asdict(self.ledger.finish())
            if is_main():
                record_event(self.folder.path, "epoch covered", step, epoch=epoch, **report)
            if step < self.total_steps:
                self.ledger.start(epoch + 1, self.loader.order(epoch + 1))

    def log(self, step: int, result: StepResult, batch: Batch, rates: Mapping[str, float]) -> None:
        """Close a window of telemetry: to the trackers, and one line for people."""
        window = self.telemetry.close(
            step,
            learning_rates=rates,
            logit_scale=result.logit_scale,
            image_features=result.image_features,
            text_features=result.text_features,
        )
        self.summary |= {"train_loss": window.metrics["train/loss"]}
        self.trackers.log({**window.metrics, **_negatives(result, batch)}, step, step * self.config.global_batch_size)
        if is_main():
            for instability in window.instabilities:
                record_event(self.folder.path, instability.kind, instability.step, detail=instability.detail)
            console.print(_line(step, self.total_steps, self.steps_per_epoch, window.metrics, self._eta(step)))
        if window.stop_reason:
            raise DivergedError(window.stop_reason)

    def evaluate(self, step: int) -> bool:
        """Measure on the validation set; returns whether the model is the best so far."""
        if self.validate is None:
            return False
        with self.telemetry.paused():
            measured = self.averaged.module if self.averaged else self.bare_model
            # Running statistics are each rank's own; what is measured must be what is saved.
            broadcast_tensors(measured.buffers())
            measured.eval()
            validation = self.validate(measured, step)
            self.bare_model.train()
        self.summary |= validation.metrics
        self.trackers.log(validation.metrics, step, step * self.config.global_batch_size)
        for key, path, caption in validation.pictures if is_main() else ():
            self.trackers.log_image(key, path, caption, step)
        if is_main():
            console.print(_validation_line(step, validation))
        has_improved = self.best_score is None or validation.score > self.best_score
        if has_improved:
            self.best_score = validation.score
        return has_improved

    def save(self, step: int, is_best: bool) -> None:
        """Publish a checkpoint from which the run goes on to the bit; collective."""
        with self.telemetry.paused():
            ledger, random_states = self.ledger.state(), gather_objects(rng_state())
            on_main(lambda: self._publish(step, is_best, ledger, random_states))

    def leave(self, step: int, reason: str) -> None:
        """End this process's part on request; the same command goes on from here."""
        if is_main():
            record_event(self.folder.path, "stopped on request", step, signal=reason)
            command = "the same command again" if self.config.resume == "auto" else "again with resume=auto"
            told = reason or "a signal to another process"
            console.print(f"{told}: saved at step {step}; start {command} to go on.")
            self._close(step, "stopped")

    def finish(self) -> None:
        """Write down what the run came to.

        Raises:
            DataError: the batches ended before the last step.
        """
        done = max(self.start_step, self._done)
        if done < self.total_steps:
            raise DataError(
                f"{self.folder.path}: the batches ended after step {done} of {self.total_steps}, so the run is "
                "not trained to its end. Start the same command again."
            )
        if is_main() and self.start_step >= self.total_steps:
            console.print(f"{self.folder.path}: all {self.total_steps:,} steps are done already.")
            set_state(self.folder, "finished")
            self.trackers.finish({})
        elif is_main():
            minutes = self.seconds / 60
            console.print(f"trained {self.total_steps:,} steps in {minutes:.1f} min: {self.folder.path}")
            self._close(self.total_steps, "finished")

    def _host_batches(self) -> Iterator[Batch]:
        for epoch in range(self.start_step // self.steps_per_epoch, -(-self.total_steps // self.steps_per_epoch)):
            first = max(0, self.start_step - epoch * self.steps_per_epoch)
            for batch in self.loader.epoch(epoch, first):
                if epoch * self.steps_per_epoch + batch.step == self.total_steps:
                    return
                yield batch

    def _publish(self, step: int, is_best: bool, ledger: Any, random_states: list[Any]) -> None:
        scaler = self.accelerator.scaler
        state = {
            "step": step,
            "samples_seen": step * self.config.global_batch_size,
            "world_size": world_size(),
            "best_score": self.best_score,
            "seconds": self.seconds,
            "order": dict(self.order_identity),
            "ledger": ledger,
            "rng": random_states,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "run_id": self.folder.run_id,
            "summary": self.summary,
            "num_averaged": int(self.averaged.n_averaged) if self.averaged else 0,
        }
        self.trackers.flush()
        flush_events(self.folder.path)
        save_checkpoint(
            self.folder.checkpoints,
            model_state=self.bare_model.state_dict(),
            optimizer_state=self.optimizer.state_dict(),
            state=state,
            identity=self.identity,
            ema_state=self.averaged.module.state_dict() if self.averaged else None,
            keep_last=self.config.keep_last,
            is_best=is_best,
        )

    def _close(self, step: int, state: State) -> None:
        self.summary |= {"seconds": round(self.seconds, 1), "steps": step, "hardware": hardware(dict(self.environment))}
        record_event(self.folder.path, "summary", step, **self.summary)
        set_state(self.folder, state)
        self.register(step, state)
        self.trackers.finish(self.summary)

    def register(self, step: int, state: State) -> None:
        """Bring the run's line in the registry up to date."""
        recall = {key: self.summary.get(f"val/{key}/recall@10", "") for key in ("image_to_text", "text_to_image")}
        register_run(
            self.folder.path.parent,
            RegistryLine(
                self.folder.run_id,
                self.folder.name,
                state,
                started=self.folder.started,
                hours=round(self.seconds / 3600, 3),
                step=step,
                image_to_text_recall_at_10=recall["image_to_text"],
                text_to_image_recall_at_10=recall["text_to_image"],
                shards=str(self.order_identity["shards"])[:12],
                commit=str(self.environment["commit"])[:12],
                hardware=hardware(dict(self.environment)),
            ),
        )

    def _eta(self, step: int) -> float:
        done = step - self.start_step
        return (time.monotonic() - self._began) / max(done, 1) * (self.total_steps - step)


def _negatives(result: StepResult, batch: Batch) -> dict[str, float]:
    """How trustworthy the negatives of this rank's rows are among the whole global batch."""
    report = negatives_report(
        result.text_features, result.all_text_features, batch.column(IMAGE_ID), result.all_image_ids, result.offset
    )
    return {f"train/{name}": float(value) for name, value in report.items()}


def _line(step: int, total: int, per_epoch: int, metrics: Mapping[str, Metric], eta_s: float) -> str:
    m = dict(metrics.items())
    return (
        f"step {step:>6}/{total} epoch {(step - 1) // per_epoch + 1}  loss {m['train/loss']:.4f}  "
        f"grad {m['train/grad_norm']:.2f}  scale {m['train/logit_scale']:.1f}  {m['perf/images_per_s']:,.0f} images/s  "
        f"waiting {100 * float(m['perf/wait_share']):.1f} % ({m['perf/verdict']})  {eta_s / 60:.1f} min left"
    )


def _validation_line(step: int, validation: Validation) -> str:
    shown = {
        key.removeprefix("val/"): value
        for key, value in validation.metrics.items()
        if key.endswith(("loss", "recall@1", "recall@10"))
    }
    return f"[bold]validation at step {step}[/]  " + "  ".join(f"{key} {value:.4f}" for key, value in shown.items())
