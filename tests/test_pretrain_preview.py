"""The page of views: what training would see, and nothing that tells more than the dataset."""

import base64
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page

from clusters.config import InputError, load_config
from data.dataset import Dataset, open_dataset
from data.shards import write_dataset
from pretrain.__main__ import _help, _run
from pretrain.batches import ViewBatches, finished_views
from pretrain.methods import METHODS
from pretrain.preview import PreviewConfig, in_words, preview
from pretrain.views import COLUMNS
from tests.browser import opened
from tests.drawn_cases import cases, config

RECIPE = "pretrain/recipes/synthetic.yaml"
SMALL = ["stages.0.batch_size=16", "stages.1.batch_size=16", "num_cases=4", "views.size_px=48"]


def made(dataset: Dataset | str, out: Path, *words: str) -> PreviewConfig:
    location = dataset if isinstance(dataset, str) else dataset.location
    chosen = load_config(PreviewConfig, [RECIPE, f"data={location}", f"out={out}", *SMALL, *words])
    assert preview(chosen) == str(out)
    return chosen


@pytest.fixture(scope="module")
def shown(
    synthetic_dataset: Dataset, browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreviewConfig, Page, list[str]]:
    """The page in a real browser, with what it asked for and complained of."""
    out = tmp_path_factory.mktemp("preview") / "preview.html"
    chosen = made(synthetic_dataset, out)
    found = opened(browser, out)
    return chosen, found.page, found.requests + found.complaints


def pictures(page: Page, stage: int) -> list[list[np.ndarray]]:
    """The pictures of a stage's section, by sample, as pixels."""
    sources = page.evaluate(
        "n => [...document.querySelectorAll(`#part-${n + 1} .cases`)]"
        ".map(row => [...row.querySelectorAll('img')].map(image => image.src))",
        stage,
    )
    return [[decoded(source) for source in row] for row in sources]


def decoded(source: str) -> np.ndarray:
    content = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(pixels)[..., ::-1]


@pytest.mark.parametrize("stage", [0, 1])
def test_the_page_shows_the_views_of_the_first_training_step(
    synthetic_dataset: Dataset, shown: tuple[PreviewConfig, Page, list[str]], stage: int
) -> None:
    chosen, page, _ = shown
    method, views = METHODS[chosen.stages[stage].method], chosen.stage_views(stage)
    samples = method.samples(synthetic_dataset, synthetic_dataset.rows(["train"]))
    pair = method.pairing(chosen.stages[stage], synthetic_dataset, samples)  # type: ignore[arg-type]
    batch = ViewBatches(synthetic_dataset, samples, pair, views, 0, stage, 16, 0, 1, augment=True)(0)
    pixels = finished_views(batch, views, torch.device("cpu"), True)
    pixels = pixels * torch.tensor(views.std).view(3, 1, 1) + torch.tensor(views.mean).view(3, 1, 1)

    titles = page.locator(f"#part-{stage + 1} h3").all_text_contents()
    assert len(titles) == 4
    for title, found in zip(titles, pictures(page, stage)):
        told = re.fullmatch(r"(\S+) · position (\d+), a sample of (.+)", title)
        assert told is not None
        position, rows = int(told[2]), batch.rows_VB[:, int(told[2])].tolist()
        assert told[1] == synthetic_dataset.column("key")[rows[0]]
        assert len(found) == len(set(rows)) + 2
        for view, picture in enumerate(found[-2:]):
            expected = (255 * pixels[view, position]).permute(1, 2, 0).numpy()
            assert picture.shape == (192, 192, 3)
            assert np.abs(picture[2::4, 2::4] - expected).mean() < 4, "more than JPEG takes away"
            others = (255 * pixels[view, (position + 1) % 16]).permute(1, 2, 0).numpy()
            assert np.abs(picture[2::4, 2::4] - others).mean() > 8


def test_cases_with_several_images_come_first_where_the_method_pairs_them(
    shown: tuple[PreviewConfig, Page, list[str]],
) -> None:
    _, page, _ = shown
    assert [len(found) for found in pictures(page, 0)] == [3] * 4
    assert [len(found) for found in pictures(page, 1)] == [4] * 4
    captions = page.locator("#part-2 .cases").first.locator("figcaption").all_inner_texts()
    assert captions[0].startswith("stored, ") and "first view's crop" in captions[0]
    assert captions[1].endswith("second view's crop")
    assert all("px cut out" in caption for caption in captions[2:])


