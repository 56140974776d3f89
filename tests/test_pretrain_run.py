"""A recipe from end to end: exact resume, stages that are reused or redone, and the encoder it leaves."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import timm
import timm.data
import torch

from clusters import checkpoint_files
from clusters.checkpoint_files import Name
from clusters.config import InputError
from clusters.storage import Folder
from clusters.versions import versions_here
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.encoder_folder import hash64, load_encoder, read_seen
from pretrain.run import pretrain, where_views_are_finished
from tests.killed_runs import killed_after_saves
from tests.rank_tasks import narrow_simclr_resnet

OPTIM = {"name": "sgd", "lr": 0.05, "lr_scaling": "none"}


def values(dataset: Dataset, run: Path, **changed: Any) -> dict[str, Any]:
    stage = {"batch_size": 8, "projection_hidden": 16, "projection_dim": 8, "optim": OPTIM}
    return {
        "data": dataset.location,
        "run": str(run),
        "precision": "fp32",
        "encoder": {"name": "resnet18"},
        "views": {"size_px": 32},
        "stages": [{"method": "simclr", "steps": 5, **stage}, {"method": "micle", "steps": 4, **stage}],
        "tracking": {"wandb": "disabled", "every_steps": 1},
        "checkpoint": {"every_steps": 2},
        **changed,
    }


def run(dataset: Dataset, folder: Path, **changed: Any) -> None:
    pretrain(PretrainConfig.model_validate(values(dataset, folder, **changed)))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "encoder" / "model.safetensors")


def last_state(folder: Path) -> bytes:
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return (newest / "state.safetensors").read_bytes()


def records(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def steps(folder: Path) -> list[int]:
    return [record["step"] for record in records(folder)]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(folder)]


@pytest.fixture(scope="module")
def finished(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run; not to be altered."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(synthetic_dataset, folder)
    return folder


@pytest.mark.parametrize("killed_after_save", [1, 2, 4])
def test_an_interrupted_run_ends_as_the_undisturbed_one(
    synthetic_dataset: Dataset,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_after_save: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Bit for bit: weights, buffers, optimiser; killed in stage 1, at its end or in stage 2."""
    with killed_after_saves(monkeypatch, killed_after_save), pytest.raises(KeyboardInterrupt):
        run(synthetic_dataset, tmp_path / "run")
    assert not (tmp_path / "run/encoder").exists()
    assert "other code" not in capfd.readouterr().out
    monkeypatch.setattr("pretrain.run.versions_here", lambda: {**versions_here(), "torch": "3.0"})
    run(synthetic_dataset, tmp_path / "run")
    begun = 2 if killed_after_save == 4 else 1
    said = [line for line in capfd.readouterr().out.splitlines() if "other code" in line]
    assert len(said) == 1 and said[0].startswith(f"{begun}-") and said[0].endswith("-> 3.0"), said
    for stage in ("1-simclr", "2-micle"):
        assert last_state(tmp_path / "run" / stage) == last_state(finished / stage)
        assert steps(tmp_path / "run" / stage) == steps(finished / stage)
    assert (tmp_path / "run/encoder/model.safetensors").read_bytes() == (
        finished / "encoder/model.safetensors"
    ).read_bytes()


