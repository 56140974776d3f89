"""The plan's numbers against the real thing, and what it says."""

import functools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clusters import distributed
from clusters.config import InputError, load_config
from data.dataset import Dataset
from pretrain.__main__ import _run
from pretrain.cards import CARDS
from pretrain.config import PretrainConfig
from pretrain.fits import check_fits
from pretrain.footprint import Footprint, checkpoint_bytes, footprint, usable
from pretrain.ledger import Ledger
from pretrain.losses import nt_xent, nt_xent_bytes
from pretrain.methods.moco_v3 import contrast, contrast_bytes
from pretrain.optim import build_optimizer
from pretrain.plan import PlanConfig, plan
from pretrain.run import pretrain
from pretrain.training import build_module

SMALL = [
    "encoder.name=resnet18",
    "views.size_px=64",
    "stages=[{method: simclr, epochs: 100, projection_hidden: 256}]",
]
GB = 10**9


def config(*words: str) -> PretrainConfig:
    return load_config(PretrainConfig, ["data=/none", "run=/none", *words])


@functools.cache
def small() -> Footprint:
    return footprint(config(*SMALL), 0)


def lines(*words: str) -> str:
    return "\n".join(plan(load_config(PlanConfig, [*words])))


def saved_for_backward(of: PretrainConfig, num_samples: int) -> tuple[int, torch.nn.Module]:
    """Bytes of distinct storages that a real forward on this CPU keeps, parameters excepted."""
    module, _ = build_module(of, 0, None)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    views = torch.rand(2 * num_samples, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=of.precision == "bf16"),
    ):
        module(views.unflatten(0, (2, num_samples)), torch.zeros(2, num_samples, 1, dtype=torch.long))
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own), module


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_activations_are_those_of_a_real_forward(precision: str) -> None:
    of = config(*SMALL, f"precision={precision}")
    needs = footprint(of, 0)
    real, module = saved_for_backward(of, 6)
    assert needs.held(6) == pytest.approx(real, rel=0.05)
    assert needs.encoder_parameters == sum(p.numel() for p in module.get_submodule("encoder").parameters())
    assert needs.head_parameters == sum(p.numel() for p in module.get_submodule("projection").parameters())


@pytest.mark.parametrize("optim", ["lars", "adamw", "sgd"])
def test_the_peak_of_a_step_and_the_optimiser_are_those_of_real_tensors(optim: str) -> None:
    of = config(*SMALL, f"stages.0.optim.name={optim}")
    needs = footprint(of, 0)
    module, _ = build_module(of, 0, None)
    optimizer = build_optimizer(module, of.stages[0].optim)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values()]
    kept = [*module.parameters(), *(p.grad for p in module.parameters()), *module.buffers(), *state]
    assert needs.optimiser == sum(tensor.nbytes for tensor in state)
    assert checkpoint_bytes(of, 0) == needs.checkpoint
    assert needs.weights == sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    ledger = Ledger({tensor.untyped_storage()._cdata for tensor in kept if tensor is not None})
    with ledger:
        views = torch.empty(192, 3, 64, 64).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            output = module(views.unflatten(0, (2, 96)), torch.zeros(2, 96, 1, dtype=torch.long))
        output.loss.backward()
        assert needs.peak(96) == pytest.approx(ledger.peak, rel=0.05)
        del output, views
        ledger.peak = 0
        optimizer.step()
        assert needs.update == ledger.peak


def test_recomputed_activations_take_less_memory_and_more_arithmetic() -> None:
    kept, recomputed = small(), footprint(config(*SMALL), 0, recompute=True)
    assert recomputed.peak.per_sample < 0.8 * kept.peak.per_sample
    assert 1.2 < recomputed.flops.per_sample / kept.flops.per_sample < 1.4  # one forward in three passes more


def test_resnet50_at_224_px_is_what_is_known_of_it() -> None:
    needs = footprint(config(), 0)
    assert needs.encoder_parameters == 23_508_032
    assert needs.flops.per_sample / 2 == pytest.approx(24.3e9, rel=0.01)  # 3 x 4.09 GMAC less the first layer's own
    # Each of the 11.1 M outputs of its convolutions stays twice in bf16: as it is, and normalised.
    assert needs.held.per_sample / 2 == pytest.approx(4 * 11.1e6, rel=0.05)
    a100 = next(card for card in CARDS if card.name == "A100 40 GB").expected(needs, 256)
    assert a100 is not None
    assert a100[0] < 2470 / 2 < 1.3 * a100[1]  # views a second that NVIDIA published, of supervised training


@pytest.mark.parametrize("pairs", [64, 700])
def test_loss_buffers_are_those_of_the_loss(pairs: int) -> None:
    views = torch.randn(2, pairs, 128, requires_grad=True)
    ledger = Ledger({views.untyped_storage()._cdata})
    with ledger:
        nt_xent(views[0], views[1], 0.1, torch.arange(pairs)).backward()
    assert 0.6 < nt_xent_bytes(pairs, 1, 128, "cpu") / ledger.peak < 1.7


@pytest.mark.parametrize("num_samples", [512, 1024])
def test_the_logits_of_moco_are_counted(num_samples: int) -> None:
    queries, keys = torch.randn(2, 2, num_samples, 64).unbind()
    queries.requires_grad_()
    groups = torch.arange(num_samples)[:, None]
    ledger = Ledger({tensor.untyped_storage()._cdata for tensor in (queries, keys, groups)})
    with ledger:
        losses = [contrast(queries[k], keys[1 - k], groups, groups, 0.2) for k in (0, 1)]
        (losses[0] + losses[1]).backward()
    assert contrast_bytes(num_samples, 1, 64) == pytest.approx(ledger.peak, rel=0.1)


