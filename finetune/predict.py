"""`python -m finetune predict MODEL IMAGES out=DIR`: what a fine-tuned model says of images that nobody labelled.

MODEL is a results folder or its model/; IMAGES a folder of image or DICOM files, a table (CSV or parquet) with a
column `image` (and `case`, where several images show one; image= and case= name other columns), one file, or a dataset
folder. `out` receives

predictions.parquet, .csv   one row an image: its name as given; the probability of each label at the frozen
                            temperature, the decision at the frozen thresholds; why, where it could not be read
cases.parquet, .csv         the same for cases, where cases are known
predict.json                which model, how many images; with its counts, the mark that all is there

The images are cut into parts that are written as they are done: the same command goes on after the last one.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from clusters.command import describe
from clusters.config import Config, InputError, absolute, load_config
from clusters.occupied import kind_of, refuse_occupied
from clusters.ray_data import map_parts
from clusters.run_lock import run_lock
from clusters.storage import Folder
from clusters.tracking import Progress, TrackingConfig
from data.privacy import quiet_libraries
from finetune.answers import ERROR, case_rows, image_rows, without_numbers
from finetune.cells import safe
from finetune.image_batches import Part, Reading, batches_of
from finetune.image_list import CASE, IMAGE, ImageList, list_images

if TYPE_CHECKING:
    from finetune.model import Model

PART_IMAGES = 512
RECORD, PARTS, PREDICTIONS, CASES = "predict.json", "parts", "predictions", "cases"


class PredictConfig(Config):
    """What is predicted, and how. Only model, images and max_pixels determine the result."""

    model: str = Field(description="results folder of python -m finetune, or its model/; path or URL")
    images: str = Field(description="folder, table (.csv, .parquet), file, or dataset folder; path or URL")
    image: str = Field(default=IMAGE, description="column of the table with the path of each image, from its folder on")
    case: str = Field(default=CASE, description="column with the lesion or study; a table without 'case' has no cases")
    out: str = Field(description="folder of the predictions, made if need be; the same command continues it")
    batch_size: int = Field(default=64, ge=1, description="images at a time through the network")
    num_threads: int = Field(default=0, ge=0, description="threads that read and decode images; 0: one per core")
    max_pixels: int = Field(default=200_000_000, ge=1, description="px; a larger image is not read")
    on_ray: bool = Field(
        default=False, description="the parts by Ray Data on the Ray cluster of RAY_ADDRESS, or on a local Ray"
    )
    gpus_per_task: float = Field(default=0.0, ge=0, description="with on_ray: GPUs of each actor, 0.25 say; 0: on CPUs")

    @field_validator("model", "images", "out")
    @classmethod
    def _absolute(cls, location: str) -> str:
        return absolute(location)


def usage() -> str:
    """For --help."""
    return f"usage: {__doc__}\nkey                                  default          meaning\n{describe(PredictConfig)}"


def run(argv: Sequence[str]) -> None:
    """The command."""
    if len(argv) < 3 or any(word.partition("=")[0] in PredictConfig.model_fields for word in argv[:2]):
        raise InputError("predict takes a model and images: python -m finetune predict MODEL IMAGES out=DIR")
    model, images, *settings = argv
    predict(load_config(PredictConfig, [f"model={model}", f"images={images}", *settings]))


def predict(config: PredictConfig) -> None:
    """Write the predictions of all images, or say that they are there.

    Raises InputError for a model that is none, a place without images, an `out` of other images or of another model,
    an `out` that another run is at work in or that holds anything else, and, after all is written, where not one image
    could be read.
    """
    from finetune.model_folder import load_model

    images = list_images(config.images, config.image, config.case)
    out, model = Folder(config.out), load_model(config.model)
    identity = {"model": model.card.fingerprint, "images": images.fingerprint(), "max_pixels": config.max_pixels}
    counts = _finished(out, identity)
    if counts is None:
        with run_lock(out):
            out.write_json(RECORD, {"identity": identity})
            _compute(config, images, out, model)
            counts = _join(out, images, model)
            out.write_json(RECORD, {"identity": identity, "counts": counts, "made_from": model.card.made_from})
            out.remove(PARTS)
    else:
        print(f"reused: {config.out} already holds these predictions")
    read, reasons = counts["images"] - counts["unreadable"], ", ".join(f"{n} {r}" for r, n in counts["reasons"].items())
    if not read:
        raise InputError(f"{config.images}: none of {counts['images']:,} images could be read ({reasons})")
    left = f"; {counts['unreadable']:,} could not be read ({reasons}): their rows say why" if reasons else ""
    print(f"{out.file(PREDICTIONS)}.parquet and .csv: {read:,} of {counts['images']:,} images predicted{left}")
    if images.passed_over:
        print(f"{config.images}: passed over {images.passed_over}")


def _finished(out: Folder, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The counts of these predictions if they are all there. Raises InputError where others are, or anything else."""
    if not out.exists(RECORD):
        refuse_occupied(out, "out")
        return None
    # What it was predicted into once may have been made again since, by its own command.
    if beside := kind_of(out, set(out.names()) - {RECORD}):
        raise InputError(f"{out}: holds {beside} beside predictions; give another out=, a new or an empty folder")
    told = out.read_json(RECORD)
    changed = [key for key, value in identity.items() if told.get("identity", {}).get(key) != value]
    if changed:
        raise InputError(
            f"{out}: holds predictions with other {' and '.join(changed)}; give another out=, or remove it"
        )
    there = all(out.exists(f"{PREDICTIONS}.{kind}") for kind in ("parquet", "csv"))
    return told.get("counts") if there else None


