"""Fine-tuning from what a grey pretraining with kept projection layers hands on."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from clusters.config import InputError
from data.dataset import Dataset
from finetune.contenders import contenders
from finetune.loop import images_to_numbers
from finetune.run import finetune
from pretrain.config import PretrainConfig
from pretrain.encoder_folder import load_encoder, untrained_like
from pretrain.run import pretrain
from tests.finetune_runs import recipe

STAGE = {"steps": 1, "batch_size": 8, "projection_layers": 3, "projection_hidden": 12, "projection_dim": 8}


@pytest.fixture(scope="module")
def grey_run(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SimCLR, then MICLe, with a ViT of one channel; two layers of the head are kept; not to be altered."""
    folder = tmp_path_factory.mktemp("grey") / "run"
    values = {
        "data": synthetic_dataset.location,
        "run": str(folder),
        "precision": "fp32",
        "encoder": {"name": "test_vit", "channels": 1},
        "views": {"size_px": 32},
        "stages": [{"method": method, **STAGE, "keep_projection_layers": 2} for method in ("simclr", "micle")],
        "tracking": {"wandb": "disabled", "every_steps": 1},
    }
    pretrain(PretrainConfig.model_validate(values))
    return folder


def test_features_are_those_of_the_kept_layers_on_grey_images(
    synthetic_dataset: Dataset, grey_run: Path, tmp_path: Path
) -> None:
    encoder, card = load_encoder(str(grey_run))
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    numbers = images_to_numbers(encoder.eval(), card, recipe(synthetic_dataset, str(grey_run), tmp_path))
    red, green, blue = (pixels[:, c : c + 1].float() / 255 for c in range(3))
    grey = (0.299 * red + 0.587 * green + 0.114 * blue - card.mean[0]) / card.std[0]
    with torch.no_grad():
        expected = encoder.head(encoder.encoder(grey))  # type: ignore[operator]
    torch.testing.assert_close(torch.from_numpy(numbers(pixels.numpy())), expected)
    assert expected.shape == (5, 12)


@pytest.mark.parametrize("head", ["linear", "full"])
def test_both_heads_go_on_from_the_kept_layers(
    synthetic_dataset: Dataset, grey_run: Path, tmp_path: Path, head: str
) -> None:
    """At another size too, to which the network is fitted."""
    full = {"epochs": 1, "batch_size": 24, "optim": {"name": "sgd", "lr": 0.05}}
    changed = {"head": head, "full": full, "size_px": 64, "baselines": ["untrained"]}
    finetune(recipe(synthetic_dataset, str(grey_run), tmp_path / "out", **changed))
    told = json.loads((tmp_path / "out/model/model.json").read_text())
    assert (told["encoder"]["channels"], len(told["input"]["mean"])) == (1, 1)
    assert [layer["outputs"] for layer in told["projection"]] == [12, 12]
    weights = safetensors.torch.load_file(tmp_path / "out/model/encoder.safetensors")
    _, card = load_encoder(str(grey_run))
    untrained_like(card, 0, 64).load_state_dict(weights)
    assert safetensors.torch.load_file(tmp_path / "out/model/head.safetensors")["weight"].shape[1] == 12


def test_an_image_size_that_the_encoder_cannot_take_is_refused(
    synthetic_dataset: Dataset, grey_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="patches of 16 px"):
        contenders(recipe(synthetic_dataset, str(grey_run), tmp_path, size_px=40))


def test_more_layers_than_the_head_has_are_refused() -> None:
    with pytest.raises(ValueError, match="keep_projection_layers: the projection head has 3 layers"):
        PretrainConfig.model_validate(
            {"data": "/d", "run": "/r", "stages": [{"method": "simclr", **STAGE, "keep_projection_layers": 4}]}
        )
