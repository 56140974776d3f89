"""On a real GPU: fine-tuning and predictions are those of a CPU, and a model's card says how long an image takes."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from clusters import distributed
from clusters.storage import Folder
from data.dataset import Dataset
from finetune.config import FinetuneConfig
from finetune.inference import for_inference, single_image_latency
from finetune.model_folder import load_model
from finetune.predict import run as predict
from finetune.run import finetune
from tests.finetune_runs import recipe, write_encoder
from tests.test_finetune_predict import frame_of, probabilities
from tests.test_finetune_pretended_gpu import LAST, LORA, MIXED

pytestmark = pytest.mark.gpu


def run_on(kind: str, dataset: Dataset, encoder: str, out: Path, **changed: Any) -> Any:
    """Predictions on the dataset's test cases by a model trained on a device."""
    with mock.patch.object(distributed, "_device", torch.device(kind)):
        finetune(recipe(dataset, encoder, out, **changed))
    return frame_of(out)


@pytest.mark.parametrize(
    ("name", "full"),
    [("test_resnet", MIXED), ("test_vit", LORA), ("test_resnet", LAST)],
    ids=["mixed cases", "LoRA", "last layers"],
)
def test_a_network_learns_there_as_here(
    synthetic_dataset: Dataset, tmp_path: Path, name: str, full: dict[str, Any]
) -> None:
    encoder = write_encoder(tmp_path / "encoder", synthetic_dataset, name=name)
    told = {"full": {"batch_size": 8, "epochs": 2, **full}, "precision": "fp32"}
    here, there = (run_on(kind, synthetic_dataset, encoder, tmp_path / kind, **told) for kind in ("cpu", "cuda"))
    assert np.allclose(probabilities(here), probabilities(there), atol=0.02)


def test_linear_heads_and_predictions_there_as_here(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder", synthetic_dataset)
    told: dict[str, Any] = {"head": "linear", "precision": "fp32"}
    here, there = (run_on(kind, synthetic_dataset, encoder, tmp_path / kind, **told) for kind in ("cpu", "cuda"))
    assert np.allclose(probabilities(here), probabilities(there), atol=1e-3)
    asked = []
    for kind in ("cpu", "cuda"):
        with mock.patch.object(distributed, "_device", torch.device(kind)):
            predict([str(tmp_path / "cuda"), synthetic_dataset.location, f"out={tmp_path / kind}-asked"])
        asked.append(probabilities(frame_of(Path(f"{tmp_path / kind}-asked"))))
    assert np.allclose(*asked, atol=1e-4)


def test_the_card_tells_of_the_gpu(finetuned: FinetuneConfig) -> None:
    latency = json.loads((Path(finetuned.out) / "model/model.json").read_text())["latency"]
    assert [row["device"] for row in latency] == ["cpu", torch.cuda.get_device_name()]
    assert all(0 < row["median_ms"] <= row["p90_ms"] for row in latency)
    model = for_inference(load_model(Folder(finetuned.out).file("model")))
    assert single_image_latency(model, torch.device("cuda"))["median_ms"] > 0
