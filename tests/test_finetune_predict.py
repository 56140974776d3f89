"""Predictions on files that nobody labelled: any kind of image, bad ones among them, killed and continued."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clusters.config import InputError, load_config
from clusters.storage import Folder
from data.dataset import open_dataset
from data.shards import write_dataset
from data.sources import read_raw, source_module
from finetune.external import run as evaluate
from finetune.image_list import list_images
from finetune.linear import Choice, fit_linear
from finetune.predict import run
from finetune.run import finetune
from tests.finetune_runs import recipe, write_encoder
from tests.test_data_dicom import dicom

ROOT = Path(__file__).parents[1]


def frame_of(out: Path, name: str = "predictions"):
    return pq.read_table(out / f"{name}.parquet").to_pandas()


def probabilities(frame) -> np.ndarray:
    return frame[[column for column in frame.columns if column.startswith("probability.")]].to_numpy()


def logits(frame, results: Path) -> np.ndarray:
    """Of exclusive classes, up to a constant a row: a temperature that is high hides in probabilities what differs."""
    return json.loads((results / "model/model.json").read_text())["temperature"] * np.log(probabilities(frame))


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Pictures of every kind: large and small, deep, grey, transparent, turned by EXIF, DICOM."""
    folder = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(0)

    def picture(height: int, width: int, channels: int) -> np.ndarray:
        small = rng.integers(0, 255, (6, 8, channels), np.uint8).squeeze()
        return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))

    (folder / "a").mkdir()
    Image.fromarray(picture(600, 450, 3)).save(folder / "a" / "large.jpg", quality=90)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(picture(60, 90, 3)).save(folder / "a" / "turned.jpg", exif=turned)
    Image.fromarray(picture(300, 300, 4), "RGBA").save(folder / "clear.png")
    Image.fromarray(picture(80, 50, 1)).save(folder / "grey.png")
    deep = picture(300, 280, 1).astype(np.uint16) * 16
    Image.fromarray(deep).save(folder / "deep.png")
    (folder / "scan.dcm").write_bytes(dicom(deep[::-1], BitsStored=12, PatientName="ZZPHICANARY"))
    return folder


def test_a_raw_folder_gives_what_its_import_gives(finetuned, raw, tmp_path, capsys):
    """To the last digit that rounding leaves, whatever the format."""
    run([finetuned.out, str(raw), f"out={tmp_path}/raw"])
    frame, results = frame_of(tmp_path / "raw"), Path(finetuned.out)
    assert frame.image.tolist() == ["a/large.jpg", "a/turned.jpg", "clear.png", "deep.png", "grey.png", "scan.dcm"]
    assert (frame.error == "").all()
    assert "6 of 6 images predicted" in capsys.readouterr().out
    options = source_module("folder").Options
    words = ["source=folder", f"raw={raw}", f"out={tmp_path}/data", "labels=none", "patient=none", "ids=source"]
    config = load_config(options, [*words, "num_processes=1", f"keyring={tmp_path}/keys.json"])
    write_dataset(read_raw(config), config)
    run([finetuned.out, f"{tmp_path}/data", f"out={tmp_path}/stored"])
    stored = logits(frame_of(tmp_path / "stored"), results)
    found, expected = (values[np.lexsort(values.T)] for values in (logits(frame, results), stored))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 1e-3


