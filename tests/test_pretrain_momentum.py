"""The averaged network of MoCo v3 and BYOL: how it follows, what it never gets, and a whole run with it."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from clusters.storage import Folder
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.methods.momentum import MomentumMethod, cosine_momentum
from pretrain.run import pretrain
from pretrain.training import Training, build_module
from tests.killed_runs import killed_after_saves
from tests.small_steps import distinct_views, flat, small_step, small_training

BOTH = pytest.mark.parametrize("method", ["moco_v3", "byol"])
STAGES = ["1-moco_v3", "2-byol"]


def momentum_method(training: Training) -> MomentumMethod:
    assert isinstance(training.module, MomentumMethod)
    return training.module


@pytest.mark.parametrize("start", [0.99, 0.996])
def test_the_momentum_rises_to_1_by_half_a_cosine(start: float) -> None:
    """τ = 1 - (1 - τ_base) · (cos(πk/K) + 1) / 2 (Grill et al., section 3.2)."""
    steps = [cosine_momentum(start, k / 100) for k in range(101)]
    assert steps[0] == pytest.approx(start)
    assert steps[25] == pytest.approx(1 - (1 - start) * (math.sqrt(0.5) + 1) / 2)
    assert steps[50] == pytest.approx((1 + start) / 2)
    assert steps[100] == 1
    assert steps == sorted(steps)


@BOTH
def test_the_target_begins_equal_and_moves_by_the_formula(method: str) -> None:
    """ξ ← τ ξ + (1 - τ) θ after the optimiser's step, of parameters; batch statistics stay its own."""
    training = small_training(method, momentum=0.9)
    module = momentum_method(training)
    trained = dict(torch.nn.Sequential(module.encoder, module.projection).named_parameters())
    for name, values in module.target.named_parameters():
        assert torch.equal(values, trained[name]), name
    for step, momentum in enumerate([1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2, 0.95]):
        before = copy.deepcopy(dict(module.target.named_parameters()))
        small_step(training, step)
        for name, values in module.target.named_parameters():
            expected = momentum * before[name].double() + (1 - momentum) * trained[name].double()
            torch.testing.assert_close(values.double(), expected, rtol=1e-6, atol=1e-7, msg=name)
    weights = [(v, trained[name]) for name, v in module.target.named_parameters() if v.ndim > 1]
    assert all(not torch.equal(averaged, weight) for averaged, weight in weights)
    statistics = [name for name, _ in module.target.named_buffers() if name.endswith("running_mean")]
    online, own = dict(module.encoder.named_buffers(prefix="0")), dict(module.target.named_buffers())
    assert all(own[name].abs().max() > 0 for name in statistics)  # in training mode: they followed its batches
    assert any(not torch.equal(own[name], online[name]) for name in statistics if name in online)


@BOTH
def test_a_step_that_is_not_taken_moves_the_target_not_at_all(method: str) -> None:
    """Weights, statistics, optimiser and averages to the bit; half of the way it would go otherwise."""
    training = small_training(method, momentum=0.0, ema=0.9)
    small_step(training, 0)
    before, views = flat(training.state()), distinct_views(8, 1)
    views[1, 3, 0, 5, 5] = torch.nan
    training.step(1, views, torch.arange(8).expand(2, -1)[:, :, None])
    assert training.health[1] == 0
    after = flat(training.state())
    assert any("target" in name for name in before)
    assert [name for name, values in before.items() if not torch.equal(values, after[name])] == []
    small_step(training, 1)
    target = dict(training.module.named_parameters(prefix="/module"))["/module.target.0.conv1.0.weight"]
    assert not torch.equal(target, before["/module/target.0.conv1.0.weight"])


@BOTH
def test_the_target_gets_no_gradient_and_is_not_optimised(method: str) -> None:
    training = small_training(method)
    small_step(training, 0)
    target = momentum_method(training).target
    assert all(p.grad is None and not p.requires_grad for p in target.parameters())
    optimised = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in target.parameters()}


def values(dataset: Dataset, run: Path, methods: tuple[str, ...] = ("moco_v3", "byol")) -> dict[str, Any]:
    optim = {"name": "sgd", "lr": 0.05, "lr_scaling": "none"}
    stage = {"steps": 3, "batch_size": 8, "projection_hidden": 16, "projection_dim": 8, "optim": optim}
    return {
        "data": dataset.location,
        "run": str(run),
        "precision": "fp32",
        "encoder": {"name": "test_resnet"},
        "views": {"size_px": 32},
        "stages": [{"method": method, **stage} for method in methods],
        "probe": {"every_steps": 3, "max_images": 8},
        "tracking": {"wandb": "disabled", "every_steps": 1},
        "checkpoint": {"every_steps": 1},
    }


def run(dataset: Dataset, folder: Path) -> None:
    pretrain(PretrainConfig.model_validate(values(dataset, folder)))


def last_state(stage: Path) -> bytes:
    return (sorted((stage / "checkpoints").glob("step-*"))[-1] / "state.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run; not to be altered."""
    folder = tmp_path_factory.mktemp("momentum") / "run"
    run(synthetic_dataset, folder)
    return folder


def test_runs_that_were_killed_end_as_the_undisturbed_one(
    synthetic_dataset: Dataset, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, the averaged network and its schedule included; killed in both stages."""
    with killed_after_saves(monkeypatch, 2, 5):
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run(synthetic_dataset, tmp_path / "run")
    run(synthetic_dataset, tmp_path / "run")
    for stage in STAGES:
        assert last_state(tmp_path / "run" / stage) == last_state(finished / stage)
    exported = "encoder/model.safetensors"
    assert (tmp_path / "run" / exported).read_bytes() == (finished / exported).read_bytes()


@pytest.mark.parametrize("stage", STAGES)
def test_the_trained_encoder_is_exported_not_the_averaged_one(finished: Path, stage: str) -> None:
    state = safetensors.torch.load(last_state(finished / stage))
    exported = safetensors.torch.load_file(finished / stage / "encoder/model.safetensors")
    weight = exported["conv1.0.weight"]
    (trained,) = (v for k, v in state.items() if k.endswith("encoder.conv1.0.weight"))
    (averaged,) = (v for k, v in state.items() if k.endswith("target.0.conv1.0.weight"))
    assert torch.equal(weight, trained)
    assert not torch.equal(weight, averaged)


@pytest.mark.parametrize("place", [0, 1])
def test_heads_are_handed_to_the_next_stage_and_its_target_begins_with_them(
    synthetic_dataset: Dataset, finished: Path, place: int
) -> None:
    """Heads are loaded after the module is made: a target copied before would keep the ones it was drawn with."""
    method, folder = STAGES[place][2:], finished / STAGES[place]
    config = PretrainConfig.model_validate(values(synthetic_dataset, finished, (method, method)))
    module, _ = build_module(config, 1, Folder(folder))
    assert isinstance(module, MomentumMethod)
    for name in ("projection", "prediction"):
        expected = safetensors.torch.load_file(folder / f"{name}.safetensors")
        got = module.heads[name].state_dict()
        assert all(torch.equal(got[key], tensor) for key, tensor in expected.items())
    Training(config, 1, module, total_steps=3)
    drawn = module.target.state_dict()
    for key, tensor in torch.nn.Sequential(module.encoder, module.projection).state_dict().items():
        assert torch.equal(drawn[key], tensor), key
