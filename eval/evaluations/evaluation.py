"""What an evaluation is, and what it is given: who adds one reads this file and nothing else. Free of torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from core.errors import ConfigError
from eval.metrics import FeatureSet, Interval, Ranks
from trainer.models.config import BareTower

if TYPE_CHECKING:
    from torch import Tensor

    from eval.labels import Labels
    from eval.report.drawing.style import Figure, Theme

Need = Literal["text", "labels", "prompts", "words", "pictures", "weights", "shelf"]
EmbedTexts = Callable[[Sequence[str]], np.ndarray]  # texts -> (n, D), unit length
OtherWeights = str | BareTower  # `UNTRAINED`, a run folder or a checkpoint; or a tower by itself
UNTRAINED = "untrained"  # the weights that a run began with
# (B, 3, S, S) uint8 pictures as they are stored, and (B,) which samples they are -> the same, changed
ChangePictures = Callable[["Tensor", np.ndarray], "Tensor"]


class Shelf(Protocol):
    """Samples of a set, for people."""

    def picture(self, sample: int) -> str:
        """Path of the sample's thumbnail, below the folder of pictures."""

    def key(self, sample: int) -> str:
        """The sample's name within its shards."""

    def text(self, caption: Mapping[str, int]) -> str:
        """The caption at `{"sample": ..., "place": ...}`."""

    def sheet(self, samples: Sequence[int], side: int, columns: int) -> str:
        """Path of one picture that holds the thumbnails of all these samples, likewise."""

    def image_id(self, sample: int) -> str:
        """What the data set calls the sample's image; "" where nothing is said."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Pictures among which others look for their neighbours.

    Attributes:
        images: `(G, D)`, unit length.
        labels: `(G,)` classes, numbered as the subject's.
        samples: `(G,)` numbers in their shard set, to show them by.
        shelf: shows them; None while training.
    """

    images: np.ndarray
    labels: np.ndarray
    samples: np.ndarray
    shelf: Shelf | None = None


@dataclass(frozen=True, eq=False)
class Prompts:
    """What the names of classes say, in the space of the pictures.

    Attributes:
        features: `(K, D)`, unit length, of each class.
        labels: `(N,)` which of them each of the subject's pictures has, -1 for none.
    """

    features: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a set before its features are.

    Attributes:
        num_images: its pictures, each once.
        labels: `(N,)` class of each, -1 where it has none; None where classes are not known.
        classes: their names, where labels are known.
        gallery_labels: `(G,)` of the gallery's pictures; None: the set is its own gallery.
        num_groups: images that captions are of, or classes that they were made from; None where captions play no part.
        samples: `(N,)` which sample of the set each picture is.
        captions: gives `(T, 2)` sample and place of each, which may take a while; None where these play no part.
        shelf: shows samples of the set; None while training.
    """

    num_images: int
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    gallery_labels: np.ndarray | None = None
    num_groups: int | None = None
    samples: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    captions: Callable[[], np.ndarray] | None = None
    shelf: Shelf | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """What is known of a set that is measured; every rank has the same.

    Attributes:
        images: `(N, D)` float32 features of its pictures, unit length, each picture once.
        samples: `(N,)` which sample of the set each is.
        labels: `(N,)` class of each, -1 where it has none; None where classes are not known.
        classes: their names, where labels are known.
        pairs: pictures and captions; None where captions play no part.
        captions: `(T, 2)` sample and place of each text of the pairs.
        ranks: of the right answers among all pictures and captions of the set; given wherever `pairs` are.
        logit_scale: 1 / temperature that the model learned; 1 where it learned none.
        gallery: pictures of the training set; None: the set is its own gallery, each picture left out of its own.
        prompts: None where no text can be compared, or classes are not known.
        words: embeds free text; None where no text can be compared, or its encoder is not here.
        encode: `(N, D)` features of the pictures changed in some way (collective); None where features are stored.
        shelf: shows samples of the set; None while training.
        topics: reads the topics of all samples of the set, which may have none; None where there are no shards.
        by_weights: the same set by other weights (collective); None while training.
        device: where large products are computed.
        say: puts a line on the console, where there is one; of long work, what is ahead.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    pairs: FeatureSet | None = None
    ranks: Ranks | None = None
    gallery: Gallery | None = None
    prompts: Prompts | None = None
    samples: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    classes: tuple[str, ...] = ()
    captions: np.ndarray | None = None
    logit_scale: float = 1.0
    words: EmbedTexts | None = None
    encode: Callable[[ChangePictures], np.ndarray] | None = None
    shelf: Shelf | None = None
    topics: Callable[[], Labels | None] | None = None
    by_weights: Callable[[OtherWeights], Subject] | None = None
    device: str = "cpu"
    say: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        assert (self.pairs is None) == (self.ranks is None), "pairs and their ranks are given together"

    @property
    def known(self) -> Known:
        """What was known before the features were."""
        captions = self.captions
        return Known(
            len(self.images),
            labels=self.labels,
            classes=self.classes,
            gallery_labels=self.gallery.labels if self.gallery else None,
            num_groups=len(np.unique(self.pairs.text_groups)) if self.pairs else None,
            samples=self.samples,
            captions=None if captions is None else lambda: captions,
            shelf=self.shelf,
        )

    @property
    def knows(self) -> tuple[Need, ...]:
        """What evaluations may ask for."""
        known: dict[Need, object] = {
            "text": self.pairs,
            "labels": self.labels,
            "prompts": self.prompts,
            "words": self.words,
            "pictures": self.encode,
            "weights": self.by_weights,
            "shelf": self.shelf,
        }
        return tuple(need for need, value in known.items() if value is not None)


