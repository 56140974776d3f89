"""A step of full fine-tuning on a GPU that is pretended, and its state carried there from the host."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from clusters import distributed
from data.dataset import Dataset
from finetune.cohort import choose_cohort
from finetune.contenders import contenders, load
from finetune.full_batches import FullBatches
from finetune.heads import Classifier
from finetune.learner import Training
from finetune.parameters import choose_trained, plain_weights
from pretrain.batches import Batch
from pretrain.views import ViewConfig
from tests.finetune_runs import recipe, write_encoder
from tests.finetune_ways import ECHO
from tests.importers import imported
from tests.miniatures import echo_table
from tests.pretended_gpu import GPU, as_read, places, pretended_gpu

MIXED: dict[str, Any] = {
    "pooling": "attention",
    "images_per_case": 2,
    "optim": {"name": "sgd", "layer_decay": 0.7},
    "augmentation": {"mixup": 0.4, "cutmix": 1.0},
    "loss": {"label_smoothing": 0.1, "class_balanced_beta": 0.9},
}
LORA: dict[str, Any] = {
    "train": "lora",
    "pooling": "max",
    "images_per_case": 2,
    "optim": {"name": "adamw"},
    "loss": {"supcon_weight": 0.5, "m3ce_weight": 0.5},
}
LAST: dict[str, Any] = {"train": "last_1", "optim": {"name": "lars"}, "loss": {"focal_gamma": 2.0}}


def takes_a_step(dataset: Dataset, encoder: str, out: Path, full: dict[str, Any], **told: Any) -> None:
    """A step, its state taken back to the host and there again, another step, and plain weights on the host."""
    config = recipe(dataset, encoder, out, full={"batch_size": 8, **full}, **told)
    cohort = choose_cohort(dataset, config)
    network, card = load(contenders(config)[0], config)
    model = Classifier(network, int(network.num_features), len(cohort.task.label_names), config.full.pooling)  # type: ignore[arg-type]
    choose_trained(model, config.full, card.architecture)
    views = ViewConfig(size_px=32)
    with mock.patch.object(distributed, "_device", GPU):  # so that the loader leaves to it what is its own
        batches = FullBatches(cohort, views, config)
        first, second = batches(0), batches(1)

    def finished(batch: Batch, *_: Any) -> torch.Tensor:
        return torch.zeros(*batch.records_VBK.shape[:2], 3, 32, 32, device=GPU)

    # Their finishing itself is looked at in test_pretrain_views_apply
    with pretended_gpu(), mock.patch("finetune.full_batches.finished_views", finished):
        training = Training(model, cohort, views, 3, config)
        loss, _ = training.step(0, 10, first)
        state = training.state()
        assert places([loss, state]) == {"cuda"}
        training.restore(as_read(state))
        assert places(training.state()) == {"cuda"}
        training.step(1, 10, second)
        assert places(plain_weights(model)) == {"cpu"}


@pytest.mark.parametrize(
    ("name", "full"),
    [("test_resnet", MIXED), ("test_vit", LORA), ("test_resnet", LAST)],
    ids=["mixed cases", "LoRA", "last layers"],
)
def test_a_step_there_has_all_in_one_place(
    synthetic_dataset: Dataset, tmp_path: Path, name: str, full: dict[str, Any]
) -> None:
    takes_a_step(synthetic_dataset, write_encoder(tmp_path / "encoder", synthetic_dataset, name=name), tmp_path, full)


def test_labels_beside_numbers_too(tmp_path: Path) -> None:
    dataset = imported("table", echo_table(tmp_path / "raw"), tmp_path / "dataset", *ECHO)
    encoder = write_encoder(tmp_path / "encoder", dataset)
    takes_a_step(dataset, encoder, tmp_path, {}, numbers=["EF"])