def test_a_save_that_storage_refuses_is_said_and_costs_no_step(
    synthetic_dataset: Dataset,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file stands where the folder of the first checkpoint should be."""
    write = checkpoint_files.write

    def write_beside(folder: Folder, name: Name, *what: Any) -> None:
        if name.step == 2:
            Path(folder.location).parent.mkdir(exist_ok=True)
            Path(folder.location).write_text("")
        write(folder, name, *what)

    monkeypatch.setattr(checkpoint_files, "write", write_beside)
    run(synthetic_dataset, tmp_path / "run", stages=values(synthetic_dataset, tmp_path)["stages"][:1])
    assert "the checkpoint of step 2 could not be written" in capsys.readouterr().out
    assert last_state(tmp_path / "run/1-simclr") == last_state(finished / "1-simclr")


def spoil(checkpoint: Path, how: str) -> None:
    state = checkpoint / "state.safetensors"
    content = bytearray(state.read_bytes())
    if how == "a flipped bit":
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif how == "cut off":
        state.write_bytes(content[: len(content) // 2])
    else:
        state.unlink()


@pytest.mark.parametrize("how", ["a flipped bit", "cut off", "a missing file"])
def test_a_run_whose_newest_checkpoint_is_damaged_ends_as_the_undisturbed_one(
    synthetic_dataset: Dataset,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with killed_after_saves(monkeypatch, 2), pytest.raises(KeyboardInterrupt):
        run(synthetic_dataset, tmp_path / "run")
    before, newest = sorted((tmp_path / "run/1-simclr/checkpoints").glob("step-*"))
    assert (before.name, newest.name) == ("step-000000002", "step-000000004")
    spoil(newest, how)
    run(synthetic_dataset, tmp_path / "run")
    said = capfd.readouterr().out
    assert newest.name in said and "1-simclr: resumed at step 2" in said
    for stage in ("1-simclr", "2-micle"):
        assert last_state(tmp_path / "run" / stage) == last_state(finished / stage)
        assert steps(tmp_path / "run" / stage) == steps(finished / stage)


def test_two_ranks_train_on_where_one_of_them_meets_a_nan(synthetic_dataset: Dataset, tmp_path: Path, ranks) -> None:
    """Where they are told to; the one step is left out, on both."""
    stages = values(synthetic_dataset, tmp_path)["stages"][:1]
    recipe = values(synthetic_dataset, tmp_path / "run", stages=stages, compute={"on_nonfinite": "skip"})
    first, second = ranks.run("spoilt_stage", recipe)
    assert first == second
    assert steps(tmp_path / "run/1-simclr") == [1, 2, 4, 5]
    assert list(Folder(tmp_path / "run/1-simclr").read_json("not-finite.json")) == ["3"]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


def test_two_ranks_learn_what_one_process_learns(synthetic_dataset: Dataset, tmp_path: Path, ranks) -> None:
    """Few small steps at a mild temperature: rounding grows with each, as from any change of summation order."""
    stages = values(synthetic_dataset, tmp_path)["stages"]
    for stage in stages:
        stage.update(steps=2, batch_size=16, temperature=0.5, optim={**OPTIM, "lr": 1e-5})
    changed = {"stages": stages, "views": {"size_px": 64}}
    answers = ranks.run("pretrain_stage", values(synthetic_dataset, tmp_path / "two", **changed))
    assert answers[0] == answers[1]
    run(synthetic_dataset, tmp_path / "one", **changed)
    for stage in ("1-simclr", "2-micle"):
        one, two = tmp_path / "one" / stage, tmp_path / "two" / stage
        assert losses(two) == pytest.approx(losses(one), rel=1e-5)
        expected = weights(one)
        for name, tensor in weights(two).items():
            apart = (tensor.float() - expected[name].float()).norm()
            assert apart < 1e-4 + 1e-4 * expected[name].float().norm(), f"{stage} {name}: {apart}"


def test_two_ranks_leave_out_the_patients_that_one_process_leaves_out(
    synthetic_dataset: Dataset, tmp_path: Path, ranks
) -> None:
    stages = values(synthetic_dataset, tmp_path)["stages"][:1]
    stages[0].update(steps=2, batch_size=16, temperature=0.5, optim={**OPTIM, "lr": 1e-5}, patient_mask=True)
    changed = {"stages": stages, "views": {"size_px": 64}, "encoder": {"name": "test_resnet"}}
    answers = ranks.run("pretrain_stage", values(synthetic_dataset, tmp_path / "two", **changed))
    assert answers[0] == answers[1]
    for folder, masked in (("one", "even_slides"), ("unmasked", False)):
        stages[0]["patient_mask"] = masked
        run(synthetic_dataset, tmp_path / folder, **changed)
    two, one, unmasked = (losses(tmp_path / folder / "1-simclr") for folder in ("two", "one", "unmasked"))
    assert two == pytest.approx(one, rel=1e-5)
    assert all(masked < loss - 1e-3 for masked, loss in zip(one, unmasked))
    expected = weights(tmp_path / "one/1-simclr")
    for name, tensor in weights(tmp_path / "two/1-simclr").items():
        apart = (tensor.float() - expected[name].float()).norm()
        assert apart < 1e-4 + 1e-4 * expected[name].float().norm(), f"{name}: {apart}"


def test_two_ranks_train_simclr_s_own_resnet(synthetic_dataset: Dataset, tmp_path: Path, ranks) -> None:
    """Its batch norms carry activations (timm's BatchNormAct2d); with averages and activations computed twice.

    So deep and narrow, its gradients are 1,000 long and its steps chaotic: none but the shortest can be compared.
    """
    stages = values(synthetic_dataset, tmp_path)["stages"][:1]
    stages[0].update(steps=2, batch_size=16, temperature=0.5, optim={**OPTIM, "lr": 1e-9}, ema=0.5)
    changed = {
        "stages": stages,
        "views": {"size_px": 64},
        "encoder": {"name": "narrow"},
        "compute": {"checkpoint_activations": True},
    }
    answers = ranks.run("narrow_simclr_resnet", values(synthetic_dataset, tmp_path / "two", **changed))
    assert answers[0] == answers[1]
    narrow_simclr_resnet(values(synthetic_dataset, tmp_path / "one", **changed))
    one, two = tmp_path / "one/1-simclr", tmp_path / "two/1-simclr"
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    expected = weights(one)
    assert expected.keys() == weights(two).keys()
    for name, tensor in weights(two).items():
        apart = (tensor.float() - expected[name].float()).norm()
        assert apart < 1e-4 + 1e-3 * expected[name].float().norm(), f"{name}: {apart}"


def test_loader_processes_make_no_difference(synthetic_dataset: Dataset, finished: Path, tmp_path: Path) -> None:
    stages = values(synthetic_dataset, tmp_path)["stages"][:1]
    run(synthetic_dataset, tmp_path / "run", loader={"num_processes": 2}, stages=stages)
    assert last_state(tmp_path / "run/1-simclr") == last_state(finished / "1-simclr")


def test_running_again_reuses_everything(
    synthetic_dataset: Dataset, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "2-micle/finished.json").stat().st_mtime_ns
    run(synthetic_dataset, finished, tracking={"wandb": "disabled", "every_s": 1.0}, checkpoint={"keep": 5})
    said = capsys.readouterr().out
    assert "1-simclr: reused" in said
    assert "2-micle: reused" in said
    assert (finished / "2-micle/finished.json").stat().st_mtime_ns == before


def test_a_change_of_a_stage_is_refused_then_redone_from_there(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(synthetic_dataset, folder)
    first = (folder / "1-simclr/finished.json").stat().st_mtime_ns
    changed = values(synthetic_dataset, folder)["stages"]
    changed[1] = {**changed[1], "temperature": 0.5}
    with pytest.raises(InputError, match=r"2-micle: made with another config \(stage.temperature: 0.1 -> 0.5\)"):
        run(synthetic_dataset, folder, stages=changed)
    old = weights(folder)
    run(synthetic_dataset, folder, stages=changed, on_change="redo")
    assert (folder / "1-simclr/finished.json").stat().st_mtime_ns == first
    assert any(not torch.equal(old[name], new) for name, new in weights(folder).items())
    run(synthetic_dataset, folder, stages=changed)


def test_nothing_of_anybody_else_is_removed(synthetic_dataset: Dataset, finished: Path, tmp_path: Path) -> None:
    stages = values(synthetic_dataset, tmp_path)["stages"]
    with pytest.raises(InputError, match="stage 1: 1-simclr -> 1-micle"):
        run(synthetic_dataset, finished, stages=stages[::-1])
    assert (finished / "1-simclr/finished.json").exists()
    assert (finished / "2-micle/finished.json").exists()
    run(synthetic_dataset, tmp_path / "run", stages=stages[:1])
    (tmp_path / "run/2024-patients").mkdir(parents=True)
    (tmp_path / "run/2024-patients/a.jpg").write_bytes(b"precious")
    changed = [{**stages[0], "temperature": 0.5}]
    run(synthetic_dataset, tmp_path / "run", stages=changed, on_change="redo")
    assert (tmp_path / "run/2024-patients/a.jpg").read_bytes() == b"precious"
    (tmp_path / "other/encoder").mkdir(parents=True)
    (tmp_path / "other/encoder/code.py").write_text("precious")
    with pytest.raises(InputError, match="not an encoder that Manyview wrote"):
        run(synthetic_dataset, tmp_path / "other", stages=stages[:1])
    assert (tmp_path / "other/encoder/code.py").exists()


def test_a_shortened_recipe_hands_on_its_own_last_stage(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    run(synthetic_dataset, tmp_path / "run")
    stages = values(synthetic_dataset, tmp_path)["stages"][:1]
    run(synthetic_dataset, tmp_path / "run", stages=stages)
    assert [entry["stage"] for entry in load_encoder(str(tmp_path / "run"))[1].lineage] == ["1-simclr"]
    run(synthetic_dataset, tmp_path / "run")
    assert [entry["stage"] for entry in load_encoder(str(tmp_path / "run"))[1].lineage] == ["1-simclr", "2-micle"]


def test_diverged_weights_replace_no_checkpoint(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    stages = values(synthetic_dataset, tmp_path)["stages"][:1]
    stages[0].update(optim={**OPTIM, "lr": 1e30, "warmup": 0}, steps=12)
    tracking = {"wandb": "disabled", "every_steps": 12}
    with pytest.raises(InputError, match="on_change=redo"):
        run(synthetic_dataset, tmp_path / "run", stages=stages, tracking=tracking, probe={"every_steps": 12})
    for checkpoint in (tmp_path / "run/1-simclr/checkpoints").glob("step-*"):
        tensors = safetensors.torch.load_file(checkpoint / "state.safetensors")
        assert all(bool(tensor.isfinite().all()) for name, tensor in tensors.items() if "module" in name), checkpoint


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": 3}, "seed: 0 -> 3"),
        ({"compute": {"compile": True}}, "compile: None -> True"),
        ({"encoder": {"name": "resnet18", "stem": "small"}}, "encoder.stem: standard -> small"),
        ({"views": {"size_px": 40}}, "views.size_px: 32 -> 40"),
        ({"splits": ["train", "test"]}, "test split is never pretrained on"),
        ({"cluster": {"num_workers": 3}}, "8 cannot be divided equally among 3"),
        ({"encoder": {"name": "resnet81"}}, "nearest: resnet18"),
        ({"splits": ["training"]}, "no split 'training'"),
    ],
)
def test_bad_input_is_one_line_and_loses_nothing(
    synthetic_dataset: Dataset, finished: Path, changed: dict[str, Any], told: str
) -> None:
    before = (finished / "encoder/model.safetensors").read_bytes()
    with pytest.raises(InputError) as refusal:
        run(synthetic_dataset, finished, **changed)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert (finished / "encoder/model.safetensors").read_bytes() == before


def test_timm_loads_the_encoder_by_itself(finished: Path) -> None:
    ours, card = load_encoder(str(finished))
    theirs = timm.create_model(f"local-dir:{finished}/encoder", pretrained=True)
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))
    config = timm.data.resolve_model_data_config(theirs)
    assert tuple(config["input_size"]) == (3, 32, 32)
    assert tuple(config["mean"]) == card.mean
    with_head = timm.create_model(f"local-dir:{finished}/encoder", pretrained=True, num_classes=7)
    assert with_head(images).shape == (3, 7)


def test_lineage_and_seen_travel_with_the_encoder(synthetic_dataset: Dataset, finished: Path) -> None:
    _, card = load_encoder(str(finished))
    assert [entry["stage"] for entry in card.lineage] == ["1-simclr", "2-micle"]
    assert {origin["fingerprint"] for entry in card.lineage for origin in entry["datasets"]} == {
        synthetic_dataset.fingerprint
    }
    seen = read_seen(str(finished))
    patients, splits = synthetic_dataset.column("patient"), synthetic_dataset.column("split")
    assert seen.patients == {"source:synthetic": {hash64(p) for p in patients[splits == "train"]}}
    assert not seen.patients["source:synthetic"] & {hash64(p) for p in patients[splits == "test"]}
    assert seen.images == {hash64(h) for h in synthetic_dataset.column("pixel_sha256")[splits == "train"]}
    card_text = (finished / "encoder/README.md").read_text()
    assert synthetic_dataset.manifest.licence in card_text
    assert str(finished) not in card_text


def test_an_altered_encoder_is_refused(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    stages = values(synthetic_dataset, tmp_path)["stages"][:1]
    run(synthetic_dataset, tmp_path / "run", stages=stages)
    path = tmp_path / "run/encoder/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors: altered"):
        load_encoder(str(tmp_path / "run"))
    config_path = tmp_path / "run/1-simclr/encoder/config.json"
    config = json.loads(config_path.read_text())
    config["manyview"]["encoder"]["name"] = "resnet34"
    config_path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="not the weights of resnet34"):
        load_encoder(str(tmp_path / "run/1-simclr"))
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        load_encoder(str(tmp_path))


def test_the_next_stage_starts_from_the_weights_before(
    synthetic_dataset: Dataset, finished: Path, tmp_path: Path
) -> None:
    """With a vanishing learning rate, MICLe leaves the weights of SimCLR where they were."""
    stages = values(synthetic_dataset, tmp_path)["stages"]
    stages[1]["optim"] = {**OPTIM, "lr": 1e-12}
    run(synthetic_dataset, tmp_path / "run", stages=stages)
    simclr, micle = weights(tmp_path / "run/1-simclr"), weights(tmp_path / "run/2-micle")
    for name, expected in simclr.items():
        if "running" not in name and "tracked" not in name:
            np.testing.assert_allclose(micle[name], expected, atol=1e-6, err_msg=name)


def test_a_loss_that_is_not_finite_stops_with_its_step(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    stages = values(synthetic_dataset, tmp_path)["stages"][:1]
    stages[0]["optim"] = {**OPTIM, "lr": 1e30}
    with pytest.raises(InputError, match=r"1-simclr: the loss or its gradient is not finite at step 2"):
        run(synthetic_dataset, tmp_path / "run", stages=stages)
    assert Folder(tmp_path / "run/1-simclr").exists("config.json")
    assert not (tmp_path / "run/encoder").exists()


def test_two_ranks_stop_together_where_a_loss_is_not_finite(synthetic_dataset: Dataset, tmp_path: Path, ranks) -> None:
    """At the next look of all, whatever their clocks say of checkpoints.

    A rank that went first would leave the other waiting, and nobody to write the keys down.
    """
    stages = values(synthetic_dataset, tmp_path)["stages"][:1]
    stages[0].update(optim={**OPTIM, "lr": 1e30, "warmup": 0}, steps=4)
    changed = {"stages": stages, "tracking": {"wandb": "disabled", "every_steps": 4}}
    first, second = ranks.run("stopped_stage", values(synthetic_dataset, tmp_path / "run", **changed))
    assert "1-simclr: the loss or its gradient is not finite at step 2" in first
    assert first == second
    assert len(Folder(tmp_path / "run/1-simclr").read_json("not-finite.json")["2"]) == 8


@pytest.mark.parametrize(
    ("happens", "kind", "told"),
    [("superseded", "Superseded", "attempt 99 of this run has taken over"), ("broken", "InputError", "not finite")],
)
def test_two_ranks_stop_together_where_rank_0_cannot_save(
    synthetic_dataset: Dataset, tmp_path: Path, ranks, happens: str, kind: str, told: str
) -> None:
    """If rank 0 alone raised, the other would wait for it in a collective."""
    stages = values(synthetic_dataset, tmp_path)["stages"][:1]
    changed: dict[str, Any] = {"stages": stages, "tracking": {"wandb": "disabled", "every_steps": 100}}
    changed |= {"encoder": {"name": "test_resnet"}, "checkpoint": {"every_steps": 1}, "happens": happens}
    first, second = ranks.run("overtaken_stage", values(synthetic_dataset, tmp_path / "run", **changed))
    assert first == second
    assert first[0] == kind and told in first[1]
    saved = {path.name for path in (tmp_path / "run/1-simclr/checkpoints").glob("step-*")}
    assert saved == {"step-000000001", "step-000000002", "step-000000003"}


def test_views_are_finished_where_the_stage_was_begun(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "1-simclr")
    values = {"data": "/none", "run": "/none"}
    assert where_views_are_finished(PretrainConfig.model_validate(values), folder) == "loader"
    folder.write_json("config.json", {"config": {"augment": "device"}})
    assert where_views_are_finished(PretrainConfig.model_validate(values), folder) == "device"
    with pytest.raises(InputError, match="begun with augment=device"):
        where_views_are_finished(PretrainConfig.model_validate(values | {"augment": "loader"}), folder)


@pytest.mark.parametrize(("num_gpus", "said"), [(4, 1), (1, 0)])
def test_gpus_that_stand_idle_are_said_at_the_start(
    synthetic_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], num_gpus: int, said: int
) -> None:
    begun: list[str] = []

    def train(_: PretrainConfig) -> dict[str, Any]:
        begun.append(capsys.readouterr().out)
        raise InterruptedError

    there = mock.patch("torch.cuda.device_count", return_value=num_gpus)
    with there, mock.patch("pretrain.run.train", train), pytest.raises(InterruptedError):
        run(synthetic_dataset, tmp_path / "run")
    assert begun[0].count("4 GPUs here and 1 is used; cluster.num_workers=4 uses all\n") == said
    assert begun[0].count("GPUs here") == said
