"""A short run with its monitors from end to end, and its report in a real browser."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from clusters.storage import Folder
from clusters.tracking import read_metrics
from data.charts import MAX_POINTS, Line, line_chart, short, ticks
from data.dataset import Dataset, open_dataset
from data.shards import write_dataset
from data.sources import read_raw, synthetic
from pretrain.config import PretrainConfig
from pretrain.report import _lines, report_page, write_report
from pretrain.report_pictures import NOT_LABELLED, OTHERS, label_groups, views_as_trained
from pretrain.run import pretrain
from tests.browser import opened
from tests.test_pretrain_preview import decoded

HEALTH = {f"health/{name}" for name in ("alignment", "uniformity")} | {
    f"health/{name}_{where}" for name in ("std", "rankme") for where in ("encoder", "projection")
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """150 small cases, so that validation has enough of them."""
    out = str(tmp_path_factory.mktemp("data") / "dataset")
    config = synthetic.Options(source="synthetic", out=out, num_cases=150, size_px=32, num_processes=1)
    write_dataset(read_raw(config), config)
    return open_dataset(out)


@pytest.fixture(scope="module")
def config(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """A finished run of two stages; not to be altered."""
    optim = {"name": "sgd", "lr": 0.01, "lr_scaling": "none"}
    stage = {"batch_size": 8, "projection_hidden": 16, "projection_dim": 8, "optim": optim}
    values = {
        "data": dataset.location,
        "run": str(tmp_path_factory.mktemp("runs") / "run"),
        "precision": "fp32",
        "encoder": {"name": "resnet18"},
        "views": {"size_px": 32},
        "stages": [{"method": "simclr", "steps": 8, **stage}, {"method": "micle", "steps": 3, **stage}],
        "tracking": {"wandb": "disabled", "every_steps": 1},
        "probe": {"every_steps": 4, "max_images": 40},
    }
    config = PretrainConfig.model_validate(values)
    pretrain(config)
    return config


def test_a_healthy_run_records_all_figures_and_raises_no_alarm(config: PretrainConfig) -> None:
    records = read_metrics(Folder(config.run) / "1-simclr")
    measured = [record for record in records if "loss" in record]
    assert [record["step"] for record in measured] == list(range(1, 9))
    always = {"loss", "loss_collapsed", "lr", "epoch", "samples_per_s", "time/data_wait", "time/step", *HEALTH}
    for record in measured:
        assert always <= set(record)
        assert all(np.isfinite(record[name]) for name in always)
        assert 0 < sum(value for name, value in record.items() if name.startswith("time/")) <= 1
    assert measured[0]["loss_collapsed"] == pytest.approx(np.log(15))
    assert [record["step"] for record in records if "probe/linear_auroc" in record] == [4, 8]
    assert measured[4]["time/probe"] > 0 and measured[5]["time/probe"] == 0  # the probe after step 4
    assert not [record for record in records if "alarm" in record]


def test_the_page_shows_what_is_in_the_records_and_loads_nothing(
    config: PretrainConfig, browser: Browser, tmp_path: Path
) -> None:
    for width, scheme in ((1280, "light"), (390, "dark")):
        shown_page = opened(browser, Path(config.run) / "report.html", width, scheme)
        page = shown_page.page
        assert shown_page.left_the_page() == [] and shown_page.complaints == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        titles = page.locator("h2").all_text_contents()
        assert titles[:3] == ["At the end", "1-simclr", "2-micle"]
        broken = "[...document.images].filter(image => !image.naturalWidth).length"
        assert page.locator("img").count() > 2 * 2 * 6 and page.evaluate(broken) == 0
        curves = page.locator("#part-2 svg[role=img]")
        assert curves.count() >= 7
        for number in range(curves.count()):
            box = curves.nth(number).bounding_box()
            assert box is not None and box["width"] > 200 and box["height"] > 80
        last = [record for record in read_metrics(Folder(config.run) / "2-micle") if "probe/knn_auroc" in record][-1]
        shown = page.locator("#part-1 .tiles strong").all_text_contents()
        assert shown[:2] == [f"{last['probe/knn_auroc']:.3f}", f"{last['probe/linear_auroc']:.3f}"]
        assert page.locator("section:has(h2:text-is('Map')) svg[role=img] > :not(rect)").count() >= 10
        page.close()


def test_the_page_names_no_place_and_no_file(config: PretrainConfig, dataset: Dataset) -> None:
    words = (Path(config.run) / "report.html").read_text()
    assert config.run not in words and dataset.location not in words
    assert not re.search(r"[\w-]+\.(jpg|jpeg|png|tar)\b", words)
    assert dataset.fingerprint[:16] in words
    assert "/" + "tmp" not in re.sub(r"base64,[^\"]*", "", words)


def test_a_page_of_a_grey_encoder_from_given_weights(config: PretrainConfig, dataset: Dataset, tmp_path: Path) -> None:
    """The views are grey, as the network saw them; the weights are told by their title, not by their place."""
    weights = {"stages": config.stages[:1], "encoder": config.encoder.model_copy(update={"weights": config.run})}
    given = config.model_copy(update={"run": str(tmp_path / "run"), **weights})
    pretrain(given)
    words = (tmp_path / "run/report.html").read_text()
    assert config.run not in words
    assert "1-simclr starts from Manyview encoder resnet18, simclr → micle" in words
    rows = dataset.rows(["train"])
    for channels, colourful in ((1, False), (3, True)):
        encoder = config.encoder.model_copy(update={"channels": channels})
        found = views_as_trained(config.model_copy(update={"encoder": encoder}), 0, dataset, rows)
        views = [decoded(source) for source in re.findall(r'src="(data:image/jpeg[^"]+)"', found)]
        assert len(views) == 12
        assert any(np.ptp(view.astype(int), axis=2).mean() > 8 for view in views) == colourful


def test_alarms_stand_on_the_page_and_a_run_without_records_has_one_too(
    config: PretrainConfig, dataset: Dataset, tmp_path: Path
) -> None:
    run = Folder(tmp_path / "run")
    shutil.copytree(Path(config.run) / "encoder", tmp_path / "run/encoder")
    rows = dataset.rows(["train"])
    assert "No alarm was raised" in report_page(run, config, dataset, rows)
    alarm = {"step": 3, "alarm": "collapse", "reason": "all <alike>"}
    (run / "1-simclr").append("metrics.jsonl", json.dumps({"step": 3, "loss": None, "lr": 0.1}))
    (run / "1-simclr").append("metrics.jsonl", json.dumps(alarm))
    page = report_page(run, config, dataset, rows)
    assert "1 alarm was raised" in page and "<b>collapse</b> at step 3: all &lt;alike&gt;" in page


def test_a_report_that_fails_fails_no_run(
    config: PretrainConfig, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(Folder(tmp_path), config, dataset, dataset.rows(["train"]))
    assert "no report.html (InputError" in capsys.readouterr().out
    assert not (tmp_path / "report.html").exists()


def test_groups_of_labels_go_by_the_rarest_and_by_size() -> None:
    nan = float("nan")
    labels = np.array([[1, 1], [1, 0], [1, 0], [0, 0], [nan, nan], [0, nan]], np.float32)
    group, names = label_groups(labels, ["common", "rare"])
    assert [names[g] for g in group] == ["rare", "common", "common", "no label positive", NOT_LABELLED,
                                         "no label positive"]  # fmt: skip
    assert label_groups(np.array([[1], [0]], np.float32), ["bad"])[1] == ["bad", "not bad"]
    group, names = label_groups(np.eye(12, dtype=np.float32)[[*range(12), 0, 1]], [f"c{k}" for k in range(12)])
    assert len(names) == 8 and names[:2] == ["c0", "c1"] and names[-1] == OTHERS and (group == 7).sum() == 5
    assert label_groups(np.empty((3, 0), np.float32), [])[1] == [NOT_LABELLED]


def test_charts_break_thin_and_scale_their_lines() -> None:
    points: list[tuple[float, float | None]] = [(k, None if k == 500 else k**2) for k in range(1000)]
    drawn = line_chart("Loss", [Line("loss", [*points[495:505]])], rule=(4e5, "collapsed"))
    assert drawn.count("<polyline") == 3 and "collapsed" in drawn  # two pieces and the rule
    many = line_chart("Loss", [Line("loss", [(k, 1.0 + k) for k in range(10_000)])])
    (line,) = re.findall(r'<polyline points="([^"]*)"', many)
    assert len(line.split()) == MAX_POINTS
    assert line_chart("Loss", [Line("loss", [(1, None)]), Line("other", [])]) == ""
    assert line_chart("Loss", [Line("loss", [(1, 2.0)])]).count("<circle") == 1
    assert ticks(0.13, 4.2, 4) == [0, 2, 4, 6]
    assert ticks(0, 1000, 4, inside=True) == [0, 500, 1000]
    assert [short(value) for value in (0.00031, 1500, 2_000_000, -3.94, 0)] == ["0.00031", "1.5k", "2e6", "-3.94", "0"]


def test_a_curve_over_steps_that_were_done_again_never_turns_back() -> None:
    records = [{"step": step, "loss": loss} for step, loss in ((10, 5.0), (20, 4.0), (30, None), (20, 3.0), (40, 2.0))]
    (line,) = _lines(records, {"loss": "Loss"})
    assert line.points == [(10.0, 5.0), (20.0, 3.0), (30.0, None), (40.0, 2.0)]
