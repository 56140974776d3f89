"""One step of training: what it computes, on one process and on two, what it costs and what it refuses to do."""

import copy
import itertools
import shutil
import sysconfig
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._inductor import config as inductor
from torch.utils._python_dispatch import TorchDispatchMode

from clusters.batch_norm import RunningStatistics
from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.config import InputError
from clusters.storage import Folder
from clusters.tracking import Tracker, TrackingConfig
from data.dataset import Dataset
from data.loader import positions_of
from data.order import Order
from pretrain.averaging import Averages
from pretrain.compute import checkpoint_activations, ranks_per_group
from pretrain.config import PretrainConfig
from pretrain.feeding import prefetched
from pretrain.losses import nt_xent
from pretrain.nonfinite import NotFinite
from pretrain.run import pretrain
from pretrain.saving import Saving
from pretrain.training import Training
from tests.small_steps import (
    a_step_that_one_rank_spoils,
    flat,
    take,
    tiny_network,
    tiny_training,
    training_step,
    views_of,
)

NAMES = ["1-simclr", "2-simclr"]
OPTIMIZERS = ["lars", "sgd", "adamw"]
OPTIM = {"lr": 0.1, "lr_scaling": "none", "warmup": 0}


def assert_close(expected: dict[str, torch.Tensor], got: dict[str, torch.Tensor], tolerance: float) -> None:
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        apart = (got[name].float() - value.float()).abs().max()
        assert apart <= tolerance * (1 + value.float().abs().max()), f"{name}: {apart}"


