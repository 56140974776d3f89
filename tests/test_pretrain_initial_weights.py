"""What the first stage starts from: what is loaded, what is told of it, what is refused, and what travels on."""

import http.server
import json
import re
import shlex
import shutil
import threading
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from clusters.config import InputError
from clusters.storage import Folder
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.encoder import EncoderConfig, create_encoder
from pretrain.encoder_folder import encoder_folder, load_encoder, read_card, read_seen
from pretrain.initial_weights import check_start, start
from pretrain.run import pretrain
from pretrain.views import ViewConfig
from pretrain.weights_source import find_weights
from tests.encoder_folders import export, unsettle

VIEWS = ViewConfig(size_px=32)


def config(name: str, weights: object, **more: Any) -> EncoderConfig:
    return EncoderConfig(name=name, weights=str(weights), **more)


def recipe(dataset: Dataset, run: Path, encoder: EncoderConfig, **changed: Any) -> PretrainConfig:
    """One stage of two steps whose learning rate leaves the weights as they were, and that keeps a layer."""
    stage = {
        "method": "simclr",
        "steps": 2,
        "batch_size": 8,
        "projection_hidden": 12,
        "projection_dim": 8,
        "projection_layers": 3,
    }
    stage |= {"keep_projection_layers": 1, "optim": {"name": "sgd", "lr": 1e-12, "lr_scaling": "none"}}
    values: dict[str, Any] = {
        "data": dataset.location,
        "run": str(run),
        "precision": "fp32",
        "encoder": encoder,
        "views": {"size_px": 32},
        "stages": [stage],
        "tracking": {"wandb": "disabled", "every_steps": 1},
    }
    return PretrainConfig.model_validate({**values, **changed})


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """Torchvision's ResNet-18 with its classifier, as anyone would save it; not to be altered."""
    torch.manual_seed(3)
    model = torchvision.models.resnet18().eval()
    unsettle(model)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    return path, model


