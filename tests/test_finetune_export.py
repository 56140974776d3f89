"""A model for programs without Manyview: its answers are those of predict, and its card says all that is needed."""

import ast
import hashlib
import html
import io
import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch
from PIL import Image
from torch import nn

from clusters.config import InputError
from data.dataset import Dataset
from data.loader import centre_square, evaluation_batches
from finetune.export import FILES, run, usage
from finetune.image_list import input_pixels
from finetune.inference import _Tracer, for_inference
from finetune.model_folder import load_model
from finetune.run import finetune
from finetune.terms import terms
from pretrain.encoder import EncoderConfig
from pretrain.heads import first_layers, projection_head
from tests import miniatures
from tests.encoder_folders import export as write_grey
from tests.encoder_folders import unsettle
from tests.finetune_runs import NAME, recipe, write_encoder
from tests.finetune_ways import ECHO
from tests.importers import imported
from tests.pretended_gpu import pretended_gpu


@pytest.fixture(scope="module")
def exported(finetuned, tmp_path_factory) -> Path:
    """Both formats in one folder."""
    out = tmp_path_factory.mktemp("exported")
    for format_ in FILES:
        run([finetuned.out, f"format={format_}", f"out={out}"])
    return out


def outputs_of(file: str, format_: str, images: np.ndarray) -> list[np.ndarray]:
    """All outputs of the file, by its own runtime; ONNX tells their names, which are those of the card."""
    if format_ == "torch":
        return [values.detach().numpy() for values in torch.export.load(file).module()(torch.from_numpy(images))]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    told = json.loads(Path(f"{file}.json").read_text())
    assert [output.name for output in session.get_outputs()] == list(told["outputs"])
    return [np.asarray(values) for values in session.run(None, {"images": images})]


def answers_of(file: str, format_: str) -> Callable[[np.ndarray], np.ndarray]:
    """The probabilities that the file gives, by its own runtime."""
    if format_ == "onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return lambda images: np.asarray(session.run(["probabilities"], {"images": images})[0])
    module = torch.export.load(file).module()
    return lambda images: module(torch.from_numpy(images))[1].numpy()


def logits_behind(probabilities: np.ndarray, temperature: float, softmax: bool) -> np.ndarray:
    """What a high temperature hides in probabilities; of softmax up to a constant a row."""
    values = np.float64(probabilities)
    return temperature * (np.log(values) if softmax else np.log(values) - np.log1p(-values))


def test_both_formats_in_one_folder_have_a_card_each(exported):
    assert {path.name for path in exported.iterdir()} == {*FILES.values(), *(f"{name}.json" for name in FILES.values())}
    for name in FILES.values():
        content, card = (exported / name).read_bytes(), json.loads((exported / f"{name}.json").read_text())
        assert (card["file"], card["size"]) == (name, len(content))
        assert card["sha256"] == hashlib.sha256(content).hexdigest()
        assert f"{name}.json" in usage()


def test_a_file_tells_nothing_of_the_machine_that_wrote_it(exported):
    """Exporters keep the lines of code that each operation comes from."""
    contents = {"model.onnx": (exported / "model.onnx").read_bytes()}
    with zipfile.ZipFile(exported / "model.pt2") as archive:
        contents |= {name: archive.read(name) for name in archive.namelist()}
    assert any(name.endswith("model.json") for name in contents)
    checkout = Path(__file__).resolve().parents[1]
    for name, content in contents.items():
        for told in (str(checkout), sys.prefix, str(exported), 'File "', 'File \\"', "export.py"):
            assert told.encode() not in content, (name, told)


def test_cards_say_whose_data_and_licences_bind_the_model(exported, finetuned, synthetic_dataset):
    cards = [json.loads((exported / f"{name}.json").read_text()) for name in FILES.values()]
    cards.append(json.loads((Path(finetuned.out) / "model/model.json").read_text()))
    manifest = synthetic_dataset.manifest
    origin = {"name": manifest.name, "source": manifest.source, "licence": manifest.licence}
    page = html.unescape((Path(finetuned.out) / "report.html").read_text())
    for card in cards:
        told = card["terms"]
        assert told["trained_on"] == card["made_from"]["trained_on"] == origin
        assert told["pretrained_on"] == [origin] and told["pretrained_from"] == []
        assert told["licence"] == f"What is made from data is bound by its licence: {manifest.licence}."
        assert "not a medical device" in told["not_for"] and told["not_for"] in page
        assert synthetic_dataset.location not in json.dumps(card) and str(finetuned.out) not in json.dumps(card)


