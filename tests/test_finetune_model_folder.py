"""The folder of a fine-tuned model: what is loaded is what was judged, and nothing altered is loaded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clusters.config import InputError
from clusters.storage import Folder
from data.loader import evaluation_batches
from finetune.config import FinetuneConfig
from finetune.heads import Head
from finetune.model import Decision, Model
from finetune.model_folder import load_model, record_latency
from finetune.run import finetune
from finetune.tasks import Binary
from tests.finetune_runs import recipe


@pytest.fixture(scope="module")
def runs(finetuned, synthetic_dataset, tmp_path_factory) -> dict[str, FinetuneConfig]:
    """A finished run of each head, of a few steps; not to be altered."""
    full = {"epochs": 1, "batch_size": 32, "optim": {"name": "sgd", "lr": 0.05}}
    whole = recipe(synthetic_dataset, finetuned.encoder, tmp_path_factory.mktemp("full") / "out", full=full)
    finetune(whole)
    return {"linear": finetuned, "full": whole}


@pytest.mark.parametrize("head", ["linear", "full"])
def test_a_loaded_model_says_what_was_judged(runs, synthetic_dataset, head):
    """To the image and, pooled, to the case."""
    frame = pq.read_table(Path(runs[head].out) / "predictions.parquet").to_pandas()
    frame = frame[frame.split == "test"]
    model = load_model(runs[head].out)
    rows = synthetic_dataset.rows(["test"])
    logits = np.concatenate(
        [model.logits(p.numpy()) for _, p in evaluation_batches(synthetic_dataset, rows, model.card.size_px, 16)]
    )
    columns = [f"probability.{label}" for label in model.card.labels]
    temperature = model.card.decision.temperature  # which hides in probabilities what differs, where it is high

    def alike(found: np.ndarray, expected: np.ndarray) -> None:
        np.testing.assert_allclose(temperature * np.log(found), temperature * np.log(expected), atol=1e-5)

    alike(model.probabilities(logits), frame[columns].to_numpy())
    cases, pooled = model.pool(synthetic_dataset.case_of[rows], logits)
    expected = frame.groupby("key", sort=False)[columns].mean().to_numpy()
    alike(pooled, expected)
    assert len(cases) == len(pooled) < len(rows)
    np.testing.assert_array_equal(model.decide(pooled)[:, 0], expected.argmax(axis=1))
    assert model.card.size_px == 32
    told = json.loads((Path(runs[head].out) / "results.json").read_text())["models"]["pretrained"]
    assert temperature == told["temperature"]
    assert model.card.processing["short_side_px"] == 256


def test_the_temperature_divides_the_logits_and_the_thresholds_decide(runs):
    loaded = load_model(runs["linear"].out)
    plain = Model(replace(loaded.card, decision=Decision({})), loaded.encoder, loaded.head)
    card = replace(plain.card, decision=Decision({}, temperature=2.0))
    logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    warm = Model(card, plain.encoder, plain.head)
    np.testing.assert_allclose(warm.probabilities(logits), plain.probabilities(logits / 2))
    np.testing.assert_allclose(warm.pool(np.arange(6), logits)[1], plain.probabilities(logits / 2))
    one = replace(
        card, task="binary", labels=("dark",), described=Binary(["dark"]).describe(), decision=Decision({"dark": 0.3})
    )
    yes_or_no = Model(one, plain.encoder, Head(96, 1))
    assert yes_or_no.decide(np.array([[0.29], [0.3], [0.5]])).tolist() == [[0], [1], [1]]


def test_a_card_may_be_told_its_latency_and_nothing_else(runs, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(runs["linear"].out, folder)
    before = load_model(str(folder)).card
    record_latency(Folder(folder / "model"), [{"device": "cpu", "median_ms": 3.0}])
    after = load_model(str(folder / "model")).card
    assert after.latency[0]["median_ms"] == 3.0
    assert after.fingerprint == before.fingerprint
    told = json.loads((folder / "model" / "model.json").read_text())
    (folder / "model" / "model.json").write_text(json.dumps(told | {"temperature": 3.0}))
    with pytest.raises(InputError, match=r"model.json was altered"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("encoder.safetensors", b"other", "encoder.safetensors was altered"),
        ("head.safetensors", None, "head.safetensors is not there"),
        ("model.json", b"{}", "model.json is damaged"),
        ("model.json", b"no json", "model.json: damaged, for it holds no JSON"),
        ("model.json", b'{"schema_version": 1}', "schema_version 1, this program reads 2"),
        ("model.json", None, "no model.json here; give a finished results folder"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(runs, tmp_path, name, content, message):
    shutil.copytree(runs["linear"].out, tmp_path / "out")
    file = tmp_path / "out" / "model" / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_model(str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
