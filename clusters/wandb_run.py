"""A run's curves and lineage in W&B, which must never stop a training: whatever it raises is said once."""

import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusters import privacy
from clusters.storage import Folder

SYSTEM = ("time/", "samples_per_s")
"""How metrics begin that tell of the machines rather than of what is learned."""

INIT_TIMEOUT_S, FINISH_TIMEOUT_S = 60.0, 120.0
"""By default W&B waits for a server that does not answer at the end without limit."""


@dataclass(frozen=True)
class Made:
    """Something on disk that a run has read or made. `kind`: dataset or encoder; `fingerprint`: its own."""

    kind: str
    fingerprint: str
    location: str


class WandbRun:
    """One run of W&B, on rank 0. Its id stands in the run folder, so that a resumed run continues its curves.

    Names are in three sections, `part/stage/…` (part: pretraining or fine-tuning) and `system/stage/…`. Raises nothing.
    """

    def __init__(self, run: Folder, part: str, strict: bool, init: dict[str, Any]) -> None:
        """`init`: what wandb.init is told of the run (project, name, group, mode, config)."""
        self._part, self._strict = part, strict
        self._run: Any = None
        self._failed = False
        self._guard(lambda: self._start(run, init))

    def define(self, stage: str, scores: Sequence[str]) -> None:
        """Curves over the stage's own steps; of `scores` the table of runs shows the largest value."""
        step = f"{self._part}/{stage}/step"

        def define() -> None:
            self._run.define_metric(step, hidden=True)
            for section in (self._part, "system"):
                self._run.define_metric(f"{section}/{stage}/*", step_metric=step)
            for score in scores:
                self._run.define_metric(f"{self._part}/{stage}/{score}", step_metric=step, summary="max")

        self._guard(define)

    def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """Numbers at a step of a stage."""
        named = {f"{'system' if k.startswith(SYSTEM) else self._part}/{stage}/{k}": v for k, v in metrics.items()}
        # Never `step=`: W&B drops what a resumed run replays below its last step.
        self._guard(lambda: self._run.log({f"{self._part}/{stage}/step": step, **named}))

    def alert(self, title: str, text: str) -> None:
        """Tell whoever watches."""
        self._guard(lambda: self._run.alert(title=title, text=text, level="WARN"))

    def made(self, what: Made, made_from: Sequence[Made]) -> None:
        """Lineage by fingerprint: references, of which W&B copies nothing. After the training, since it may wait."""

        def refer() -> None:
            for one in made_from:
                self._run.log_artifact(self._reference(one, []))
            self._run.log_artifact(self._reference(what, made_from))

        self._guard(refer)

    def finish(self) -> None:
        """Flush, and keep no logs of W&B's own where they would name people and places."""
        kept = self._run.settings.sync_dir if self._strict and self._run is not None else None
        self._guard(lambda: self._run.finish())
        privacy.remove_logs(kept)
        self._failed = True  # nothing comes after

    def _reference(self, what: Made, made_from: Sequence[Made]) -> Any:
        import wandb

        metadata: dict[str, Any] = {"fingerprint": what.fingerprint, "made_from": [_name(one) for one in made_from]}
        if not self._strict:
            metadata["location"] = what.location
        artifact = wandb.Artifact(_name(what), what.kind, metadata=metadata)
        for one in (what, *made_from):
            # A scheme that W&B has no reader for, so that it opens nothing
            artifact.add_reference(f"manyview://{one.kind}/{one.fingerprint}", name=_name(one), checksum=False)
        return artifact

    def _start(self, run: Folder, init: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # or it warns of references that it cannot open
        import wandb

        if not run.exists("wandb.json"):
            run.write_json("wandb.json", {"id": uuid.uuid4().hex[:12]})
        directory = run.path or Path.home() / ".cache" / "manyview"
        directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            **init,
            id=run.read_json("wandb.json")["id"],
            job_type=self._part,
            resume="allow",
            dir=str(directory),
            # Console output and source code may hold names of patients: they stay here.
            settings=wandb.Settings(
                silent=True,
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
                console="off",
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_meta=True,
                **(privacy.STRICT_SETTINGS if self._strict else {}),
            ),
        )

    def _guard(self, call: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:
            from clusters.tracking import say  # which knows this file

            told = " ".join(str(error).split())
            say(f"W&B is left out from here on ({type(error).__name__}: {told}); metrics.jsonl goes on")
            self._failed = True


def _name(what: Made) -> str:
    return f"{what.kind}-{what.fingerprint[:16]}"
