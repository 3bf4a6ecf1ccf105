"""Training as it is usually written, in the manner of open_clip: what ours is compared with on the same GPU.

torchvision's transforms in the workers of a DataLoader, autocast, channels_last, compiled, the whole matrix of logits
and `F.cross_entropy` both ways. The same tars, tower, head, crops, batch and optimizer as ours; nothing of the trainer.
"""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.gpu.measure import Context, Figures
from core.shard_index import scan_tar

MEAN, STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)  # CLIP's


def train_plainly(context: Context, batch_size: int) -> Figures:
    """Images/s and share of waiting for data, after the first third of the size's images."""
    device, on_gpu = torch.device(context.device), context.device == "cuda"
    photographs = Photographs(context.shards, context.size.image_size)
    workers = max(1, len(os.sched_getaffinity(0)) - 1)
    # One long epoch: workers that start again after each would cost this loop what ours does not pay.
    drawn = RandomSampler(photographs, replacement=True, num_samples=context.size.images)
    loader = DataLoader(photographs, batch_size, sampler=drawn, num_workers=workers, pin_memory=on_gpu)
    model: Any = Model(context.size.tower, photographs.embed_dim)
    model = model.to(device, memory_format=torch.channels_last)
    if on_gpu and context.size.name == "full":
        model = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.1, fused=on_gpu)
    steps = context.size.images // batch_size
    warm_steps, waited, began, loss = steps // 3, 0.0, 0.0, None
    batches = iter(loader)
    for step in range(steps):
        if step == warm_steps:
            _synchronize(on_gpu)
            waited, began = 0.0, time.perf_counter()
        before = time.perf_counter()
        images, texts = next(batches)
        waited += time.perf_counter() - before
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        texts = texts.to(device, non_blocking=True)
        loss = _step(model, optimizer, images, texts, on_gpu)
    _synchronize(on_gpu)
    seconds = time.perf_counter() - began
    return {
        "images_per_s": (steps - warm_steps) * batch_size / seconds,
        "wait_share": waited / seconds,
        "last_loss": float(loss) if loss is not None else float("nan"),
        "workers": workers,
    }


class Photographs(Dataset):
    """Pictures `(3, S, S)` and one of their captions' embeddings `(E,)`, read from tars by offset."""

    def __init__(self, shards: Path, image_size: int) -> None:
        from torchvision import transforms

        self._places = [
            (path, sample.members["jpg"], sample.members["npy"])
            for path in sorted(shards.glob("*.tar"))
            for sample in scan_tar(path)
        ]
        self._transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(image_size, scale=(0.9, 1.0), interpolation=Image.Resampling.BICUBIC),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )
        self.embed_dim = len(self[0][1])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        path, image, embeddings = self._places[number]
        with open(path, "rb") as tar:
            picture = Image.open(io.BytesIO(_read(tar, image))).convert("RGB")
            texts = np.load(io.BytesIO(_read(tar, embeddings)))
        text = texts[int(torch.randint(len(texts), ()))]
        return self._transform(picture), torch.from_numpy(text.astype(np.float32))


class Model(nn.Module):
    """A tower of torchvision, a head of two layers, a learned temperature."""

    def __init__(self, tower: str, embed_dim: int) -> None:
        super().__init__()
        import torchvision

        self.tower: Any = torchvision.models.get_model(tower)
        width = self.tower.fc.in_features
        self.tower.fc = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.tower(images), dim=-1), self.logit_scale.exp()


def _step(model: Any, optimizer: Any, images: Tensor, texts: Tensor, on_gpu: bool) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=on_gpu):
        features, scale = model(images)
        logits = scale * features @ texts.to(features.dtype).T
        own = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def _read(tar: io.BufferedReader, place: tuple[int, int]) -> bytes:
    tar.seek(place[0])
    return tar.read(place[1])


def _synchronize(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()
