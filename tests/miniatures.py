"""Raw datasets of a few dozen small images that can be learned: each label brightens a band of its own.

Written in the published layouts, for runs through the real importers from raw files to results.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import h5py
import numpy as np

from data.sources import chestxray14, chexpert
from tests.test_data_sources_dermatology import scin_folder

SIDE_PX = 56


def draw(bands: Sequence[float], seed: int, side_px: int = SIDE_PX) -> np.ndarray:
    """A noisy grey image, uint8 (side, side): band k of so many is brighter by its share."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.asarray(bands, dtype=float), -(-side_px // len(bands)))[:side_px]
    return (60 + 120 * rows[:, None] + rng.normal(0, 6, (side_px, side_px))).clip(0, 255).astype(np.uint8)


def write(file: Path, pixels: np.ndarray) -> None:
    """An image file; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), pixels)


def drawn_findings(num: int, num_labels: int, seed: int) -> np.ndarray:
    """0 or 1, (num, num_labels): every label now and then, whatever the others are."""
    return (np.random.default_rng(seed).uniform(size=(num, num_labels)) < 0.4).astype(int)


def chexpert_folder(folder: Path) -> Path:
    """CheXpert: 48 patients in train, 24 in valid, 24 in test; a sixth of the training labels in doubt."""
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *chexpert.FINDINGS]
    for part, table, num, first in (("train", "train", 48, 0), ("valid", "valid", 24, 100), ("test", "test", 24, 200)):
        lines = [",".join(header)]
        rng = np.random.default_rng(first)
        for number, labels in enumerate(drawn_findings(num, len(chexpert.FINDINGS), first), first):
            path = f"{part}/patient{number:05d}/study1/view1_frontal.jpg"
            write(folder / path, draw(labels, number))
            doubt = (rng.uniform(size=len(labels)) < 1 / 6) & (part == "train")
            cells = ["-1.0" if d else f"{value:.1f}" for value, d in zip(labels, doubt)]
            lines.append(",".join([f"CheXpert-v1.0/{path}", "Female", "60", "Frontal", "AP", *cells]))
        (folder / f"{table}.csv").write_text("\n".join(lines) + "\n")
    return folder


def nih_folder(folder: Path) -> Path:
    """ChestX-ray14: 72 patients of the training list, 24 of the test list."""
    lines = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"]
    names = chestxray14.FINDINGS
    lists: dict[str, list[str]] = {"train_val_list.txt": [], "test_list.txt": []}
    for number, labels in enumerate(drawn_findings(96, len(names), 7)):
        file = f"{number:08d}_000.png"
        write(folder / "images" / file, draw(labels, number))
        found = "|".join(name for name, label in zip(names, labels) if label) or "No Finding"
        lines.append(f"{file},{found},0,{number},050,F,PA")
        lists["train_val_list.txt" if number < 72 else "test_list.txt"].append(file)
    (folder / "Data_Entry_2017_v2020.csv").write_text("\n".join(lines) + "\n")
    for name, files in lists.items():
        (folder / name).write_text("\n".join(files) + "\n")
    return folder


def pcam_folder(folder: Path) -> Path:
    """PatchCamelyon: 40 patches in train, 16 in valid, 20 in test, four a slide; tumour brightens the centre."""
    folder.mkdir(parents=True)
    for part, num, first in (("train", 40, 0), ("valid", 16, 100), ("test", 20, 200)):
        tumour = np.arange(num) % 2
        patches = np.stack([draw([0.3], first + n, 96) for n in range(num)])
        patches[:, 32:64, 32:64] += (60 * tumour[:, None, None]).astype(np.uint8)
        for kind, values in (("x", patches[..., None].repeat(3, axis=3)), ("y", tumour.reshape(-1, 1, 1, 1))):
            with h5py.File(folder / f"camelyonpatch_level_2_split_{part}_{kind}.h5", "w") as file:
                file.create_dataset(kind, data=values.astype(np.uint8))
        rows = [f"{n},{n},7,False,False,camelyon16_{part}_{n // 4:03d}" for n in range(num)]
        meta = ["" + ",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi", *rows]
        (folder / f"camelyonpatch_level_2_split_{part}_meta.csv").write_text("\n".join(meta) + "\n")
    return folder


CONDITIONS = ("Acne", "Eczema", "Psoriasis", "Tinea")


def scin_miniature(folder: Path) -> Path:
    """SCIN: 60 contributions of two photographs whose bands are as bright as the dermatologists are sure."""
    rng = np.random.default_rng(3)
    contributions, shares = {}, {}
    for number in range(60):
        share = rng.dirichlet(np.full(len(CONDITIONS), 0.3)).round(2)
        share[number % 4] += 0.01  # nobody is without an opinion
        files = [str(10_000 + 10 * number + k) for k in range(2)]
        differential = {name: float(weight) for name, weight in zip(CONDITIONS, share) if weight > 0}
        contributions[str(number + 1)] = (files, str(differential), {})
        shares |= dict.fromkeys(files, share / share.sum())
    scin_folder(folder, contributions)
    for file, share in shares.items():
        write(folder / "dataset" / "images" / f"{file}.png", cv2.merge([draw(share, int(file))] * 3))
    return folder


def echo_table(folder: Path) -> Path:
    """A table of 80 frames of 40 patients: the brightness tells the ejection fraction, which some rows lack."""
    rng = np.random.default_rng(5)
    lines = ["file,patient,reduced_ef,EF,split"]
    for patient in range(40):
        fraction = rng.uniform(20, 75)
        split = "train" if patient < 22 else "val" if patient < 30 else "test"
        for frame in range(2):
            file = f"frames/{patient:03d}-{frame}.png"
            write(folder / file, draw([fraction / 100], 10 * patient + frame))
            told = "" if patient % 7 == 6 and split == "train" else f"{fraction:.1f}"
            lines.append(f"{file},p{patient:03d},{int(fraction < 50)},{told},{split}")
    (folder / "frames.csv").write_text("\n".join(lines) + "\n")
    return folder / "frames.csv"
