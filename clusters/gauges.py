"""Training metrics at Ray's own endpoint for Prometheus, beside what Ray tells there of its nodes and tasks."""

import math
import os
from collections.abc import Mapping
from typing import Any

COLLECTING = "RAY_enable_metrics_collection"
SHOWN = {
    "step": "Steps that are done",
    "loss": "Loss, the mean over the steps since the last record",
    "samples_per_s": "Samples (for MICLe: cases) a second, over all workers",
}


def gauges_are_read() -> bool:
    """Whether this is a worker of a Ray that collects metrics; one that is started for a single run does not."""
    return "MANYVIEW_RAY_WORKER" in os.environ and os.environ.get(COLLECTING, "1") != "0"


class Gauges:
    """`ray_manyview_step`, `_loss` and `_samples_per_s` of this run, by part and stage."""

    def __init__(self, run: str, part: str) -> None:
        from ray.util.metrics import Gauge

        self._tags = {"run": run, "part": part}
        names = ("run", "part", "stage")
        self._gauges: dict[str, Any] = {
            name: Gauge(f"manyview_{name}", description=text, tag_keys=names) for name, text in SHOWN.items()
        }

    def show(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """From now on these are the values at a step of a stage."""
        for name, gauge in self._gauges.items():
            value = float(step) if name == "step" else metrics.get(name, math.nan)
            if math.isfinite(value):
                gauge.set(value, tags={**self._tags, "stage": stage})
