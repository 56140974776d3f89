"""Applying a record: in floats it equals torchvision's v2 functions, in 8 bits nearly so; nothing waits for a GPU."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from data.dataset import Dataset
from pretrain.batches import Batch, ViewBatches, finished_views
from pretrain.methods.method import one_image
from pretrain.methods.simclr import SimCLR
from pretrain.policies import PRESETS
from pretrain.views import COLUMNS, ORDERS, ViewConfig, apply, draw, normalise
from pretrain.views_uint8 import apply_uint8
from pretrain.warps import blur_taps

NEUTRAL = ViewConfig(size_px=48, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
IDENTITY = {"order": 0, "brightness": 1, "contrast": 1, "saturation": 1}
EXACT = 1e-3 / 255  # of pixels in 0..1
EVERYTHING = ViewConfig(
    size_px=48, quarter_turns=True, rotation_deg=180, flip_vertical=0.5, solarise=0.5, jitter_strength=1.25
)
POLICIES = {name: ViewConfig.model_validate({"policy": name, "size_px": 48}) for name in PRESETS}


def record(**values: float) -> torch.Tensor:
    named = dict.fromkeys(COLUMNS, 0.0) | IDENTITY | values
    return torch.tensor([[float(named[name]) for name in COLUMNS]])


def records_of(config: ViewConfig, count: int) -> torch.Tensor:
    size = (config.size_px, config.size_px)
    return torch.stack([torch.from_numpy(draw(config, size, 0, 0, position, 0)) for position in range(count)])


def random_crops(count: int, size: int = 48) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def smooth_crops(count: int, size: int = 64) -> torch.Tensor:
    small = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return (torch.nn.functional.interpolate(small, size=size, mode="bicubic").clamp(0, 1) * 255).byte()


def same(got: torch.Tensor, expected: torch.Tensor) -> bool:
    apart = float((got - expected).abs().max())
    print(f"{255 * apart:.2e} of 255 apart")
    return got.shape == expected.shape and apart <= EXACT


def in_8_bits(config: ViewConfig, crops: torch.Tensor, records: torch.Tensor) -> torch.Tensor:
    finished = [
        torch.from_numpy(apply_uint8(config, crop.permute(1, 2, 0).numpy().copy(), record.numpy()))
        for crop, record in zip(crops, records)
    ]
    return torch.stack(finished).permute(0, 3, 1, 2)


def restated(config: ViewConfig, crop_3HW: torch.Tensor, record_K: torch.Tensor) -> torch.Tensor:
    """One view by torchvision's functions, one after another."""
    told = dict(zip(COLUMNS, record_K.tolist()))
    x = tv.to_dtype(crop_3HW, torch.float32, scale=True)
    x = tv.hflip(x) if told["flip_horizontal"] else x
    x = tv.vflip(x) if told["flip_vertical"] else x
    x = tv.rotate(x, 90 * told["quarter_turns"])
    x = tv.rotate(x, told["rotation_deg"], InterpolationMode.BILINEAR)
    if told["jitter"]:
        steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
        factors = [told[name] for name in ("brightness", "contrast", "saturation", "hue")]
        for turn in ORDERS[int(told["order"])]:
            x = steps[turn](x, factors[turn])
    x = tv.rgb_to_grayscale(x, num_output_channels=3) if told["grey"] else x
    if told["blur"]:
        x = tv.gaussian_blur(x, [blur_taps(config.size_px)] * 2, [told["blur"]] * 2)
    x = tv.solarize(x, 0.5) if told["solarise"] else x
    return x


@pytest.mark.parametrize("config", [*POLICIES.values(), EVERYTHING], ids=[*POLICIES, "everything"])
def test_whole_views_equal_torchvision_s(config: ViewConfig) -> None:
    """On noise, the hardest: within 1e-3 of a level of 255 (before the division by std, which stretches it)."""
    plain = config.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    crops, records = random_crops(40), records_of(config, 40)
    expected = torch.stack([restated(config, crop, record) for crop, record in zip(crops, records)])
    assert same(apply(plain, crops, records), expected)
    normalised = tv.normalize(expected, list(config.mean), list(config.std))
    assert torch.allclose(apply(config, crops, records), normalised, rtol=0, atol=EXACT / min(config.std))


