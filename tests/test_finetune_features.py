from pathlib import Path

import numpy as np
import pytest

from clusters.config import InputError
from clusters.storage import Folder
from clusters.tracking import TrackingConfig
from data.images import decode_stored
from data.loader import centre_square
from finetune.features import cache_name, compute_parts, read_parts


def compute(dataset, folder: Path, rows: np.ndarray, counted: list[int] | None = None, broken: int = -1) -> None:
    def means(pixels: np.ndarray) -> np.ndarray:
        if counted is not None:
            counted.append(len(pixels))
        values = pixels.reshape(len(pixels), 3, -1).mean(axis=2)
        return np.where(broken >= 0, np.nan, values).astype(np.float32)

    compute_parts(Folder(folder), dataset, rows, 16, 3, means, "test", TrackingConfig())


def test_each_image_is_computed_once_in_the_order_of_the_rows(synthetic_dataset, tmp_path):
    rows, counted = synthetic_dataset.rows(["val", "test"]), []
    compute(synthetic_dataset, tmp_path, rows, counted)
    found = read_parts(Folder(tmp_path), rows)
    assert sum(counted) == len(rows) == len(found)
    for row, values in zip(rows[::7], found[::7]):
        pixels = centre_square(decode_stored(synthetic_dataset.read(int(row))), 16)
        assert values == pytest.approx(pixels.mean(axis=(0, 1)), rel=1e-5)


def test_only_what_is_missing_is_computed_again(synthetic_dataset, tmp_path):
    rows, counted = synthetic_dataset.rows(["val", "test"]), []
    compute(synthetic_dataset, tmp_path, rows)
    before = read_parts(Folder(tmp_path), rows)
    (tmp_path / "part-00003.safetensors").unlink()
    compute(synthetic_dataset, tmp_path, rows, counted)
    assert 0 < sum(counted) < len(rows) / 8
    assert (read_parts(Folder(tmp_path), rows) == before).all()


def test_a_damaged_part_and_other_images_are_refused(synthetic_dataset, tmp_path):
    rows = synthetic_dataset.rows(["val"])
    compute(synthetic_dataset, tmp_path, rows)
    with pytest.raises(InputError, match="holds other images"):
        read_parts(Folder(tmp_path), rows + 1)
    part = tmp_path / "part-00000.safetensors"
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(InputError, match=r"part-00000.safetensors: missing or damaged; remove it"):
        read_parts(Folder(tmp_path), rows)


def test_features_that_are_not_finite_are_refused(synthetic_dataset, tmp_path):
    rows = synthetic_dataset.rows(["val"])
    compute(synthetic_dataset, tmp_path, rows, broken=0)
    with pytest.raises(InputError, match=f"image {rows[0]} of the dataset has features that are not finite"):
        read_parts(Folder(tmp_path), rows)


def test_another_question_has_another_folder(synthetic_dataset):
    rows = synthetic_dataset.rows(["val"])
    names = {
        cache_name("a", synthetic_dataset, rows, "x"),
        cache_name("a", synthetic_dataset, rows, "y"),
        cache_name("a", synthetic_dataset, rows[1:], "x"),
    }
    assert len(names) == 3
