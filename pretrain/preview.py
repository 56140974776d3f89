"""One page on which a person sees what the encoder will see: sampled pairs of a recipe's first step, with their views.

The pairs come from the training stream itself (`ViewBatches`, positions of step 0) and are finished by the function
that finishes them in training, then brought back to colours.
Shapes: V views, H and W pixels, K record columns.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from clusters import distributed
from clusters.config import InputError
from clusters.storage import Folder
from data.combined import AnyDataset, open_datasets, order_of, parts_of
from data.images import decode_stored, encode_jpeg
from data.look.dataset_page import page_path
from data.page import (
    LINE_BREAK,
    Content,
    Html,
    Image,
    Section,
    folded,
    image_rows,
    join,
    page,
    pairs,
    paragraph,
    tag,
    text,
)
from pretrain.batches import Batch, ViewBatches, finished_views
from pretrain.config import PretrainConfig
from pretrain.leakage import pretraining_rows
from pretrain.methods import METHODS
from pretrain.stage import Rows, Samples
from pretrain.views import BOX, COLUMNS, ORDERS, ViewConfig

Pixels = NDArray[np.uint8]
SIDE_PX, QUALITY = 192, 88
NAMES = ("first view", "second view", "third view", "fourth view")
OUTLINES = ((64, 200, 210), (245, 160, 50), (180, 140, 245), (130, 200, 80))
"""Colours of the crops' boxes, one a view."""


class PreviewConfig(PretrainConfig):
    """A recipe to look at before it is run."""

    run: str = Field(default="", description="not needed: nothing is trained")
    out: str = Field(default="preview.html", description="the page, a local .html file")
    num_cases: int = Field(default=8, ge=1, le=100, description="samples shown of each stage")


def preview(config: PreviewConfig) -> str:
    """Write the page; returns where it lies. Raises InputError for what the stages' methods cannot learn from."""
    target = page_path(config.out)
    if "test" in config.splits:
        raise InputError("splits: the test split is never pretrained on; take it out of splits")
    # Read in ranges: of a remote dataset a few images are wanted, not its shards
    place = config.loader.model_copy(update={"cache_gb": 0}).place
    dataset = open_datasets(config.locations, config.weights, place)
    rows = pretraining_rows(dataset, config)
    sections = [_stage(config, number, dataset, rows) for number in range(len(config.stages))]
    names = " and ".join(part.manifest.name for part in parts_of(dataset))
    lead = (
        "What the encoder will see: pairs of step 0 as the training stream forms them, seed "
        f"{config.seed}. Left the stored images with the box of each crop, right the finished views as the network "
        "gets them, without the normalisation."
    )
    Folder(target.parent).write(target.name, page(f"{names}: views of the recipe", sections, lead).encode())
    return str(target)


def _stage(config: PreviewConfig, number: int, dataset: AnyDataset, rows: Rows) -> Section:
    """The samples of one stage that are shown."""
    stage, views = config.stages[number], config.stage_views(number)
    method = METHODS[stage.method]
    samples = method.samples(dataset, rows)
    where = config.augment if config.augment != "auto" else _where()
    # A batch of one sample: step p of it is position p of the stream
    pair = method.pairing(stage, dataset, samples)  # type: ignore[arg-type]
    batch_at = ViewBatches(
        dataset, samples, pair, views, config.seed, number, 1, 0, 1, augment=where == "loader"
    )  # fmt: skip
    order = order_of(dataset, samples.shard_sizes, config.seed)
    first_step = order.at(np.arange(min(stage.batch_size, len(samples)), dtype=np.int64))
    shown = _shown(samples, first_step, config.num_cases)
    several = ", those with several images first" if samples.num_multiple else ""
    finished = "in the loader, in 8 bits" if where == "loader" else "on the device, in floats"
    parts: list[Content] = [
        paragraph(
            f"A pair is {type(stage).model_fields['method'].description}. Shown are {len(shown)} of the "
            f"{len(first_step):,} samples of the first step{several}; the stage has {len(samples):,}. Policy "
            f"{views.policy}, finished {finished}."
        ),
        folded("Every number of the views", _numbers(views)),
    ]
    for position in shown:
        batch, sample = batch_at(position), samples[int(first_step[position])]
        pixels = _denormalised(batch, views, where == "loader", config.encoder.channels)
        parts.append(_case(dataset, batch, pixels, position, len(sample)))
    return Section(config.stage_name(number), join(parts))


def _where() -> str:
    return "loader" if distributed.device().type == "cpu" else "device"


def _shown(samples: Samples, first_step: NDArray[np.int64], number: int) -> list[int]:
    """Positions of the first step to show: samples with several images first, else in the order of the stream."""
    several = np.array([len(samples[sample]) > 1 for sample in first_step.tolist()])
    return np.argsort(~several, kind="stable")[:number].tolist()


