"""What is in a drawn scene: one or two coloured shapes, their sizes, textures and places; drawn from a seed."""

from dataclasses import dataclass

import numpy as np

from core.seeding import derive_seed

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SHAPES = ("circle", "square", "triangle", "star", "heart", "crescent")
TEXTURES = ("solid", "striped", "dotted", "checkered")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
PLACES = ("center", "upper left", "upper right", "lower left", "lower right")

_SHARE_OF_PAIRS = 0.8  # single objects have far fewer contents: more of them would make look-alike scenes
_SHARE_OF_SOLID = 0.4
_RADIUS = {"small": 0.125, "large": 0.195}  # share of the picture's side
_CORNER = 0.24  # distance of a corner place from the picture's centre, per axis
_STEP = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


@dataclass(frozen=True)
class SceneObject:
    """One shape; lengths are shares of the picture's side, x to the right, y down."""

    color: str
    shape: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    angle: float  # radians; small, so that a square stays a square


@dataclass(frozen=True)
class Scene:
    """One object at a place, or a first object in a relation to a second."""

    objects: tuple[SceneObject, ...]
    relation: str | None  # of the first object to the second
    place: str | None  # of a single object


def scene_generator(seed: int, split: str, number: int) -> np.random.Generator:
    """The random numbers of one scene: its content first, then the picture's light and noise."""
    return np.random.Generator(np.random.Philox(key=derive_seed("scene", seed, split, number)))


def draw_content(random: np.random.Generator) -> Scene:
    """A scene; the two objects of a pair differ in colour or shape, so that words can tell them apart."""
    if random.random() >= _SHARE_OF_PAIRS:
        place = _pick(random, PLACES)
        x, y = _place_center(place)
        return Scene((_object(random, x, y),), relation=None, place=place)
    relation = _pick(random, RELATIONS)
    half = random.uniform(0.22, 0.245)  # half the distance: two large objects keep apart and inside
    step_x, step_y = _STEP[relation]
    # Across the relation the pair lies almost level: "left of" is never also "above".
    along, across = random.uniform(-0.03, 0.03), random.uniform(-0.12, 0.12)
    x, y = 0.5 + (along if step_x else across), 0.5 + (along if step_y else across)
    first = _object(random, x + half * step_x, y + half * step_y)
    second = _object(random, x - half * step_x, y - half * step_y)
    while (second.color, second.shape) == (first.color, first.shape):
        second = _object(random, second.x, second.y)
    return Scene((first, second), relation=relation, place=None)


def _object(random: np.random.Generator, x: float, y: float) -> SceneObject:
    size = _pick(random, SIZES)
    solid = random.random() < _SHARE_OF_SOLID
    return SceneObject(
        color=_pick(random, COLORS),
        shape=_pick(random, SHAPES),
        texture="solid" if solid else _pick(random, TEXTURES[1:]),
        size=size,
        x=x + random.uniform(-0.012, 0.012),
        y=y + random.uniform(-0.012, 0.012),
        radius=_RADIUS[size] * random.uniform(0.95, 1.05),
        angle=random.uniform(-0.2, 0.2),
    )


def _place_center(place: str) -> tuple[float, float]:
    x = 0.5 + _CORNER * (("right" in place) - ("left" in place))
    y = 0.5 + _CORNER * (("lower" in place) - ("upper" in place))
    return x, y


def _pick(random: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(random.integers(len(options)))]