def test_what_is_not_known_of_data_and_weights_is_said_in_the_terms():
    ours = {"name": "ward", "source": "table", "licence": "not stated", "fingerprint": "f"}
    public = {"name": "ham10000", "source": "ham10000", "licence": "CC BY-NC 4.0", "fingerprint": "g"}
    begun = {"weights": "timm resnet50.a1_in1k", "sha256": "0", "seen": "unknown"}
    stages = [{"datasets": [public, ours], "starts_from": begun}, {"datasets": [public]}]
    told = terms({"trained_on": ours, "lineage": stages})
    assert told["trained_on"] == {"name": "ward", "source": "table", "licence": "unknown"}
    assert [one["licence"] for one in told["pretrained_on"]] == ["CC BY-NC 4.0", "unknown"]
    assert told["pretrained_from"] == ["timm resnet50.a1_in1k: made from data that is not known"]
    assert told["licence"].startswith(
        "What is made from data is bound by its licence: CC BY-NC 4.0. The licence of ward "
    )
    assert told["licence"].endswith("is unknown here.")

    before = terms({})  # of a card from before there were terms
    assert before["trained_on"] == {"name": "unknown", "source": "unknown", "licence": "unknown"}
    assert before["pretrained_from"] == ["weights of which nothing is known"]
    assert "The licence of the data is unknown" in before["licence"]


@pytest.mark.parametrize("format_", ["onnx", "torch"])
def test_the_file_gives_what_the_run_judged_for_any_batch(exported, finetuned, synthetic_dataset, format_):
    card = json.loads((exported / f"{FILES[format_]}.json").read_text())
    assert card["input"]["shape"] == ["batch", 3, 32, 32]
    answer = answers_of(str(exported / card["file"]), format_)
    rows = synthetic_dataset.rows(["test"])
    frame = pq.read_table(Path(finetuned.out) / "predictions.parquet").to_pandas()
    expected = frame[frame.split == "test"][[f"probability.{label}" for label in card["labels"]]].to_numpy()
    for size in (1, 7):
        ((_, pixels),) = evaluation_batches(synthetic_dataset, rows[:size], 32, size)
        images = np.ascontiguousarray(pixels.numpy().astype(np.float32) / 255)
        found, told = (
            logits_behind(values, card["inside"]["temperature"], True) for values in (answer(images), expected[:size])
        )
        np.testing.assert_allclose(found, told, atol=1e-5)
    assert card["largest_difference"] < 1e-5 and card["compared_on"] == "equal input pixels"
    assert [row["runs"].split()[0] for row in card["latency"]][1] == {"onnx": "onnxruntime", "torch": "torch.export"}[
        format_
    ]
    assert all(row["median_ms"] > 0 for row in card["latency"])


