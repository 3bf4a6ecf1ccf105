"""Draws a scene as a photo would show it: paper cut-outs with soft shadows on a lit, grainy table top.

Shapes are signed distances in pixels (negative inside), so edges are smooth without drawing larger and shadows cost
one more look at the same distance. Formulas after Inigo Quilez, https://iquilezles.org/articles/distfunctions2d.
"""

import math
from collections.abc import Callable

import numpy as np

from shard_builder.readers.scenes_content import Scene, SceneObject

PAINT = {
    "red": (206, 32, 41),
    "orange": (246, 128, 18),
    "yellow": (250, 214, 30),
    "green": (34, 146, 60),
    "blue": (28, 92, 214),
    "purple": (118, 46, 168),
    "pink": (250, 132, 186),
    "black": (28, 28, 32),
}
# Pale and greyish, so that no table is mistaken for a colour that captions name: (near, far) from the light.
TABLES = (
    ((240, 234, 224), (196, 186, 172)),  # linen
    ((226, 231, 236), (176, 184, 192)),  # slate
    ((232, 234, 222), (184, 190, 172)),  # sage
    ((238, 228, 230), (192, 180, 184)),  # rose ash
    ((226, 222, 214), (170, 162, 152)),  # stone
    ((222, 232, 232), (170, 186, 188)),  # mist
)
_WHITE = np.array((250, 248, 242), np.float32)


def draw_scene(scene: Scene, size: int, random: np.random.Generator) -> np.ndarray:
    """The picture, `(size, size, 3)` uint8."""
    light = random.uniform(0.15, 0.85), random.uniform(-0.1, 0.35)  # a lamp near the upper edge
    canvas = _table(size, light, random)
    for item in scene.objects:
        _paint(canvas, item, light, random)
    grain = random.standard_normal((size, size, 1), dtype=np.float32)
    grain *= np.float32(random.uniform(1.5, 4.0))
    canvas += grain
    np.clip(canvas, 0, 255, out=canvas)
    return canvas.astype(np.uint8)


def _table(size: int, light: tuple[float, float], random: np.random.Generator) -> np.ndarray:
    near, far = np.array(TABLES[int(random.integers(len(TABLES)))], np.float32)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    away = np.sqrt((axis[None, :] - light[0]) ** 2 + (axis[:, None] - light[1]) ** 2)
    away *= np.float32(0.85)
    np.clip(away, 0, 1, out=away)
    # Wide bands of grain run one way, as in wood or linen.
    waves = np.float32(random.uniform(0.006, 0.018)) * np.sin(
        axis * np.float32(random.uniform(40, 140)) + np.float32(random.uniform(0, 6.28))
    )
    away += waves[:, None] if random.random() < 0.5 else waves[None, :]
    return near + (far - near) * away[:, :, None]


def _paint(canvas: np.ndarray, item: SceneObject, light: tuple[float, float], random: np.random.Generator) -> None:
    size = len(canvas)
    radius = item.radius * size
    center_x, center_y = item.x * size, item.y * size
    # The shadow falls away from the lamp, further where the paper curls more.
    away_x, away_y = item.x - light[0], item.y - light[1]
    reach = radius * random.uniform(0.10, 0.18) / math.hypot(away_x, away_y)
    shadow_x, shadow_y = away_x * reach, away_y * reach
    softness = radius * np.float32(random.uniform(0.16, 0.28))

    margin = radius * 1.12 + math.hypot(shadow_x, shadow_y) + softness + 2
    left, right = max(0, int(center_x - margin)), min(size, int(center_x + margin) + 1)
    top, bottom = max(0, int(center_y - margin)), min(size, int(center_y + margin) + 1)
    x = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - center_x)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - center_y)
    patch = canvas[top:bottom, left:right]

    u, v = _turn(x - shadow_x, y - shadow_y, item.angle)
    shade = np.clip(0.5 - _SHAPES[item.shape](u, v, radius) / (2 * softness), 0, 1)
    shade *= shade * np.float32(0.42)
    patch *= 1 - shade[:, :, None]

    u, v = _turn(x, y, item.angle)
    distance = _SHAPES[item.shape](u, v, radius)
    # A rim in the object's own colour keeps the outline whole where the pattern is white.
    inside = np.clip(-distance - np.float32(max(1.2, radius * 0.07)), 0, 1)
    color = np.array(PAINT[item.color], np.float32)
    white = inside * _white_share(item.texture, u, v, radius)
    paint = color + white[:, :, None] * (_WHITE - color)
    # Lit from the lamp's side, a thin bright edge: the paper has thickness.
    slope = (x * np.float32(away_x) + y * np.float32(away_y)) / np.float32(radius * math.hypot(away_x, away_y))
    glow = 1 - np.float32(0.10) * slope - np.float32(0.10) * np.clip(1 + distance / 2.5, 0, 1) * np.sign(slope)
    paint *= glow[:, :, None]
    cover = np.clip(0.5 - distance, 0, 1)[:, :, None]
    patch += cover * (paint - patch)


