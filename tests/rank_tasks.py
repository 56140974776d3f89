"""What the tests run on one process and on two gloo processes alike."""

import errno
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from clusters import distributed, retries, termination, tracking
from clusters.batch_norm import global_batch_norm
from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.config import InputError
from clusters.stopwatch import Stopwatch
from clusters.storage import Folder
from clusters.termination import Stopped
from data.dataset import open_dataset
from finetune.config import FinetuneConfig
from finetune.full_config import LossConfig
from finetune.losses import LabelLoss, supervised_contrastive
from finetune.run import work
from pretrain import loop
from pretrain.config import PretrainConfig
from pretrain.encoder import SIMCLR_RESNETS, create_encoder
from pretrain.health import measure
from pretrain.losses import nt_xent
from pretrain.meter import Meter
from pretrain.methods.method import Output
from pretrain.monitor import probe
from pretrain.run import train
from pretrain.training import Training
from tests.elastic_tasks import recorded as recorded
from tests.faulty_storage import Script, UnreliableFolder, fails
from tests.small_steps import a_step_that_one_rank_spoils as a_step_that_one_rank_spoils
from tests.small_steps import gradients, share
from tests.small_steps import how_gradients_are_averaged as how_gradients_are_averaged
from tests.small_steps import training_step as training_step
from tests.small_steps import two_steps as two_steps


def nt_xent_through_a_network(seed: int) -> dict[str, Any]:
    """Loss over the global batch and the gradient that data-parallel training applies."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))
    first, second = torch.randn(2, 8, 12)
    parallel = distributed.data_parallel(network)
    projected = parallel(torch.cat([share(first), share(second)]))
    # Samples 1 and 7 are one; a picture of case 2 is pixel for pixel one of case 6.
    samples = share(torch.tensor([1, 2, 3, 4, 5, 6, 1, 8]))
    pictures = torch.cat([share(torch.arange(8)), share(torch.tensor([10, 11, 12, 5, 14, 15, 16, 17]))])
    loss = nt_xent(*projected.chunk(2), temperature=0.2, groups=torch.stack([samples.repeat(2), pictures], dim=1))
    loss.backward()
    mean = distributed.sum_over_ranks(loss) / distributed.world_size()
    return {"loss": float(mean), **gradients(parallel)}


def batch_norm_network(seed: int) -> dict[str, Any]:
    """Output, gradients and running statistics of a network with batch norms, in 2-D and 1-D."""
    torch.manual_seed(seed)
    network: nn.Module = nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 36, 7),
        nn.BatchNorm1d(7),
    )
    images = torch.randn(12, 3, 8, 8) * 3 + 100 * torch.randn(3, 1, 1)
    network = global_batch_norm(network)
    parallel = distributed.data_parallel(network)
    output = parallel(share(images))
    (output.sin() ** 2).mean().backward()
    network.eval()
    everything = torch.cat(distributed.gather_objects(output.detach()))
    return {
        "output": everything,
        "eval": network(images).detach(),
        **gradients(parallel),
        **network.state_dict(),
    }


def gather(value: float) -> list[Any]:
    row = torch.full((2, 3), value + distributed.rank(), requires_grad=True)
    everything = distributed.gather_with_gradient(row)
    weights = torch.arange(everything.numel(), dtype=torch.float32).view_as(everything)
    (everything * weights).sum().backward()
    return [everything.detach(), row.grad]


def time_of_averaging(num_steps: int) -> dict[str, float]:
    """Seconds by name of backward passes whose only collective is the gradient's, in buckets of a megabyte and less."""
    stopwatch = Stopwatch(torch.device("cpu"))
    parallel = distributed.data_parallel(nn.Sequential(nn.Linear(600, 600), nn.Linear(600, 600)))
    distributed.time_collectives(stopwatch)
    for _ in range(num_steps):
        loss = parallel(torch.ones(2, 600)).sum()
        with distributed.averaging_gradients():
            loss.backward()
    distributed.time_collectives(None)
    return stopwatch.read()


def pretrain_stage(values: dict[str, Any]) -> str:
    """Run a recipe as a worker would; returns the encoder's fingerprint."""
    return train(PretrainConfig.model_validate(values))["encoder"]


def narrow_simclr_resnet(values: dict[str, Any]) -> str:
    """`pretrain_stage` with SimCLR's own ResNet-50, an eighth as wide, as the encoder `narrow`."""
    SIMCLR_RESNETS["narrow"] = ("resnetv2_50", 0.125)  # type: ignore[assignment]
    try:
        return pretrain_stage(values)
    finally:
        del SIMCLR_RESNETS["narrow"]