def test_torchvision_weights_give_torchvision_s_features(
    resnet18: tuple[Path, nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    path, theirs = resnet18
    begun = start(config("resnet18", path), VIEWS)
    theirs = nn.Sequential(*list(theirs.children())[:-1], nn.Flatten())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(begun.encoder.eval()(images), theirs(images))
    said = capsys.readouterr().out
    assert "resnet18.safetensors (SHA-256 " in said
    assert "120 tensors with 11.2 M parameters loaded; left at random: none; ignored: none" in said
    assert "classifier left out: fc.bias, fc.weight" in said
    assert begun.starts_from is not None
    assert begun.starts_from["seen"] == "unknown"
    assert str(path.parent) not in json.dumps(begun.starts_from)


def test_a_grey_encoder_sums_the_colours_of_rgb_weights(resnet18: tuple[Path, nn.Module]) -> None:
    path, theirs = resnet18
    begun = start(config("resnet18", path, channels=1), VIEWS)
    assert begun.starts_from is not None
    assert begun.starts_from["adapted"] == ["conv1.weight"]
    grey = torch.randn(2, 1, 32, 32)
    theirs = nn.Sequential(*list(theirs.children())[:-1], nn.Flatten())
    with torch.no_grad():
        torch.testing.assert_close(begun.encoder.eval()(grey), theirs(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_what_is_missing_stays_at_random_and_is_named(
    resnet18: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = safetensors.torch.load_file(resnet18[0])
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("layer4")}
    safetensors.torch.save_file({**without, "extra": torch.zeros(2)}, tmp_path / "part.safetensors")
    torch.manual_seed(5)
    begun = start(config("resnet18", tmp_path / "part.safetensors"), VIEWS)
    assert "left at random: layer4.0.conv1.weight, layer4.0.bn1.weight" in (said := capsys.readouterr().out)
    assert "and 21 more; ignored: extra;" in said
    torch.manual_seed(5)
    fresh = create_encoder(EncoderConfig(name="resnet18")).state_dict()
    for name, tensor in begun.encoder.state_dict().items():
        assert torch.equal(tensor, (fresh if name.startswith("layer4") else tensors)[name]), name


def save(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    safetensors.torch.save_file(tensors, path)
    return str(path)


def test_weights_of_other_networks_are_refused(resnet18: tuple[Path, nn.Module], tmp_path: Path) -> None:
    renamed = {f"backbone.{n}": t for n, t in safetensors.torch.load_file(resnet18[0]).items()}
    wide = {n: t.repeat_interleave(2, 0) for n, t in safetensors.torch.load_file(resnet18[0]).items() if t.ndim}
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "timm").mkdir()
    save(tmp_path / "timm/model.safetensors", {"conv1.weight": torch.zeros(64, 3, 7, 7)})
    (tmp_path / "timm/config.json").write_text('{"architecture": "resnet34", "pretrained_cfg": {}}')
    refusals = {
        str(resnet18[0]): (
            "resnet50",
            r"layer1\.0\.conv1\.weight is \(64, 64, 3, 3\) there, \(64, 64, 1, 1\) in resnet50",
        ),
        save(tmp_path / "w.safetensors", wide): (
            "resnet18",
            r"conv1\.weight is \(128, 3, 7, 7\) there, \(64, 3, 7, 7\)",
        ),
        save(tmp_path / "n.safetensors", renamed): ("resnet18", r"first there: backbone\..*, expected: conv1\.weight"),
        str(tmp_path / "bad.safetensors"): ("resnet18", "not a safetensors file, or damaged"),
        str(tmp_path / "none.safetensors"): ("resnet18", "no such file"),
        str(tmp_path / "timm"): ("resnet18", r"network of name resnet34, not resnet18; set encoder\.name=resnet34"),
        str(tmp_path): ("resnet18", r"no model\.safetensors and config\.json here"),
        "timm:default": ("resnet50_2x", "timm has no weights for 'resnet50_2x'"),
    }
    for weights, (name, told) in refusals.items():
        with pytest.raises(InputError, match=told) as refusal:
            check_start(config(name, weights), VIEWS)
        assert str(refusal.value).startswith("encoder.weights: ")
        assert "\n" not in str(refusal.value)


def test_weights_that_are_not_finite_are_refused(resnet18: tuple[Path, nn.Module], tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(resnet18[0])
    tensors["bn1.bias"][3] = float("nan")
    with pytest.raises(InputError, match=r"bn1\.bias has values that are not finite"):
        start(config("resnet18", save(tmp_path / "nan.safetensors", tensors)), VIEWS)


def test_a_pickle_is_not_read_and_the_mend_that_is_shown_works(
    resnet18: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    torch.save(resnet18[1].state_dict(), tmp_path / "it's mine.pth")
    for weights in (tmp_path / "it's mine.pth", tmp_path):
        with pytest.raises(InputError, match="is a pickle, which may hold code and is never read") as refusal:
            check_start(config("resnet18", weights), VIEWS)
    command = re.search(r"python -c .*", str(refusal.value))
    assert command is not None
    exec(shlex.split(command[0])[2])
    check_start(config("resnet18", tmp_path / "it's mine.safetensors"), VIEWS)


def test_timm_s_own_weights_without_internet_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"timm/resnet18\.a1_in1k cannot be fetched .* give its path$"):
        check_start(config("resnet18", "timm:default"), VIEWS)


def test_a_hub_that_does_not_answer_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The hub's own client asks six times in 23 s, with two lines for each."""
    asked: list[str] = []

    class Busy(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_error(503)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", here)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        template = "HUGGINGFACE_CO_URL_TEMPLATE"
        monkeypatch.setattr(
            huggingface_hub.constants, template, f"{here}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        with pytest.raises(InputError, match=r"cannot be fetched from the Hugging Face hub .* give its path$"):
            check_start(config("resnet18", "timm:default"), VIEWS)
        server.shutdown()
    assert asked == ["/timm/resnet18.a1_in1k/resolve/main/model.safetensors"]
    assert not caplog.records


def test_weights_in_the_hub_s_cache_need_no_internet(
    resnet18: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--timm--resnet18.a1_in1k/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc")
    shutil.copy(resnet18[0], snapshot / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert find_weights(config("resnet18", "timm:default")).folder.path == snapshot


def test_a_vit_of_another_size_and_channels_is_fitted(
    synthetic_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of ours at 64 px starts a run at 32 px, as timm would resample it; grey from RGB."""
    export(tmp_path / "rgb", synthetic_dataset, EncoderConfig(name="test_vit"), size_px=64)
    begun = start(config("test_vit", tmp_path / "rgb"), ViewConfig(size_px=32, mean=(0.5, 0.5, 0.5)))
    expected, _ = load_encoder(str(tmp_path / "rgb"), size_px=32)
    assert begun.encoder.state_dict()["pos_embed"].shape == expected.state_dict()["pos_embed"].shape
    for name, tensor in expected.state_dict().items():
        assert torch.equal(begun.encoder.state_dict()[name], tensor), name
    assert "views.mean and views.std differ" in capsys.readouterr().out
    grey = start(config("test_vit", tmp_path / "rgb", channels=1), VIEWS).encoder
    summed = expected.state_dict()["patch_embed.proj.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(grey.state_dict()["patch_embed.proj.weight"], summed)


def test_our_encoder_passes_on_what_it_is_and_whom_it_saw(
    synthetic_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that starts from it, with a vanishing learning rate; its kept layer is the trained head's first."""
    written = export(tmp_path / "first", synthetic_dataset, EncoderConfig(name="test_resnet"), splits=("train",))
    with pytest.raises(InputError, match=r"model\.safetensors is the file of a Manyview encoder; give its folder"):
        find_weights(config("test_resnet", encoder_folder(str(tmp_path / "first")).file("model.safetensors")))
    unsettled = {n: t for n, t in written.state_dict().items() if "running" not in n and "tracked" not in n}
    begun = recipe(synthetic_dataset, tmp_path / "run", config("test_resnet", tmp_path / "first"), splits=["train"])
    pretrain(begun)
    encoder, card = load_encoder(str(tmp_path / "run"))
    for name, tensor in unsettled.items():
        torch.testing.assert_close(encoder.encoder.state_dict()[name], tensor, rtol=0, atol=1e-6)  # type: ignore[union-attr]
    first = read_card(str(tmp_path / "first"))
    assert [entry["stage"] for entry in card.lineage] == ["1-simclr", "1-simclr"]
    assert card.lineage[0] == first.lineage[0]
    assert card.lineage[1]["starts_from"]["sha256"] == first.fingerprint
    assert not card.began_elsewhere
    assert read_seen(str(tmp_path / "run")).patients == read_seen(str(tmp_path / "first")).patients
    text = (tmp_path / "run/encoder/README.md").read_text()
    assert f"starts from: Manyview encoder test_resnet, simclr, SHA-256 `{first.fingerprint}`" in text
    assert str(tmp_path) not in text + (tmp_path / "run/encoder/config.json").read_text()
    whole = safetensors.torch.load_file(tmp_path / "run/1-simclr/projection.safetensors")
    for name, tensor in safetensors.torch.load_file(tmp_path / "run/encoder/projection.safetensors").items():
        assert torch.equal(tensor, whole[name])
    assert encoder.num_features == 12
    # A finished run needs its weights no more, until its first stage is to be done again.
    (tmp_path / "first").rename(tmp_path / "moved")
    pretrain(begun)
    assert "first cannot be found" in (said := capsys.readouterr().out)
    assert "1-simclr: reused" in said
    again = begun.model_copy(update={"seed": 7, "on_change": "redo"})
    with pytest.raises(InputError, match=r"first: no such|encoder\.weights: .*first"):
        pretrain(again)
    assert (tmp_path / "run/1-simclr/finished.json").exists()
    # The same weights elsewhere are the same run, others are not.
    pretrain(recipe(synthetic_dataset, tmp_path / "run", config("test_resnet", tmp_path / "moved")))
    assert "1-simclr: reused" in capsys.readouterr().out
    tensors = {n: t + 1 for n, t in written.state_dict().items()}
    other = recipe(
        synthetic_dataset, tmp_path / "run", config("test_resnet", save(tmp_path / "o.safetensors", tensors))
    )
    with pytest.raises(InputError, match=r"made with another config .*initial_weights"):
        pretrain(other)


def test_whom_foreign_weights_have_seen_is_said_to_be_unknown(
    synthetic_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(4)
    weights = save(tmp_path / "w.safetensors", create_encoder(EncoderConfig(name="test_resnet")).state_dict())
    pretrain(recipe(synthetic_dataset, tmp_path / "run", config("test_resnet", weights)))
    assert "whom w.safetensors was trained on is unknown" in capsys.readouterr().out
    card = read_card(str(tmp_path / "run"))
    assert card.began_elsewhere
    assert card.config.weights == "none"
    assert "w.safetensors, SHA-256 `" in (text := (tmp_path / "run/encoder/README.md").read_text())
    assert "whom these weights have seen is unknown" in text


def test_weights_that_saw_who_is_held_out_are_refused(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    export(tmp_path / "leaky", synthetic_dataset, EncoderConfig(name="test_resnet"), splits=("train", "test"))
    patients = synthetic_dataset.column("patient")[synthetic_dataset.rows(["test"])]
    begun = recipe(synthetic_dataset, tmp_path / "run", config("test_resnet", tmp_path / "leaky"))
    with pytest.raises(InputError, match=f"was pretrained on {len(set(patients))} patients and .* holds out"):
        pretrain(begun)
    assert not Folder(tmp_path / "run").exists()


def test_the_identity_has_the_content_not_the_path(resnet18: tuple[Path, nn.Module], tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(resnet18[0])
    same = save(tmp_path / "same.safetensors", tensors)
    other = save(tmp_path / "other.safetensors", {**tensors, "bn1.bias": tensors["bn1.bias"] + 1})

    def identity(weights: object, number: int = 0) -> dict[str, Any]:
        stages = [{"method": "simclr", "steps": 1}, {"method": "micle", "steps": 1}]
        encoder = config("resnet18", weights)
        recipe = PretrainConfig.model_validate({"data": "/d", "run": "/r", "encoder": encoder, "stages": stages})
        return recipe.stage_identity(number, "dataset", None)

    assert identity(resnet18[0]) == identity(same)
    assert identity(same) != identity(other)
    assert identity(same) != identity("none")
    assert identity(same, 1) == identity("none", 1)