def test_the_logits_of_moco_make_a_large_global_batch_too_large() -> None:
    words = ["encoder.name=test_resnet", "views.size_px=32", "stages=[{method: moco_v3, epochs: 1}]"]
    needs = footprint(config(*words), 0)
    logits = 4 * 4 * 1024 * 65_536  # of both directions, and their probabilities
    assert needs.needed(1024, 64) - needs.needed(1024, 1) > logits
    assert needs.needed(1024, 64) - needs.needed(1024, 1) < 2 * logits


def test_loss_buffers_stay_small_at_a_large_global_batch() -> None:
    assert nt_xent_bytes(512, 128, 128) < 0.25 * GB  # 65,536 pairs; all similarities at once would be 0.5 GB


def test_only_a_loss_over_the_global_batch_has_buffers_of_its_own() -> None:
    for method, there in (("simclr", True), ("moco_v3", True), ("byol", False)):
        words = ["encoder.name=test_resnet", "views.size_px=32", f"stages=[{{method: {method}, epochs: 1}}]"]
        assert ("memory, loss" in lines(*words)) == there


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    needs = small()
    largest = needs.largest(24 * GB, 4)
    assert needs.needed(largest, 4) <= usable(24 * GB) < needs.needed(largest + 1, 4)
    assert needs.largest(GB, 4) == 0
    workers = needs.workers_for(65_536, 24 * GB)
    assert workers is not None and workers > 1
    assert needs.needed(65_536 // workers, workers) <= usable(24 * GB)
    assert needs.needed(65_536 // (workers // 2), workers // 2) > usable(24 * GB)


def test_a_batch_that_does_not_fit_is_refused_with_the_numbers() -> None:
    of = config(*SMALL, "stages.0.batch_size=32768")
    check_fits(of, 0, 141 * GB, 32)
    with pytest.raises(InputError, match=r"stages\.0\.batch_size: 32768 samples a GPU need \d+\.\d GB .* on \d+ GPUs"):
        check_fits(of, 0, 24 * GB, 1)


def test_what_is_compiled_may_need_less_and_is_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    check_fits(config(*SMALL, "stages.0.batch_size=32768", "compute.compile=true"), 0, 24 * GB, 1)
    assert "without compute.compile, 32768 samples a GPU need" in capsys.readouterr().out


def test_a_run_on_a_gpu_that_is_too_small_is_refused_as_it_starts(
    synthetic_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the memory of a GPU of 1.6 GB, of which 0.02 GB can be used."""
    monkeypatch.setattr(distributed, "device_memory", lambda: int(1.6 * GB))
    words = [f"data={synthetic_dataset.location}", f"run={tmp_path / 'run'}", "stages.0.batch_size=8"]
    with pytest.raises(InputError, match=r"8 samples a GPU need .* of 2 GB can be used; .* cannot be accumulated"):
        pretrain(config(*SMALL, *words, "tracking.wandb=disabled"))
    assert not (tmp_path / "run/1-simclr").exists()


def test_a_plan_says_what_fits_how_long_it_takes_and_what_is_not_measured() -> None:
    said = lines(*SMALL, "num_samples=[100000]", "cluster.num_workers=[2,4]", "stages.0.batch_size=65536")
    assert "65536 samples of two views = 4 workers x 16384" in said
    assert "2 x 32768 samples need" in said
    assert "epochs of 100,000 samples" in said
    assert any("fits" in line and "min" in line for line in said.splitlines() if "H200" in line)
    assert any("needs 8 GPUs" in line for line in said.splitlines() if "A10 " in line)
    assert "with compute.checkpoint_activations=true" in said
    assert "expected, not measured" in said
    assert max(map(len, said.splitlines())) <= 120


def test_without_data_time_is_left_out() -> None:
    said = lines(*SMALL)
    assert "100 epochs" in said
    assert not any(" h" in line or " min" in line for line in said.splitlines() if "H200" in line)
    assert "num_samples=[…], for steps and time" in said


def test_a_dataset_gives_steps_and_the_loader_s_speed(synthetic_dataset: Dataset) -> None:
    said = lines(*SMALL, f"data={synthetic_dataset.location}", "stages.0.batch_size=16")
    assert "measured here" in said
    assert f"epochs of {len(synthetic_dataset.rows(['train']))} samples" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cluster.num_workers=3"], "cannot be divided equally among 3 workers"),
        (["encoder.name=resnet5O"], "timm has no 'resnet5O'"),
        (["stages.0.temperature=0"], "stages.0.temperature"),
        (["stages.0.batch_size=1"], "stages.0.batch_size"),
        (["num_samples=[1,2,3]"], "num_samples: 3 for 1 stages"),
        (["splits=[test]"], "the test split is never pretrained on"),
        (["data=/nowhere"], "/nowhere"),
    ],
)
def test_what_a_run_would_refuse_is_one_line_here_too(words: Sequence[str], told: str) -> None:
    with pytest.raises(InputError) as refused:
        lines(*SMALL, *words)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_command_line() -> None:
    with pytest.raises(InputError, match=r"stages\.0\.batch_size"):
        _run(["plan", "pretrain/recipes/ham10000.yaml", "stages.0.batch_size=1"])
    with pytest.raises(
        InputError, match=r"neither a recipe file nor preview, plan, simulate or doctor \(nearest: plan\)"
    ):
        _run(["pln", "pretrain/recipes/ham10000.yaml"])


def test_a_plan_fetches_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "resnet18" in lines(*SMALL, "encoder.weights=timm:default")


def test_one_count_needs_no_brackets_and_a_short_run_is_said_to_be_short() -> None:
    said = lines(*SMALL, "num_samples=512", "stages.0.epochs=1")
    assert "of 512 samples" in said
    assert "< 1 min" in said and "0–0" not in said