def test_the_page_holds_all_that_it_shows(shown: tuple[PreviewConfig, Page, list[str]]) -> None:
    _, page, noise = shown
    assert len([url for url in noise if not url.startswith("data:")]) == 1, noise
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 28 and all(widths)
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.set_viewport_size({"width": 1280, "height": 900})
    tops = page.evaluate("[...document.querySelectorAll('#part-2 .cases figure')].map(f => f.offsetTop)")
    assert len(set(tops)) == 4, "two images and two views side by side"


def test_of_a_grey_encoder_the_views_are_grey(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    for channels, colourful in ((1, False), (3, True)):
        made(synthetic_dataset, tmp_path / "page.html", "num_cases=2", f"encoder.channels={channels}", "views.grey=0")
        sources = re.findall(r'src="(data:image/jpeg[^"]+)"', (tmp_path / "page.html").read_text())
        stored, view = (decoded(source).astype(int) for source in (sources[0], sources[2]))
        assert np.ptp(stored, axis=2).mean() > 8
        assert (np.ptp(view, axis=2).mean() > 8) == colourful


def test_the_boxes_are_those_of_the_crops(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    """A crop of nearly everything is outlined at the edges of the picture, a small one is not."""
    for area, at_the_edge in (("[0.98,1]", True), ("[0.08,0.1]", False)):
        words = ["num_cases=2", f"views.crop_area={area}", "views.crop_aspect=[1,1]"]
        made(synthetic_dataset, tmp_path / "page.html", *words)
        sources = re.findall(r'src="(data:image/jpeg[^"]+)"', (tmp_path / "page.html").read_text())
        stored = decoded(sources[0]).astype(int)
        frame = np.concatenate([stored[:4].reshape(-1, 3), stored[:, :4].reshape(-1, 3)])
        outlined = np.abs(frame - np.array([245, 160, 50])).max(1) < 60
        assert (outlined.mean() > 0.1) == at_the_edge


def test_it_tells_no_name_of_the_source(tmp_path: Path) -> None:
    write_dataset(cases(30), config(tmp_path / "data", ids="keyed", keyring=str(tmp_path / "keys.json")))
    dataset = open_dataset(str(tmp_path / "data"))
    made(dataset, tmp_path / "page.html")
    text = re.sub(r'src="data:[^"]*"', "", (tmp_path / "page.html").read_text())
    keys = [str(key) for key in dataset.column("key")]
    assert any(key in text for key in keys)
    assert not re.search(r"case-\d|image \d+\.\d|\bp\d+\b|/raw", text)
    assert str(tmp_path) not in text


def test_a_record_in_words() -> None:
    record = dict.fromkeys(COLUMNS, 0.0) | {"height": 50, "width": 80, "jitter": 1, "order": 9}
    record |= {"brightness": 1.2, "contrast": 0.5, "saturation": 1, "hue": -0.1}
    told = in_words(np.array([record[name] for name in COLUMNS], np.float32), (100, 80))
    assert told == ["80 × 50 px cut out, 50 %", "contrast × 0.50", "hue −36°", "brightness × 1.20"]
    record |= {"jitter": 0, "flip_horizontal": 1, "flip_vertical": 1, "quarter_turns": 3, "rotation_deg": 12.4}
    record |= {"grey": 1, "blur": 1.26, "solarise": 1}
    told = in_words(np.array([record[name] for name in COLUMNS], np.float32), (100, 80))
    assert told[1:] == [
        "mirrored", "upside down", "turned by 270°", "rotated by +12°", "grey", "blurred by 1.3 px", "solarised",
    ]  # fmt: skip


def test_the_command(synthetic_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    words = [RECIPE, f"data={synthetic_dataset.location}", *SMALL, "augment=device", "num_cases=1"]
    _run(["preview", *words, f"out={out}"])
    assert capsys.readouterr().out.strip() == str(out)
    text = out.read_text()
    assert "on the device, in floats" in text and "<dt>flip_vertical</dt><dd>0.5</dd>" in text
    assert "python -m pretrain preview RECIPE.yaml data=DIR" in _help()
    bad: list[tuple[list[str], str]] = [
        ([*words, "out=page.png"], r"\.html"),
        ([*words, f"out={tmp_path}/none/page.html"], "there is no folder"),
        ([*words, "splits=[test]"], "the test split is never pretrained on"),
        ([*words, "num_cases=0"], "num_cases"),
        (words[:1], "'data' is missing"),
    ]
    for given, told in bad:
        with pytest.raises(InputError, match=told):
            _run(["preview", *given])


def test_a_stage_that_cannot_be_formed_is_refused(tmp_path: Path) -> None:
    one_image: Any = cases(30)
    one_image.cases[:] = [case for case in one_image.cases if len(case.images) == 1]
    write_dataset(one_image, config(tmp_path / "data"))
    with pytest.raises(InputError, match="two images or more"):
        made(str(tmp_path / "data"), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
