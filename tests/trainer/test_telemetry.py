"""Telemetry: shares, verdicts, counted FLOPs, health of the space, and instabilities that are seen and stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainer.telemetry import names
from trainer.telemetry.flops import flops_per_image, peak_flops, peak_of
from trainer.telemetry.health import alignment, uniformity_potential
from trainer.telemetry.stability import StabilityConfig, StabilityWatch
from trainer.telemetry.window import Telemetry, Window, peak_memory_gib, verdict, wait_parts

CPU = torch.device("cpu")


def unit(rows: int, width: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def close(
    telemetry: Telemetry, step: int, figures: dict[str, Tensor] | None = None, features: dict[str, Tensor] | None = None
) -> Window:
    return telemetry.close(
        step,
        learning_rates={"tower": 0.1, "head": 0.2},
        figures={"logit_scale": torch.tensor(14.3)} if figures is None else figures,
        features={"image": unit(8, 4), "text": unit(8, 4, 1)} if features is None else features,
    )


def run(telemetry: Telemetry, waits: list[float], work_s: float, losses: list[float] | None = None) -> None:
    def batches() -> Iterator[int]:
        for wait in waits:
            time.sleep(wait)
            yield 0

    for i, _ in enumerate(telemetry.watch(batches())):
        time.sleep(work_s)
        loss = torch.tensor(losses[i] if losses else 1.0)
        telemetry.add(
            loss=loss, grad_norm=loss * 2, num_samples=10, read_s=0.01, decode_s=0.03, collate_s=0.0, draw_s=0.0
        )


def test_a_window_says_how_fast_and_what_it_waited_for() -> None:
    telemetry = Telemetry(CPU, flops_per_image=1e6, peak_flops=1e9, stability=StabilityConfig())
    run(telemetry, [0.02] * 5, work_s=0.02)
    metrics = close(telemetry, 5).metrics
    assert 50 / 5 < metrics["perf/images_per_s"] <= 50 / 0.2
    assert metrics["perf/images_per_s_per_device"] == metrics["perf/images_per_s"]  # one rank
    assert 0.1 < metrics["perf/wait_share"] < 0.9
    assert metrics["perf/wait_decode_share"] == pytest.approx(3 * metrics["perf/wait_read_share"])
    assert metrics["perf/wait_copy_share"] == 0 and metrics["perf/verdict"] == "decode-bound"
    assert metrics["perf/mfu"] == pytest.approx(metrics["perf/images_per_s"] * 1e6 / 1e9)
    assert metrics["train/lr_head"] == 0.2 and metrics["train/logit_scale"] == pytest.approx(14.3)
    assert metrics["train/loss"] == 1.0 and metrics["train/grad_norm"] == 2.0


def test_a_window_shows_what_the_objective_shows_and_each_feature_by_name() -> None:
    telemetry = Telemetry(CPU, flops_per_image=0, peak_flops=None, stability=StabilityConfig())
    images, others = unit(8, 4), unit(8, 4, 1)
    run(telemetry, [0.0], work_s=0.0)
    metrics = close(telemetry, 1, figures={}, features={"image": images, "image2": others}).metrics
    assert "train/logit_scale" not in metrics
    assert metrics["train/alignment"] == pytest.approx(float(alignment(images, others)))
    assert metrics["train/uniformity_image2"] == pytest.approx(math.log(float(uniformity_potential(others))))
    run(telemetry, [0.0], work_s=0.0)
    alone = close(telemetry, 2, figures={"samples_of_the_class": torch.tensor(3.5)}, features={"image": images}).metrics
    assert alone["train/samples_of_the_class"] == 3.5 and "train/alignment" not in alone
    assert "train/uniformity_image" in alone and "train/uniformity_text" not in alone


def test_windows_do_not_mix_and_pauses_and_gaps_do_not_count() -> None:
    telemetry = Telemetry(CPU, flops_per_image=0, peak_flops=None, stability=StabilityConfig())
    run(telemetry, [0.0] * 3, work_s=0.0, losses=[5.0, 5.0, 5.0])
    close(telemetry, 3)
    time.sleep(0.3)  # validation between two windows
    run(telemetry, [0.0] * 3, work_s=0.05, losses=[1.0, 2.0, 3.0])
    with telemetry.paused():
        time.sleep(0.3)
    metrics = close(telemetry, 6).metrics
    assert metrics["train/loss"] == 2.0 and metrics["perf/step_s"] < 0.1
    assert metrics["perf/verdict"] == "compute-bound" and "perf/mfu" not in metrics


def test_a_save_is_left_out_of_the_windows_time_and_counted_in_the_window_it_falls_into() -> None:
    telemetry = Telemetry(CPU, flops_per_image=0, peak_flops=None, stability=StabilityConfig())
    run(telemetry, [0.0] * 3, work_s=0.01)
    with telemetry.saving():
        time.sleep(0.3)
    within = close(telemetry, 3).metrics
    with telemetry.saving():  # after a log line
        time.sleep(0.2)
    run(telemetry, [0.0] * 3, work_s=0.1)
    after, none = close(telemetry, 6).metrics, close(telemetry, 9).metrics
    assert 0.3 <= within["perf/checkpoint_wait_s"] < 0.4 and within["perf/step_s"] < 0.1
    assert 0.2 <= after["perf/checkpoint_wait_s"] < 0.3 and after["perf/step_s"] >= 0.1
    assert none["perf/checkpoint_wait_s"] == 0


def test_a_window_without_steps_is_no_error() -> None:
    metrics = close(Telemetry(CPU, flops_per_image=0, peak_flops=None, stability=StabilityConfig()), 1).metrics
    assert math.isnan(metrics["train/loss"]) and metrics["perf/images_per_s"] == 0  # type: ignore[arg-type]


seconds = st.floats(0, 100)


@given(seconds, st.none() | seconds, seconds, seconds, seconds, seconds)
def test_the_parts_of_a_wait_add_up(
    host: float, device: float | None, read: float, decode: float, rest: float, draw: float
) -> None:
    parts = wait_parts(host, device, read, decode, rest, draw)
    assert all(part >= 0 for part in parts.values())
    assert sum(parts.values()) == pytest.approx(host if device is None else device)


def test_a_host_that_waits_while_the_device_works_loses_nothing() -> None:
    assert sum(wait_parts(5.0, 0.0, 1, 1, 0, 1).values()) == 0
    assert wait_parts(0.0, 2.0, 1, 1, 0, 0) == {"read": 0, "decode": 0, "collate": 0, "draw": 0, "copy": 2.0}
    assert wait_parts(3.0, 3.0, 1, 1, 0, 2) == {"read": 0.5, "decode": 0.5, "collate": 0, "draw": 2.0, "copy": 0}


@pytest.mark.parametrize(
    ("shares", "word"),
    [
        ({"read": 0.01, "decode": 0.02, "collate": 0.0, "draw": 0.0, "copy": 0.01}, "compute-bound"),
        ({"read": 0.2, "decode": 0.1, "collate": 0.05, "draw": 0.0, "copy": 0.0}, "storage-bound"),
        ({"read": 0.2, "decode": 0.2, "collate": 0.1, "draw": 0.0, "copy": 0.0}, "decode-bound"),
        ({"read": 0.0, "decode": 0.1, "collate": 0.0, "draw": 0.0, "copy": 0.3}, "copy-bound"),
        ({"read": 0.0, "decode": 0.1, "collate": 0.0, "draw": 0.2, "copy": 0.1}, "augment-bound"),
    ],
)
def test_one_word_names_what_holds_the_run_back(shares: dict[str, float], word: str) -> None:
    assert verdict(shares) == word


def test_memory_is_that_of_this_process() -> None:
    assert 0.05 < peak_memory_gib(CPU) < 64


def _two_ranks(rank: int, init_file: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    telemetry = Telemetry(CPU, flops_per_image=0, peak_flops=None, stability=StabilityConfig())
    run(telemetry, [0.0, 0.1 * rank, 0.0], 0.1, losses=[1.0 + rank, math.nan if rank else 1.0, 2.0])
    if rank:
        time.sleep(0.3)  # the others do not wait for it before they look at their clocks
    window = close(telemetry, 3)
    torch.save([window.metrics, [i.step for i in window.instabilities]], f"{results}/{rank}")
    dist.destroy_process_group()


def test_all_ranks_see_the_same_window(tmp_path: Path) -> None:
    mp.spawn(_two_ranks, args=(str(tmp_path / "init"), str(tmp_path)), nprocs=2)
    (metrics, steps), other = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert [metrics, steps] == other and steps == [2]
    assert metrics["train/loss"] == pytest.approx((1.5 + 2.0) / 2)  # step 2 was not finite on one rank
    assert 60 / 6 < metrics["perf/images_per_s"] <= 60 / 0.3
    assert metrics["perf/images_per_s_per_device"] == metrics["perf/images_per_s"] / 2
    assert metrics[names.FASTEST_IMAGES_PER_S] > metrics[names.SLOWEST_IMAGES_PER_S] > 0
    assert metrics[names.MOST_WAIT_SHARE] > metrics[names.LEAST_WAIT_SHARE] >= 0
    assert metrics[names.MOST_WAITING_RANK] == 1


# --- FLOPs


class TwoLayers(nn.Module):
    """A 3x3 convolution (4 channels, same size), batch norm, and a linear layer to 5."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * size * size, 5)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.norm(self.conv(images)).flatten(1)), self.logit_scale.exp()


