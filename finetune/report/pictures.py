"""Evaluated images with what was said of them and what was true: mistakes by class, and where the model looked.

Shapes: N cases, K labels, C = 3 colours, H and W pixels.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from clusters.config import InputError
from data.dataset import Dataset
from data.images import decode_stored, encode_jpeg
from data.loader import centre_square, evaluation_batches
from data.page import LINE_BREAK, Html, Image, image_rows, image_strip, join, note, paragraph, tag
from finetune.report.evidence import Decisions, Evidence
from finetune.report.words import counted
from finetune.saliency import Saliency, saliency

PICTURE_PX, QUALITY = 160, 80
MAX_MISTAKES, MISTAKES_A_CLASS = 48, 6
MAX_LOOKED_AT, BATCH = 16, 8
GREY = np.full((8, 8, 3), 128, np.uint8)
GLOW = 0.75
"""How much of a picture the brightest field of a map covers."""


@dataclass(frozen=True)
class Pictures:
    """The dataset that was evaluated, and in which row of it the first image of each case stands, -1 for nowhere."""

    dataset: Dataset
    row_N: NDArray[np.int64]
    evidence: Evidence
    decided: Decisions
    exclusive: bool


def pictures_of(dataset: Dataset, evidence: Evidence, decided: Decisions, exclusive: bool) -> Pictures:
    """Find the images of the cases in the dataset; `exclusive`: a case has one of the classes."""
    names = np.char.add(np.char.add(dataset.column("key").astype(str), "/"), dataset.column("member").astype(str))
    wanted = np.char.add(np.char.add(evidence.key_N, "/"), evidence.member_N)
    order = np.argsort(names)
    place = np.searchsorted(names, wanted, sorter=order).clip(max=len(names) - 1)
    return Pictures(dataset, np.where(names[order[place]] == wanted, order[place], -1), evidence, decided, exclusive)


def mistakes(pictures: Pictures) -> Html:
    """The surest mistakes of each class: cases of it that were missed and, of yes-or-no labels, false alarms."""
    decided, groups = pictures.decided, []
    for c, kind in enumerate(decided.kinds):
        true, said, known = decided.true_NC[:, c], decided.decided_NC[:, c], decided.known_NC[:, c]
        missed, alarms = true & ~said, ~true & said & known
        of = counted(int(true.sum()), "case")
        groups.append(
            (f"{kind}: {int(missed.sum())} of {of} {'mistaken' if pictures.exclusive else 'missed'}", missed, c)
        )
        if not pictures.exclusive:
            negatives = counted(int((~true & known).sum()), "case")
            groups.append((f"{kind}: {int(alarms.sum())} false alarms in {negatives} without", alarms, c))
    most = max(2, min(MISTAKES_A_CLASS, MAX_MISTAKES // max(1, len(groups))))
    parts: list[Html] = []
    for title, wrong, c in groups:
        cases = np.flatnonzero(wrong)
        worst = cases[np.argsort(-decided.sure_NC[cases, c], kind="stable")][:most]
        parts.append(tag("h3", title))
        parts.append(image_strip(_picture(pictures, int(n), c) for n in worst) if len(worst) else paragraph("None."))
    told = "The surest mistakes of each class, the surest first: the first image of each case, decided on all of them."
    return join([paragraph(told), *parts])


def looked_at(pictures: Pictures, model: Any, size_px: int) -> Html | None:
    """Cases of each class beside where the model looked; None for a model that cannot be seen into.

    `model` takes RGB images in 0..1, (B, 3, H, W), and gives logits (B, K).
    """
    by_class = [found for found in _samples(pictures) if found]
    step = max(1, -(-sum(map(len, by_class)) // MAX_LOOKED_AT))
    chosen = [(n, c) for found in by_class[::step] for n, c in found if pictures.row_N[n] >= 0]
    of_each = f"Of {len(by_class[::step])} of the {len(by_class)} classes" if step > 1 else "Of each class"
    rows = pictures.row_N[[n for n, _ in chosen]]
    labels = torch.tensor([_said(pictures, n, c) for n, c in chosen])
    device = next(model.parameters()).device
    groups, found, start = [], None, 0
    for _, pixels_BCHW in evaluation_batches(pictures.dataset, rows, size_px, BATCH):
        count = len(pixels_BCHW)
        images = torch.as_tensor(pixels_BCHW).to(device).float() / 255
        found = saliency(model, images, labels[start : start + count])
        if found is None:
            return None
        for place in range(count):
            n, c = chosen[start + place]
            pixels = np.asarray(pixels_BCHW[place]).transpose(1, 2, 0)
            groups.append(_beside(pictures, n, c, pixels, found, place))
        start += count
    if found is None:
        return paragraph("No case to show.")
    return join([paragraph(_method(found, pictures.exclusive, of_each)), image_rows(groups), note(_caution(found))])


def overlaid(pixels_HWC: NDArray[np.uint8], map_HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A picture with a map over it: the brighter and yellower, the more; untouched where the map is 0."""
    side = pixels_HWC.shape[:2]
    fine_HW = cv2.resize(map_HW, (side[1], side[0]), interpolation=cv2.INTER_LINEAR).clip(0, 1)
    colours_HWC = cv2.applyColorMap((255 * fine_HW).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    weight_HW1 = GLOW * fine_HW[..., None]
    return ((1 - weight_HW1) * pixels_HWC + weight_HW1 * colours_HWC).round().astype(np.uint8)


def _samples(pictures: Pictures) -> list[list[tuple[int, int]]]:
    """Of each class its (case, class): one that was decided rightly, of middling sureness, and its surest mistake."""
    decided, by_class = pictures.decided, []
    for c in range(len(decided.kinds)):
        true, said, found = decided.true_NC[:, c], decided.decided_NC[:, c], []
        for cases in (np.flatnonzero(true & said), np.flatnonzero(true & ~said)):
            ordered = cases[np.argsort(-decided.sure_NC[cases, c], kind="stable")]
            if len(ordered):
                right = bool(said[ordered[0]])
                found.append((int(ordered[len(ordered) // 2 if right else 0]), c))
        by_class.append(found)
    return by_class


def _said(pictures: Pictures, case: int, label: int) -> int:
    """Which label's evidence is looked for: the class that was decided or, of yes-or-no labels, the label itself."""
    return int(pictures.decided.decided_NC[case].argmax()) if pictures.exclusive else label


def _beside(
    pictures: Pictures, case: int, label: int, pixels_HWC: NDArray[np.uint8], found: Saliency, place: int
) -> tuple[list[Image], Html]:
    large = np.asarray(cv2.resize(pixels_HWC, (PICTURE_PX, PICTURE_PX), interpolation=cv2.INTER_CUBIC), np.uint8)
    what = pictures.decided.kinds[_said(pictures, case, label)] if found.of_class else "the image"
    truth = _truth(pictures, case)
    shown = [
        Image(encode_jpeg(large, quality=QUALITY), "", alt=f"a case of {truth}, as the model saw it"),
        Image(
            encode_jpeg(overlaid(large, found.maps_BHW[place]), quality=QUALITY), "", alt=f"where it looked for {what}"
        ),
    ]
    right = pictures.decided.true_NC[case, label] == pictures.decided.decided_NC[case, label]
    spoke = bool(found.maps_BHW[place].any())
    looked = (
        (f"looked for {what}" if spoke else f"nothing here spoke for {what}") if found.of_class else "its attention"
    )
    caption = [tag("b", truth), f", {'right' if right else 'mistaken'}", LINE_BREAK, _scores(pictures, case),
               LINE_BREAK, looked]  # fmt: skip
    return shown, join(caption)


def _picture(pictures: Pictures, case: int, label: int) -> Image:
    truth = _truth(pictures, case)
    said = pictures.decided.decided_NC[case]
    decided = ", ".join(k for k, yes in zip(pictures.decided.kinds, said) if yes) or "none"
    caption = join([tag("b", truth), LINE_BREAK, f"said {decided}", LINE_BREAK, _scores(pictures, case, label)])
    row, alt = int(pictures.row_N[case]), f"a case of {truth}, mistaken for {decided}"
    if row < 0:
        return Image(encode_jpeg(GREY), "this image is not in the dataset", "bad", "no image")
    try:
        pixels = centre_square(decode_stored(pictures.dataset.read(row)), PICTURE_PX)
    except InputError as error:
        return Image(encode_jpeg(GREY), str(error), "bad", "no image")
    return Image(encode_jpeg(pixels, quality=QUALITY), caption, "bad", alt)


def _truth(pictures: Pictures, case: int) -> str:
    kinds, true = pictures.decided.kinds, pictures.decided.true_NC[case]
    return ", ".join(kind for kind, yes in zip(kinds, true) if yes) or f"no {kinds[0] if len(kinds) == 1 else 'label'}"


def _scores(pictures: Pictures, case: int, label: int = -1) -> str:
    """The likeliest labels; that which is spoken of stands first where classes do not exclude each other."""
    scores_K = next(iter(pictures.evidence.scores.values()))[case]
    order = [int(k) for k in np.argsort(-scores_K, kind="stable")[:3]]
    if label >= 0 and not pictures.exclusive:
        order = [label, *(k for k in order if k != label)][:3]
    return ", ".join(f"{pictures.evidence.labels[k]} {100 * scores_K[k]:.0f} %" for k in order)


def _method(found: Saliency, exclusive: bool, of_each: str) -> str:
    fields = "{} × {} fields".format(*found.maps_BHW.shape[1:])
    if found.of_class:
        spoken_for = "the class that was decided" if exclusive else "the label named below it, whatever was decided"
        return (
            f"Grad-CAM (Selvaraju et al., 2017) of {found.layer}, {fields}: bright where the image speaks for "
            f"{spoken_for}. {of_each} a case decided rightly and the surest mistake."
        )
    return (
        f"Attention rollout (Abnar & Zuidema, 2020) over {found.layer}, {fields}: bright where what the head reads "
        f"came from, whatever the class. {of_each} a case decided rightly and the surest mistake."
    )


def _caution(found: Saliency) -> str:
    coarse = found.maps_BHW.shape[1] < 7
    told = "A map shows where a model looked, not why, and a plausible map is no proof of a right reason."
    return told + (" These maps are coarse, the images being small." if coarse else "")
