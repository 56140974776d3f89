"""PatchCamelyon: 327,680 patches of lymph node sections (CAMELYON16), with or without metastasis.

Veeling et al., MICCAI 2018, arXiv:1806.03962. Raw layout as published, unpacked: HDF5 files
`camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5` on a local disk, and beside them, if they are there,
`camelyonpatch_level_2_split_…_meta.csv`, whose column wsi names the slide of a patch.

A case is a patch of 96 x 96 px: two patches of a slide do not show the same condition, one may hold tumour and
the other none. The label is whether there is tumour in the central 32 x 32 px, so views for training must not lose
the centre. The slide counts as the patient; without the meta file each patch is its own patient, which is
harmless only as long as the official splits, cut by slide, are kept. The training part holds duplicates, which
without the meta files look like copies across patients: they are refused then, unless `duplicates=keep`.

Patches are stored as they are but for JPEG (quality 92, no chroma loss, unless jpeg_quality= says otherwise).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import Case, RawDataset, SourceImage
from data.config import ImportConfig
from data.tables import read_table

TITLE = "patches of lymph node sections, metastasis in the centre or not (PatchCamelyon)"
LICENCE = "CC0 1.0"
CITATION = "Veeling et al. 2018, arXiv:1806.03962; Ehteshami Bejnordi et al. 2017, doi:10.1001/jama.2017.14585"
CASE = "one patch: two patches of a slide do not show the same condition"
PARTS = {"train": "train", "valid": "val", "test": "test"}
PATCH_SHAPE = (96, 96, 3)


class Options(ImportConfig):
    """PatchCamelyon as published, unpacked."""


@dataclass(frozen=True)
class Patch:
    """Reads one patch of an HDF5 file, which is opened once per process."""

    path: str
    index: int

    def __call__(self) -> NDArray[np.uint8]:
        """Pixels, uint8 `(96, 96, 3)` RGB. Raises FileNotFoundError, and InputError where the file is damaged."""
        try:
            return _patches(self.path, os.getpid())[self.index]
        except FileNotFoundError:
            raise
        except OSError:
            raise InputError(f"{Path(self.path).name} is damaged at patch {self.index}; fetch the file again") from None


@lru_cache(maxsize=len(PARTS))
def _patches(path: str, process: int) -> Any:
    """The patches of a file. An HDF5 handle must not cross a fork: `process` keeps those of each process apart."""
    import h5py

    return h5py.File(path, "r", locking=False)["x"]


def read(config: Options) -> RawDataset:
    """The patches.

    Raises InputError for a file that is missing, packed or damaged, arrays of another shape or length, a label
    that is neither 0 nor 1, or a meta table that does not fit.
    """
    folder = Folder(config.raw)
    if folder.path is None:
        raise InputError(f"{config.raw} is not a local folder; copy the HDF5 files to a disk")
    names = folder.names()
    parts = [part for part in PARTS if any(name.startswith(_file(part, "x")) for name in names)] or ["train"]
    cases: list[Case] = []
    unit = "slide" if all(_slides_file(part) in names for part in parts) else "image"
    for part in parts:
        x, y = (_unpacked(folder.path, names, _file(part, kind)) for kind in ("x", "y"))
        labels = _labels(x, y)
        cases += _cases(part, x, labels, _slides(folder, names, part, len(labels)))
    return RawDataset(LICENCE, CITATION, "binary", ("tumour",), cases, CASE, patient_unit=unit)


def _cases(part: str, x: Path, labels: Sequence[int], slides: Sequence[str] | None) -> list[Case]:
    """The cases of a part. A quarter of a million of them share what is the same in all."""
    path, split, nothing = str(x), PARTS[part], dict[str, str]()
    told = ({"tumour": 0.0}, {"tumour": 1.0})
    cases = []
    for index, label in enumerate(labels):
        key = f"{part}-{index:06d}"
        image = SourceImage(key, Patch(path, index), nothing, key)
        cases.append(Case(key, slides[index] if slides else key, (image,), told[label], nothing, split))
    return cases


def _file(part: str, kind: str) -> str:
    return f"camelyonpatch_level_2_split_{part}_{kind}.h5"


def _unpacked(folder: Path, names: Sequence[str], name: str) -> Path:
    if name in names:
        return folder / name
    if f"{name}.gz" in names:
        raise InputError(f"{folder / name}.gz is packed; unpack it: gunzip {name}.gz")
    raise InputError(f"{folder} has no file {name}; raw= takes the folder in which it lies")


def _labels(x: Path, y: Path) -> list[int]:
    """Labels of all patches of a part, both files checked."""
    num_patches = _array(x, "x", PATCH_SHAPE).shape[0]
    values = _array(y, "y", (1, 1, 1))[:].reshape(-1)
    if len(values) != num_patches:
        raise InputError(f"{x} has {num_patches:,} patches but {y.name} {len(values):,} labels; fetch both again")
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if len(wrong):
        raise InputError(f"{y}, patch {wrong[0]}: the label is neither 0 nor 1; fetch the file again")
    return [int(value) for value in values]


def _array(path: Path, key: str, shape: tuple[int, ...]) -> Any:
    """An array of uint8 `(N, *shape)` in an HDF5 file."""
    import h5py

    try:
        file = h5py.File(path, "r", locking=False)
    except OSError:
        raise InputError(f"{path} is not a whole HDF5 file; fetch it again") from None
    array = file.get(key)
    if not isinstance(array, h5py.Dataset):
        raise InputError(f"{path} has no array '{key}'; is it the file of another kind?")
    if array.shape[1:] != shape or array.dtype != np.uint8:
        wanted = " x ".join(map(str, shape))
        raise InputError(f"{path}: '{key}' is {array.dtype} {array.shape}, not uint8 N x {wanted}; fetch it again")
    return array


def _slides_file(part: str) -> str:
    return f"camelyonpatch_level_2_split_{part}_meta.csv"


def _slides(folder: Folder, names: Sequence[str], part: str, num_patches: int) -> list[str] | None:
    """Slide of each patch; None where there is no meta table."""
    name = _slides_file(part)
    if name not in names:
        return None
    table = read_table(folder, name)
    slides = table.column("wsi")
    if len(slides) != num_patches:
        raise InputError(f"{table.where} has {len(slides):,} rows for {num_patches:,} patches; fetch it again")
    if "" in slides:
        raise InputError(f"{table.row(slides.index(''))}: 'wsi' is empty; fetch the table again, or leave it away")
    return slides
