"""Photographs of procedural lesions: pose, skin, hair, light and camera, drawn anew for each.

Everything here is the same for all classes: it is what an encoder has to learn to look past.
"""

import cv2
import numpy as np

from data.synthetic.lesions import EXTENT, Lesion, noise

SKINS = np.array(
    [[0.93, 0.77, 0.69], [0.88, 0.69, 0.57], [0.78, 0.58, 0.45], [0.62, 0.44, 0.33], [0.46, 0.31, 0.23]],
    np.float32,
)


def photograph(
    lesion: Lesion, skin: np.ndarray, hairiness: float, rng: np.random.Generator, size_px: int
) -> np.ndarray:
    """Photograph a lesion: uint8 RGB `(size_px, size_px, 3)` with this draw's pose, skin, light, camera."""
    size = size_px
    layers = cv2.warpAffine(
        lesion.layers_HWC,
        _pose(rng, lesion.layers_HWC.shape[0], size),
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(1, 1, 1, 0),
    )
    factors, coverage = layers[..., :3], layers[..., 3:]

    # Skin with its mottling and pores, the lesion on it, hairs over both.
    mottling = 0.05 * noise(rng, size, 3) + 0.03 * noise(rng, size, 9) + 0.025 * noise(rng, size, size // 3)
    red = np.array([0.4, 1.0, 1.0], np.float32)
    scene = skin * (1 + mottling[..., None] * red)
    scene *= 1 + coverage * (factors - 1)
    for _ in range(rng.poisson(hairiness)):
        _hair(scene, rng)
    if rng.random() < 0.35:
        _foreign_body(scene, rng)

    # Light: exposure, cast, a gradient across the field, highlights on moist skin.
    scene *= np.exp(rng.normal(0, 0.22) + rng.normal(0, 0.10, 3)).astype(np.float32)
    scene *= _gradient(rng, size)[..., None]
    for _ in range(rng.integers(0, 4)):
        _highlight(scene, rng)

    # Camera: saturation, gamma, focus, noise, sometimes the dark rim of a dermatoscope.
    grey = scene.mean(axis=2, keepdims=True)
    scene = grey + rng.uniform(0.55, 1.25) * (scene - grey)
    scene = np.clip(scene, 0, 1) ** rng.uniform(0.75, 1.35)
    blur = rng.uniform(0, 1.0) * size / 96
    if blur > 0.3:
        scene = cv2.GaussianBlur(scene, (0, 0), blur)
    if rng.random() < 0.2:
        scene *= _rim(rng, size)[..., None]
    scene = scene + rng.standard_normal(scene.shape, np.float32) * rng.uniform(0.005, 0.03)
    return (np.clip(scene, 0, 1) * 255 + 0.5).astype(np.uint8)


def draw_skin(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A patient's skin colour and its band of the Fitzpatrick scale."""
    tone = rng.uniform(0, len(SKINS) - 1)
    below = min(int(tone), len(SKINS) - 2)
    colour = SKINS[below] + (tone - below) * (SKINS[below + 1] - SKINS[below])
    return colour.astype(np.float32), ("I-II", "III-IV", "V-VI")[int(tone / (len(SKINS) - 1) * 2.999)]


def _pose(rng: np.random.Generator, canvas: int, size: int) -> np.ndarray:
    """Affine map from canvas to image: rotation, tilt, distance and framing of one photograph."""
    turn, axis = rng.uniform(0, 2 * np.pi, 2)
    tilt = rng.uniform(0.72, 1)
    radius_px = rng.uniform(0.24, 0.40) * size
    scale = radius_px / (canvas / 2 / EXTENT)
    squash = _rotation(axis) @ np.diag([1, tilt]) @ _rotation(-axis)
    matrix = scale * squash @ _rotation(turn)
    centre = size * (0.5 + rng.uniform(-0.14, 0.14, 2))
    return np.column_stack([matrix, centre - matrix @ np.full(2, (canvas - 1) / 2)]).astype(np.float32)


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _hair(scene: np.ndarray, rng: np.random.Generator) -> None:
    """One curved hair across the field."""
    size = scene.shape[0]
    ends = rng.uniform(-0.1, 1.1, (3, 2)) * size
    t = np.linspace(0, 1, 12)[:, None]
    curve = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] + t**2 * ends[2]
    tone = rng.uniform(0.08, 0.4)
    colour = (tone * 1.1, tone * 0.85, tone * 0.7)
    points = np.round(curve * 16).astype(np.int32)[:, None]
    cv2.polylines(scene, [points], False, colour, max(1, round(size / 110)), cv2.LINE_AA, 4)


def _foreign_body(scene: np.ndarray, rng: np.random.Generator) -> None:
    """What else lies in the field: cloth in a corner, a ruler, ink of a surgical pen."""
    size = scene.shape[0]
    choice = rng.integers(0, 3)
    if choice == 0:
        angle = rng.uniform(0, 2 * np.pi)
        ahead, beside = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        edge = size / 2 + ahead * size * rng.uniform(0.42, 0.55)
        corners = [edge + beside * size, edge - beside * size]
        corners += [corners[1] + ahead * size, corners[0] + ahead * size]
        cv2.fillConvexPoly(scene, np.round(corners).astype(np.int32), tuple(rng.uniform(0.1, 0.95, 3)), cv2.LINE_AA)
    elif choice == 1:
        y = round(size * (0.04 if rng.random() < 0.5 else 0.93))
        step = max(3, round(size / rng.uniform(12, 24)))
        for x in range(int(rng.integers(0, step)), size, step):
            cv2.line(scene, (x, y), (x, y + round(size * 0.05)), (0.15, 0.15, 0.2), 1)
    else:
        centre = rng.uniform(0.1, 0.9, 2) * size
        for _ in range(2):
            ends = np.round(centre + rng.uniform(-0.12, 0.12, (2, 2)) * size).astype(int)
            cv2.line(
                scene,
                tuple(map(int, ends[0])),
                tuple(map(int, ends[1])),
                (0.3, 0.2, 0.55),
                max(1, size // 48),
            )


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    """Light that falls off to one side."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.4)
    return 1 + strength * (np.cos(angle) * axis[None] + np.sin(angle) * axis[:, None])


def _highlight(scene: np.ndarray, rng: np.random.Generator) -> None:
    """A specular reflection."""
    size = scene.shape[0]
    axis = np.arange(size, dtype=np.float32)
    x, y = rng.uniform(0, size, 2)
    width = rng.uniform(0.012, 0.05) * size
    column = np.exp(-((axis - y) ** 2) / (2 * width**2))
    scene += rng.uniform(0.2, 0.7) * np.outer(column, np.exp(-((axis - x) ** 2) / (2 * width**2)))[..., None]


def _rim(rng: np.random.Generator, size: int) -> np.ndarray:
    """The dark surround of a contact dermatoscope."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    away = np.hypot(axis[None] - rng.uniform(-0.1, 0.1), axis[:, None] - rng.uniform(-0.1, 0.1))
    return 0.05 + 0.95 / (1 + np.exp((away - rng.uniform(1.0, 1.2)) / 0.02))