def test_a_dataset_gives_what_the_run_judged_image_and_case(finetuned, synthetic_dataset, tmp_path):
    run([finetuned.out, synthetic_dataset.location, f"out={tmp_path}", "batch_size=40"])
    frame = frame_of(tmp_path)
    judged = pq.read_table(Path(finetuned.out) / "predictions.parquet").to_pandas().set_index("member")
    frame = frame.set_index("image")
    assert len(frame) == synthetic_dataset.num_images
    test = frame[frame.split == "test"]
    expected = judged.loc[test.index]
    results = Path(finetuned.out)
    np.testing.assert_allclose(logits(test, results), logits(expected, results), atol=1e-5)
    labels = [column.removeprefix("probability.") for column in frame if column.startswith("probability.")]
    assert test.decision.tolist() == [labels[k] for k in probabilities(test).argmax(1)]
    cases = frame_of(tmp_path, "cases").set_index("case")
    pooled = expected.groupby("key").mean(numeric_only=True)
    np.testing.assert_allclose(logits(cases.loc[pooled.index], results), logits(pooled, results), atol=1e-5)
    assert cases.images.sum() == synthetic_dataset.num_images
    table = pyarrow.csv.read_csv(tmp_path / "predictions.csv").to_pandas()
    np.testing.assert_allclose(probabilities(table), probabilities(frame), rtol=1e-6)


def test_what_is_trained_in_bf16_is_judged_as_it_is_used(synthetic_dataset, tmp_path):
    encoder = write_encoder(tmp_path / "encoder", synthetic_dataset)
    config = recipe(synthetic_dataset, encoder, tmp_path / "trained", precision="bf16")
    finetune(config)
    judged = pq.read_table(tmp_path / "trained/predictions.parquet").to_pandas().set_index("member")
    run([config.out, synthetic_dataset.location, f"out={tmp_path / 'out'}"])
    frame = frame_of(tmp_path / "out").set_index("image")
    used, told = (logits(rows, tmp_path / "trained") for rows in (frame.loc[judged.index], judged))
    np.testing.assert_allclose(used, told, atol=1e-4)


def confident(*given, **named) -> Choice:
    """The head that was fitted, made so sure that a sigmoid is 0 or 1 but for rounding, of some images either."""
    choice, numbers = fit_linear(*given, **named), given[1]
    spread = choice.head.logits(numbers)
    scale = 60 / spread.std()
    bias_K = scale * (choice.head.bias_K - spread.mean())
    head = replace(choice.head, weight_KD=np.float32(scale) * choice.head.weight_KD, bias_K=bias_K.astype(np.float32))
    return replace(choice, head=head)


def test_confident_answers_are_alike_in_results_evaluation_and_prediction(
    finetuned, synthetic_dataset, tmp_path, monkeypatch
):
    """In probability and in rank, at a temperature: each goes its own way to them."""
    monkeypatch.setattr("finetune.run.fit_linear", confident)
    monkeypatch.setattr("finetune.evaluate.fit_temperature", lambda *_: 4.19)
    trained = tmp_path / "trained"
    finetune(recipe(synthetic_dataset, finetuned.encoder, trained, head="linear", label="melanoma"))
    data = synthetic_dataset.location
    run([str(trained), data, f"out={tmp_path}/predicted"])
    evaluate([str(trained), f"data=[{data}]", f"out={tmp_path}/evaluated", "on_leak=warn", "foreign=false"])
    judged = frame_of(trained).set_index("member")
    judged = judged[judged.split == "test"]
    expected = probabilities(judged)[:, 0]
    told = 4.19 * (np.log(expected) - np.log1p(-expected))
    assert told.min() < -40 and told.max() > 40, "so sure that nothing comes back from a sigmoid"
    (evaluated,) = (tmp_path / "evaluated").glob("*/predictions.parquet")
    for frame in (frame_of(tmp_path / "predicted").set_index("image"), frame_of(evaluated.parent).set_index("member")):
        found = probabilities(frame.loc[judged.index])[:, 0]
        np.testing.assert_allclose(found, expected, atol=1e-5)  # float32 of logits of hundreds
        np.testing.assert_allclose(4.19 * (np.log(found) - np.log1p(-found)), told, atol=5e-3)
        assert len(np.unique(found)) == len(np.unique(expected)) == len(expected)


