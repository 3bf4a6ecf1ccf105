"""One step: chunks, dropout, autocast, loss scaling, what is kept; its gradients over ranks: tests/exactness."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import gloo
import pytest
import torch
from tiny_model import TinyModel, make_batch, relative_error
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from trainer.losses.infonce import InfoNCE

from trainer.step.forward_backward import forward_backward


def all_reduces_of_a_step() -> int:
    """How many gradient buckets travel in a step of three chunks."""
    model = DistributedDataParallel(TinyModel())
    sent = []

    def note(state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        sent.append(bucket.index())
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    model.register_comm_hook(None, note)
    images, text_features = make_batch(6)
    forward_backward(model, images.split(2), text_features, torch.arange(6), InfoNCE())
    return len(sent)


def test_gradients_travel_once_per_step_whatever_the_number_of_chunks() -> None:
    assert gloo.run(1, all_reduces_of_a_step) == [1]


def step(model: TinyModel, num_chunks: int, **options: Any) -> dict[str, Tensor]:
    """Gradients of one step in this process."""
    images, text_features = make_batch(12)
    groups = torch.arange(12)
    forward_backward(model, images.tensor_split(num_chunks), text_features, groups, InfoNCE(), **options)
    return model.gradients()


def test_chunks_with_dropout_and_batch_norm_equal_one_graph_over_the_same_chunks() -> None:
    images, text_features = make_batch(12)
    torch.manual_seed(3)
    plain = TinyModel(is_noisy=True)
    outputs = [plain(chunk) for chunk in images.tensor_split(3)]  # all activations kept
    image_features = torch.cat([features for features, _ in outputs])
    InfoNCE().reference(image_features, text_features, outputs[0][1]).backward()
    random_after = torch.rand(4)

    torch.manual_seed(3)
    cached = TinyModel(is_noisy=True)
    gradients = step(cached, 3)
    assert torch.equal(torch.rand(4), random_after)
    for name, expected in plain.gradients().items():
        assert relative_error(gradients[name], expected.double()) <= 1e-5, name
    for (name, one), (_, other) in zip(cached.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.equal(one, other), name  # running statistics moved once per chunk
    assert cached.tower[2].num_batches_tracked == 3


@pytest.mark.parametrize("num_chunks", [1, 3])
def test_loss_scaling_comes_in_once(num_chunks: int) -> None:
    plain = step(TinyModel(), num_chunks)
    scaled = step(TinyModel(), num_chunks, backward=lambda loss: (loss * 1024).backward())
    for name, expected in plain.items():
        assert torch.equal(scaled[name], 1024 * expected), name


def test_autocast_covers_the_model_and_not_the_loss() -> None:
    seen = []

    def loss_fn(image_features: Tensor, *args: Any) -> Tensor:
        seen.append((image_features.dtype, torch.is_autocast_enabled("cpu")))
        return InfoNCE()(image_features, *args)

    images, text_features = make_batch(12)
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    gradients = []
    for num_chunks in (1, 3):
        model, chunks = TinyModel(), images.tensor_split(num_chunks)
        forward_backward(model, chunks, text_features.half(), torch.arange(12), loss_fn, autocast=autocast)
        gradients.append(model.gradients())
    assert seen == [(torch.float32, False)] * 2
    full = step(TinyModel(), 1)
    for name in ("tower", "head", "logit_scale"):
        assert relative_error(gradients[1][name], gradients[0][name].double()) < 0.02, name
        assert 1e-6 < relative_error(gradients[0][name], full[name].double()) < 0.05, name  # bfloat16 was at work


@pytest.mark.parametrize("num_chunks", [1, 3])
def test_texts_that_are_learned_get_their_gradient(num_chunks: int) -> None:
    images, text_features = make_batch(12)
    leaf = text_features.clone().requires_grad_()
    forward_backward(TinyModel(), images.tensor_split(num_chunks), leaf * 1, torch.arange(12), InfoNCE())
    oracle = text_features.clone().requires_grad_()
    image_features, logit_scale = TinyModel()(images)
    InfoNCE().reference(image_features, oracle, logit_scale).backward()
    assert leaf.grad is not None and oracle.grad is not None
    torch.testing.assert_close(leaf.grad, oracle.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("num_chunks", [1, 2])
def test_the_result_holds_the_batch_without_gradients(num_chunks: int) -> None:
    images, text_features = make_batch(12)
    groups = torch.arange(12) // 2
    model = TinyModel()
    result = forward_backward(model, images.tensor_split(num_chunks), text_features.half(), groups, InfoNCE())
    image_features, _ = model(images)
    torch.testing.assert_close(result.image_features, image_features.detach())
    assert torch.equal(result.text_features, text_features.half().float())
    assert torch.equal(result.all_text_features, result.text_features)
    assert torch.equal(result.all_image_ids, groups)
    assert (result.offset, float(result.logit_scale)) == (0, pytest.approx(5.0))
    assert not any(x.requires_grad for x in vars(result).values() if isinstance(x, Tensor))


def test_only_one_chunk_of_activations_is_kept_at_a_time() -> None:
    def kept(num_chunks: int) -> int:
        """Most elements saved for one backward pass."""
        most = saved = 0

        def note(x: Tensor) -> Tensor:
            nonlocal saved
            saved += 0 if isinstance(x, nn.Parameter) else x.numel()
            return x

        def backward(loss: Tensor) -> None:
            nonlocal most, saved
            most, saved = max(most, saved), 0
            loss.backward()

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            step(TinyModel(), num_chunks, backward=backward)
        return most

    assert kept(4) < kept(1) / 2


def test_chunks_are_read_at_most_twice() -> None:
    images, text_features = make_batch(12)
    reads = []

    class Lazy(list[Tensor]):
        def __iter__(self) -> Any:
            reads.append(len(self))
            return super().__iter__()

    chunks = Lazy(images.tensor_split(3))
    forward_backward(TinyModel(), chunks, text_features, torch.arange(12), InfoNCE(), autocast=nullcontext)
    assert reads == [3, 3]
