"""Multinomial logistic regression by the L-BFGS of torch, in blocks on a device: for more pictures than fit at once.

Legend: `N` pictures, `D` embedding, `K` classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.transfer import upload

HISTORY = 10  # steps that L-BFGS remembers, as in scikit-learn
_BLOCK_BYTES = 32 * 2**20
_LEAST_CHANGE = 1e-14  # of loss or weights: below, float64 has no more to say


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a fit found.

    Attributes:
        weights: `(K, D)` float64.
        intercepts: `(K,)` float64; they add up to 0.
        iterations: of L-BFGS.
        converged: False: it stopped at the most iterations allowed.
    """

    weights: np.ndarray
    intercepts: np.ndarray
    iterations: int
    converged: bool

    def scores(self, features: np.ndarray) -> np.ndarray:
        """`(N, K)` logits of features `(N, D)`; by torch, whose threads the probe has set."""
        rows, weights = torch.from_numpy(np.ascontiguousarray(features)).double(), torch.from_numpy(self.weights)
        scores: np.ndarray = torch.addmm(torch.from_numpy(self.intercepts), rows, weights.T).numpy()
        return scores


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    decay: float,
    *,
    most_iterations: int,
    tolerance: float,
    device: str = "cpu",
    start: Fitted | None = None,
) -> Fitted:
    """The weights that make `mean cross-entropy + decay / 2 * |weights|^2` least; intercepts are free.

    Sums are float64. Memory above the features, on the device: the features as they are, a block of logits, and 2 x
    `HISTORY` + some times the weights.

    Args:
        features, labels: `(N, D)`, and `(N,)` from 0 to K - 1, each of which occurs.
        tolerance: of the largest component of the gradient.
        start: from which it goes on.
    """
    where = torch.device(device)
    problem = _Problem(features, labels, num_classes, decay, where)
    parameters = torch.zeros(num_classes, features.shape[1] + 1, dtype=torch.float64, device=where)
    if start is not None:
        parameters[:, :-1] = torch.from_numpy(start.weights)
        parameters[:, -1] = torch.from_numpy(start.intercepts)
    parameters.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=most_iterations,
        max_eval=2 * most_iterations,
        tolerance_grad=tolerance,
        tolerance_change=_LEAST_CHANGE,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        loss, parameters.grad = problem.loss(parameters.detach())
        return loss

    optimizer.step(closure)
    state = optimizer.state[parameters]
    found = parameters.detach().cpu().numpy()
    intercepts = found[:, -1] - found[:, -1].mean()
    spent = state["n_iter"] >= most_iterations or state["func_evals"] >= 2 * most_iterations
    largest = float(parameters.grad.abs().max()) if parameters.grad is not None else 0.0
    return Fitted(found[:, :-1].copy(), intercepts, int(state["n_iter"]), not spent or largest <= tolerance)


class _Problem:
    """Loss and gradient, block by block."""

    def __init__(
        self, features: np.ndarray, labels: np.ndarray, num_classes: int, decay: float, device: torch.device
    ) -> None:
        self._features = upload(torch.from_numpy(np.ascontiguousarray(features)), device)
        self._labels = upload(torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64)), device)
        self._decay = decay
        self._rows = max(1, _BLOCK_BYTES // (8 * (num_classes + features.shape[1])))

    def loss(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """The loss at `(K, D + 1)` weights and intercepts, and its gradient."""
        weights, intercepts = parameters[:, :-1].contiguous(), parameters[:, -1]
        loss, gradient = torch.zeros((), dtype=torch.float64, device=parameters.device), torch.zeros_like(parameters)
        for features, labels in zip(self._features.split(self._rows), self._labels.split(self._rows), strict=True):
            rows = features.double()
            logarithms = torch.addmm(intercepts, rows, weights.T).log_softmax(dim=1)
            loss -= logarithms.gather(1, labels[:, None]).sum()
            errors = logarithms.exp_()
            errors.scatter_add_(1, labels[:, None], errors.new_full((len(labels), 1), -1.0))
            gradient[:, :-1] += errors.T @ rows
            gradient[:, -1] += errors.sum(dim=0)
        num_rows = len(self._features)
        gradient /= num_rows
        gradient[:, :-1] += self._decay * weights
        return loss / num_rows + self._decay / 2 * weights.square().sum(), gradient