@pytest.mark.parametrize("frozen", [False, True])
def test_flops_are_counted_forward_and_backward(frozen: bool) -> None:
    size = 8
    model = TwoLayers(size)
    if frozen:
        model.conv.requires_grad_(False)
        model.norm.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    conv = 2 * size * size * 4 * 3 * 9
    head = 2 * 4 * size * size * 5
    # The first convolution needs no gradient of its input; a frozen one needs none at all, nor does the head's input.
    expected = conv + 2 * head if frozen else (conv * 2) + (head * 3)
    assert flops_per_image(model, (3, size, size)) == expected
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())


def test_known_networks_cost_what_their_papers_say() -> None:
    from torchvision.models import resnet50

    model = resnet50().requires_grad_(False)
    assert flops_per_image(model, (3, 224, 224)) / 2 == pytest.approx(
        4.09e9, rel=0.01
    )  # multiply-adds of one forward pass


def test_the_peak_belongs_to_the_very_device() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12 and peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12 and peak_of("NVIDIA A10") == 125e12
    assert peak_of("NVIDIA GeForce RTX 4090") == 165e12 and peak_of("NVIDIA H200") == 989e12
    assert peak_of("NVIDIA A1000 Laptop") is None and peak_flops(CPU, "bf16") is None


# --- health of the space


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 12), st.integers(2, 6), st.integers(0, 100))
def test_alignment_and_uniformity_match_double_loops(rows: int, width: int, seed: int) -> None:
    images, texts = unit(rows, width, seed), unit(rows, width, seed + 1)
    distances = [float(((images[i] - texts[i]) ** 2).sum()) for i in range(rows)]
    assert float(alignment(images, texts)) == pytest.approx(sum(distances) / rows, abs=1e-5)
    pairs = [(i, j) for i in range(rows) for j in range(i)]
    potentials = [math.exp(-2 * float(((images[i] - images[j]) ** 2).sum())) for i, j in pairs]
    assert float(uniformity_potential(images)) == pytest.approx(sum(potentials) / len(pairs), abs=1e-5)


