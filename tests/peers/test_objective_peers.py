"""Our objectives give what other people's code gives on the same features: loss and gradients, in float64.

Needs the peers (`make peers`); skips without them. Ids are distinct: what to do with repeated ones, each decides for
itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.objectives.engine import blocked_loss
from trainer.objectives.infonce import InfoNCE
from trainer.objectives.nt_xent import NTXent
from trainer.objectives.objective import Objective, Rows
from trainer.objectives.siglip import SigLIP
from trainer.objectives.supcon import SupCon

PEERS = Path(__file__).resolve().parents[2] / ".peers"
NUM_ROWS, EMBED_DIM = 24, 16
LABELS = torch.arange(NUM_ROWS) % 5
SCALARS = {"scale": 14.3, "bias": -3.0}
# Their losses of the features x and y `(N, D)`, the scale s and the bias b.
THEIRS: dict[str, tuple[str, Objective, str]] = {
    "lightly": (
        "lightly.loss",
        NTXent(0.2, block_size=7),
        "lightly.loss.NTXentLoss(temperature=0.2)(x, y)",
    ),
    "pytorch-metric-learning": (
        "pytorch_metric_learning.losses",
        SupCon(0.1, block_size=7),
        "pytorch_metric_learning.losses.SupConLoss(temperature=0.1)(torch.cat([x, y]), torch.cat([labels, labels]))",
    ),
    "open_clip, SigLIP": (
        "open_clip.loss",
        SigLIP(block_size=7),
        "open_clip.loss.SigLipLoss()(x, y, s, b)",
    ),
    "open_clip, CLIP": (
        "open_clip.loss",
        InfoNCE(block_size=7),
        "open_clip.loss.ClipLoss()(x, y, s)",
    ),
}
PROGRAM = """
import sys, torch, {module}
*leaves, labels = torch.load(sys.argv[1])
x, y, s, b = [value.requires_grad_() for value in leaves]
x, y = [torch.nn.functional.normalize(value, dim=1) for value in (x, y)]
loss = {call}
found = torch.autograd.grad(loss, leaves, allow_unused=True)
torch.save([loss.detach(), *found], sys.argv[1])
"""


@pytest.mark.parametrize("peer", THEIRS)
def test_loss_and_gradients_are_those_of_the_peer(tmp_path: Path, peer: str) -> None:
    module, objective, call = THEIRS[peer]
    if not (PEERS / module.split(".")[0]).is_dir():
        pytest.skip(f"{peer} is not installed (make peers)")
    generator = torch.Generator().manual_seed(0)
    # Some of them make unit vectors once more, whose gradient has no part along the vector: compare before that.
    x, y = (torch.randn(NUM_ROWS, EMBED_DIM, generator=generator).double() for _ in range(2))
    scalars = [torch.tensor(value, dtype=torch.float64) for value in SCALARS.values()]
    torch.save([x, y, *scalars, LABELS], tmp_path / "values.pt")
    # In a process of its own: the peers bring other versions of what we use.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM.format(module=module, call=call), str(tmp_path / "values.pt")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PEERS)},
    )
    assert done.returncode == 0, done.stderr
    theirs = torch.load(tmp_path / "values.pt")
    for name, found, right in zip(("loss", "x", "y", "scale", "bias"), ours(objective, x, y, scalars), theirs):
        assert (found is None) == (right is None), name
        if right is not None:
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12, msg=name)


def ours(objective: Objective, x: Tensor, y: Tensor, scalars: list[Tensor]) -> list[Tensor | None]:
    """The loss, and the gradients of what features are made of and of the scalars that the objective uses."""
    leaves = [value.clone().requires_grad_() for value in (x, y)]
    features = [F.normalize(value, dim=1) for value in leaves]
    scale, bias = (value.clone().requires_grad_() for value in scalars)
    used = {"InfoNCE": {"scale": scale}, "SigLIP": {"scale": scale, "bias": bias}}.get(type(objective).__name__, {})
    relations = {"image_id": torch.arange(NUM_ROWS), "label": LABELS}
    given = {name: relations[name] for name in objective.columns}
    together = {**dict(zip(objective.features, features)), **given}
    loss = blocked_loss(objective, Rows(together, together, 0), used, {})
    grads = torch.autograd.grad(loss, [*leaves, scale, bias], allow_unused=True)
    return [loss.detach(), *grads]