def stopped_stage(values: dict[str, Any]) -> str:
    """Why a recipe stops, where rank 0 never finds that a checkpoint is due and others always do."""
    values["checkpoint"] = {"every_s": 1e-9 if distributed.rank() else 1e9}
    try:
        return train(PretrainConfig.model_validate(values))["encoder"]
    except InputError as error:
        return str(error)


def overtaken_stage(values: dict[str, Any]) -> tuple[str, str]:
    """How a recipe stops on this rank, at whose first step something happens that rank 0 alone sees as it saves.

    `values["happens"]`: another start of the run takes over (`superseded`), or rank 0's weights break (`broken`).
    """
    happens, step_of, taken = values.pop("happens"), Training.step, 0

    def step(training: Training, *arguments: Any) -> Output:
        nonlocal taken
        output, taken = step_of(training, *arguments), taken + 1
        if distributed.is_main() and taken == values["stages"][0]["steps"] - 1:
            if happens == "superseded":
                Folder(values["run"] + "/1-simclr").write_json("attempt.json", {"attempt": 99})
            else:
                next(training.module.projection.parameters()).data.fill_(torch.nan)
        return output

    Training.step = step  # type: ignore[method-assign, assignment]
    try:
        train(PretrainConfig.model_validate(values))
        return "", "went on to its end"
    except InputError as error:
        return type(error).__name__, str(error)
    finally:
        Training.step = step_of  # type: ignore[method-assign]


def spoilt_stage(values: dict[str, Any]) -> str:
    """`pretrain_stage`, where at the third step one pixel of all that rank 1 sees is no number."""
    step_of = Training.step

    def step(training: Training, number: int, views: torch.Tensor, *arguments: Any) -> Output:
        if (number, distributed.rank()) == (2, 1):
            views = views.float()
            views[0, 0, 0, 0, 0] = torch.nan
        return step_of(training, number, views, *arguments)

    Training.step = step  # type: ignore[method-assign, assignment]
    try:
        return pretrain_stage(values)
    finally:
        Training.step = step_of  # type: ignore[method-assign]


def slowed_stage(values: dict[str, Any]) -> str:
    """Run a recipe in which rank 1 is slow in each step: in its loader (`data_wait`), or in computing (`compute`).

    By so much that a busy machine, which makes all steps longer, does not hide it.
    """
    cause = values.pop("slow")
    batches_of, step_of = loop.fed_batches, Training.step

    def slow_batches(*arguments: Any) -> Iterator[Any]:
        step_s = 0.0
        for batch in batches_of(*arguments):
            time.sleep(max(0.3, 2 * step_s))
            started = time.monotonic()
            yield batch
            step_s = time.monotonic() - started

    def slow_step(*arguments: Any) -> Output:
        started = time.monotonic()
        output = step_of(*arguments)
        time.sleep(max(0.3, 2 * (time.monotonic() - started)))
        return output

    try:
        if distributed.rank() == 1 and cause == "data_wait":
            loop.fed_batches = slow_batches
        if distributed.rank() == 1 and cause == "compute":
            Training.step = slow_step  # type: ignore[method-assign, assignment]
        return train(PretrainConfig.model_validate(values))["encoder"]
    finally:
        loop.fed_batches, Training.step = batches_of, step_of  # type: ignore[method-assign]


def told_to_leave(values: dict[str, Any]) -> int:
    """The exit code of a recipe on this rank, of which rank 1 alone is told to leave, from its second step on."""
    step_of = Training.step

    def step(training: Training, number: int, *batch: Any) -> Output:
        if (distributed.rank(), number) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return step_of(training, number, *batch)

    Training.step = step  # type: ignore[method-assign, assignment]
    try:
        train(PretrainConfig.model_validate(values))
        return 0
    except Stopped as stopped:
        return int(str(stopped.code))
    finally:
        Training.step = step_of  # type: ignore[method-assign]
        termination._notice = None


def finetune_work(values: dict[str, Any]) -> None:
    """Run a fine-tuning as a worker would."""
    work(FinetuneConfig.model_validate(values))


