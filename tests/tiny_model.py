"""A model of the trainer's shape that is small enough to compare to the last digit."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_SIZE = 4
EMBED_DIM = 6


class TinyModel(nn.Module):
    """`images (n, 3, 4, 4) -> (image_features (n, 6), logit_scale)`, seeded; with batch norm and dropout if asked."""

    def __init__(self, dtype: torch.dtype = torch.float32, is_noisy: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            noise = [nn.BatchNorm1d(8), nn.Dropout(0.5)] if is_noisy else []
            self.tower = nn.Sequential(nn.Flatten(), nn.Linear(3 * IMAGE_SIZE**2, 8), *noise, nn.Tanh())
            self.head = nn.Linear(8, EMBED_DIM)
            self.log_scale = nn.Parameter(torch.tensor(math.log(5.0)))
        self.to(dtype)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.head(self.tower(images)), dim=1), self.log_scale.exp()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        head, tower = list(self.head.parameters()), list(self.tower.parameters())
        return {"tower": tower, "head": head, "logit_scale": [self.log_scale]}

    def gradients(self) -> dict[str, Tensor]:
        """Each group's gradient as one vector."""
        groups = self.parameter_groups().items()
        return {name: torch.cat([p.grad.flatten() for p in params if p.grad is not None]) for name, params in groups}


def make_batch(num_rows: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images and unit-length text features, equal on all ranks."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_rows, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator, dtype=torch.float64)
    text_features = F.normalize(torch.randn(num_rows, EMBED_DIM, generator=generator, dtype=torch.float64), dim=1)
    return images.to(dtype), text_features.to(dtype)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Length of the difference, relative to the expected length."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())