def test_an_image_that_cannot_be_read_is_a_row_and_the_rest_goes_on(finetuned, raw, tmp_path, capfd):
    """By a CSV, whose names and cases come back as they were given; nothing else names a file or a tag."""
    whole = (raw / "a" / "large.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_bytes(b"not an image at all")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "broken.dcm").write_bytes((raw / "scan.dcm").read_bytes()[:-20_000])
    (tmp_path / "good.jpg").write_bytes(whole)
    names = ["good.jpg", "cut.jpg", "text.png", "empty.png", "absent.png", "broken.dcm", str(raw / "scan.dcm")]
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "case"], *zip(names, ["p1", "p1", "p2", "p2", "p2", "p3", "p3"])])
    run([finetuned.out, f"{tmp_path}/list.csv", f"out={tmp_path}/out"])
    frame = frame_of(tmp_path / "out")
    assert frame.image.tolist() == names
    assert frame.error.tolist()[:5] == ["", "truncated", "not an image", "zero bytes", "absent"]
    assert frame.error[5]
    assert frame.error[6] == ""
    bad = frame[frame.error != ""]
    assert np.isnan(probabilities(bad).astype(float)).all()
    assert bad.decision.isna().all()
    assert np.isfinite(probabilities(frame[frame.error == ""])).all()
    cases = frame_of(tmp_path / "out", "cases").set_index("case")
    assert cases.index.tolist() == ["p1", "p2", "p3"]
    np.testing.assert_allclose(probabilities(cases.loc[["p1", "p3"]]), probabilities(frame.iloc[[0, 6]]), atol=1e-7)
    assert cases.loc["p2"].isna().sum() == len(probabilities(cases).T) + 1
    assert cases.unreadable.tolist() == [1, 3, 1]
    told = capfd.readouterr()
    assert "2 of 7 images predicted; 5 could not be read" in told.out
    assert "ZZPHICANARY" not in told.out + told.err
    assert "broken" not in told.out + told.err
    run([finetuned.out, f"{tmp_path}/list.csv", f"out={tmp_path}/out"])
    assert "reused" in capfd.readouterr().out


