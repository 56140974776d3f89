import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn.functional import cross_entropy

from clusters.config import InputError
from clusters.storage import Folder
from finetune.cohort import choose_cohort
from finetune.contenders import contenders, load
from finetune.features import read_parts
from finetune.full_batches import FullBatches
from finetune.full_config import LossConfig
from finetune.heads import Classifier
from finetune.learner import Training
from finetune.losses import LabelLoss
from finetune.parameters import layers
from finetune.run import work
from pretrain.views import ViewConfig
from tests.finetune_runs import recipe, write_encoder


@pytest.fixture(scope="module")
def trained(synthetic_dataset, tmp_path_factory):
    """A full recipe run in one piece, and its encoder."""
    folder = tmp_path_factory.mktemp("full")
    encoder = write_encoder(folder / "pretrained", synthetic_dataset)
    config = recipe(synthetic_dataset, encoder, folder / "out")
    work(config)
    return config


def training(config) -> Path:
    return Path(config.out) / "training" / "pretrained"


def records(config) -> list[dict]:
    return [json.loads(line) for line in (training(config) / "metrics.jsonl").read_text().splitlines()]


def logits(config) -> np.ndarray:
    (folder,) = (Path(config.out) / "features").iterdir()
    rows = np.concatenate(
        [safetensors.torch.load_file(f)["rows"].numpy() for f in sorted(folder.glob("*.safetensors"))]
    )
    return read_parts(Folder(folder), rows)


def test_the_first_loss_is_that_of_even_predictions_and_the_encoder_learns(trained, synthetic_dataset):
    losses = [r["loss"] for r in records(trained) if "loss" in r]
    assert losses[0] == pytest.approx(np.log(5), rel=1e-5)
    assert min(losses[-3:]) < losses[0]
    before = safetensors.torch.load_file(Path(trained.encoder) / "encoder" / "model.safetensors")
    after = safetensors.torch.load_file(training(trained) / "model.safetensors")
    convolutions = [name for name in before if before[name].ndim == 4]
    assert convolutions
    assert all(not torch.equal(before[name], after[f"encoder.{name}"]) for name in convolutions)


def test_the_best_epoch_on_validation_is_kept(trained):
    chosen = json.loads((training(trained) / "finished.json").read_text())["chosen"]
    aurocs = [r["val_auroc"] for r in records(trained) if "val_auroc" in r]
    assert len(aurocs) == 3
    assert chosen["val_auroc"] == max(aurocs)
    assert chosen["epoch"] == 1 + int(np.argmax(aurocs))


