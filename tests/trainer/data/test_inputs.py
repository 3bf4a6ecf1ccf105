"""What the model is given: normalised pictures, or in their place what its frozen tower made of them."""

from __future__ import annotations

import torch

from trainer.data.batch import Batch
from trainer.data.inputs import batch_columns, drawn_for, evaluation_inputs, given_values, model_inputs
from trainer.objectives.infonce import InfoNCE
from trainer.objectives.nt_xent import NTXent
from trainer.pictures.draw import Draw


def test_batches_have_captions_named_columns_and_stored_features_where_asked_for() -> None:
    pairs, views = InfoNCE(), NTXent()
    assert batch_columns(pairs, {}, None, None) == {"text": ""}
    assert batch_columns(pairs, {"label": "labels"}, None, "features.x") == {
        "text": "",
        "label": "labels",
        "image_features": "features.x",
    }
    assert batch_columns(pairs, {}, "tokens.clip", None) == {"tokens": "tokens.clip"}
    assert batch_columns(views, {"label": "labels"}, None, None) == {"label": "labels"}


def test_pictures_are_normalised_and_stored_features_are_not() -> None:
    images, features, rows = torch.full((2, 3, 4, 4), 7, dtype=torch.uint8), torch.randn(2, 5), torch.arange(2)
    seen = Batch(images, {"image_features": features}, rows, rows)
    assert torch.equal(evaluation_inputs(seen, lambda pictures: pictures + 1), images + 1)
    unseen = Batch(None, {"image_features": features}, rows, rows)
    assert torch.equal(evaluation_inputs(unseen, lambda pictures: pictures + 1), features)


def test_each_view_of_a_chunk_is_augmented_by_its_own_number() -> None:
    class Numbers:
        """In place of an augmentation: what is drawn is a number for each picture, and it is added."""

        def draw(self, images: torch.Tensor, epoch: int, draws: torch.Tensor, view: int) -> Draw:
            return Draw((100 * view + draws + 10 * epoch).float().numpy()[:, None])

    def render(images: torch.Tensor, drawn: Draw) -> torch.Tensor:
        return images + torch.from_numpy(drawn.numbers)[:, :, None, None]

    images, draws = torch.zeros(4, 3, 2, 2), torch.tensor([5, 6, 7, 8])
    columns = {"image_id": torch.arange(4), "label": torch.tensor([0, 1, 0, 1]), "tokens": torch.arange(8).view(4, 2)}
    batch = Batch(images, columns, torch.arange(4), draws, epoch=1)
    drawn = drawn_for(batch, 2, Numbers())  # type: ignore[arg-type]
    assert drawn.draw_s > 0
    inputs = model_inputs(drawn, slice(1, 3), 2, render)
    assert inputs["image"][:, 0, 0, 0].tolist() == [16, 17] and inputs["image2"][:, 0, 0, 0].tolist() == [116, 117]
    assert inputs["text"].tolist() == [[2, 3], [4, 5]]
    assert set(given_values(batch, NTXent())) == {"image_id"}