@dataclass(frozen=True)
class Measured:
    """What an evaluation found, the same on every rank.

    Attributes:
        figures: by name, without the section `val/`: for trackers, `results.json` and `best_by`.
        intervals: 95 % intervals of some of the figures, by the same names.
        shown: what its section of the report and its charts are made of, as JSON values.
        files: JSON values for files of their own, by name (`same_class.json`).
        of_each: `(N,)` or `(T,)` numbers of the pictures or captions that were measured, whose mean is the figure of
            this name: what two runs are compared by, query by query.
    """

    figures: Mapping[str, float]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    shown: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)
    of_each: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of a report; numbers as they are to be read.

    Attributes:
        head: of each column; all but the first hold numbers and stand to the right.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


@dataclass(frozen=True)
class Section:
    """What stands below an evaluation's title in the report, beside its charts.

    Attributes:
        lead: what was measured on what, and how to read it.
        values: large numbers at the top, each with what it is.
        examples: `{"title": ..., "answers": [{"picture": ..., "score": ..., "is_right": ...}]}`: rows of thumbnails.
        html: what none of these can say, such as a map to move over; its text is escaped already.
        pictures: places of those that `html` draws from, below the folder of pictures: `<img hidden data-picture=...>`.
    """

    lead: str
    values: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    examples: Sequence[Mapping[str, Any]] = ()
    html: str = ""
    pictures: Sequence[str] = ()


@dataclass(frozen=True)
class Evaluation(ABC):
    """A measurement that validation may follow and `shardclip eval` repeats: its options are its fields.

    A subclass gives `figures` and `measure`; with a title it has a section in the report.

    Attributes:
        every: while training, at every so many validations.
    """

    every: int = field(default=1, kw_only=True)

    # Facts, not options.
    needs: ClassVar[tuple[Need, ...]] = ()  # where one of these is not known, it cannot be measured
    title: ClassVar[str] = ""  # of its section in the report; "": it has none of this kind

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"every is {self.every}: give 1 for every validation, 2 for every second one.")

    @abstractmethod
    def figures(self) -> tuple[str, ...]:
        """Names of its figures, without the section `val/`; these may depend on its options alone."""

    @abstractmethod
    def measure(self, subject: Subject) -> Measured:
        """Collective: every rank calls it with the same subject. `eval.spread` deals work out over the ranks."""

    def expect(self, known: Known) -> None:  # noqa: B027  (most can measure any set)
        """Raise what will keep it from measuring such a set: asked before anything is computed, and by `measure`.

        Raises:
            DataError: there are too few pictures, classes or captions; in one sentence.
        """

    def other_weights(self) -> tuple[OtherWeights, ...]:
        """What it will ask `Subject.by_weights` for, so that it is looked for before anything is computed."""
        return ()

    @staticmethod
    def section(part: Mapping[str, Any]) -> Section:
        """Its words and tables in the report, from what `results.json` holds of it: `shown`, figures, intervals."""
        return Section("")

    @staticmethod
    def charts(part: Mapping[str, Any], folder: Path, theme: Theme) -> dict[str, Figure]:
        """Its charts by name, from the same; `folder` holds the thumbnails."""
        return {}
