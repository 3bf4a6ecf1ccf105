"""The training loop: shards -> checkpoint. `launch.train` runs it, `trainer.run.opening` opens its parts."""

from __future__ import annotations

from enum import IntEnum

import torch

from core.distributed import all_reduce_max, world_size
from core.transfer import Download
from trainer.guard.signals import REQUEUE_EXIT_CODE
from trainer.optim.build import set_learning_rates
from trainer.optim.schedule import lr_at
from trainer.run.run import Run
from trainer.step.forward_backward import forward_backward


def train(run: Run) -> int:
    """Train from where the run stands to its last step; returns the exit code.

    Returns:
        0 when the last step is done; `REQUEUE_EXIT_CODE` when stopped on request, after saving.

    Raises:
        ShardclipError: damaged data, steps that stay without finite loss, samples missed or repeated, a checkpoint
            that cannot be saved.
    """
    config, accelerator, holders = run.config, run.accelerator, run.holders
    with run.resources:
        vote = Vote(accelerator.device)
        for step, batch in enumerate(run.batches(), run.start_step + 1):
            run.thaw(step)
            rates = set_learning_rates(holders.optimizer, lr_at(step - 1, run.total_steps, config.optim))
            before = run.keep()
            chunks, given, state = run.chunks(batch), run.given(batch), holders.objective_state
            result = forward_backward(run.model, chunks, given, run.objective, state, backward=accelerator.backward)
            grad_norm = accelerator.clip_grad_norm_(run.model.parameters(), config.optim.max_grad_norm)
            run.update(result, grad_norm, before)

            run.count(step, batch, result, grad_norm)
            is_last = step == run.total_steps
            asked = vote.ask(Ask.END if run.saver.has_failed else Ask.STOP if run.stop.requested else Ask.NOTHING)
            if asked == Ask.END:
                run.await_save()  # raises, on every rank
            is_stopping = asked == Ask.STOP
            has_improved = False
            if is_last or is_stopping or step % config.log_every == 0:
                run.log(step, result, rates)
            if is_last or run.is_due(step, config.eval_every):
                has_improved = run.evaluate(step)
            if is_last or is_stopping or has_improved or run.is_due(step, config.checkpoint_every):
                run.save(step, is_best=has_improved)
            if is_stopping and not is_last:
                run.leave(step, run.stop.reason)
                return REQUEUE_EXIT_CODE
        run.finish()
    return 0


class Ask(IntEnum):
    """What a rank asks of all; the highest of them is done."""

    NOTHING = 0
    STOP = 1  # save and leave
    END = 2  # a checkpoint could not be saved


class Vote:
    """What any rank asks for; the answer comes one step later, so that nobody waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: Download | None = None

    def ask(self, own: Ask) -> Ask:
        """The same answer on every rank; collective."""
        if world_size() == 1:
            return own
        # Filled in on the device: a tensor made of a value here would be copied there, and the copy waited for.
        vote = torch.full((), own, dtype=torch.uint8, device=self._device)
        last, self._last = self._last, Download(all_reduce_max(vote))
        return Ask.NOTHING if last is None else Ask(int(last.value()))