def test_a_card_names_the_encoder_by_which_its_pixels_are_those_of_the_model(exported, finetuned):
    """Word for word: other encoders' pixels differ, also those of a small picture."""
    before = json.loads((exported / "model.onnx.json").read_text())["before"]
    (step,) = [step for step in before if "JPEG" in step]
    call = re.search(r"simplejpeg\.encode_jpeg\(pixels, (.*?)\)", step)
    assert call is not None and step.startswith("also where nothing was shrunk") and "other encoders" in step
    told = {name: ast.literal_eval(value) for name, value in (pair.split("=") for pair in call[1].split(", "))}
    for channels in (3, 1):
        small = np.random.default_rng(0).integers(0, 256, (40, 50, channels), np.uint8)
        file = io.BytesIO()
        Image.fromarray(small.squeeze()).save(file, "PNG")
        pixels = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(np.repeat(small, 3 // channels, 2), **told))
        processing = load_model(finetuned.out).card.processing
        expected = input_pixels(file.getvalue(), False, processing, 32, 10**6)
        np.testing.assert_array_equal(centre_square(pixels, 32), expected)


def test_the_temperature_is_in_the_file_and_the_thresholds_in_its_card(finetuned, tmp_path):
    """Of a binary model with a temperature of 2."""
    from dataclasses import replace

    from finetune.export import _card, _torch, _with_answers
    from finetune.heads import Head
    from finetune.model import Decision, Model
    from finetune.tasks import Binary

    plain = load_model(finetuned.out)
    card = replace(
        plain.card, task="binary", labels=("dark",), classes=("not dark", "dark"), described=Binary(["dark"]).describe()
    )
    head = Head(96, 1)
    nn.init.constant_(head.weight, 0.1)
    model = Model(replace(card, decision=Decision({"dark": 0.3}, 2.0)), plain.encoder, head).eval()
    images = np.random.default_rng(0).random((3, 3, 32, 32)).astype(np.float32)
    logits, probabilities = _torch(_with_answers(model), 32, [])[1](images)
    expected = model.task.probabilities(logits / 2)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    assert not np.allclose(probabilities, model.task.probabilities(logits), atol=1e-4)
    told = _card(model)
    assert told["thresholds"] == {"dark": 0.3}
    assert told["inside"]["temperature"] == 2
    assert told["outputs"]["probabilities"]["columns"] == ["dark"]
    assert told["outputs"]["probabilities"]["meaning"].startswith("sigmoid")


Study = tuple[Dataset, str]
"""A dataset, and the results of a model that was trained on it."""
FULL = {"epochs": 1, "batch_size": 24, "optim": {"name": "sgd", "lr": 0.05}}


def trained(dataset: Dataset, folder: Path, encoder: str = "", **changed: Any) -> Study:
    """A linear head on a small residual network, unless changed."""
    encoder = encoder or write_encoder(folder / "encoder", dataset)
    config = recipe(dataset, encoder, folder / "run", **{"head": "linear", "full": {}, **changed})
    finetune(config)
    return dataset, config.out


def on_echo(synthetic_dataset: Dataset, folder: Path) -> Study:
    """A class and a number beside it."""
    dataset = imported("table", miniatures.echo_table(folder / "raw"), folder / "dataset", *ECHO)
    return trained(dataset, folder, numbers=["EF"])


def on_findings(synthetic_dataset: Dataset, folder: Path) -> Study:
    """Labels that do not exclude each other."""
    dataset = imported("chexpert", miniatures.chexpert_folder(folder / "raw"), folder / "dataset")
    return trained(dataset, folder, labels="chexpert5")


def by_attention(synthetic_dataset: Dataset, folder: Path) -> Study:
    """Whose score of an image stands in a last column, trained away from the mean that it begins as."""
    return trained(synthetic_dataset, folder, head="full", full={**FULL, "pooling": "attention"})


def by_maximum(synthetic_dataset: Dataset, folder: Path) -> Study:
    """The largest logit of a case's images."""
    return trained(synthetic_dataset, folder, linear={"pooling": "max"})


def vit(synthetic_dataset: Dataset, folder: Path) -> Study:
    """One class of five, by a small vision transformer."""
    return trained(synthetic_dataset, folder, write_encoder(folder / "encoder", synthetic_dataset, name="test_vit"))


def by_lora(synthetic_dataset: Dataset, folder: Path) -> Study:
    """Low-rank updates of a vision transformer's attention."""
    encoder = write_encoder(folder / "encoder", synthetic_dataset, name="test_vit")
    return trained(synthetic_dataset, folder, encoder, head="full", full={**FULL, "train": "lora"})


def grey(synthetic_dataset: Dataset, folder: Path) -> Study:
    """One channel, and layers of the projection head that were kept; all of it trained."""
    layers = first_layers(projection_head(96, 12, 8, 3), 2)
    write_grey(folder / "grey", synthetic_dataset, EncoderConfig(name=NAME, channels=1), head=layers)
    return trained(synthetic_dataset, folder, str(folder / "grey"), head="full", full=FULL)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (on_echo, {"probabilities": 1, "predicted": 1}),
        (vit, {"probabilities": 5}),
        (on_findings, {"probabilities": 5}),
        (by_attention, {"probabilities": 5}),
        (by_maximum, {"probabilities": 5}),
        (by_lora, {"probabilities": 5}),
        (grey, {"probabilities": 5}),
    ],
)
def test_probabilities_and_numbers_in_their_units_are_those_of_the_model(
    train: Callable[[Dataset, Path], Study], expected: dict[str, int], synthetic_dataset: Dataset, tmp_path: Path
):
    """By the names and columns of the card, in both formats; logits behind the probabilities too."""
    dataset, results = train(synthetic_dataset, tmp_path)
    model = load_model(results)
    temperature = model.card.decision.temperature
    assert temperature != 1
    ((_, pixels),) = evaluation_batches(dataset, dataset.rows(["test"])[:6], model.card.size_px, 6)
    logits = model.logits(pixels.numpy())
    answers = dict(zip(model.card.labels, model.probabilities(logits).T))
    images = np.ascontiguousarray(pixels.numpy().astype(np.float32) / 255)
    for format_ in ("onnx", "torch"):
        out = tmp_path / "exported"
        run([results, f"format={format_}", f"out={out}"])
        card = json.loads((out / f"{FILES[format_]}.json").read_text())
        found = dict(zip(card["outputs"], outputs_of(str(out / card["file"]), format_, images), strict=True))
        assert {name: values.shape[1] for name, values in found.items()} == {"logits": logits.shape[1], **expected}
        np.testing.assert_allclose(found.pop("logits"), logits, rtol=1e-4, atol=1e-5)
        for name, values in found.items():
            for label, column in zip(card["outputs"][name]["columns"], values.T, strict=True):
                np.testing.assert_allclose(column, answers[label], rtol=1e-4, atol=1e-5)
        if temperature > 1:
            told = np.stack([answers[label] for label in model.yes_or_no], axis=1)
            pair = found["probabilities"], told
            behind = (logits_behind(values, temperature, model.one_of_several) for values in pair)
            np.testing.assert_allclose(*behind, rtol=1e-4, atol=1e-5)
        assert card["inside"]["temperature"] == temperature
        assert card["inside"].get("numbers", {}).keys() == set(model.task.number_names)
        assert card["pooling"] == model.card.pooling