@pytest.mark.parametrize("kept", ["step-000000002", "step-000000008"])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(trained, tmp_path, kept):
    config = trained.model_copy(update={"out": str(tmp_path / "out")})
    folder = training(config)
    shutil.copytree(training(trained), folder)
    for file in ("finished.json", "model.safetensors"):
        (folder / file).unlink()
    for checkpoint in (folder / "checkpoints").iterdir():
        if checkpoint.name > kept:
            shutil.rmtree(checkpoint)
    work(config)
    found, expected = (sorted((run / "checkpoints").iterdir()) for run in (folder, training(trained)))
    assert [path.name.removesuffix("-attempt-2") for path in found] == [path.name for path in expected]
    assert (found[-1] / "state.safetensors").read_bytes() == (expected[-1] / "state.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == (training(trained) / "model.safetensors").read_bytes()
    assert [r["step"] for r in records(config)] == [r["step"] for r in records(trained)]
    assert (logits(config) == logits(trained)).all()


def test_two_processes_train_as_one_would(synthetic_dataset, trained, tmp_path, ranks):
    # A small rate: a large one makes rounding errors grow until they hide whether the runs are the same.
    full = {"epochs": 3, "batch_size": 24, "optim": {"name": "sgd", "lr": 0.003}}
    one, two = (
        recipe(synthetic_dataset, trained.encoder, tmp_path / name, full=full, class_weighting="balanced")
        for name in ("one", "two")
    )
    work(one)
    ranks.run("finetune_work", two.model_dump(mode="json"))
    losses = [[r["loss"] for r in records(c) if "loss" in r] for c in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    expected, found = (safetensors.torch.load_file(training(c) / "model.safetensors") for c in (one, two))
    for name in expected:
        assert found[name].float().numpy() == pytest.approx(expected[name].float().numpy(), abs=1e-4), name
    assert logits(two).shape == logits(one).shape
    assert logits(two) == pytest.approx(logits(one), abs=1e-3)


def test_lars_by_rates_of_layers_takes_the_steps_that_are_written_out(synthetic_dataset, trained):
    """v ← m·v + lr·(share of the layer)·η·|w| / |g + λw| · (g + λw); biases and norms plainly, as does a head of 0."""
    optim = {"name": "lars", "lr": 0.8, "warmup": 0.0, "weight_decay": 0.01, "layer_decay": 0.5}
    config = recipe(synthetic_dataset, trained.encoder, Path("/none"), full={"batch_size": 24, "optim": optim})
    encoder, card = load(contenders(config)[0], config)
    model = Classifier(encoder, encoder.num_features, 5)  # type: ignore[arg-type]
    cohort, views = choose_cohort(synthetic_dataset, config), ViewConfig(size_px=32)
    learning, batches = Training(model, cohort, views, card.config.channels, config), FullBatches(cohort, views, config)
    layer_of = layers(model)
    top = max(layer_of.values())
    moved = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for step in range(3):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        learning.step(step, 10, batches(step))
        for name, parameter in model.named_parameters():
            rate = 0.8 * 0.5 * (1 + np.cos(np.pi * step / 10)) * 0.5 ** (top - layer_of[name])
            update = parameter.grad
            assert update is not None
            if parameter.ndim > 1:
                update = update + 0.01 * before[name]
                rate *= float(0.001 * before[name].norm() / update.norm()) if before[name].any() else 1.0
            moved[name] = 0.9 * moved[name] + rate * update
            torch.testing.assert_close(parameter.detach(), before[name] - moved[name], rtol=1e-5, atol=1e-7, msg=name)
    assert all(movement.any() for movement in moved.values())


def test_class_weights_enter_the_loss_as_in_a_plain_weighted_mean(synthetic_dataset, trained):
    cohort = choose_cohort(synthetic_dataset, trained)
    weights = torch.tensor(cohort.training_weights("balanced"))
    classes = torch.tensor(cohort.class_of(cohort.train))
    logits = torch.randn(len(classes), 5, dtype=torch.float64)
    truth = torch.from_numpy(cohort.truth[cohort.train])
    ours = LabelLoss(LossConfig(), "multiclass")(logits, truth, weights)
    per_class = torch.zeros(5, dtype=torch.float64)
    cases = synthetic_dataset.case_of[cohort.train]
    in_case = torch.tensor(1 / np.bincount(cases)[cases])
    counts = torch.zeros(5, dtype=torch.float64).index_add(0, classes, in_case)
    losses = cross_entropy(logits, classes, reduction="none") * in_case
    per_class.index_add_(0, classes, losses)
    present = counts > 0
    assert float(ours) == pytest.approx(float((per_class[present] / counts[present]).mean()), rel=1e-5)


@pytest.mark.parametrize("saved", ["each step", "at the end"])
def test_a_diverged_training_leaves_no_broken_checkpoint_and_is_not_validated(
    synthetic_dataset, trained, tmp_path, saved
):
    config = recipe(
        synthetic_dataset, trained.encoder, tmp_path / "out",
        full={"epochs": 3, "batch_size": 24, "optim": {"name": "sgd", "lr": 1e30, "warmup": 0}},
        tracking={"wandb": "disabled", "every_steps": 1000},
        checkpoint={"every_steps": 1 if saved == "each step" else None, "keep": 50},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"not finite at step|the loss is (nan|inf) at step"):
        work(config)
    states = list((training(config) / "checkpoints").glob("*/state.safetensors"))
    assert bool(states) == (saved == "each step")
    for state in states:
        assert all(torch.isfinite(tensor).all() for tensor in safetensors.torch.load_file(state).values())
    assert not (training(config) / "metrics.jsonl").exists() or records(config) == []


def test_finished_weights_that_were_altered_are_refused(trained, tmp_path):
    config = trained.model_copy(update={"out": str(tmp_path / "out")})
    shutil.copytree(training(trained), training(config))
    path = training(config) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"model\.safetensors: altered; remove"):
        work(config)
