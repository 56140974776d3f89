"""On a real GPU: that a step waits for nothing, computes what a CPU does, and that states go there and back."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from torch import Tensor

from clusters import distributed
from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.storage import Folder
from data.dataset import Dataset
from pretrain.compute import in_one_order
from pretrain.config import PretrainConfig
from pretrain.footprint import footprint
from pretrain.stragglers import fixed_work_s
from pretrain.training import Training, build_module
from tests.fault_runs import ROOT, recipe
from tests.killed_runs import killed_after_saves
from tests.test_pretrain_pretended_gpu import METHODS, config_of
from tests.test_pretrain_run import last_state as state_of
from tests.test_pretrain_run import losses as losses_of
from tests.test_pretrain_run import run, values

pytestmark = pytest.mark.gpu

STEPS = 6


@contextmanager
def on(kind: str) -> Iterator[torch.device]:
    with mock.patch.object(distributed, "_device", torch.device(kind)):
        yield torch.device(kind)


def batches(config: PretrainConfig) -> list[tuple[Tensor, Tensor]]:
    """Views (V, B, C, H, W) and groups (V, B, G) of each step, drawn."""
    draw, size = torch.Generator().manual_seed(0), config.stages[0].batch_size
    groups = torch.arange(size).expand(2, size)[:, :, None].repeat(1, 1, 3)
    return [(torch.randn(2, size, 3, 32, 32, generator=draw), groups) for _ in range(STEPS)]


def losses(training: Training, kind: str, first: int, last: int) -> list[float]:
    return [
        training.step(step, *(tensor.to(kind) for tensor in batch)).loss.item()
        for step, batch in list(enumerate(batches(training.config)))[first:last]
    ]


def first_step(config: PretrainConfig, kind: str) -> list[float]:
    """The loss and the gradient's norm; rounding alone sets later steps of so small a batch far apart."""
    training, loss = trained(config, kind, last=1)
    return [*loss, training.health[0].item()]


def trained(config: PretrainConfig, kind: str, last: int = STEPS) -> tuple[Training, list[float]]:
    with on(kind):
        training = Training(config, 0, build_module(config, 0, None)[0], STEPS)
        return training, losses(training, kind, 0, last)