def _numbers(views: ViewConfig) -> Html:
    told = {name: value for name, value in views.model_dump().items() if name != "policy"}
    return pairs({name: _short(value) for name, value in told.items()})


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _denormalised(batch: Batch, views: ViewConfig, augmented: bool, channels: int) -> Pixels:
    """The one sample's views (V, H, W, 3), as colours again; grey where the encoder takes grey images."""
    normalised = finished_views(batch, views, torch.device("cpu"), augmented, channels)[:, 0]
    mean, std = (torch.tensor(numbers[:channels]).view(-1, 1, 1) for numbers in (views.mean, views.std))
    levels = ((normalised * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def _case(dataset: AnyDataset, batch: Batch, views_VHWC: Pixels, position: int, num_images: int) -> Html:
    """One sample: its stored images with the crops' boxes, then its views with their records in words."""
    rows, records = batch.rows_VB[:, 0].tolist(), batch.records_VBK[:, 0].numpy()
    key = str(dataset.column("key")[rows[0]])
    groups: list[tuple[Sequence[Image], Content]] = []
    sizes: dict[int, tuple[int, int]] = {}
    for row in dict.fromkeys(rows):
        stored = decode_stored(dataset.read(row))
        sizes[row] = stored.shape[0], stored.shape[1]
        cropped = [view for view, other in enumerate(rows) if other == row]
        boxes = {view: records[view, : len(BOX)].astype(int).tolist() for view in cropped}
        whose = [_marked(view, f" {NAMES[view]}'s crop ") for view in cropped]
        caption = join([tag("b", f"stored, {stored.shape[1]} × {stored.shape[0]} px"), LINE_BREAK, *whose])
        groups.append(([Image(_outlined(stored, boxes), "", alt=f"stored image of case {key}")], caption))
    for view, (pixels, record) in enumerate(zip(views_VHWC, records)):
        told = ", ".join(in_words(record, sizes[rows[view]]))
        caption = join([_marked(view, tag("b", f" {NAMES[view]}")), LINE_BREAK, told])
        groups.append(([Image(_enlarged(pixels), "", alt=f"{NAMES[view]} of case {key}: {told}")], caption))
    images = "one image" if num_images == 1 else f"{num_images} images"
    return tag("h3", f"{key} · position {position}, a sample of {images}") + image_rows(groups)


def _marked(view: int, content: Content) -> Html:
    """Content behind a spot in the colour of a view's box."""
    red, green, blue = OUTLINES[view]
    return tag("span", "■", {"style": f"color:rgb({red} {green} {blue})"}) + text(content)


def in_words(record_K: NDArray[np.float32], size: tuple[int, int]) -> list[str]:
    """What a record does to an image of size (height, width) px, in the order in which it is done."""
    record: dict[str, float] = dict(zip(COLUMNS, record_K.tolist()))
    share = record["height"] * record["width"] / (size[0] * size[1])
    told = [f"{record['width']:.0f} × {record['height']:.0f} px cut out, {100 * share:.0f} %"]
    told += ["mirrored"] * bool(record["flip_horizontal"]) + ["upside down"] * bool(record["flip_vertical"])
    if record["quarter_turns"]:
        told.append(f"turned by {90 * record['quarter_turns']:.0f}°")
    if record["rotation_deg"]:
        told.append(f"rotated by {_signed(record['rotation_deg'])}°")
    if record["jitter"]:
        changes = [f"{name} × {record[name]:.2f}" for name in ("brightness", "contrast", "saturation")]
        changes.append(f"hue {_signed(360 * record['hue'])}°")
        neutral = [record["brightness"] == 1, record["contrast"] == 1, record["saturation"] == 1, not record["hue"]]
        told += [changes[step] for step in ORDERS[int(record["order"])] if not neutral[step]]
    told += ["grey"] * bool(record["grey"])
    if record["blur"]:
        told.append(f"blurred by {record['blur']:.1f} px")
    return told + ["solarised"] * bool(record["solarise"])


def _signed(number: float) -> str:
    return f"{number:+.0f}".replace("-", "−")


def _outlined(stored: Pixels, boxes: dict[int, list[int]]) -> bytes:
    """A small JPEG of an image with the (top, left, height, width) box of each view's crop."""
    height, width = stored.shape[:2]
    scale = min(SIDE_PX / height, 4 / 3 * SIDE_PX / width)  # two of them and two views fit side by side
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas = np.ascontiguousarray(cv2.resize(stored, small, interpolation=interpolation))
    for view, (top, left, box_height, box_width) in boxes.items():
        first = (round(left * scale), round(top * scale))
        last = (round((left + box_width) * scale) - 1, round((top + box_height) * scale) - 1)
        cv2.rectangle(canvas, first, last, (20, 20, 20), 4)
        cv2.rectangle(canvas, first, last, OUTLINES[view], 2)
    return encode_jpeg(np.asarray(canvas, dtype=np.uint8), QUALITY)


def _enlarged(view_HWC: Pixels) -> bytes:
    """A JPEG of a view at most SIDE_PX high; small ones are enlarged by a whole number, pixels visible."""
    side = len(view_HWC)
    shown = SIDE_PX // side * side if side < SIDE_PX else SIDE_PX
    interpolation = cv2.INTER_NEAREST if side < SIDE_PX else cv2.INTER_AREA
    shown_HWC = cv2.resize(view_HWC, (shown, shown), interpolation=interpolation)
    return encode_jpeg(np.asarray(shown_HWC, dtype=np.uint8), QUALITY)