def test_orientation_and_grey_equal_torchvision() -> None:
    crops = random_crops(1)
    assert torch.equal(apply(NEUTRAL, crops, record(flip_horizontal=1)), tv.hflip(crops) / 255)
    assert torch.equal(apply(NEUTRAL, crops, record(flip_vertical=1)), tv.vflip(crops) / 255)
    for turns in (1, 2, 3):
        turned = tv.rotate(crops, 90.0 * turns)
        assert torch.equal(apply(NEUTRAL, crops, record(quarter_turns=turns)), turned / 255)
        assert torch.equal(in_8_bits(NEUTRAL, crops, record(quarter_turns=turns)), turned)
    expected = tv.rgb_to_grayscale(crops / 255, num_output_channels=3)
    assert same(apply(NEUTRAL, crops, record(grey=1)), expected)


@pytest.mark.parametrize("degrees", [-45.0, -3.3, 0.01, 30.0, 179.0])
def test_rotation_equals_torchvision(degrees: float) -> None:
    for crops in (random_crops(2, 48), random_crops(2, 33)):
        expected = tv.rotate(
            crops / 255,
            record(rotation_deg=degrees)[0, COLUMNS.index("rotation_deg")].item(),
            InterpolationMode.BILINEAR,
        )
        got = apply(NEUTRAL, crops, record(rotation_deg=degrees).expand(2, -1))
        assert same(got, expected)
        rounded = in_8_bits(NEUTRAL, crops, record(rotation_deg=degrees).expand(2, -1))
        assert (rounded - 255 * expected).abs().max() < 0.51


@pytest.mark.parametrize("order", range(len(ORDERS)))
def test_colour_jitter_equals_torchvision_in_every_order(order: int) -> None:
    values = {"brightness": 1.4, "contrast": 0.5, "saturation": 1.6, "hue": -0.13}
    told = record(jitter=1, order=order, **values)
    crops = random_crops(1)
    assert same(apply(NEUTRAL, crops, told), restated(NEUTRAL, crops[0], told[0])[None])


def test_hue_at_its_ties_equals_torchvision() -> None:
    """Grey, black, white and pixels two of whose colours are the largest: where the hue jumps from case to case."""
    levels = torch.tensor([0, 1, 127, 128, 254, 255], dtype=torch.uint8)
    crops = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 12, 18).repeat(1, 1, 4, 1)[:, :, :, :16]
    for hue in (-0.2, -1 / 6, 1e-4, 1 / 6, 0.2):
        told = record(jitter=1, hue=hue)
        assert same(apply(NEUTRAL, crops, told), restated(NEUTRAL, crops[0], told[0])[None])


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_equals_torchvision(sigma: float) -> None:
    crops = random_crops(1)
    expected = tv.gaussian_blur(crops / 255, kernel_size=[5, 5], sigma=[sigma, sigma])
    assert same(apply(NEUTRAL, crops, record(blur=sigma)), expected)


def test_solarisation_equals_torchvision() -> None:
    crops = random_crops(1)
    assert same(apply(NEUTRAL, crops, record(solarise=1)), tv.solarize(crops / 255, 0.5))
    assert torch.equal(in_8_bits(NEUTRAL, crops, record(solarise=1)), tv.solarize(crops, 128))


TOLERANCES = {  # levels of 255: mean, and what 99 % of the pixels are within
    "natural": (0.6, 4.5),
    "dermatology": (0.6, 4.5),
    "chest_xray": (0.4, 1.3),
    "pathology": (0.6, 4.0),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_the_8_bit_path_gives_the_views_of_the_float_path(policy: str) -> None:
    """Smooth images; most of the difference is OpenCV's 8-bit hue, the rest a rounding after each step."""
    config = POLICIES[policy].model_copy(update={"size_px": 64, "mean": NEUTRAL.mean, "std": NEUTRAL.std})
    crops, records = smooth_crops(64), records_of(config, 64)
    difference = (in_8_bits(config, crops, records) - apply(config, crops, records) * 255).abs()
    mean, ninety_nine = float(difference.mean()), float(difference.flatten().quantile(0.99))
    print(f"{policy}: mean {mean:.2f}, 99 % {ninety_nine:.2f}, max {difference.max():.1f}")
    assert mean < TOLERANCES[policy][0]
    assert ninety_nine < TOLERANCES[policy][1]


def test_each_view_of_a_batch_keeps_its_own_numbers() -> None:
    crops, records = random_crops(12), records_of(EVERYTHING, 12)
    before = crops.clone()
    together = apply(EVERYTHING, crops, records)
    alone = torch.cat([apply(EVERYTHING, crops[i : i + 1], records[i : i + 1]) for i in range(12)])
    assert torch.allclose(together, alone, rtol=0, atol=EXACT / 0.2)
    assert torch.equal(crops, before)


def test_one_channel_is_the_grey_of_three() -> None:
    crops = random_crops(4)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    x = crops / 255
    grey = (0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:] - 0.4) / 0.2
    assert torch.allclose(normalise(x, mean, std, channels=1), grey, atol=1e-5)
    flat = x[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(normalise(flat, mean, std, channels=1), (x[:, :1] - 0.4) / 0.2, atol=1e-5)
    assert normalise(x, mean, std).shape == x.shape

    config = ViewConfig(size_px=48, mean=mean, std=std)
    records = records_of(config, 4)
    three = apply(config.model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3}), crops, records)
    assert torch.allclose(apply(config, crops, records, channels=1), normalise(three, mean, std, 1), atol=1e-6)


