"""What is published as JSON can be read by every program: no number in it is NaN or infinite."""

import json
import math

import numpy as np
import pytest

from core.errors import DataError
from eval.evaluations.evaluation import Measured
from eval.report.measured import FILES, as_json, files_of, keep_files


@pytest.mark.parametrize("number", [math.nan, -math.inf, np.float64("nan")])
def test_a_number_that_is_not_finite_is_named_and_nothing_is_written(tmp_path, number):
    found = {"figures": {"knn/accuracy": 0.5}, "parts": [{"cosine": 1.0}, {"cosine": number}]}
    with pytest.raises(DataError, match=rf"parts > 1 > cosine is {number}: a figure must be finite"):
        keep_files(files_of({"mine": Measured({}, files={"mine.json": found})}), tmp_path)
    assert not (tmp_path / FILES / "mine.json").exists()
    found["parts"][1]["cosine"] = 0.25
    assert json.loads(as_json(found)) == found
