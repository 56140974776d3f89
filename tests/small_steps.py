"""Small trainings and their steps, for one process and, as tasks, for several ranks."""

from typing import Any

import torch
from torch import nn

from clusters import distributed
from pretrain.config import PretrainConfig
from pretrain.methods.simclr import SimCLR
from pretrain.training import Training, build_module


def share(rows: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a global batch."""
    return rows.chunk(distributed.world_size())[distributed.rank()]


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n.removeprefix("module."): p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def small_training(method: str, seed: int = 0, **stage: Any) -> Training:
    """A method on a small ResNet, at its first of four steps; they are short, since rounding grows with each."""
    optim = {"name": "sgd", "lr": 1e-3, "lr_scaling": "none", "warmup": 0}
    heads = {"projection_hidden": 16, "projection_dim": 8}
    values = {
        "data": "/none",
        "run": "/none",
        "seed": seed,
        "precision": "fp32",
        "encoder": {"name": "test_resnet"},
        "stages": [{"method": method, "steps": 4, "batch_size": 8, "optim": optim, **heads, **stage}],
    }
    config = PretrainConfig.model_validate(values)
    module, _ = build_module(config, 0, None)
    return Training(config, 0, module, total_steps=4)


def distinct_views(count: int, seed: int) -> torch.Tensor:
    """Two views each of images that differ much, or else batch norms would make their rounding large."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randn(count, 3, 4, 4, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return 2 * blocks + torch.randn(2, count, 3, 32, 32, generator=generator)


def small_step(training: Training, step: int) -> torch.Tensor:
    """One step on this rank's share of a batch in which one sample stands twice; the loss over ranks."""
    views = distinct_views(8, step)
    samples = share(torch.tensor([1, 2, 3, 4, 5, 6, 1, 8]))
    output = training.step(step, torch.stack([share(view) for view in views]), samples.expand(2, -1)[:, :, None])
    return distributed.sum_over_ranks(output.loss) / distributed.world_size()


def two_steps(method: str) -> dict[str, Any]:
    """The losses of two steps, the gradient of the second, and all that they leave behind."""
    training = small_training(method)
    losses = torch.stack([small_step(training, step) for step in range(2)])
    gradient = {f"gradient of {name}": values for name, values in gradients(training.module).items()}
    return {"losses": losses, **gradient, **training.module.state_dict()}


class OneLayer(nn.Module):
    """The smallest network with convolution and batch norm."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.convolution(images)).relu().mean((2, 3))


def tiny_network(kind: str) -> nn.Module:
    """A small one of timm's, `plain` and `fused` with batch norm, activation inside of it or not, a `vit`; or ours."""
    from timm.layers import BatchNormAct2d
    from timm.models.resnet import BasicBlock, ResNet
    from timm.models.resnetv2 import ResNetV2
    from timm.models.vision_transformer import VisionTransformer

    if kind == "plain":
        return ResNet(BasicBlock, [1, 1, 1, 1], channels=(8, 8, 16, 16), num_classes=0)  # type: ignore[arg-type]
    if kind == "fused":
        return ResNetV2([1, 1], (16, 32), num_classes=0, stem_chs=8, preact=False, norm_layer=BatchNormAct2d)
    if kind == "one_layer":
        return OneLayer()
    return VisionTransformer(32, 16, num_classes=0, embed_dim=16, depth=2, num_heads=2)


def tiny_training(values: dict[str, Any]) -> Training:
    """A training of `network` at `seed`, with these stage and compute settings."""
    stage = {"method": "simclr", "steps": 4, "batch_size": 8, "temperature": 0.5, "projection_hidden": 16}
    optim = {"name": "sgd", "lr": 0.1, "lr_scaling": "none", "warmup": 0}
    config = PretrainConfig.model_validate(
        {
            "data": "data",
            "run": "run",
            "precision": values.get("precision", "fp32"),
            "compute": values.get("compute", {}),
            "stages": [{**stage, "optim": optim, **values.get("stage", {})}],
        }
    )
    torch.manual_seed(values.get("seed", 0))
    network = tiny_network(values["network"])
    return Training(config, 0, SimCLR(config.stages[0], network, int(network.num_features)), 4)  # type: ignore[arg-type]


def views_of(step: int) -> torch.Tensor:
    """A global batch of views, (2, 8, 3, 32, 32), far from standardised, so that batch statistics matter."""
    drawn = torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(step))
    return drawn * torch.arange(1, 9)[None, :, None, None, None] + 1


def take(training: Training, step: int, views: torch.Tensor | None = None) -> torch.Tensor:
    """This rank's share of a step; returns the loss of the global batch."""
    views = views_of(step) if views is None else views
    mine = torch.stack([share(view) for view in views])
    samples = share(torch.arange(8)).expand(2, -1)[:, :, None]
    loss = training.step(step, mine, samples).loss
    return distributed.sum_over_ranks(loss) / distributed.world_size()


def flat(state: Any, path: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a training's state by name, copied."""
    if isinstance(state, torch.Tensor):
        return {path: state.detach().clone()}
    inside = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {name: tensor for key, value in inside for name, tensor in flat(value, f"{path}/{key}").items()}


def training_step(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Loss and state after one step; momentum buffers are then the gradient."""
    training = tiny_training(values)
    loss = take(training, 0)
    return {"loss": loss, **flat(training.state())}


def a_step_that_one_rank_spoils(values: dict[str, Any]) -> dict[str, Any]:
    """The state before, after a step in which the last rank meets a NaN, and after the next step."""
    training, spoilt = tiny_training(values), views_of(0)
    spoilt[1, 7, 0, 3, 3] = torch.nan
    states, healths = [flat(training.state())], []
    for step, views in ((0, spoilt), (1, views_of(1))):
        take(training, step, views)
        states.append(flat(training.state()))
        healths.append(training.health.tolist())
    return {"states": states, "healths": healths}


def how_gradients_are_averaged(values: dict[str, Any]) -> dict[str, Any]:
    """What DistributedDataParallel was told, and where gradients lie."""
    training = tiny_training(values)
    parallel = training._parallel
    assert isinstance(parallel, nn.parallel.DistributedDataParallel)
    take(training, 0)
    take(training, 1)
    gradients = [p.grad for p in training.module.parameters()]
    storages = {g.untyped_storage().data_ptr() for g in gradients if g is not None}
    return {
        "static_graph": parallel.static_graph,
        "bucket_views": parallel.gradient_as_bucket_view,
        "gradients": len(gradients),
        "storages": len(storages),
    }
