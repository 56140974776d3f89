"""Numbers of images (features, logits, small pixels), each image once, kept in files of a fixed cut.

The rows are cut into parts that do not depend on the number of workers; a worker takes every W-th part and
leaves out those that are there. So any number of workers continues what any other number began.
Shapes: I images, B batch, D numbers an image.
"""

import hashlib
import json
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clusters import distributed
from clusters.config import InputError
from clusters.storage import Folder
from clusters.tracking import Progress, TrackingConfig
from data.dataset import Dataset
from data.loader import evaluation_batches
from finetune.made_with import note_versions

MAX_PART_IMAGES = 4096
MIN_PARTS = 16

Rows = NDArray[np.int64]
Compute = Callable[[NDArray[np.uint8]], NDArray[np.generic]]


def cache_name(title: str, dataset: Dataset, rows: Rows, *what: object) -> str:
    """Name of the folder that holds these numbers of these rows: another question, another folder."""
    key = json.dumps([dataset.fingerprint, hashlib.sha256(rows.tobytes()).hexdigest(), *map(str, what)])
    return f"features-{title}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def compute_parts(
    folder: Folder,
    dataset: Dataset,
    rows: Rows,
    size_px: int,
    batch_size: int,
    compute: Compute,
    title: str,
    tracking: TrackingConfig,
) -> None:
    """Write this rank's parts that are not there yet; `compute` takes uint8 (B, 3, H, W), gives (B, D).

    Every rank calls this; when it returns, all parts are there.
    """
    from safetensors.numpy import save

    parts = _parts(rows)
    there = set(distributed.broadcast_object(folder.names() if distributed.is_main() else None))
    missing = [n for n in range(len(parts)) if _file(n) not in there]
    if distributed.is_main() and len(missing) == len(parts):
        note_versions(folder)
    mine = missing[distributed.rank() :: distributed.world_size()]
    progress = Progress(f"{title}: images", sum(len(parts[n]) for n in mine), tracking)
    done = 0
    for number in mine:
        values = []
        for some, pixels in evaluation_batches(dataset, parts[number], size_px, batch_size):
            values.append(compute(pixels.numpy()))
            done += len(some)
            progress.line(done, {})
        content = save({"rows": parts[number], "values": np.ascontiguousarray(np.concatenate(values))})
        folder.write(_file(number), content)
    distributed.barrier()


def read_parts(folder: Folder, rows: Rows) -> NDArray[np.generic]:
    """What `compute_parts` wrote, (I, D) in the order of the rows.

    Raises InputError for a part that is missing or damaged, or a value that is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    values = []
    for number, expected in enumerate(_parts(rows)):
        where = folder.file(_file(number))
        try:
            part = load(folder.read(_file(number)))
        except (FileNotFoundError, SafetensorError):
            raise InputError(f"{where}: missing or damaged; remove it and run the command again") from None
        if not np.array_equal(part["rows"], expected):
            raise InputError(f"{where}: holds other images; remove {folder.location} and run again")
        if not np.isfinite(part["values"]).all():
            bad = int(expected[~np.isfinite(part["values"]).all(axis=1)][0])
            raise InputError(
                f"{where}: image {bad} of the dataset has features that are not finite; the encoder's "
                "weights or its input scale are broken"
            )
        values.append(part["values"])
    return np.concatenate(values)


def _parts(rows: Rows) -> list[Rows]:
    num_parts = min(len(rows), max(MIN_PARTS, -(-len(rows) // MAX_PART_IMAGES)))
    return [np.ascontiguousarray(part) for part in np.array_split(rows, num_parts)]


def _file(number: int) -> str:
    return f"part-{number:05d}.safetensors"
