"""The page of a dataset, seen with a real browser."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser

from clusters.config import InputError
from clusters.storage import Folder
from data.__main__ import main
from data.cases import Case, RawDataset, SourceImage, one_hot
from data.config import ImportConfig
from data.dataset import Dataset, open_dataset
from data.look.contact_sheets import contact_sheets
from data.look.dataset_page import look
from data.look.findings import findings
from data.look.lookalikes import lookalikes
from data.look.overview import Overview
from data.shards import write_dataset
from tests.browser import Shown, contrast, opened

NAN = float("nan")


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Shown]]:
    pages = []

    def looked_at(dataset: Dataset | str, width: int = 1280, scheme: Any = "light") -> Shown:
        location = dataset if isinstance(dataset, str) else dataset.location
        shown = opened(browser, look(location, str(tmp_path / "page.html")), width, scheme)
        pages.append(shown.page)
        return shown

    yield looked_at
    for page in pages:
        page.close()


@dataclass(frozen=True)
class Painted:
    """A picture of its own: coloured fields, drawn from a seed; or of one colour."""

    seed: int
    size: tuple[int, int] = (60, 45)
    plain: int = -1

    def __call__(self) -> np.ndarray:
        width, height = self.size
        if self.plain >= 0:
            return np.full((height, width, 3), self.plain, np.uint8)
        fields = np.random.default_rng(self.seed).integers(0, 255, (7, 9, 3), np.uint8)
        return np.asarray(cv2.resize(fields, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


@dataclass(frozen=True)
class Broken:
    def __call__(self) -> bytes:
        return b"<html>"


def written(folder: Path, cases: list[Case], task: str, labels: tuple[str, ...], **options: Any) -> Dataset:
    raw = RawDataset("CC0", "", task, labels, cases, "a lesion")
    values = {"source": "painted", "raw": "/raw", "out": str(folder), "num_processes": 1, "max_bad_fraction": 0.5}
    write_dataset(raw, ImportConfig.model_validate({**values, **options}))
    return open_dataset(str(folder))


def painted(number: int, images: tuple[Any, ...] = (), patient: str = "", **fields: Any) -> Case:
    found = images or (Painted(number),)
    shown = tuple(SourceImage(f"row {number}.{k}", read) for k, read in enumerate(found))
    return Case(f"c{number}", patient or f"p{number}", shown, **fields)


def multilabel(folder: Path) -> Dataset:
    """Cases with two findings, some doubtful, some not labelled at all."""
    told = [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (1.0, NAN), (NAN, NAN)]
    cases = []
    for number in range(60):
        values = dict(zip(("edema", "mass"), told[number % 5]))
        doubtful = frozenset(["mass"]) if number % 5 == 3 else frozenset()
        cases.append(painted(number, labels=values, uncertain=doubtful))
    return written(folder, cases, "multilabel", ("edema", "mass"))


def binary(folder: Path) -> Dataset:
    cases = [painted(number, labels={"malignant": float(number % 3 == 0)}) for number in range(30)]
    return written(folder, cases, "binary", ("malignant",))


def unlabelled(folder: Path) -> Dataset:
    return written(folder, [painted(number) for number in range(9)], "unlabelled", ())


def strange(folder: Path) -> Dataset:
    """Markup in every name, a strip, one colour, many classes, many attributes, a copy, raw images left out."""
    names = tuple(f"<script>alert({k})</script> & a label that goes on and on {'W' * 50}" for k in range(45))
    cases = []
    for number in range(100):
        attributes = {f"<b>{k}": f"<img src=x onerror=alert({number})>{'Y' * 80}" for k in range(10)}
        images: tuple[Any, ...] = (Painted(number, (400, 20)), *(Painted(200 + 20 * number + k) for k in range(8)))
        images += (Painted(0, plain=number),) if number < 3 else ()
        images += (Broken(),) if number % 20 == 0 else ()
        cases.append(painted(number, images, labels=one_hot(names[number % 45], names), attributes=attributes))
    cases.append(painted(500, (Painted(201), Painted(999)), labels=one_hot(names[2], names)))
    name = "<i>strange<i> & " + "Z" * 70
    return written(folder, cases, "multiclass", names, name=name, duplicates="keep")


DATASETS = {"multilabel": multilabel, "binary": binary, "unlabelled": unlabelled, "strange": strange}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory, synthetic_dataset: Dataset) -> dict[str, Dataset]:
    folder = tmp_path_factory.mktemp("look")
    return {"synthetic": synthetic_dataset, **{name: make(folder / name) for name, make in DATASETS.items()}}


@pytest.mark.parametrize("name", ["synthetic", *DATASETS])
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_a_page_is_whole_quiet_and_fits(
    show: Callable[..., Shown], datasets: dict[str, Dataset], name: str, width: int, scheme: str
) -> None:
    shown = show(datasets[name], width, scheme)
    page = shown.page
    assert shown.complaints == []
    assert all(url.startswith(("file:", "data:")) for url in shown.requests)
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.wait_for_function("[...document.images].every(image => image.complete)")
    images = page.evaluate("[...document.images].map(image => [image.naturalWidth, image.alt])")
    assert images and all(0 < natural <= 128 and alt for natural, alt in images)
    assert len(page.content()) < 5_000_000

    # What readers that are not eyes need.
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.title() and len(shown.texts("h1")) == 1 and len(shown.texts("main")) == 1
    assert page.locator("thead th:not([scope=col]), tbody th:not([scope=row])").count() == 0
    assert page.evaluate("[...document.querySelectorAll('tbody tr')].every(row => row.cells[0].tagName == 'TH')")
    assert page.locator("svg:not([aria-label]), [role=region]:not([aria-label])").count() == 0
    assert page.locator("script").count() == 0

    # Text stands out from what is behind it (WCAG 2, 4.5 to 1).
    for selector in ("h1", ".lead", "dt", "td", "figcaption", ".note", "nav a"):
        if page.locator(selector).count():
            assert contrast(page, selector) >= 4.5, selector


def test_counts_are_those_of_the_dataset(show: Callable[..., Shown], synthetic_dataset: Dataset) -> None:
    dataset = synthetic_dataset
    shown = show(dataset)
    assert shown.texts("h2") == [
        "What it is",
        "Worth a look",
        "Splits",
        "Labels",
        "Cases and patients",
        "Attributes",
        "Image sizes",
        "Duplicates",
        "Left out",
        "Contact sheets",
    ]
    counts = dataset.manifest.counts
    assert shown.texts(".tiles strong") == [f"{n:,}" for n in (counts.images, counts.cases, counts.patients, 0)]
    about = shown.page.locator("#part-1").inner_text()
    assert all(text in about for text in (dataset.manifest.licence, dataset.manifest.citation, dataset.manifest.case))

    index = dataset.index.to_pandas()
    cases = index.drop_duplicates("key")
    told = shown.numbers("Counts by split")
    for split, rows in index.groupby("split"):
        numbers = [rows.key.nunique(), len(rows), rows.patient.nunique()]
        assert told[str(split)][:3] == [f"{number:,}" for number in numbers]
    labels = shown.numbers("Cases by label and split")
    for name in dataset.label_names:
        rows = cases[cases[f"label.{name}"] == 1]
        by_split = [len(rows[rows.split == split]) for split in ("train", "val", "test")]
        assert labels[name] == [str(number) for number in (len(rows), *by_split)]
    sexes = shown.numbers("sex")
    for sex, rows in index.groupby("attr.sex"):
        share = 100 * len(rows[rows.split == "test"]) / len(index[index.split == "test"])
        assert (sexes[str(sex)][0], sexes[str(sex)][3]) == (str(len(rows)), f"{share:.0f} %")
    most = index.groupby("key").size().max()
    histogram = shown.numbers(f"Images per case (most: {most})")
    assert {int(k): int(v[0]) for k, v in histogram.items()} == dict(index.groupby("key").size().value_counts())
    sizes = shown.numbers("Commonest sizes, as stored")
    assert sizes == {"48 × 48": [str(len(index))]}


def test_labels_that_are_doubtful_or_missing_are_counted(
    show: Callable[..., Shown], datasets: dict[str, Dataset]
) -> None:
    labels = show(datasets["multilabel"]).numbers("Cases that are positive, by label and split")
    assert [labels["edema"][k] for k in (0, 4, 5, 6)] == ["24", "24", "0", "12"]
    assert [labels["mass"][k] for k in (0, 4, 5, 6)] == ["12", "24", "12", "12"]
    shown = show(datasets["unlabelled"])
    assert "no labels" in shown.page.locator("#part-4").inner_text()
    assert shown.texts("#part-10 h3") == ["not labelled: 9 of 9 cases"]


def test_contact_sheets_show_every_label_and_cases_with_several_images_first(
    show: Callable[..., Shown], synthetic_dataset: Dataset
) -> None:
    shown = show(synthetic_dataset)
    titles = [title.split(":")[0] for title in shown.texts("#part-10 h3")]
    assert titles == synthetic_dataset.label_names
    index = synthetic_dataset.index.to_pandas()
    for title, row in zip(titles, shown.page.locator("#part-10 .cases").all()):
        numbers = row.evaluate("part => [...part.children].map(case_ => case_.querySelectorAll('img').length)")
        several = [number > 1 for number in numbers]
        assert numbers and several == sorted(several, reverse=True)
        for caption, number in zip(row.locator("figcaption").all(), numbers):
            key, told = caption.inner_text().split("\n")[:2]
            here = index[index.key == key]
            assert told == f"{title} · {here.split.iloc[0]}" and number == len(here)
    overview = Overview(synthetic_dataset)
    assert contact_sheets(overview) == contact_sheets(Overview(open_dataset(synthetic_dataset.location)))


def test_what_was_left_out_and_what_is_there_twice(show: Callable[..., Shown], datasets: dict[str, Dataset]) -> None:
    shown = show(datasets["strange"])
    assert shown.numbers("Raw images that could not be used") == {"not an image": ["5"]}
    assert shown.numbers("Images that stand in the dataset more than once")["of two patients"] == ["1"]
    pictures = shown.page.locator("#part-8 .cases figure").first
    assert pictures.locator("img").count() == 2
    warnings = " ".join(shown.texts(".warning"))
    assert "different labels" in warnings
    notes = " ".join(shown.texts(".note"))
    assert "times as long as wide" in notes
    assert re.search(r"3 of \d+ images looked at are of one colour", notes)
    assert "6 of 10 images" in " ".join(shown.texts("#part-10 figcaption"))


def test_a_damaged_image_is_told_and_does_not_stop_the_page(show: Callable[..., Shown], tmp_path: Path) -> None:
    dataset = binary(tmp_path / "data")
    content = bytearray((tmp_path / "data" / "shard-000000.tar").read_bytes())
    offset = int(dataset.column("offset")[0])
    content[offset + 300] ^= 1
    (tmp_path / "data" / "shard-000000.tar").write_bytes(content)
    shown = show(str(tmp_path / "data"))
    assert "shard-000000.tar" in shown.texts(".warning")[0]
    assert len(shown.texts("h2")) == 10


def told(folder: Path, cases: list[Case], task: str, labels: tuple[str, ...], **options: Any) -> str:
    return " ".join(finding.sentence for finding in findings(Overview(written(folder, cases, task, labels, **options))))


def test_findings(tmp_path: Path) -> None:
    """Each fault is named, and a dataset without it is not accused."""
    labels = ("mel", "nv")
    clean = [
        painted(
            number,
            (Painted(number, (90, 70)), Painted(1000 + number, (90, 70))),
            patient=f"p{number // 2}",
            labels=one_hot(labels[number % 2], labels),
            attributes={"site": ("a", "b")[number // 2 % 2]},
        )
        for number in range(160)
    ]
    assert told(tmp_path / "clean", clean, "multiclass", labels) == ""

    by_site = [
        painted(n, labels=one_hot(labels[n % 4 == 0], labels), attributes={"site": "x" if n % 4 == 0 else "y"})
        for n in range(120)
    ]
    line = told(tmp_path / "site", by_site, "multiclass", labels)
    assert "site = x tells the label: 100 % of its 30 cases are nv, 0 % elsewhere" in line
    assert "Every case is its own patient" in line and "No case has two images" in line
    assert "120 images smaller than 64 px" in line

    official = [
        painted(n, split="test" if n % 4 == 0 else "train", attributes={"scanner": "A" if n % 4 == 0 else "B"})
        for n in range(200)
    ]
    line = told(tmp_path / "scanner", official, "unlabelled", ())
    assert "scanner = A is not spread as the patients are: 100 % of its 50 patients are in test, 25 % of all" in line
    assert "split val is empty" in line

    rare = [
        painted(n, split=("train", "val", "test")[n % 3], labels=one_hot("mel" if n in (0, 1) else "nv", labels))
        for n in range(60)
    ]
    line = told(tmp_path / "rare", rare, "multiclass", labels)
    assert "No test patient has mel." in line and "Fewer than 5 train patients have mel (1)." in line

    huge = [painted(n, patient="p0" if n < 40 else "") for n in range(100)]
    assert "p0, has 40 images: 40 % of all" in told(tmp_path / "huge", huge, "unlabelled", ())


def test_lookalikes_are_those_of_all_pairs() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 1 << 63, 400, np.uint64)
    hashes[100:160] = hashes[:60] ^ (np.uint64(1) << random.integers(0, 64, 60).astype(np.uint64))
    hashes[300] = 0
    hashes[301] = 1  # nearly flat: not compared
    cases, pixels = np.arange(400), np.arange(400)
    cases[159], pixels[158] = cases[59], pixels[58]  # of one case; an exact copy
    found = lookalikes(hashes, cases, pixels)
    assert found.tolist() == [[k, k + 100] for k in range(58)]


def test_the_nearest_pairs_of_many_come_first_and_of_too_many_only_they(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 1 << 63, 40_000, np.uint64)
    once = np.uint64(1) << random.integers(0, 31, 20_000).astype(np.uint64)
    twice = np.where(np.arange(20_000) % 2, np.uint64(0), np.uint64(1) << np.uint64(40))
    hashes[20_000:] = hashes[:20_000] ^ once ^ twice
    nearest = [[k, k + 20_000] for k in range(1, 20_000, 2)]
    everything = lookalikes(hashes, np.arange(40_000), np.arange(40_000)).tolist()
    assert everything == [*nearest, *([k, k + 20_000] for k in range(0, 20_000, 2))]
    monkeypatch.setattr("data.look.lookalikes.MAX_PAIRS", 15_000)
    assert lookalikes(hashes, np.arange(40_000), np.arange(40_000)).tolist() == nearest


def test_the_page_lies_beside_and_never_in_the_way(
    synthetic_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in Path(synthetic_dataset.location).rglob("*") if path.is_file()}
    main(["look", synthetic_dataset.location])
    assert capsys.readouterr().out.strip() == str(tmp_path / "synthetic-look.html")
    main(["look", synthetic_dataset.location, "out=other.html"])
    assert (tmp_path / "other.html").read_bytes() == (tmp_path / "synthetic-look.html").read_bytes()
    for out in ("index.parquet", "s3://bucket/page.html", "page"):
        with pytest.raises(InputError, match=r"\.html"):
            look(synthetic_dataset.location, out)
    with pytest.raises(InputError, match=r"no folder .*nowhere; make it"):
        look(synthetic_dataset.location, "nowhere/page.html")
    assert not (tmp_path / "nowhere").exists()
    assert {path: path.read_bytes() for path in before} == before


def test_a_dataset_behind_a_url(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    place = Folder("memory://looked-at")
    for path in Path(synthetic_dataset.location).iterdir():
        place.write(path.name, path.read_bytes())
    remote = look(place.location, str(tmp_path / "remote.html"))
    local = look(synthetic_dataset.location, str(tmp_path / "local.html"))
    assert Path(remote).read_bytes() == Path(local).read_bytes()


def test_real_photographs(shared_data: Path, show: Callable[..., Shown], tmp_path: Path) -> None:
    rows = []
    for number, path in enumerate(sorted((shared_data / "ham10000" / "images").iterdir())[:24]):
        rows.append(painted(number, (Stored(path),), labels={"malignant": float(number % 2)}))
    shown = show(written(tmp_path / "data", rows, "binary", ("malignant",)))
    assert shown.page.locator("#part-10 img").count() == 24


@dataclass(frozen=True)
class Stored:
    path: Path

    def __call__(self) -> bytes:
        return self.path.read_bytes()
