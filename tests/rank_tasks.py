"""What the tests run on one process and on two gloo processes alike."""

from typing import Any

import torch
from torch import nn

from clusters import distributed
from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.config import InputError
from clusters.storage import Folder
from data.dataset import open_dataset
from finetune.config import FinetuneConfig
from finetune.run import work
from pretrain.config import PretrainConfig
from pretrain.encoder import create_encoder
from pretrain.health import measure
from pretrain.losses import nt_xent
from pretrain.meter import Meter
from pretrain.methods.method import Output
from pretrain.monitor import probe
from pretrain.run import train


def share(rows: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a global batch."""
    return rows.chunk(distributed.world_size())[distributed.rank()]


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n.removeprefix("module."): p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


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
    network = distributed.global_batch_norm(network)
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


def pretrain_stage(values: dict[str, Any]) -> str:
    """Run a recipe as a worker would; returns the encoder's fingerprint."""
    return train(PretrainConfig.model_validate(values))["encoder"]


def finetune_work(values: dict[str, Any]) -> None:
    """Run a fine-tuning as a worker would."""
    work(FinetuneConfig.model_validate(values))


def agree_on_a_checkpoint(location: str) -> tuple[int, float]:
    """What each rank restores from a folder whose newest checkpoint may be damaged."""
    restored = Checkpoints(Folder(location), CheckpointConfig()).restore()
    assert restored is not None
    return restored.step, float(restored.state["weight"])


def health_of(seed: int) -> dict[str, float]:
    """Health of one global batch of 12 samples, divided among the ranks."""
    drawn = torch.Generator().manual_seed(seed)
    encoded, projected = torch.randn(2, 12, 20, generator=drawn), torch.randn(2, 12, 6, generator=drawn)
    mine = [share(x.transpose(0, 1)).transpose(0, 1) for x in (encoded, projected)]
    return measure(Output(torch.tensor(1.0), *mine))


def metered(num_steps: int) -> tuple[dict[str, float], str]:
    """What a meter says on this rank, of healthy steps and of some of which rank 1's second one is broken."""
    meter, refusal = Meter(4, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)), ""
    for _ in range(num_steps):
        meter.add(torch.tensor(float(distributed.rank())))
    distributed.gather(torch.zeros(4))
    healthy = meter.flush("1-simclr", num_steps)
    for step in range(num_steps):
        meter.add(torch.tensor(float("nan") if (distributed.rank(), step) == (1, 1) else 1.0))
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