def _white_share(texture: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Share of white in each pixel, `(h, w)`: stripes, dots or checks; `u`, `v` turn with the object."""
    pitch = np.float32(max(radius * 0.44, 5.0))  # one stripe and its gap
    if texture == "solid":
        return np.zeros_like(u)
    if texture == "striped":
        return _edge(np.sin((u + v * np.float32(0.55)) * np.float32(2 * math.pi) / pitch) * pitch / 6)
    if texture == "dotted":
        row = np.floor(v / pitch)
        column = u / pitch + np.float32(0.5) * row  # every other row is shifted by half a dot
        away = np.hypot(column - np.floor(column) - np.float32(0.5), v / pitch - row - np.float32(0.5))
        return _edge((np.float32(0.29) - away) * pitch)
    wave = np.float32(math.pi) / (pitch * np.float32(0.75))
    return _edge(np.sin(u * wave) * np.sin(v * wave) * pitch / 4)


def _edge(distance: np.ndarray) -> np.ndarray:
    return np.clip(distance + np.float32(0.5), 0, 1)


def _turn(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _circle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.hypot(x, y) - np.float32(radius * 0.96)


def _square(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    half, corner = np.float32(radius * 0.84), np.float32(radius * 0.06)
    qx, qy = np.abs(x) - half + corner, np.abs(y) - half + corner
    return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - corner


def _triangle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Equilateral, point up; the largest of the distances to its three sides."""
    y = y - np.float32(radius * 0.18)
    inner = np.float32(radius * 0.56)
    return np.maximum(np.abs(x) * np.float32(math.sqrt(0.75)) - y * np.float32(0.5), y) - inner


def _star(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Five-pointed, point up: folded into one tenth of the circle, where its edge is one straight line."""
    sector = np.float32(math.pi / 5)
    angle = np.arctan2(x, -y)
    folded = np.abs(angle - 2 * sector * np.round(angle / (2 * sector)))
    length = np.hypot(x, y)
    px, py = length * np.sin(folded), length * np.cos(folded)
    outer, inner = radius * 1.08, radius * 0.50
    tip = (0.0, outer)
    notch = (inner * math.sin(math.pi / 5), inner * math.cos(math.pi / 5))
    edge_x, edge_y = notch[0] - tip[0], notch[1] - tip[1]
    norm = math.hypot(edge_x, edge_y)
    normal_x, normal_y = np.float32(-edge_y / norm), np.float32(edge_x / norm)
    return px * normal_x + (py - np.float32(outer)) * normal_y


def _heart(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Quilez' sdHeart, scaled: unit heart is 1.2 wide, its point at the origin."""
    scale = np.float32(1 / (radius * 1.60))
    px, py = np.abs(x) * scale, (np.float32(radius * 0.92) - y) * scale
    lobe = np.hypot(px - np.float32(0.25), py - np.float32(0.75)) - np.float32(math.sqrt(2) / 4)
    fold = np.float32(0.5) * np.maximum(px + py, 0)
    body = np.sqrt(np.minimum(px**2 + (py - 1) ** 2, (px - fold) ** 2 + (py - fold) ** 2)) * np.sign(px - py)
    return np.where(px + py > 1, lobe, body) / scale


def _crescent(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """A disc with a bite from the right."""
    disc = np.hypot(x, y) - np.float32(radius * 0.98)
    bite = np.hypot(x - np.float32(radius * 0.54), y + np.float32(radius * 0.12)) - np.float32(radius * 0.72)
    return np.maximum(disc, -bite)


_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "crescent": _crescent,
}