def test_names_are_no_formulas_and_devices_no_images(finetuned, raw, tmp_path):
    """As a spreadsheet would take them in the CSV; in Parquet they are as they were given."""
    names = ["=1+1.jpg", "-2", "@sum", "/dev/zero", str(tmp_path)]
    for name in names[:3]:
        (tmp_path / name).write_bytes((raw / "a" / "large.jpg").read_bytes())
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image"], *([name] for name in names)])
    run([finetuned.out, f"{tmp_path}/list.csv", f"out={tmp_path}/out"])
    frame = frame_of(tmp_path / "out")
    assert frame.image.tolist() == names
    assert frame.error.tolist() == ["", "", "", "not a file", "not a file"]
    with (tmp_path / "out/predictions.csv").open(newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["image", "'=1+1.jpg", "-2", "'@sum", *names[3:]]


def test_where_nothing_can_be_read_the_rows_are_there_and_the_exit_code_is_2(finetuned, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.png").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(InputError, match=r"in: none of 1 images could be read \(1 not an image\)"):
            run([finetuned.out, f"{tmp_path}/in", f"out={tmp_path}/out"])
    assert frame_of(tmp_path / "out").error.tolist() == ["not an image"]


def test_killed_it_goes_on_after_its_last_part(finetuned, synthetic_dataset, tmp_path, capsys, monkeypatch):
    """By SIGKILL in the middle; what was written is not computed again, and all ends as undisturbed."""
    words = [finetuned.out, synthetic_dataset.location]
    code = (
        f"import finetune.predict as p; p.PART_IMAGES = 4; p.run({[*words, f'out={tmp_path}/out', 'batch_size=4']!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    parts = tmp_path / "out" / "parts"
    while process.poll() is None and len(list(parts.glob("part-*"))) < 3:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("part-*")}
    assert 3 <= len(before) < synthetic_dataset.num_images // 4, "killed in the middle"
    assert "counts" not in json.loads((tmp_path / "out" / "predict.json").read_text())

    monkeypatch.setattr("finetune.predict.PART_IMAGES", 4)
    run([*words, f"out={tmp_path}/out", "batch_size=4"])
    assert f"{4 * len(before)} of {synthetic_dataset.num_images} images are there already" in capsys.readouterr().out
    run([*words, f"out={tmp_path}/whole", "batch_size=4"])
    for name in ("predictions.csv", "cases.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not parts.exists()


def test_files_of_equal_names_elsewhere_or_replaced_are_other_images(finetuned, raw, tmp_path, capsys):
    """Whether a folder or a CSV, which may name files that lie elsewhere, names them."""
    here, there, out = tmp_path / "here", tmp_path / "there", f"out={tmp_path}/out"
    for folder in (here, there):
        folder.mkdir()
        shutil.copy2(raw / "grey.png", folder / "one.png")
        shutil.copy2(raw / "clear.png", folder / "two.png")
    words = [finetuned.out, str(here), out]
    run(words)
    run(words)
    assert "reused" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds predictions with other images"):
        run([finetuned.out, str(there), out])
    listed = tmp_path / "lists" / "list.csv"
    listed.parent.mkdir()
    listed.write_text(f"image\n{here}/one.png\n../there/two.png\n")
    before = list_images(str(listed)).fingerprint()
    assert list_images(str(listed)).fingerprint() == before
    shutil.copy2(raw / "grey.png", there / "two.png")
    assert list_images(str(listed)).fingerprint() != before
    shutil.copyfile(raw / "deep.png", here / "two.png")
    with pytest.raises(InputError, match="holds predictions with other images"):
        run(words)


def test_at_a_url_a_file_that_was_replaced_is_another():
    place = Folder("memory://predict-images")
    place.write("one.png", b"before")
    place.write("two.png", b"same")
    before = list_images(place.location).fingerprint()
    assert list_images(place.location).fingerprint() == before
    place.write("one.png", b"behind")
    assert list_images(place.location).fingerprint() != before


def test_a_damaged_image_of_a_dataset_is_a_row(finetuned, synthetic_dataset, tmp_path):
    shutil.copytree(synthetic_dataset.location, tmp_path / "data")
    dataset = open_dataset(str(tmp_path / "data"))
    row = 5
    name, offset = dataset.manifest.shards[int(dataset.column("shard")[row])], int(dataset.column("offset")[row])
    with (tmp_path / "data" / name).open("r+b") as file:
        file.seek(offset + 100)
        file.write(b"\0\1\2\3")
    run([finetuned.out, f"{tmp_path}/data", f"out={tmp_path}/out"])
    frame = frame_of(tmp_path / "out")
    assert [i for i, error in enumerate(frame.error) if error] == [row]
    assert frame.error[row] == "altered in its shard"


def test_bad_input_is_said_in_one_line(finetuned, raw, tmp_path):
    def refused(match: str, *words: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            run(list(words))
        assert "\n" not in str(caught.value)

    out, model = f"out={tmp_path}/out", finetuned.out
    refused("predict takes a model and images", model, out)
    refused("no model.json here; give a finished results folder", str(raw), str(raw), out)
    refused("nowhere: no such folder", model, f"{tmp_path}/nowhere", out)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("hello")
    refused(r"text has no images; there are 1 \.txt; give a folder", model, f"{tmp_path}/text", out)
    (tmp_path / "list.csv").write_text("path,label\na.png,1\n")
    refused("has no column 'image'.*; image= takes the column in which the paths", model, f"{tmp_path}/list.csv", out)
    refused("no column 'who'", model, f"{tmp_path}/list.csv", "image=path", "case=who", out)
    (tmp_path / "cases.csv").write_text("image,case\na.png,p1\nb.png,\n")
    refused("cases.csv, row 3 names no case; name one for each image", model, f"{tmp_path}/cases.csv", out)
    refused("gone.csv: no such file", model, f"{tmp_path}/gone.csv", out)
    assert not (tmp_path / "out").exists()
    run([model, str(raw / "grey.png"), out])
    assert frame_of(tmp_path / "out").image.tolist() == ["grey.png"]
    refused("holds predictions with other images; give another out=", model, str(raw), out)


def test_what_is_not_its_own_is_not_written_over(finetuned, synthetic_dataset, raw, tmp_path):
    """Results, a dataset, anything else; nothing in the folder changes. A killed start and its log are its own."""
    model, image = finetuned.out, str(raw / "grey.png")
    for name, source in (("results", model), ("dataset", synthetic_dataset.location), ("raw", raw)):
        shutil.copytree(source, tmp_path / name)
    shutil.copytree(model, tmp_path / "both")
    (tmp_path / "both/predict.json").write_text('{"identity": {}, "counts": {}}')
    told = {"results": r"results of python -m finetune \(results.json\)", "dataset": r"a dataset \(manifest.json\)",
            "raw": "other things, a among them", "both": "holds results of .* beside predictions"}  # fmt: skip
    for name, match in told.items():
        before = {path: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        with pytest.raises(InputError, match=f"{match}.*; give another out="):
            run([model, image, f"out={tmp_path / name}"])
        assert {path: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()} == before
    out = tmp_path / "out"
    (out / "parts").mkdir(parents=True)
    for name in ("nohup.out", ".predict.json.0.part"):
        (out / name).touch()
    run([model, image, f"out={out}"])
    shutil.copy2(Path(model) / "results.json", out)
    with pytest.raises(InputError, match=r"holds results of .* beside predictions; give another out="):
        run([model, image, f"out={out}"])


@pytest.mark.parametrize("written", ["image;case\r\n{};p1\r\n;p1\r\n", "\ufeffimage\tcase\n{}\tp1\n\tp1\n\n"])
def test_a_csv_is_read_as_an_import_reads_it(finetuned, raw, tmp_path, capsys, written):
    """Semicolons and tabs, a BOM and ends of lines of Windows; a cell without an image is a row that says so."""
    name = str(raw / "grey.png")
    (tmp_path / "list.csv").write_bytes(written.format(name).encode())
    run([finetuned.out, f"{tmp_path}/list.csv", f"out={tmp_path}/out"])
    frame = frame_of(tmp_path / "out")
    assert frame.image.tolist() == [name, ""] and frame.case.tolist() == ["p1", "p1"]
    assert frame.error.tolist() == ["", "the row names no image"]
    assert "1 could not be read (1 the row names no image)" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_table_of_an_import_names_its_own_columns(finetuned, raw, tmp_path, kind):
    names = [f"{raw}/grey.png", f"{raw}/clear.png"]
    table = pa.table({"Datei": names, "Fall": ["f1", "f1"], "case": ["1", "2"]})
    if kind == "csv":
        pyarrow.csv.write_csv(table, tmp_path / "t.csv")
    else:
        pq.write_table(table, tmp_path / "t.parquet")
    run([finetuned.out, f"{tmp_path}/t.{kind}", f"out={tmp_path}/out", "image=Datei", "case=Fall"])
    frame = frame_of(tmp_path / "out")
    assert (frame.image.tolist(), frame.case.tolist(), frame.error.tolist()) == (names, ["f1", "f1"], ["", ""])
    assert len(frame_of(tmp_path / "out", "cases")) == 1
    run([finetuned.out, f"{tmp_path}/t.{kind}", f"out={tmp_path}/none", "image=Datei", "case="])
    assert "case" not in frame_of(tmp_path / "none")


def test_what_is_passed_over_in_a_folder_is_said(finetuned, raw, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    shutil.copy(raw / "grey.png", tmp_path / "in")
    for name in ("IMG_1.HEIC", "IMG_2.HEIC", "notes.txt"):
        (tmp_path / "in" / name).write_bytes(b"x")
    run([finetuned.out, f"{tmp_path}/in", f"out={tmp_path}/out"])
    told = capsys.readouterr().out
    assert "1 of 1 images predicted" in told
    assert f"{tmp_path}/in: passed over 2 .heic and 1 .txt (not read: convert .heic to JPEG)\n" in told
