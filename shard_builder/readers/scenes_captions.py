"""Five English captions for a drawn scene: different wordings, all of them true of the picture."""

import numpy as np

from shard_builder.readers.scenes_content import Scene, SceneObject

CAPTIONS_PER_SCENE = 5

_SHAPE_WORDS = {
    "circle": ("circle", "circle", "disc", "round shape"),
    "square": ("square", "square", "square tile"),
    "triangle": ("triangle", "triangle", "three-sided shape"),
    "star": ("star", "star", "five-pointed star"),
    "heart": ("heart", "heart", "heart shape"),
    "crescent": ("crescent", "crescent moon", "moon"),
}
_TEXTURE_WORDS = {
    "solid": ("", "", "plain", "solid"),
    "striped": ("striped", "striped", "stripy"),
    "dotted": ("dotted", "spotted", "polka-dot"),
    "checkered": ("checkered", "checkered", "chequered"),
}
_TEXTURE_ENDINGS = {
    "striped": "with white stripes",
    "dotted": "with white dots",
    "checkered": "with a checkered pattern",
}
_SIZE_WORDS = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}
_COLOR_WORDS = {"red": ("red", "red", "bright red"), "purple": ("purple", "purple", "violet")}

_RELATION_WORDS = {
    "left of": ("to the left of", "left of", "on the left side of"),
    "right of": ("to the right of", "right of", "on the right side of"),
    "above": ("above", "above", "higher up than"),
    "below": ("below", "beneath", "lower down than"),
}
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_SIDES = {
    "left of": ("on the left", "on the right"),
    "right of": ("on the right", "on the left"),
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
}
_PAIR_SENTENCES = (
    "{a} is {a_rel_b} {b}",
    "{b} is {b_rel_a} {a}",
    "{a} {a_rel_b} {b}",
    "there is {a} {a_side} and {b} {b_side}",
    "{b} {b_side}, {a} {a_side}",
    "a photo of {a} {a_rel_b} {b}",
    "two paper cut-outs: {b} {b_rel_a} {a}",
    "{a} can be seen {a_rel_b} {b}",
    "a picture with {b} {b_side} and {a} {a_side}",
)

_PLACE_WORDS = {
    "center": ("in the middle", "in the center", "at the center of the picture"),
    "upper left": ("in the upper left corner", "at the top left", "towards the upper left"),
    "upper right": ("in the upper right corner", "at the top right", "towards the upper right"),
    "lower left": ("in the lower left corner", "at the bottom left", "towards the lower left"),
    "lower right": ("in the lower right corner", "at the bottom right", "towards the lower right"),
}
_SINGLE_SENTENCES = (
    "{a} {place}",
    "there is {a} {place}",
    "a photo of {a} alone, {place}",
    "a single paper cut-out: {a} {place}",
    "only {a} lies on the table, {place}",
    "nothing but {a} {place}",
    "{place} one can see {a}",
)


def captions_of(scene: Scene, random: np.random.Generator) -> tuple[str, ...]:
    """`CAPTIONS_PER_SCENE` different sentences; each names every object's colour, shape and where it lies."""
    templates = _SINGLE_SENTENCES if scene.relation is None else _PAIR_SENTENCES
    chosen = random.permutation(len(templates))[:CAPTIONS_PER_SCENE]
    # The first caption stands alone in the shard's .txt, so it says all there is to say.
    return tuple(_sentence(templates[i], scene, random, complete=n == 0) for n, i in enumerate(chosen))


def _sentence(template: str, scene: Scene, random: np.random.Generator, complete: bool) -> str:
    named = [_name(item, random, complete) for item in scene.objects]
    if scene.relation is None:
        assert scene.place is not None
        text = template.format(a=named[0], place=_pick(random, _PLACE_WORDS[scene.place]))
    else:
        a_side, b_side = _SIDES[scene.relation]
        text = template.format(
            a=named[0],
            b=named[1],
            a_rel_b=_pick(random, _RELATION_WORDS[scene.relation]),
            b_rel_a=_pick(random, _RELATION_WORDS[_OPPOSITE[scene.relation]]),
            a_side=a_side,
            b_side=b_side,
        )
    return text[0].upper() + text[1:] + "."


def _name(item: SceneObject, random: np.random.Generator, complete: bool) -> str:
    """Such as "a small striped red star" or "a red star with white stripes"."""
    says_size = complete or random.random() < 0.7
    texture_at_end = item.texture != "solid" and random.random() < 0.25
    words = [
        _pick(random, _SIZE_WORDS[item.size]) if says_size else "",
        "" if texture_at_end else _pick(random, _TEXTURE_WORDS[item.texture]),
        _pick(random, _COLOR_WORDS.get(item.color, (item.color,))),
        _pick(random, _SHAPE_WORDS[item.shape]),
        _TEXTURE_ENDINGS[item.texture] if texture_at_end else "",
    ]
    phrase = " ".join(word for word in words if word)
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"


def _pick(random: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(random.integers(len(options)))]
