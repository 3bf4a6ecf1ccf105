"""What the model is given: normalised pictures, or in their place what its frozen tower made of them."""

from __future__ import annotations

import torch

from trainer.data.batch import Batch
from trainer.data.inputs import batch_columns, evaluation_inputs

HOST = torch.device("cpu")


def test_batches_have_captions_named_columns_and_stored_features_where_asked_for() -> None:
    assert batch_columns({}, None) == {"text": ""}
    assert batch_columns({"label": "labels"}, "features.x") == {
        "text": "",
        "label": "labels",
        "image_features": "features.x",
    }


def test_pictures_are_normalised_and_stored_features_are_not() -> None:
    images, features, rows = torch.full((2, 3, 4, 4), 7, dtype=torch.uint8), torch.randn(2, 5), torch.arange(2)
    seen = Batch(images, {"image_features": features}, rows, rows)
    assert torch.equal(evaluation_inputs(seen, lambda pictures: pictures + 1, HOST), images + 1)
    unseen = Batch(None, {"image_features": features}, rows, rows)
    assert torch.equal(evaluation_inputs(unseen, lambda pictures: pictures + 1, HOST), features)