def a_batch(dataset: Dataset, augment: bool) -> Batch:
    samples = SimCLR.samples(dataset, dataset.rows(["train"]))
    return ViewBatches(dataset, samples, one_image, EVERYTHING, 0, 0, 16, 0, 1, augment)(0)


def test_a_batch_for_a_grey_encoder(synthetic_dataset: Dataset) -> None:
    """Finished in the loader or on the device: one channel, the grey of what an encoder of colours gets."""
    for augmented in (True, False):
        batch = a_batch(synthetic_dataset, augmented)
        grey, colour = (finished_views(batch, EVERYTHING, torch.device("cpu"), augmented, n) for n in (1, 3))
        assert grey.shape == (2, 16, 1, 48, 48)
        pixels = colour * torch.tensor(EVERYTHING.std).view(3, 1, 1) + torch.tensor(EVERYTHING.mean).view(3, 1, 1)
        expected = normalise(pixels.flatten(0, 1), EVERYTHING.mean, EVERYTHING.std, 1).unflatten(0, (2, 16))
        assert torch.allclose(grey, expected, atol=1e-5)


class Watch(TorchDispatchMode):
    """Refuses what makes the host wait for an accelerator, or read host memory in the middle of its work."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        outcome = func(*args, **kwargs)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        made = [outcome] if isinstance(outcome, torch.Tensor) else []
        places = {
            value.device.type for value in given + made if value.ndim or func.overloadpacket == torch.ops.aten._to_copy
        }
        if len(places) > 1:
            assert func.overloadpacket == torch.ops.aten._to_copy and kwargs.get("non_blocking"), f"{func} waits"
            assert made[0].device.type == "cuda", f"{func} reads from the device"
        return outcome


def on_a_pretended_gpu(work: Any) -> torch.Tensor:
    """Run with tensors that have shapes and devices only: whatever depends on their values is an error."""
    with FakeTensorMode(allow_non_fake_inputs=True), Watch():
        return work(torch.device("cuda"))


def test_finishing_views_never_waits_for_the_device(
    synthetic_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    numpy = torch.Tensor.numpy

    def of_the_host(tensor: torch.Tensor) -> Any:
        with unset_fake_temporarily():
            return numpy(tensor)

    monkeypatch.setattr(torch.Tensor, "numpy", of_the_host)
    batch = a_batch(synthetic_dataset, augment=False)
    crops, records = batch.crops_VBCHW, batch.records_VBK.flatten(0, 1)
    for channels in (1, 3):

        def on_the_device(device: torch.device, channels: int = channels) -> torch.Tensor:
            there = crops.to(device, non_blocking=True).flatten(0, 1)
            return apply(EVERYTHING, there, records, channels)

        def in_the_loader(device: torch.device, channels: int = channels) -> torch.Tensor:
            return finished_views(batch, EVERYTHING, device, True, channels).flatten(0, 1)

        for work in (on_the_device, in_the_loader):
            views = on_a_pretended_gpu(work)
            assert (views.device.type, views.shape) == ("cuda", (32, channels, 48, 48))

    waiting = [
        lambda device: crops.to(device),
        lambda device: torch.nonzero(crops.to(device, non_blocking=True)),
        lambda device: crops.to(device, non_blocking=True).float().new_tensor([0.5, 0.5]),
        lambda device: crops.to(device, non_blocking=True).float().mean().item(),
        lambda device: crops.to(device, non_blocking=True).cpu(),
        lambda device: crops.to(device, non_blocking=True)[torch.arange(2)],
    ]
    for work in waiting:
        with pytest.raises((AssertionError, RuntimeError)):
            on_a_pretended_gpu(work)


@pytest.mark.gpu
def test_a_gpu_gives_the_views_of_the_cpu_without_waiting() -> None:
    crops, records = random_crops(64), records_of(EVERYTHING, 64)
    on_gpu = crops.cuda()
    apply(EVERYTHING, on_gpu, records.pin_memory())
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = apply(EVERYTHING, on_gpu, records.pin_memory())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(views.cpu(), apply(EVERYTHING, crops, records), rtol=0, atol=10 * EXACT / 0.2)
