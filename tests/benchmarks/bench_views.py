"""Finishing views in floats, batched with a record each, against torchvision's v2 functions on one view at a time."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torchvision.transforms.v2 import functional as tv

from pretrain.views import COLUMNS, ORDERS, ViewConfig, apply, draw
from pretrain.warps import blur_taps

NUM_VIEWS, ROUNDS = 64, 5


def run() -> list[dict[str, Any]]:
    """Milliseconds a view of 224 px (CPU time of this thread), SimCLR's views, the crop not included; best round."""
    torch.set_num_threads(1)
    config = ViewConfig()
    crops = torch.randint(0, 256, (NUM_VIEWS, 3, 224, 224), dtype=torch.uint8)
    records = torch.stack([torch.from_numpy(draw(config, (256, 256), 0, 0, p, 0)) for p in range(NUM_VIEWS)])
    peer = min(_ms_a_view(lambda: _peer(config, crops, records)) for _ in range(ROUNDS))
    ours = min(_ms_a_view(lambda: apply(config, crops, records)) for _ in range(ROUNDS))
    return [
        {
            "name": "finishing views in floats on one core; peer torchvision v2, one view at a time",
            "ours": round(ours, 2),
            "peer": round(peer, 2),
            "unit": "ms/view",
            "ratio": round(peer / ours, 2),
            "floor": 1.0,
            "goal": 3.0,
        }
    ]


def _ms_a_view(work: Callable[[], Any]) -> float:
    started = time.thread_time()
    work()
    return 1000 * (time.thread_time() - started) / NUM_VIEWS


def _peer(config: ViewConfig, crops: torch.Tensor, records: torch.Tensor) -> torch.Tensor:
    steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    finished = []
    for crop, record in zip(crops, records):
        told = dict(zip(COLUMNS, record.tolist()))
        x = tv.to_dtype(crop, torch.float32, scale=True)
        x = tv.hflip(x) if told["flip_horizontal"] else x
        if told["jitter"]:
            factors = [told[name] for name in ("brightness", "contrast", "saturation", "hue")]
            for turn in ORDERS[int(told["order"])]:
                x = steps[turn](x, factors[turn])
        x = tv.rgb_to_grayscale(x, num_output_channels=3) if told["grey"] else x
        if told["blur"]:
            x = tv.gaussian_blur(x, [blur_taps(config.size_px)] * 2, [told["blur"]] * 2)
        finished.append(tv.normalize(x, list(config.mean), list(config.std)))
    return torch.stack(finished)