@pytest.mark.parametrize(("optimizer", "checkpointed"), [("lars", False), ("adamw", True), ("sgd", False)])
@pytest.mark.parametrize("method", METHODS)
def test_steps_there_are_those_of_a_cpu_and_wait_for_nothing(
    synthetic_dataset: Dataset, tmp_path: Path, method: str, optimizer: str, checkpointed: bool
) -> None:
    config = config_of(synthetic_dataset, tmp_path, method, optimizer, checkpointed)
    assert first_step(config, "cuda") == pytest.approx(first_step(config, "cpu"), rel=1e-3)
    training, _ = trained(config, "cuda")
    views, groups = (tensor.cuda() for tensor in batches(config)[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        with on("cuda"):
            training.step(STEPS - 1, views, groups)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_there_stays_near(synthetic_dataset: Dataset, tmp_path: Path, method: str) -> None:
    config = config_of(synthetic_dataset, tmp_path, method, "adamw", False)
    whole, half = (first_step(config.model_copy(update={"precision": kind}), "cuda") for kind in ("fp32", "bf16"))
    assert half[0] == pytest.approx(whole[0], rel=0.02)
    assert half != whole


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_interrupted_run_ends_as_the_undisturbed_one(
    synthetic_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Bit for bit, views finished on the GPU, both stages; killed at the end of the first."""
    told = {"compute": {"deterministic": True}, "augment": "device", "precision": precision}
    try:
        run(synthetic_dataset, tmp_path / "whole", **told)
        with killed_after_saves(monkeypatch, 2), pytest.raises(KeyboardInterrupt):
            run(synthetic_dataset, tmp_path / "run", **told)
        run(synthetic_dataset, tmp_path / "run", **told)
    finally:
        in_one_order(False)
    for stage in ("1-simclr", "2-micle"):
        assert state_of(tmp_path / "run" / stage) == state_of(tmp_path / "whole" / stage)


def test_a_ray_worker_takes_the_gpu(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    """Started by Ray, over NCCL: the steps of the run without Ray, up to the order of sums."""
    told = values(synthetic_dataset, tmp_path / "ray", augment="device", cluster={"num_workers": 1, "use_gpu": True})
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(told))
    command = [sys.executable, "-m", "pretrain", str(recipe_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    run(synthetic_dataset, tmp_path / "alone", augment="device")
    first = [losses_of(tmp_path / name / "1-simclr")[0] for name in ("ray", "alone")]
    assert first[0] == pytest.approx(first[1], rel=1e-3)


def through_a_checkpoint(training: Training, folder: Path) -> Any:
    with Checkpoints(Folder(folder), CheckpointConfig()) as checkpoints:
        checkpoints.save(3, training.state())
        checkpoints.wait()
    restored = Checkpoints(Folder(folder), CheckpointConfig()).restore()
    assert restored is not None
    return restored.state


def test_a_run_resumed_there_is_the_undisturbed_one_to_the_bit(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    """Where it was asked for; otherwise a GPU adds up in an order of its own."""
    config = config_of(synthetic_dataset, tmp_path, "simclr", "adamw", False)
    in_one_order(True)
    try:
        whole, undisturbed = trained(config, "cuda")
        half, begun = trained(config, "cuda", last=3)
        state = through_a_checkpoint(half, tmp_path / "stage")
        with on("cuda"):
            resumed = Training(config, 0, build_module(config, 0, None)[0], STEPS)
            resumed.load_state(state)
            assert begun + losses(resumed, "cuda", 3, STEPS) == undisturbed
    finally:
        in_one_order(False)
    for name, weight in whole.module.state_dict().items():
        assert torch.equal(weight, resumed.module.state_dict()[name]), name


@pytest.mark.parametrize(("before", "after"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_checkpoint_goes_on_elsewhere(synthetic_dataset: Dataset, tmp_path: Path, before: str, after: str) -> None:
    config = config_of(synthetic_dataset, tmp_path, "byol", "lars", False)
    _, undisturbed = trained(config, before)
    half, _ = trained(config, before, last=3)
    state = through_a_checkpoint(half, tmp_path / "stage")
    with on(after):
        resumed = Training(config, 0, build_module(config, 0, None)[0], STEPS)
        resumed.load_state(state)
        assert losses(resumed, after, 3, 4) == pytest.approx(undisturbed[3:4], rel=1e-3)


@pytest.mark.parametrize(
    ("encoder", "size_px", "samples", "checkpointed"),
    [("resnet50", 224, 128, False), ("resnet50", 224, 128, True), ("vit_small_patch16_224", 224, 64, False)],
)
def test_memory_is_as_counted_without_a_gpu(
    synthetic_dataset: Dataset, tmp_path: Path, encoder: str, size_px: int, samples: int, checkpointed: bool
) -> None:
    stage = {"method": "simclr", "batch_size": samples, "steps": 3}
    told = recipe(
        synthetic_dataset, tmp_path, num_workers=0, encoder={"name": encoder}, views={"size_px": size_px},
        precision="bf16", compute={"checkpoint_activations": checkpointed}, stages=[stage],
    )  # fmt: skip
    config = PretrainConfig.model_validate(told)
    counted = footprint(config, 0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with on("cuda"):
        training = Training(config, 0, build_module(config, 0, None)[0], 3)
        views = torch.randn(2, samples, 3, size_px, size_px, device="cuda")
        groups = torch.arange(samples, device="cuda").expand(2, samples)[:, :, None].repeat(1, 1, 3)
        for step in range(2):
            training.step(step, views, groups)
    peak = torch.cuda.max_memory_allocated() - before
    # What is ready of later batches is in the count and not here
    needed = counted.needed(samples, 1) - 2 * counted.input_per_sample * samples
    print(f"{encoder}, checkpointed {checkpointed}: counted {needed / 1e9:.2f} GB, measured {peak / 1e9:.2f} GB")
    assert 0.85 < needed / peak < 1.2


def test_the_work_by_which_slow_gpus_are_told_is_short_and_steady() -> None:
    found = sorted(fixed_work_s(torch.device("cuda")) for _ in range(20))
    assert found[-2] < 1.25 * found[0] and found[-1] < 0.05
