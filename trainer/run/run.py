"""A training run: its parts, and what the loop of `trainer.train` asks of them at every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn

from core.class_captions import OWN_CAPTIONS
from core.distributed import broadcast_tensors, gather_objects, is_main, on_main, world_size
from core.errors import DataError, DivergedError
from trainer.checkpoint.background import Saver
from trainer.config import TrainConfig
from trainer.data.batch import Batch
from trainer.data.inputs import drawn_for, given_values, model_inputs
from trainer.data.ledger import CoverageLedger
from trainer.data.loader import TrainLoader
from trainer.data.prefetch import to_device
from trainer.guard.signals import StopRequest
from trainer.models.thaw import Freezing
from trainer.objectives.objective import Objective
from trainer.pictures.augment import Augment
from trainer.run.environment import hardware
from trainer.run.folder import PROFILE, RunFolder, State, flush_events, record_event, set_state
from trainer.run.prepare import wrapped_anew
from trainer.run.registry import RegistryLine, register_run, why_unregistered
from trainer.run.rng import rng_state
from trainer.run.state import Holders, RunState, contents, save, scaler_state
from trainer.run.validation import Validate, Validation
from trainer.step.buffers import KeptBuffers
from trainer.step.forward_backward import Chunk, StepResult
from trainer.step.nonfinite import step_if_finite
from trainer.telemetry import names
from trainer.telemetry.false_negatives import false_negative_warning
from trainer.telemetry.profiler import ProfileConfig, profiled
from trainer.telemetry.window import Telemetry
from trainer.trackers.tracker import Metric, RunTrackers

console = Console(highlight=False, soft_wrap=True)


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
    objective: Objective
    model: nn.Module  # wrapped for several processes; anew at each thaw
    prove: Callable[[nn.Module], dict[str, float]]  # that its gradients are those of one process
    count_flops: Callable[[], float | None]  # of one image, of what trains now
    freezing: Freezing
    holders: Holders  # the bare model, its average, the optimizer, and what the objective keeps
    validate: Validate | None
    telemetry: Telemetry
    trackers: RunTrackers
    saver: Saver
    identity: Mapping[str, Any]
    order_identity: Mapping[str, Any]  # what the order of the samples is computed from
    environment: Mapping[str, Any]
    total_steps: int
    start_step: int = 0
    answers_by: str = OWN_CAPTIONS  # in the validation set
    best_score: float | None = None
    earlier_seconds: float = 0.0  # of the processes before this one
    summary: dict[str, Any] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)
    _done: int = 0  # the last step that was counted
    _has_warned: bool = False  # of false negatives

    @property
    def steps_per_epoch(self) -> int:
        return self.loader.steps_per_epoch

    @property
    def seconds(self) -> float:
        """Time spent on the run so far, by all processes that continued it one after the other."""
        return self.earlier_seconds + time.monotonic() - self._began

    def batches(self) -> Iterator[Batch]:
        """This rank's batches on the device, from the first step that is not done to the last, across epochs."""
        batches = self.telemetry.watch(to_device(self._host_batches(), self.accelerator.device))
        profile = self.config.profile if is_main() else ProfileConfig()
        return profiled(batches, self.start_step + 1, profile, self.folder.path / PROFILE)

    def thaw(self, step: int) -> None:
        """Before `step`, let train what the recipe thaws there, and prove the gradients anew; collective then.

        Until then it has no gradient, so no optimizer, decay or reduction touches it.
        """
        image_encoder, until = self.holders.model.encoder.image_encoder, self.freezing.at(step - 1)
        if until == image_encoder.frozen_until:
            return
        with self.telemetry.paused():
            was = image_encoder.frozen_until
            image_encoder.freeze_until(until)
            self.model = wrapped_anew(self.model, self.accelerator)
            if self.config.model.compile:
                torch.compiler.reset()  # its graphs have no backward for what trains from now on
            self.telemetry.flops_per_image = self.count_flops()
            ratios = self.prove(self.model)
        if is_main():
            count = sum(p.numel() for p in image_encoder.tower.parameters() if p.requires_grad)
            said = {"detail": f"from step {step}", "was_frozen": was, "frozen": until, "trained": count}
            record_event(self.folder.path, "thawed", step - 1, **said)
            console.print(f"step {step:>6}: thawed from {was} to {until}; {count:,} parameters of the tower train now")
        checks = {names.grad_ratio(group): ratio for group, ratio in ratios.items()}
        self.trackers.log(checks, step - 1, (step - 1) * self.config.global_batch_size)

    def chunks(self, batch: Batch) -> list[Chunk]:
        """What the model takes, in as many pieces as the recipe says; each is made when it is asked for."""
        size, views = len(batch) // self.config.accumulate, self.objective.views
        parts = [slice(start, start + size) for start in range(0, len(batch), size)]
        return [partial(model_inputs, batch, rows, views, self.augment.render) for rows in parts]

    def given(self, batch: Batch) -> dict[str, Tensor]:
        """What the objective is given beside what is trained."""
        return given_values(batch, self.objective)

    def keep(self) -> KeptBuffers:
        """What a step may spoil before it is known that its gradients are not finite."""
        return KeptBuffers(self.holders.model.buffers())

    def update(self, result: StepResult, grad_norm: Tensor, before: KeptBuffers) -> None:
        """Step, clamp, average, and let the objective keep what it keeps; without finite gradients nothing moves."""
        holders = self.holders
        is_finite = step_if_finite(holders.optimizer, grad_norm, before)
        holders.optimizer.zero_grad(set_to_none=True)
        holders.model.clamp()
        if holders.averaged is not None:
            holders.averaged.update(holders.model, is_finite)
        for name, new in self.objective.next_state(result.rows, holders.objective_state).items():
            holders.objective_state[name] = torch.where(is_finite, new, holders.objective_state[name])

    def is_due(self, step: int, every: int) -> bool:
        """Whether something that happens every so many steps (0: every epoch) happens after `step`."""
        return step % (every or self.steps_per_epoch) == 0

    def count(self, step: int, batch: Batch, result: StepResult, grad_norm: Tensor) -> None:
        """Note what the step used; at the end of an epoch, settle its account."""
        self.telemetry.add(
            loss=result.loss, grad_norm=grad_norm, num_samples=len(batch),
            read_s=batch.read_s, decode_s=batch.decode_s, collate_s=batch.collate_s, draw_s=batch.draw_s,
        )  # fmt: skip
        self._done = step
        for damage in batch.damaged:
            record_event(self.folder.path, "damaged sample", step, **asdict(damage))
        self.ledger.add(batch)
        if step % self.steps_per_epoch == 0:
            self.account(step)

    def account(self, step: int) -> None:
        """Hold the ledger of the epoch that ends with `step` against what was declared; waits for all ranks."""
        epoch = step // self.steps_per_epoch - 1
        report = self.ledger.finish()
        if is_main():
            record_event(self.folder.path, "epoch covered", step, epoch=epoch, **asdict(report))
            if report.substituted:
                console.print(f"epoch {epoch + 1}: {report.spoken_substitutes} (events.jsonl names them)")
        if step < self.total_steps:
            self.ledger.start(epoch + 1, self.loader.order(epoch + 1))

    def log(self, step: int, result: StepResult, rates: Mapping[str, float]) -> None:
        """Close a window of telemetry: to the trackers, and one line for people."""
        window = self.telemetry.close(
            step,
            learning_rates=rates,
            figures=self.objective.figures(result.rows, result.scalars),
            features=_one_of_each(result, self.objective),
        )
        self.summary |= {"train_loss": window.metrics[names.LOSS]}
        self.trackers.log(window.metrics, step, step * self.config.global_batch_size)
        if is_main():
            for instability in window.instabilities:
                record_event(self.folder.path, instability.kind, instability.step, detail=instability.detail)
            console.print(_line(step, self.total_steps, self.steps_per_epoch, window.metrics, self._eta(step)))
            self._warn_of_false_negatives(step, window.metrics)
        if window.stop_reason:
            raise DivergedError(window.stop_reason)

    def _warn_of_false_negatives(self, step: int, metrics: Mapping[str, Metric]) -> None:
        warning = None if self._has_warned else false_negative_warning(metrics)
        if warning:
            self._has_warned = True
            console.print(f"[yellow]{warning}[/]")
            record_event(self.folder.path, "false negatives", step, detail=warning)

    def evaluate(self, step: int) -> bool:
        """Measure on the validation set; returns whether the model is the best so far."""
        if self.validate is None:
            return False
        with self.telemetry.paused():
            averaged, model = self.holders.averaged, self.holders.model
            measured = averaged.module if averaged is not None else model
            # Running statistics are each rank's own; what is measured must be what is saved.
            broadcast_tensors(measured.buffers())
            measured.eval()
            nth = None if step >= self.total_steps else step // (self.config.eval_every or self.steps_per_epoch)
            validation = self.validate(measured, step, nth)
            model.train()
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
        """Begin a checkpoint from which the run goes on to the bit, of the state as it is now; collective.

        Raises:
            ShardclipError: the save before it failed, or there is no memory for the copy.
        """
        with self.telemetry.saving():
            ledger, random_states = self.ledger.state(), gather_objects(rng_state())
            self.await_save()
            on_main(lambda: self._begin_save(self._state(step, ledger, random_states), is_best))

    def await_save(self) -> None:
        """Until the checkpoint that was begun last is published; collective, so that all ranks know if it failed.

        Raises:
            ShardclipError: why it could not be.
        """
        on_main(self.saver.wait)

    def leave(self, step: int, reason: str) -> None:
        """End this process's part on request, once all is saved; the same command goes on from here."""
        self.await_save()
        if is_main():
            record_event(self.folder.path, "stopped on request", step, signal=reason)
            command = "the same command again" if self.config.resume == "auto" else "again with resume=auto"
            told = reason or "a signal to another process"
            console.print(f"{told}: saved at step {step}; start {command} to go on.")
            self._close(step, "stopped")

    def finish(self) -> None:
        """Write down what the run came to, once all is saved.

        Raises:
            DataError: the batches ended before the last step.
            ShardclipError: the last checkpoint could not be saved.
        """
        done = max(self.start_step, self._done)
        if done < self.total_steps:
            raise DataError(
                f"{self.folder.path}: the batches ended after step {done} of {self.total_steps}, so the run is "
                "not trained to its end. Start the same command again."
            )
        self.await_save()
        if is_main() and self.start_step >= self.total_steps:
            console.print(f"{self.folder.path}: all {self.total_steps:,} steps are done already.", markup=False)
            set_state(self.folder, "finished")
            self.trackers.finish({})
        elif is_main():
            minutes = self.seconds / 60
            console.print(f"trained {self.total_steps:,} steps in {minutes:.1f} min: {self.folder.path}", markup=False)
            self._close(self.total_steps, "finished")

    def _host_batches(self) -> Iterator[Batch]:
        for epoch in range(self.start_step // self.steps_per_epoch, -(-self.total_steps // self.steps_per_epoch)):
            first = max(0, self.start_step - epoch * self.steps_per_epoch)
            for batch in self.loader.epoch(epoch, first):
                if epoch * self.steps_per_epoch + batch.step == self.total_steps:
                    return
                yield drawn_for(batch, self.objective.views, self.augment)

    def _state(self, step: int, ledger: Any, random_states: list[Any]) -> RunState:
        scaler, averaged = self.accelerator.scaler, self.holders.averaged
        return RunState(
            step=step,
            samples_seen=step * self.config.global_batch_size,
            world_size=world_size(),
            order=self.order_identity,
            ledger=ledger,
            rng=random_states,
            run_id=self.folder.run_id,
            best_score=self.best_score,
            answers_by=self.answers_by,
            seconds=self.seconds,
            scaler=scaler_state(scaler) if scaler is not None else None,
            num_averaged=averaged.num_updates if averaged is not None else 0,
            summary=self.summary,
        )

    def _begin_save(self, state: RunState, is_best: bool) -> None:
        def publish(copied: Mapping[str, Any]) -> None:
            # What was logged up to the step must last before the checkpoint does. By another thread than the one that
            # logs on: lines that come meanwhile are cut when a run goes on from here.
            self.trackers.flush()
            flush_events(self.folder.path)
            folder, keep_last = self.folder.checkpoints, self.config.keep_last
            save(copied, folder, identity=self.identity, keep_last=keep_last, is_best=is_best)

        self.saver.start(contents(self.holders, state), publish)

    def _close(self, step: int, state: State) -> None:
        self.summary |= {"seconds": round(self.seconds, 1), "steps": step, "hardware": hardware(dict(self.environment))}
        record_event(self.folder.path, "summary", step, **self.summary)
        set_state(self.folder, state)
        self.register(step, state)
        self.trackers.finish(self.summary)

    def register(self, step: int, state: State) -> None:
        """Bring the run's line in the registry up to date, where there is one; said at the run's start if not."""
        runs_dir = self.folder.path.parent
        if why := why_unregistered(runs_dir):
            if state == "running":
                console.print(why, markup=False)
            return
        recall = {
            direction: self.summary.get(names.val(names.of_direction(direction, names.recall(10))), "")
            for direction in names.DIRECTIONS
        }
        register_run(
            runs_dir,
            RegistryLine(
                self.folder.run_id,
                self.folder.name,
                state,
                started=self.folder.started,
                hours=round(self.seconds / 3600, 3),
                step=step,
                image_to_text_recall_at_10=recall[names.IMAGE_TO_TEXT],
                text_to_image_recall_at_10=recall[names.TEXT_TO_IMAGE],
                knn_accuracy=self.summary.get(names.val(names.KNN), ""),
                shards=str(self.order_identity["shards"])[:12],
                commit=str(self.environment["commit"])[:12],
                hardware=hardware(dict(self.environment)),
            ),
        )

    def _eta(self, step: int) -> float:
        done = step - self.start_step
        return (time.monotonic() - self._began) / max(done, 1) * (self.total_steps - step)


def _one_of_each(result: StepResult, objective: Objective) -> dict[str, Tensor]:
    """The features `(b, D)` of a step by name; of several captions the first."""
    features = {name: result.rows.own[name] for name in objective.features}
    return {name: x[:, 0] if x.ndim == 3 else x for name, x in features.items()}


def _line(step: int, total: int, per_epoch: int, metrics: Mapping[str, Metric], eta_s: float) -> str:
    m = dict(metrics.items())
    scale = f"scale {m[names.LOGIT_SCALE]:.1f}  " if names.LOGIT_SCALE in m else ""
    return (
        f"step {step:>6}/{total} epoch {(step - 1) // per_epoch + 1}  loss {m[names.LOSS]:.4f}  "
        f"grad {m[names.GRAD_NORM]:.2f}  {scale}{m[names.IMAGES_PER_S]:,.0f} images/s  "
        f"waiting {100 * float(m[names.WAIT_SHARE]):.1f} % ({m[names.VERDICT]})  {eta_s / 60:.1f} min left"
    )


def _validation_line(step: int, validation: Validation) -> str:
    shown = {
        names.within_section(key): value
        for key, value in validation.metrics.items()
        if key.endswith(("loss", "recall@1", "recall@10", "accuracy"))
    }
    return f"[bold]validation at step {step}[/]  " + "  ".join(f"{key} {value:.4f}" for key, value in shown.items())
