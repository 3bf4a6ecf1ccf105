"""The samplers by name: which samples make up an epoch. To add one: a file here, a line in the table, a row in docs."""

from collections.abc import Callable

import numpy as np

from trainer.samplers.class_balanced import class_balanced
from trainer.samplers.mix import mix
from trainer.samplers.topical import topical
from trainer.samplers.uniform import uniform

SAMPLERS: dict[str, Callable[..., np.ndarray]] = {
    "uniform": uniform,
    "class_balanced": class_balanced,
    "topical": topical,
    "mix": mix,
}
