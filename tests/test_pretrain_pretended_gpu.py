"""A pretraining step on a GPU that is pretended, and the state of a checkpoint carried there from the CPU."""

from pathlib import Path

import pytest
import torch

from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.storage import Folder
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.training import Training, build_module
from tests.fault_runs import recipe
from tests.pretended_gpu import as_read, places, pretended_gpu

METHODS = ("simclr", "micle", "moco_v3", "byol")


def config_of(dataset: Dataset, run: Path, method: str, optimizer: str, checkpointed: bool) -> PretrainConfig:
    told = recipe(dataset, run, num_workers=0, steps=4, compute={"checkpoint_activations": checkpointed})
    told["stages"] = [{**told["stages"][0], "method": method, "optim": {"name": optimizer}}]
    return PretrainConfig.model_validate(told)


@pytest.mark.parametrize(("optimizer", "checkpointed"), [("lars", False), ("adamw", True), ("sgd", False)])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_there_waits_for_nothing_and_a_state_goes_back_there(
    synthetic_dataset: Dataset, tmp_path: Path, method: str, optimizer: str, checkpointed: bool
) -> None:
    config = config_of(synthetic_dataset, tmp_path, method, optimizer, checkpointed)
    module, _ = build_module(config, 0, None)
    with pretended_gpu() as gpu:
        training = Training(config, 0, module, 4)
        views = torch.zeros(2, 8, 3, 32, 32, device=gpu)
        groups = torch.zeros(2, 8, 3, dtype=torch.int64, device=gpu)
        output = training.step(0, views, groups)
        assert places([output.loss, training.health]) == {"cuda"}
        state = training.state()
        assert places(state) == {"cuda"}
        training.load_state(as_read(state))
        assert places(training.state()) == {"cuda"}
        training.step(1, views, groups)
        with training.averaged():
            assert places(module.state_dict()) == {"cuda"}


def test_what_lies_on_the_host_is_noticed(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    """The pretended one refuses what a real one does."""
    config = config_of(synthetic_dataset, tmp_path, "simclr", "lars", False)
    module, _ = build_module(config, 0, None)
    with pretended_gpu() as gpu:
        training = Training(config, 0, module, 4)
        views, groups = torch.zeros(2, 8, 3, 32, 32, device=gpu), torch.zeros(2, 8, 3, dtype=torch.int64, device=gpu)
        for given in ((views.cpu(), groups), (views, groups.cpu())):
            with pytest.raises(RuntimeError, match=r"two different devices|on the same device"):
                training.step(0, *given)
        with pytest.raises(RuntimeError, match="_local_scalar_dense"):
            training.step(0, views, groups).loss.item()


def test_a_checkpoint_of_this_machine_goes_on_there(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    """Its files, written by a training on the CPU."""
    config = config_of(synthetic_dataset, tmp_path, "simclr", "adamw", False)
    module, _ = build_module(config, 0, None)
    here = Training(config, 0, module, 4)
    here.step(0, torch.rand(2, 8, 3, 32, 32), torch.arange(48).view(2, 8, 3))
    with Checkpoints(Folder(tmp_path / "stage"), CheckpointConfig()) as checkpoints:
        checkpoints.save(1, here.state())
        checkpoints.wait()
    restored = Checkpoints(Folder(tmp_path / "stage"), CheckpointConfig()).restore()
    assert restored is not None and places(restored.state) == {"cpu"}
    again, _ = build_module(config, 0, None)
    with pretended_gpu() as gpu:
        there = Training(config, 0, again, 4)
        there.load_state(restored.state)
        assert places(there.state()) == {"cuda"}
        there.step(1, torch.zeros(2, 8, 3, 32, 32, device=gpu), torch.zeros(2, 8, 3, dtype=torch.int64, device=gpu))