@pytest.mark.parametrize("name", [NAME, "test_efficientnet", "test_vit"])
def test_folded_batch_norms_change_nothing_but_rounding(finetuned, name):
    """With activations inside of norms too; a network that cannot be traced stays as it is."""
    import timm

    torch.manual_seed(0)
    model = load_model(finetuned.out)
    model.encoder = timm.create_model(name, num_classes=0).eval()
    unsettle(model.encoder)
    images = torch.rand(2, 3, *model.encoder.pretrained_cfg["input_size"][1:])  # type: ignore[index]
    with torch.no_grad():
        before = model.features(images)
        after = for_inference(model).features(images)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    norms = (
        [node for node in _Tracer().trace(model.encoder).nodes if "bn" in str(node.target)]
        if name != "test_vit"
        else []
    )
    assert not any(isinstance(model.encoder.get_submodule(str(node.target)), nn.BatchNorm2d) for node in norms)
    with pretended_gpu() as gpu:  # where all of it lies in one place too
        assert model.to(gpu).features(torch.empty(images.shape, device=gpu)).device == gpu


def test_a_finished_run_says_how_long_one_image_takes(finetuned):
    (row, *_) = load_model(finetuned.out).card.latency
    assert row["device"] == "cpu"
    assert 0 < row["median_ms"] <= row["p90_ms"]


def test_bad_input_is_said_in_one_line(finetuned, tmp_path):
    with pytest.raises(InputError, match="export takes a model: python -m finetune export MODEL"):
        run([f"out={tmp_path}"])
    with pytest.raises(InputError, match="'format' in the command line: Input should be 'onnx' or 'torch'"):
        run([finetuned.out, f"out={tmp_path}", "format=tflite"])