def assert_same(expected: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> None:
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


@pytest.mark.parametrize("network", ["fused", "plain"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_two_ranks_take_the_step_of_one_process(ranks, network: str, checkpointed: bool) -> None:
    """Loss, gradient (as momentum after one step) and running statistics; timm's BatchNormAct2d included."""
    expected = training_step({"network": network})
    assert any("num_batches_tracked" in name for name in expected)
    for got in ranks.run("training_step", {"network": network, "compute": {"checkpoint_activations": checkpointed}}):
        assert_close(expected, got, 2e-5)


def test_groups_of_batch_norm_are_what_each_group_alone_would_normalise_by(ranks) -> None:
    """Two groups of four samples on two ranks against a plain restatement in one process."""
    training = tiny_training({"network": "fused"})
    module = training.module
    before = copy.deepcopy(module)
    halves = [copy.deepcopy(before), module]
    for place, half in enumerate(halves):  # both share the parameters of one
        for name, parameter in module.named_parameters() if place == 0 else ():
            owner, _, leaf = name.rpartition(".")
            setattr(half.get_submodule(owner), leaf, parameter)
    projected = [
        half.projection(half.encoder(views_of(0)[:, 4 * place : 4 * place + 4].flatten(0, 1))).chunk(2)
        for place, half in enumerate(halves)
    ]
    loss = nt_xent(*(torch.cat([p[view] for p in projected]) for view in range(2)), temperature=0.5)
    loss.backward()
    loss = loss.detach()
    answers = ranks.run("training_step", {"network": "fused", "compute": {"batch_norm_group": 4}})
    order = [p for group in training.optimizer.param_groups for p in group["params"]]
    for got in answers:
        assert float(got["loss"]) == pytest.approx(float(loss), rel=1e-5)
        for number, parameter in enumerate(order):
            gradient = got[f"/optimizer/state/{number}/momentum_buffer"]
            assert parameter.grad is not None
            assert torch.allclose(gradient, parameter.grad, atol=2e-5), number
        statistics = [half.state_dict() for half in halves]
        for name in statistics[0]:
            if "running" in name:
                mean = (statistics[0][name] + statistics[1][name]) / 2
                assert not torch.allclose(statistics[0][name], statistics[1][name])
                assert torch.allclose(got[f"/module/{name}"], mean, rtol=1e-5, atol=1e-5), name


def test_a_group_of_batch_norm_is_the_same_samples_for_any_number_of_ranks() -> None:
    order = Order([40, 50, 60, 30], seed=3)
    for step in range(3):
        groups = {}
        for num_ranks in (4, 8, 16):
            size = ranks_per_group(8, 32, num_ranks, "stages.0")
            assert size is not None
            assert size == num_ranks // 4
            shares = [positions_of(step, 32, rank, num_ranks, order).tolist() for rank in range(num_ranks)]
            groups[num_ranks] = [set(itertools.chain(*shares[g * size : (g + 1) * size])) for g in range(4)]
        assert groups[4] == groups[8] == groups[16]
    assert ranks_per_group(None, 32, 2, "stages.0") is ranks_per_group(32, 32, 2, "stages.0") is None
    with pytest.raises(InputError, match=r"groups of 8 of 32 samples need 4 workers or a multiple .* gives 2"):
        ranks_per_group(8, 32, 2, "stages.0")
    with pytest.raises(InputError, match=r"5 does not divide stages.0.batch_size, 32"):
        ranks_per_group(5, 32, 2, "stages.0")


def test_gradients_lie_in_buckets_and_the_graph_is_static(ranks) -> None:
    for told in ranks.run("how_gradients_are_averaged", {"network": "plain"}):
        assert told["static_graph"]
        assert told["bucket_views"]
        assert told["storages"] < told["gradients"] / 4, "gradients have memory of their own"


@pytest.mark.parametrize("network", ["plain", "fused", "vit"])
def test_checkpointed_activations_give_the_same_step_for_fewer_bytes(network: str) -> None:
    states, saved = [], []
    for checkpointed in (False, True):
        training = tiny_training({"network": network, "compute": {"checkpoint_activations": checkpointed}})
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, into=sizes: into.append(t.nbytes) or t, lambda t: t):
            training.module.encoder(views_of(0).flatten(0, 1))
        for step in range(2):
            take(training, step)
        states.append(flat(training.state()))
        saved.append(sum(sizes))
    # The hooks' forward moved the statistics once in both, so they too must agree.
    assert_same(states[0], states[1])
    assert saved[1] < 0.9 * saved[0]


def test_running_statistics_move_twice_where_nothing_is_done_about_it() -> None:
    """The trap that the test above would otherwise be silent about."""
    network = tiny_network("plain")
    checkpoint_activations(network, "plain")
    network(views_of(0)[0]).sum().backward()
    counts = {int(b) for name, b in network.named_buffers() if "num_batches_tracked" in name}
    assert counts == {1, 2}


def test_a_network_that_cannot_be_checkpointed_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="timm cannot checkpoint 'odd_net'"):
        checkpoint_activations(nn.Linear(2, 2), "odd_net")


@pytest.mark.parametrize("network", ["plain", "fused", "vit"])
def test_bf16_runs_with_channels_last_from_end_to_end(network: str) -> None:
    """The fast path is on: every convolution sees and gives channels-last bfloat16, with channels-last weights."""
    training = tiny_training({"network": network, "precision": "bf16"})
    seen: list[str] = []

    def look(layer: nn.Conv2d, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        for tensor in (inputs[0], output, layer.weight):
            assert tensor.is_contiguous(memory_format=torch.channels_last), (layer, tensor.stride())
        assert output.dtype == torch.bfloat16
        seen.append(str(layer))

    convolutions = [m for m in training.module.modules() if isinstance(m, nn.Conv2d)]
    for layer in convolutions:
        layer.register_forward_hook(look)
    views = views_of(0).flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (2, 8))
    loss = take(training, 0, views)
    assert len(seen) == len(convolutions) > 0
    assert loss.dtype == torch.float32
    assert training.health.tolist()[1] == 1
    exact = take(tiny_training({"network": network}), 0)
    assert float(loss) == pytest.approx(float(exact), rel=0.02)


class NoWaiting(TorchDispatchMode):
    """Refuses whatever makes the host wait for the device: reading a value, or a shape that depends on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "item", "is_nonzero", "bincount")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITS, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", ["plain", "vit"])
def test_a_whole_step_never_waits_for_the_device(optimizer: str, network: str) -> None:
    stage = {"optim": {"name": optimizer, **OPTIM}, "ema": 0.9}
    training = tiny_training({"network": network, "stage": stage})
    with NoWaiting():
        take(training, 0)
        take(training, 1)
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        float(training.health[0])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_is_not_finite_changes_nothing(optimizer: str) -> None:
    """Weights, statistics, optimiser and averages, to the bit; what follows is as if it had never been."""
    values = {"network": "plain", "stage": {"optim": {"name": optimizer, **OPTIM}, "ema": 0.9}}
    spoilt = a_step_that_one_rank_spoils(values)
    before, after, later = spoilt["states"]
    if optimizer == "adamw":  # its moments are made at the first step
        made = {name: torch.zeros_like(after[name]) for name in after.keys() - before.keys()}
        assert all("/optimizer/state" in name for name in made)
        before = {**before, **made}
    if optimizer == "lars":
        before = {**before, **{n: torch.zeros_like(t) for n, t in after.items() if "momentum_buffer" in n}}
    assert_same(before, after)
    untouched = tiny_training(values)
    take(untouched, 1)
    assert_same(flat(untouched.state()), later)
    assert [taken for _, taken in spoilt["healths"]] == [0, 1]
    norm = torch.stack([p.grad.norm() for p in untouched.module.parameters() if p.grad is not None]).norm()
    assert spoilt["healths"][1][0] == pytest.approx(float(norm), rel=1e-5)


def test_a_nan_on_one_rank_stays_every_rank(ranks) -> None:
    answers = ranks.run("a_step_that_one_rank_spoils", {"network": "fused", "stage": {"ema": 0.9}})
    for answer in answers:
        assert_same(answer["states"][0], answer["states"][1])
        assert [taken for _, taken in answer["healths"]] == [0, 1]
        assert_same(answers[0]["states"][2], answer["states"][2])


def keys_of_step(count: int, step: int) -> list[str]:
    return [f"case-{step}-{n}" for n in range(count)]


def watched(folder: Path, policy: Any, taken: list[int]) -> NotFinite:
    """A watch over a stage that has taken such steps."""
    tracker = Tracker(Folder(folder), TrackingConfig(wandb="disabled"), "run", {})
    watch = NotFinite("1-simclr", policy, Folder(folder), tracker, partial(keys_of_step, 8))
    for step, flag in enumerate(taken):
        watch.add(step, torch.tensor(float(flag)))
    return watch


def test_a_step_that_was_not_taken_is_named_with_its_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"not finite at step 2, .*case-1-0, case-1-1.*compute.on_nonfinite=skip"):
        watched(tmp_path, "stop", [1, 0, 1]).check()
    assert Folder(tmp_path).read_json("not-finite.json") == {"2": [f"case-1-{n}" for n in range(8)]}
    watched(tmp_path, "skip", [1, 0, 1]).check()
    assert "not finite at step 2" in capsys.readouterr().out
    watched(tmp_path, "skip", [0] * 9 + [1] + [0] * 9).check()
    with pytest.raises(InputError, match="nor were the 9 before it"):
        watched(tmp_path, "skip", [0] * 10).check()
    for taken, most in (([1, 0, 1, 0], False), ([1, 0, 0], True)):
        ending = watched(tmp_path, "skip", taken)
        ending.check()
        if not most:
            ending.end()
            continue
        with pytest.raises(InputError, match="2 of 3 steps were not finite and left out"):
            ending.end()


def test_a_resume_goes_on_counting_steps_that_were_left_out(tmp_path: Path) -> None:
    training = tiny_training({"network": "one_layer"})
    before = watched(tmp_path, "skip", [1] + [0] * 9)
    before.check()
    saving = Saving("1-simclr", training, before, Checkpoints(Folder(tmp_path), CheckpointConfig()))
    saving.save(4)
    saving.wait()
    resumed = watched(tmp_path, "skip", [0])
    assert Saving("1-simclr", training, resumed, Checkpoints(Folder(tmp_path), CheckpointConfig())).restore() == 4
    with pytest.raises(InputError, match="nor were the 9 before it"):
        resumed.check()
    before.add(10, torch.tensor(1.0))
    assert before.state() == {"in_a_row": 0, "seen": 11, "left_out": 9}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_restored_training_goes_on_to_the_bit(tmp_path: Path, optimizer: str) -> None:
    """Through a real checkpoint, which forgets how tensors lie in memory; with averages of the weights."""
    values = {"network": "plain", "stage": {"optim": {"name": optimizer, **OPTIM}, "ema": 0.9}}
    training = tiny_training(values)
    for step in range(2):
        take(training, step)
    with Checkpoints(Folder(tmp_path), CheckpointConfig()) as checkpoints:
        checkpoints.save(2, training.state())
    restored = Checkpoints(Folder(tmp_path), CheckpointConfig()).restore()
    assert restored is not None
    resumed = tiny_training({**values, "seed": 1})
    resumed.load_state(restored.state)
    assert_same(flat(training.state()), flat(resumed.state()))
    for one in (training, resumed):
        take(one, 2)
    assert_same(flat(training.state()), flat(resumed.state()))


def test_averages_follow_their_equation_and_leave_the_weights_alone() -> None:
    """a ← a + (1 - d)(w - a), d = min(decay, (1 + n) / (10 + n)); batch norm's running statistics alike."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    averages = Averages({"encoder": network}, 0.3)
    expected = {name: t.clone() for name, t in network.state_dict().items()}
    for step in range(6):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        network(torch.randn(5, 3))
        averages.update(step, torch.tensor(float(step != 3)))
        decay = min(0.3, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            if step != 3 and tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
    own = {name: t.clone() for name, t in network.state_dict().items()}
    with averages.in_place():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                assert torch.allclose(tensor, expected[name], atol=1e-6), name
                assert not torch.equal(tensor, own[name]), name
    assert_same(own, network.state_dict())


@pytest.mark.skipif(
    shutil.which("g++") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="torch.compile needs a C++ compiler and Python's headers",
)
def test_a_compiled_encoder_takes_the_same_step_under_plain_names() -> None:
    eager, compiled = (tiny_training({"network": "one_layer", "compute": {"compile": on}}) for on in (False, True))
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with inductor.patch(compile_threads=1):
        for training in (eager, compiled):
            take(training, 0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > counted, "nothing was compiled"
    assert_close(flat(eager.state()), flat(compiled.state()), 1e-4)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for training in (eager, compiled):
        training.module.encoder.eval()
    images = views_of(1)[0, :3]
    assert torch.allclose(eager.module.encoder(images), compiled.module.encoder(images), atol=1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "evaluation was compiled too"


class Greedy(nn.Module):
    """A network that asks the allocator for more than there is."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.empty(1 << 50).sum() + images


def test_a_step_that_does_not_fit_is_refused_with_the_numbers() -> None:
    training = tiny_training({"network": "plain"})
    training.module.encoder = Greedy()
    with pytest.raises(InputError) as refused:
        take(training, 0)
    told = str(refused.value)
    assert "1-simclr: a step with 8 samples on a worker (16 views of 32 px) does not fit" in told
    assert "this machine has" in told
    assert "4194304.0 GiB more were asked for" in told
    assert "compute.checkpoint_activations=true" in told
    assert "another method" in told
    assert "\n" not in told


def test_other_errors_stay_what_they_are() -> None:
    training = tiny_training({"network": "plain"})
    with pytest.raises(RuntimeError, match="channels"):
        take(training, 0, torch.zeros(2, 8, 1, 32, 32))


def test_prefetched_batches_are_each_finished_once_in_order_when_they_are_asked_for() -> None:
    drawn: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(4):
            drawn.append(number)
            yield number

    fed = prefetched(batches(), lambda number: (torch.tensor(number), torch.arange(number)), torch.device("cpu"))
    for expected in range(4):
        first, second = next(fed)
        assert int(first) == expected
        assert torch.equal(second, torch.arange(expected))
        assert drawn == list(range(expected + 1))
    with pytest.raises(StopIteration):
        next(fed)


def test_statistics_are_put_back_only_where_a_step_was_bad() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    statistics = RunningStatistics(network)
    own = {name: t.clone() for name, t in network.state_dict().items()}
    before = statistics.copy()
    network(torch.full((2, 3, 4, 4), torch.nan))
    statistics.restore_unless(torch.tensor(False), before)
    assert_same(own, network.state_dict())
    network(torch.randn(2, 3, 4, 4))
    moved = {name: t.clone() for name, t in network.state_dict().items()}
    statistics.restore_unless(torch.tensor(True), before)
    assert_same(moved, network.state_dict())
    assert int(moved["1.num_batches_tracked"]) == 1
    assert RunningStatistics(nn.Linear(2, 2)).copy() == []


def test_only_what_is_handed_on_is_averaged() -> None:
    training: Training = tiny_training({"network": "vit", "stage": {"ema": 0.5}})
    names = {name.split("/", 2)[2] for name in flat(training.state()) if name.startswith("/averages")}
    assert {name.split(".")[0] for name in names} == {"encoder", "projection"}


def test_averages_are_what_is_exported_and_what_the_next_stage_starts_from(
    synthetic_dataset: Dataset, tmp_path: Path
) -> None:
    stage = {"method": "simclr", "batch_size": 8, "projection_hidden": 16, "projection_dim": 8, "steps": 3, "ema": 0.9}
    still = {**stage, "steps": 1, "optim": {"lr": 1e-30}}
    values = {
        "data": synthetic_dataset.location,
        "run": str(tmp_path / "run"),
        "precision": "fp32",
        "encoder": {"name": "resnet10t"},
        "views": {"size_px": 32},
        "stages": [{**stage, "optim": {"name": "sgd", **OPTIM}}, still],
        "tracking": {"wandb": "disabled"},
    }
    pretrain(PretrainConfig.model_validate(values))
    first, second = (load_file(tmp_path / "run" / name / "encoder/model.safetensors") for name in NAMES)
    (checkpoint,) = (tmp_path / "run/1-simclr/checkpoints").glob("step-*/state.safetensors")
    state = load_file(checkpoint)
    moved = 0
    for name, tensor in first.items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, state[f"/averages/encoder.{name}"]), name
            moved += not torch.equal(tensor, state[f"/module/encoder.{name}"])
            if "running" not in name:
                assert torch.equal(tensor, second[name]), name
    assert moved > 0
    head = load_file(tmp_path / "run/1-simclr/projection.safetensors")
    assert all(torch.equal(t, state[f"/averages/projection.{n}"]) for n, t in head.items() if t.is_floating_point())
