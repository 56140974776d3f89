"""Drawing of procedural skin lesions, each once; `photography.py` takes the photographs.

A lesion's class lies in its structure alone: border, pattern of the pigment, vessels, dots. Pigment
colour, its mean density, skin, light, pose and framing are drawn from the same distributions for all
classes, so no mean colour gives the class away; an encoder has to look past the photography.
The names are those of dermatology because the patterns are borrowed from it; nothing here is a
medical image.
"""

from dataclasses import dataclass

import cv2
import numpy as np

CLASSES = ("nevus", "melanoma", "keratosis", "carcinoma", "vascular")

# Colours are linear-ish RGB, 0 to 1. Pigments are what the skin's colour is multiplied by.
PIGMENTS = np.array(
    [
        [0.50, 0.34, 0.25],
        [0.36, 0.24, 0.18],
        [0.60, 0.36, 0.34],
        [0.55, 0.25, 0.28],
        [0.42, 0.36, 0.36],
        [0.62, 0.48, 0.32],
    ],
    np.float32,
)
# Half the canvas in units of the lesion's mean radius.
EXTENT = 1.6


@dataclass(frozen=True)
class Lesion:
    """A lesion drawn flat: what it does to the colour of the skin at each place.

    `layers_HWC`: float32, three channels of factors on the skin's colour and one of coverage, 0 to 1.
    """

    layers_HWC: np.ndarray