# --- instabilities


def test_a_spike_is_noted_once_and_noise_is_not() -> None:
    watch = StabilityWatch(StabilityConfig())
    noise = (3.0 + 0.1 * torch.randn(500, generator=torch.Generator().manual_seed(0))).tolist()
    assert watch.look(1, noise, noise) == []
    found = watch.look(501, [3.0, 9.0, 3.1], [1.0, 1.0, 1.0])
    assert [(i.step, i.kind) for i in found] == [(502, "loss spike")] and "loss 9" in found[0].detail
    assert watch.num_spikes == 1 and watch.stop_reason is None


def test_nonfinite_steps_are_counted_and_too_many_in_a_row_stop_the_run() -> None:
    watch = StabilityWatch(StabilityConfig(max_nonfinite_in_a_row=2))
    nan, inf = math.nan, math.inf
    assert [i.step for i in watch.look(1, [1, nan, 1, 1], [1, 1, inf, 1])] == [2, 3]
    assert watch.stop_reason is None and watch.num_nonfinite == 2
    watch.look(5, [nan, nan], [1, 1])
    assert watch.stop_reason is None
    watch.look(7, [nan, 1], [1, 1])  # windows do not break the row
    assert watch.stop_reason is not None and watch.stop_reason.startswith(
        "Step 7: loss or gradient was not finite 3 times"
    )


def test_the_window_reports_instabilities_by_step() -> None:
    telemetry = Telemetry(CPU, flops_per_image=0, peak_flops=None, stability=StabilityConfig(max_nonfinite_in_a_row=1))
    run(telemetry, [0.0] * 4, 0.0, losses=[1.0, math.nan, math.nan, 3.0])
    window = close(telemetry, 10)
    assert [i.step for i in window.instabilities] == [8, 9] and window.stop_reason is not None
    assert window.metrics["train/loss"] == 2.0 and window.metrics["train/nonfinite_steps"] == 2