def _compute(config: PredictConfig, images: ImageList, out: Folder, model: "Model") -> None:
    """Write the parts that are not there yet."""
    there = set((out / PARTS).names())
    parts = [_part(images, number, PART_IMAGES) for number in range(-(-len(images) // PART_IMAGES))]
    missing = [part for part in parts if part.file not in there]
    done = len(images) - sum(len(part.images) for part in missing)
    progress = Progress("predict: images", len(images), TrackingConfig(), done)
    if done:
        print(f"{done:,} of {len(images):,} images are there already", flush=True)
    if config.on_ray:
        make = partial(part_writer, config, images, PART_IMAGES)
        steps = map_parts(make, [part.number for part in missing], gpus_per_actor=config.gpus_per_task)
    else:
        steps = _written(missing, config, _for_answers(model))
    with quiet_libraries():
        for number in steps:
            done += number
            progress.line(done, {})


def _part(images: ImageList, number: int, num_images: int) -> Part:
    return Part(number, images.part(number * num_images, (number + 1) * num_images))


def part_writer(config: PredictConfig, images: ImageList, num_images: int) -> Callable[[int], int]:
    """For an actor of a cluster: loads the model, and gives what computes a part, writes it and says how many it has.

    The parts have `num_images` images.
    """
    from finetune.model_folder import load_model

    model = _for_answers(load_model(config.model))

    def write(number: int) -> int:
        with quiet_libraries():
            return sum(_written([_part(images, number, num_images)], config, model))

    return write


def _for_answers(model: "Model") -> "Model":
    from clusters import distributed
    from finetune.inference import for_inference

    return for_inference(model).to(distributed.device())


def _written(parts: Sequence[Part], config: PredictConfig, model: "Model") -> Iterator[int]:
    """Write each part when its last batch is through; yields the number of images of each batch."""
    card, waiting = model.card, list[pa.Table]()
    reading = Reading(config.batch_size, config.num_threads, card.size_px, config.max_pixels, card.processing)
    for part, images, pixels, reasons in batches_of(parts, reading):
        waiting.append(image_rows(images, model.logits(pixels), reasons, model))
        if sum(map(len, waiting)) == len(part.images):
            (Folder(config.out) / PARTS).write(part.file, _parquet(pa.concat_tables(waiting)))
            waiting.clear()
        yield len(images)


def _join(out: Folder, images: ImageList, model: "Model") -> dict[str, Any]:
    """Make the tables of all parts, and count."""
    tables = [
        pq.read_table(io.BytesIO((out / PARTS).read(name)))
        for name in (out / PARTS).names()
        if name.startswith("part-")
    ]
    whole = pa.concat_tables(tables)
    assert len(whole) == len(images)
    if CASE in whole.column_names:
        _write_table(out, CASES, case_rows(whole, model))
    _write_table(out, PREDICTIONS, without_numbers(whole))
    reasons = Counter(reason for reason in whole.column(ERROR).to_pylist() if reason)
    return {"images": len(whole), "unreadable": reasons.total(), "reasons": dict(reasons.most_common())}


def _write_table(out: Folder, name: str, table: pa.Table) -> None:
    out.write(f"{name}.parquet", _parquet(table))
    for place, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            told = pa.array([safe(cell) for cell in column.to_pylist()], pa.string())
            table = table.set_column(place, table.column_names[place], told)
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table.rename_columns([safe(title) for title in table.column_names]), buffer)
    out.write(f"{name}.csv", buffer.getvalue())


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
