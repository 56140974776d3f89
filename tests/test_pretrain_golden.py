"""Losses of a few steps that are written down here: a change in draws, views, networks, losses or LARS is seen."""

import numpy as np
import pytest
import torch

from pretrain.config import PretrainConfig
from pretrain.training import Training, build_module
from pretrain.views import apply, draw

STEPS, OF_STEPS, BATCH, SIZE_PX = 8, 40, 16, 32
GOLDEN = {
    "simclr": [9.4393, 8.7904, 7.8233, 9.7928, 8.0592, 9.0054, 10.3791, 8.1952],
    "moco_v3": [2.4944, 2.7745, 3.6933, 3.3380, 3.1018, 3.6825, 2.6681, 3.7245],
    "byol": [4.0602, 3.7903, 3.8738, 3.6537, 3.6537, 3.0352, 2.5456, 2.7848],
}
"""As torch 2.15 computes them on a CPU; the number of threads changes the fifth digit."""


def config_of(method: str) -> PretrainConfig:
    stage = {"method": method, "batch_size": BATCH, "steps": OF_STEPS, "projection_hidden": 16, "projection_dim": 8}
    optim = {"name": "lars", "lr": 0.02, "lr_scaling": "none"}
    return PretrainConfig.model_validate(
        {
            "data": "/data",
            "run": "/run",
            "precision": "fp32",
            "encoder": {"name": "test_resnet"},
            "views": {"size_px": SIZE_PX, "rotation_deg": 20, "solarise": 0.2},
            "stages": [{**stage, "optim": optim}],
        }
    )


def losses_of(method: str) -> list[float]:
    """Of drawn images, their views drawn and finished as a run does."""
    config = config_of(method)
    views = config.stage_views(0)
    training = Training(config, 0, build_module(config, 0, None)[0], OF_STEPS)
    found = []
    for step in range(STEPS):
        images = np.random.default_rng(step).integers(0, 256, (BATCH, 3, SIZE_PX, SIZE_PX), dtype=np.uint8)
        finished = []
        for view in range(2):
            places = range(step * BATCH, (step + 1) * BATCH)
            records = np.stack([draw(views, (SIZE_PX, SIZE_PX), config.seed, 0, place, view) for place in places])
            finished.append(apply(views, torch.from_numpy(images), torch.from_numpy(records)))
        groups = torch.arange(BATCH).expand(2, BATCH)[:, :, None].repeat(1, 1, 3)
        found.append(training.step(step, torch.stack(finished), groups).loss.item())
    return found


@pytest.mark.parametrize("method", GOLDEN)
def test_losses_are_those_of_before(method: str) -> None:
    assert losses_of(method) == pytest.approx(GOLDEN[method], rel=1e-3)