def label_losses(seed: int) -> dict[str, Any]:
    """Losses of labels over the global batch, unknown ones unevenly spread, and the gradient by this rank's rows."""
    torch.manual_seed(seed)
    logits, weight = torch.randn(8, 3), torch.rand(8)
    labels = (torch.randn(8, 3) > 0).float()
    labels[:3] = labels[5, 1] = torch.nan
    classes = torch.eye(3)[torch.tensor([0, 1, 1, 2, 0, 2, 1, 0])]
    classes[6] = torch.nan
    m3ce = LossConfig(m3ce_weight=0.5, label_smoothing=0.1)
    losses, gradients = {}, {}
    for name, kind, truth in (("labels", "multilabel", labels), ("classes", "multiclass", classes)):
        rows = share(logits).clone().requires_grad_()
        loss = LabelLoss(m3ce, kind)(rows, share(truth), share(weight))
        losses[name], gradients[name] = loss, torch.autograd.grad(loss, rows)[0]
    rows = share(logits).clone().requires_grad_()
    losses["contrast"] = supervised_contrastive(rows, share(torch.tensor([0, 1, 1, 2, 0, 3, -1, 0])), 0.2)
    gradients["contrast"] = torch.autograd.grad(losses["contrast"], rows)[0]
    means = {n: float(distributed.sum_over_ranks(loss)) / distributed.world_size() for n, loss in losses.items()}
    return {"losses": means, "gradients": gradients}


def agree_on_a_checkpoint(location: str) -> tuple[int, float]:
    """What each rank restores from a folder whose newest checkpoint may be damaged; it says so into log.txt there."""
    tracking.say_into(Folder(location))
    try:
        restored = Checkpoints(Folder(location), CheckpointConfig()).restore()
    finally:
        tracking.say_into(None)
    assert restored is not None
    return restored.step, float(restored.state["weight"].max())


def restore_where_storage_fails(values: dict[str, Any]) -> tuple[str, Any]:
    """What each rank restores, or is told, where one rank's reads go wrong.

    `values["how"]`: one of its bytes is flipped (`flipped`), or an error comes (`error`), each time or, if `times` is
    given, so many times.
    """
    at, how = values["location"], values["how"]
    script, times = Script(), values.get("times", 1 << 30)
    folder: Folder = UnreliableFolder(at, script, flipped if how == "flipped" else bytes)
    checkpoints = Checkpoints(folder if distributed.rank() == values["rank"] else Folder(at), CheckpointConfig())
    if how == "error":
        script.at(lambda call: call <= times, fails(errno.EIO))
    waits, retries.RETRY_AFTER_S = retries.RETRY_AFTER_S, (0.0, 0.0, 0.0)
    try:
        restored = checkpoints.restore()
        assert restored is not None
        return "restored", (restored.step, float(restored.state["weight"].max()))
    except (InputError, OSError) as error:
        return type(error).__name__, str(error)
    finally:
        retries.RETRY_AFTER_S = waits


def flipped(content: bytes) -> bytes:
    return content if b"{" in content[:2] else bytes([*content[:-1], content[-1] ^ 4])


def save_past_an_obstacle(location: str) -> str:
    """What each rank is told where rank 0 finds a file in place of its second checkpoint's folder."""
    checkpoints = Checkpoints(Folder(location), CheckpointConfig())
    checkpoints.save(1, {"weight": torch.ones(2)})
    checkpoints.wait()
    if distributed.is_main():
        (Folder(location) / "checkpoints").write("step-000000002", b"")
    checkpoints.save(2, {"weight": torch.ones(2)})
    try:
        checkpoints.wait()
        return "saved"
    except InputError as error:
        return str(error)


def health_of(seed: int) -> dict[str, float]:
    """Health of one global batch of 12 samples, divided among the ranks."""
    drawn = torch.Generator().manual_seed(seed)
    encoded, projected = torch.randn(2, 12, 20, generator=drawn), torch.randn(2, 12, 6, generator=drawn)
    mine = [share(x.transpose(0, 1)).transpose(0, 1) for x in (encoded, projected)]
    return measure(Output(torch.tensor(1.0), *mine))


def metered(num_steps: int) -> tuple[dict[str, float], str]:
    """What a meter says on this rank, of healthy steps and of some of which rank 1's second one is broken."""
    meter, refusal = Meter(4, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)), ""
    taken = torch.tensor([1.0, 1.0])
    for _ in range(num_steps):
        meter.add(torch.tensor(float(distributed.rank())), taken)
    distributed.gather(torch.zeros(4))
    healthy = meter.flush("1-simclr", num_steps)
    for step in range(num_steps):
        meter.add(torch.tensor(float("nan") if (distributed.rank(), step) == (1, 1) else 1.0), taken)
    try:
        meter.flush("1-simclr", 2 * num_steps)
    except InputError as error:
        refusal = str(error)
    distributed.time_collectives(None)
    return healthy, refusal


def probed(values: dict[str, Any]) -> dict[str, float]:
    """What the probe says on this rank of an untrained encoder."""
    config = PretrainConfig.model_validate(values)
    torch.manual_seed(0)
    encoder = create_encoder(config.encoder)
    return probe(encoder, open_dataset(config.locations[0]), config, config.views)
