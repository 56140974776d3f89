"""`python -m finetune predict MODEL IMAGES out=DIR`: what a fine-tuned model says of images that nobody labelled.

MODEL is a results folder or its model/; IMAGES a folder of image or DICOM files, a CSV with a column `image` (and
`case`, where several images show one), one file, or a dataset folder. `out` receives

predictions.parquet, .csv   one row an image: its name as given; the probability of each label at the frozen
                            temperature, the decision at the frozen thresholds; why, where it could not be read
cases.parquet, .csv         the same for cases, where cases are known
predict.json                which model, how many images; with its counts, the mark that all is there

The images are cut into parts that are written as they are done: the same command goes on after the last one.
Shapes: B batch, S side in px.
"""

import io
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, field_validator

from clusters.config import Config, InputError, absolute, describe, load_config
from clusters.storage import Folder
from clusters.tasks import map_tasks
from clusters.tracking import Progress, TrackingConfig
from data.config import num_cores
from data.dataset import Dataset, open_dataset
from data.images import BadImage
from data.privacy import quiet_libraries
from finetune.answers import ERROR, case_rows, image_rows, without_numbers
from finetune.image_list import CASE, ImageList, Read, input_pixels, list_images

if TYPE_CHECKING:
    from finetune.model_folder import Model

PART_IMAGES = 512
BATCHES_AHEAD = 2
RECORD, PARTS, PREDICTIONS, CASES = "predict.json", "parts", "predictions", "cases"


class PredictConfig(Config):
    """What is predicted, and how. Only model, images and max_pixels determine the result."""

    model: str = Field(description="results folder of python -m finetune, or its model/; path or URL")
    images: str = Field(description="folder, CSV with a column 'image', file, or dataset folder; path or URL")
    out: str = Field(description="folder of the predictions, made if need be; the same command continues it")
    batch_size: int = Field(default=64, ge=1, description="images at a time through the network")
    num_threads: int = Field(default=0, ge=0, description="threads that read and decode images; 0: one per core")
    max_pixels: int = Field(default=200_000_000, ge=1, description="px; a larger image is not read")
    on_ray: bool = Field(
        default=False, description="each part as a task on the Ray cluster of RAY_ADDRESS, or on a local Ray"
    )
    gpus_per_task: float = Field(default=0.0, ge=0, description="with on_ray: GPUs of each task, 0.25 say; 0: on CPUs")

    @field_validator("model", "images", "out")
    @classmethod
    def _absolute(cls, location: str) -> str:
        return absolute(location)


@dataclass(frozen=True)
class Part:
    """Some images, in the order of the whole list."""

    number: int
    images: ImageList

    @property
    def file(self) -> str:
        """Where its rows stand until all are there."""
        return f"part-{self.number:06d}.parquet"


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
    and, after all is written, where not one image could be read.
    """
    from finetune.model_folder import load_model

    out, images, model = Folder(config.out), list_images(config.images), load_model(config.model)
    identity = {"model": model.card.fingerprint, "images": images.fingerprint, "max_pixels": config.max_pixels}
    counts = _finished(out, identity)
    if counts is None:
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


def predict_part(task: tuple[PredictConfig, Part]) -> int:
    """Compute one part and write it, on a machine of a cluster; returns how many images it has."""
    config, part = task
    with quiet_libraries():
        for _ in _written([part], config, Folder(config.out), _ready(config.model)):
            pass
    return len(part.images)


def _finished(out: Folder, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The counts of these predictions if they are all there. Raises InputError where others are."""
    if not out.exists(RECORD):
        return None
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
    parts = [
        Part(number, images.part(start, start + PART_IMAGES))
        for number, start in enumerate(range(0, len(images), PART_IMAGES))
    ]
    missing = [part for part in parts if part.file not in there]
    done = len(images) - sum(len(part.images) for part in missing)
    progress = Progress("predict: images", len(images), TrackingConfig(), done)
    if done:
        print(f"{done:,} of {len(images):,} images are there already", flush=True)
    if config.on_ray:
        tasks = [(config, part) for part in missing]
        numbers = map_tasks(predict_part, tasks, gpus_per_task=config.gpus_per_task)
        for number in numbers:
            done += number
            progress.line(done, {})
        return
    with quiet_libraries():
        for number in _written(missing, config, out, _for_answers(model)):
            done += number
            progress.line(done, {})


@lru_cache(1)
def _ready(location: str) -> "Model":
    """The model, once a process."""
    from finetune.model_folder import load_model

    return _for_answers(load_model(location))


def _for_answers(model: "Model") -> "Model":
    from clusters import distributed
    from finetune.inference import for_inference

    return for_inference(model).to(distributed.device())


def _written(parts: Sequence[Part], config: PredictConfig, out: Folder, model: "Model") -> Iterator[int]:
    """Write each part when its last batch is through; yields the number of images of each batch."""
    waiting: list[pa.Table] = []
    for part, images, pixels, reasons in _batches(parts, config, model):
        waiting.append(image_rows(images, model.logits(pixels), reasons, model))
        if sum(map(len, waiting)) == len(part.images):
            (out / PARTS).write(part.file, _parquet(pa.concat_tables(waiting)))
            waiting.clear()
        yield len(images)


def _batches(
    parts: Sequence[Part], config: PredictConfig, model: "Model"
) -> Iterator[tuple[Part, ImageList, NDArray[np.uint8], list[str]]]:
    """Batches of decoded images, (B, 3, S, S), none across two parts, prepared ahead by threads."""
    opened = open_dataset(config.images) if parts and parts[0].images.dataset else None
    cuts = deque(
        (part, part.images.part(start, start + config.batch_size))
        for part in parts
        for start in range(0, len(part.images), config.batch_size)
    )
    ahead: deque[tuple[Part, ImageList, NDArray[np.uint8], list[Future[str]]]] = deque()
    with ThreadPoolExecutor(config.num_threads or num_cores()) as pool:
        while cuts or ahead:
            while cuts and len(ahead) <= BATCHES_AHEAD:
                part, images = cuts.popleft()
                ahead.append((part, images, *_begun(pool, images, opened, model, config.max_pixels)))
            part, images, pixels, futures = ahead.popleft()
            yield part, images, pixels.transpose(0, 3, 1, 2), [future.result() for future in futures]


def _begun(
    pool: ThreadPoolExecutor, images: ImageList, opened: Dataset | None, model: "Model", max_pixels: int
) -> tuple[NDArray[np.uint8], list[Future[str]]]:
    """The pixels of a batch, (B, S, S, 3), to be filled by threads, and of each image why it could not be, or ""."""
    size_px, processing = model.card.size_px, model.card.processing
    pixels = np.zeros((len(images), size_px, size_px, 3), dtype=np.uint8)

    def fill(place: int, read: Read) -> str:
        try:
            pixels[place] = input_pixels(read(), opened is not None, processing, size_px, max_pixels)
        except BadImage as error:
            return error.reason
        except MemoryError:
            return "too large"
        return ""

    return pixels, [pool.submit(fill, place, read) for place, read in enumerate(images.readers(opened))]


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
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer)
    out.write(f"{name}.csv", buffer.getvalue())


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
