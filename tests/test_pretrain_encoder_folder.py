"""The encoder folder, written and read: by timm as it is, and by us with the kept layers of the projection head."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import timm.data
import torch
from torch import nn

from clusters.config import InputError
from clusters.storage import Folder
from data.dataset import Dataset
from pretrain.encoder import EncoderConfig
from pretrain.encoder_folder import load_encoder, read_card, untrained_like
from pretrain.export import copy_encoder
from pretrain.heads import describe_layers, first_layers, head_of, projection_head
from tests.encoder_folders import export, unsettle


@pytest.mark.parametrize(
    ("name", "channels", "num_features"),
    [("resnet18", 3, 512), ("vit_tiny_patch16_224", 3, 192), ("test_resnet", 1, 96)],
)
def test_timm_and_we_load_what_was_written(
    synthetic_dataset: Dataset, tmp_path: Path, name: str, channels: int, num_features: int
) -> None:
    config = EncoderConfig.model_validate({"name": name, "channels": channels})
    assert_both_load_it(synthetic_dataset, tmp_path, config, num_features)


def test_timm_loads_a_widened_encoder_as_it_is(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    """The folder has timm's own arguments for the width; weights are tried at width 1, the others' shapes alone."""
    assert_both_load_it(synthetic_dataset, tmp_path, EncoderConfig(name="resnet50_1x"), 2048)
    path = tmp_path / "encoder/config.json"
    told = json.loads(path.read_text())
    assert (told["architecture"], told["model_args"]) == ("resnetv2_50", {"preact": False, "width_factor": 1})
    path.write_text(json.dumps({**told, "model_args": EncoderConfig(name="resnet50_4x").model_args}))
    with torch.device("meta"):
        wide = timm.create_model(f"local-dir:{tmp_path}/encoder")
    assert sum(p.numel() for p in wide.parameters()) == 375_378_176


def assert_both_load_it(dataset: Dataset, folder: Path, config: EncoderConfig, num_features: int) -> None:
    """We and timm make of the written folder, bit for bit, the network that was written."""
    channels = config.channels
    written = export(folder, dataset, config)
    ours, card = load_encoder(str(folder))
    theirs = timm.create_model(f"local-dir:{folder}/encoder", pretrained=True)
    images = torch.randn(2, channels, 32, 32)
    with torch.no_grad():
        expected = written(images)
        assert expected.shape == (2, num_features)
        assert torch.equal(ours.eval()(images), expected)
        assert torch.equal(theirs.eval()(images), expected)
    told = timm.data.resolve_model_data_config(theirs)
    assert tuple(told["input_size"]) == (channels, 32, 32)
    assert tuple(told["mean"]) == card.mean[:channels]
    assert len(json.loads((folder / "encoder/config.json").read_text())["pretrained_cfg"]["std"]) == channels
    assert ("grey images" if channels == 1 else "RGB images") in (folder / "encoder/README.md").read_text()


def test_an_encoder_of_one_size_is_fitted_to_another(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    """As timm itself fits it, by resampling the position embedding."""
    export(tmp_path, synthetic_dataset, EncoderConfig(name="vit_tiny_patch16_224"))
    ours, card = load_encoder(str(tmp_path), size_px=64)
    theirs = timm.create_model(f"local-dir:{tmp_path}/encoder", pretrained=True, img_size=64)
    images = torch.randn(2, 3, 64, 64)
    assert card.size_px == 32
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))
    assert untrained_like(card, 0, 64)(images).shape == (2, card_width(ours))
    with pytest.raises(AssertionError, match="doesn't match model"):
        load_encoder(str(tmp_path))[0](images)


def card_width(encoder: nn.Module) -> int:
    return int(encoder.num_features)  # type: ignore[arg-type]


@pytest.mark.parametrize(("layers", "kept", "width"), [(2, 1, 24), (3, 1, 24), (3, 2, 24), (3, 3, 8)])
def test_kept_layers_go_along(synthetic_dataset: Dataset, tmp_path: Path, layers: int, kept: int, width: int) -> None:
    torch.manual_seed(0)
    whole = projection_head(96, 24, 8, layers).eval()
    unsettle(whole)
    head = first_layers(whole, kept)
    written = export(tmp_path, synthetic_dataset, EncoderConfig(name="test_resnet"), head=head)
    images = torch.randn(4, 3, 32, 32)
    blocks = [module for module in whole.layers if isinstance(module, nn.Linear)]
    with torch.no_grad():
        features = written(images)
        expected = features
        for module in whole.layers:
            if module in blocks[kept:]:
                break
            expected = module(expected)
        ours, card = load_encoder(str(tmp_path))
        torch.testing.assert_close(ours.eval()(images), expected)
        assert expected.shape == (4, width) == (4, card_width(ours))
        bare = timm.create_model(f"local-dir:{tmp_path}/encoder", pretrained=True).eval()
        assert torch.equal(bare(images), features)
    fresh = untrained_like(card, 0)
    assert fresh(images).shape == (4, width)
    assert fresh.state_dict().keys() == ours.state_dict().keys()
    copy_encoder(Folder(tmp_path / "encoder"), Folder(tmp_path / "copy"))
    assert read_card(str(tmp_path / "copy")) == card


def test_kept_layers_are_part_of_the_fingerprint(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    config = EncoderConfig(name="test_resnet")
    export(tmp_path / "bare", synthetic_dataset, config)
    export(tmp_path / "kept", synthetic_dataset, config, head=first_layers(projection_head(96, 16, 8, 3), 1))
    bare, kept = (tmp_path / name / "encoder" for name in ("bare", "kept"))
    assert (bare / "model.safetensors").read_bytes() == (kept / "model.safetensors").read_bytes()
    assert read_card(str(bare)).fingerprint != read_card(str(kept)).fingerprint
    assert "16 features" in (kept / "README.md").read_text()
    weights = safetensors.torch.load_file(kept / "projection.safetensors")
    weights["layers.0.weight"][0, 0] += 1
    safetensors.torch.save_file(weights, kept / "projection.safetensors")
    with pytest.raises(InputError, match="altered since its export"):
        load_encoder(str(kept))


def test_a_head_is_told_and_made_again() -> None:
    head = projection_head(6, 5, 4, 3)
    head.layers[-1] = nn.BatchNorm1d(4, eps=1e-3, affine=False)
    assert len(describe_layers(head)) == 3
    assert str(head_of(describe_layers(head)).layers) == str(head.layers)
    assert first_layers(head, 0) is None
    with pytest.raises(InputError, match="keep_projection_layers: 4, but the projection head has 3 layers"):
        first_layers(head, 4)