def draw_lesion(kind: str, rng: np.random.Generator, size_px: int) -> Lesion:
    """Draw a lesion of a class on a square canvas of `size_px`."""
    size = max(64, size_px)
    axis = np.linspace(-EXTENT, EXTENT, size, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    coverage = _outline(kind, rng, x, y)
    density, veil, glow = _PATTERNS[kind](rng, x, y)

    # The same mean and spread of density for all classes.
    inside = coverage > 0.5
    density = density - density[inside].mean()
    density *= rng.uniform(0.20, 0.30) / max(float(density[inside].std()), 1e-6)
    density = np.clip(density + rng.uniform(0.45, 0.75), 0.04, 1.25)

    # Two pigments a lesion; where the second shows is the class's affair (the veil).
    first, second = PIGMENTS[rng.choice(len(PIGMENTS), 2, replace=False)]
    first, second = (np.clip(p * rng.uniform(0.8, 1.2, 3), 0.12, 0.8) for p in (first, second))
    pigment = first + np.clip(veil, 0, 1)[..., None] * (second - first)
    factors = 1 - density[..., None] * (1 - pigment)
    factors = np.clip(factors + np.clip(glow, 0, 1)[..., None] * (1.1 - factors), 0.05, 1.3)
    return Lesion(np.dstack([factors, coverage]).astype(np.float32))


def _outline(kind: str, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coverage, 0 to 1: a rounded outline whose waves and softness belong to the class."""
    waves = {"nevus": 0.05, "melanoma": 0.22, "keratosis": 0.09, "carcinoma": 0.14, "vascular": 0.09}[kind]
    soft = {"nevus": 0.16, "melanoma": 0.07, "keratosis": 0.04, "carcinoma": 0.24, "vascular": 0.09}[kind]
    angle = np.arctan2(y, x)
    orders = np.arange(2, 9)
    falls = orders ** (-0.7 if kind == "melanoma" else -1.3)
    heights = waves * falls * rng.normal(0, 1, orders.size) * 1.6
    phases = rng.uniform(0, 2 * np.pi, orders.size)
    radius = 1 + sum(h * np.cos(k * angle + p) for h, k, p in zip(heights, orders, phases))
    stretch = rng.uniform(1, 1.25)
    distance = np.hypot(x * stretch, y / stretch) / np.clip(radius, 0.45, 1.5)
    return 1 / (1 + np.exp((distance - 1) / (soft / 2.5)))


def _nevus(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """A regular honeycomb network that fades evenly to the border."""
    frequency = rng.uniform(9.5, 13)
    turn = rng.uniform(0, np.pi)
    bent_x, bent_y = x + 0.05 * noise(rng, x.shape[0], 4), y + 0.05 * noise(rng, x.shape[0], 4)
    network = sum(
        np.cos(frequency * (bent_x * np.cos(turn + k * np.pi / 3) + bent_y * np.sin(turn + k * np.pi / 3)))
        for k in range(3)
    )
    density = -0.5 * network - 0.5 * np.hypot(x, y)
    return density, np.zeros_like(x), np.zeros_like(x)


def _melanoma(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Asymmetric blotches of two colours, a pale regressed area, black dots at one edge."""
    size = x.shape[0]
    blotches = np.tanh(3 * (noise(rng, size, 5) + 0.2))
    side = rng.uniform(0, 2 * np.pi)
    slope = x * np.cos(side) + y * np.sin(side)
    veil = 1 / (1 + np.exp(-6 * (noise(rng, size, 4) + 0.4 * slope)))
    dots = _discs(rng, x, y, int(rng.integers(6, 13)), (0.05, 0.10), (0.55, 1.05), side)
    regress = 1 / (1 + np.exp(-8 * (noise(rng, size, 5) - 0.9)))
    density = 0.8 * blotches + 0.7 * slope + 2.2 * dots - 1.2 * regress
    return density, veil, 0.5 * regress


def _keratosis(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Brain-like ridges, white milia and dark openings."""
    size = x.shape[0]
    ridges = np.sin(rng.uniform(3.6, 4.8) * noise(rng, size, 6) + 2 * noise(rng, size, 3))
    milia = _discs(rng, x, y, int(rng.integers(6, 12)), (0.06, 0.11), (0, 0.85))
    openings = _discs(rng, x, y, int(rng.integers(4, 8)), (0.07, 0.13), (0, 0.8))
    return 0.8 * ridges + 1.6 * openings - 1.5 * milia, np.zeros_like(x), 0.9 * milia


def _carcinoma(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """A pale ground with branching vessels, large ovoid nests near the border and an ulcer."""
    size = x.shape[0]
    vessels = np.zeros(x.shape, np.float32)
    for _ in range(rng.integers(3, 6)):
        angle = rng.uniform(0, 2 * np.pi)
        start = 1.05 * np.array([np.cos(angle), np.sin(angle)])
        _branch(vessels, rng, start, angle + np.pi + rng.normal(0, 0.4), 0.055, 3)
    nests = _discs(rng, x, y, int(rng.integers(2, 5)), (0.16, 0.26), (0.6, 0.9))
    ulcer = _discs(rng, x, y, 1, (0.16, 0.26), (0.1, 0.4))
    density = 1.7 * vessels + 1.1 * nests + 1.2 * ulcer + 0.15 * noise(rng, size, 4)
    return density, np.clip(nests, 0, 1), np.zeros_like(x)


def _vascular(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Well separated lacunae, dense and round, with pale septa between."""
    number = rng.integers(11, 19)
    # Seeds that keep their distance: the best of several candidates, one after the other.
    seeds = [rng.uniform(-0.3, 0.3, 2)]
    for _ in range(number):
        candidates = rng.uniform(-1.15, 1.15, (12, 2))
        gaps = np.min([np.hypot(*(candidates - seed).T) for seed in seeds], axis=0)
        seeds.append(candidates[np.argmax(gaps)])
    distances = np.sort([np.hypot(x - sx, y - sy) for sx, sy in seeds], axis=0)
    lacunae = np.tanh(7 * (distances[1] - distances[0]) - 1.0)
    return lacunae - 0.6 * distances[0], np.zeros_like(x), 0.35 * (lacunae < -0.3)


_PATTERNS = {
    "nevus": _nevus,
    "melanoma": _melanoma,
    "keratosis": _keratosis,
    "carcinoma": _carcinoma,
    "vascular": _vascular,
}


def _discs(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    number: int,
    radii: tuple[float, float],
    ring: tuple[float, float],
    side: float | None = None,
) -> np.ndarray:
    """Soft round spots, 0 to 1, at distances within `ring`; around the direction `side` if given."""
    field = np.zeros_like(x)
    for _ in range(number):
        angle = rng.uniform(0, 2 * np.pi) if side is None else side + rng.normal(0, 0.8)
        distance, radius = rng.uniform(*ring), rng.uniform(*radii)
        away = np.hypot(x - distance * np.cos(angle), y - distance * np.sin(angle))
        field = np.maximum(field, 1 / (1 + np.exp((away - radius) / (0.25 * radius))))
    return field


def _branch(
    canvas: np.ndarray, rng: np.random.Generator, start: np.ndarray, angle: float, width: float, depth: int
) -> None:
    """Draw a winding vessel that forks and thins."""
    scale = canvas.shape[0] / (2 * EXTENT)
    points = [start]
    for _ in range(5):
        angle += rng.normal(0, 0.3)
        points.append(points[-1] + 0.13 * np.array([np.cos(angle), np.sin(angle)]))
    pixels = np.round((np.array(points) + EXTENT) * scale * 16).astype(np.int32)
    cv2.polylines(canvas, [pixels[:, None]], False, 1.0, max(1, round(width * scale)), cv2.LINE_AA, 4)
    if depth > 1:
        for turn in (-0.6, 0.6):
            _branch(
                canvas,
                rng,
                points[rng.integers(2, 6)],
                angle + turn * rng.uniform(0.7, 1.5),
                width * 0.75,
                depth - 1,
            )


def noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise with about `cells` hills a side, standard deviation about 1."""
    grid = rng.standard_normal((cells + 1, cells + 1), np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC) * 1.4
