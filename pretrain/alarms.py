"""Alarms with a reason: what goes wrong in a stage, seen in its metrics and said in words.

An alarm warns and changes nothing; a loss or gradient that is not finite stops the run instead (`watch`). The rules
read the same records that metrics.jsonl keeps, so that a resumed run goes on judging where it was.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

MIN_STD = 0.1
"""Of the projections, 1 being spread evenly: a batch norm before the loss keeps it near 1, and at 0.1 the similarities
of any two samples differ by 0.01, which even a temperature of 0.1 turns into a tenth of a nat."""
MIN_SHARE, MIN_DIRECTIONS = 0.05, 2.5
"""RankMe of the projections, as a share of what the batch allows and in directions. ResNets have about a half of it
from their first step on; a projection that lies in a plane has 2."""
FALLEN_TO = 0.5
"""RankMe may drift while a stage learns; half of its largest value so far is a loss of directions."""
LEARNED = 0.75
"""Of the collapsed encoder's loss: a run that came below has learned to tell images apart."""
MAX_DATA_WAIT = 0.1
"""Share of the time: where loading keeps up, what is left is copying and the last of the augmentation."""
SMOOTHING = 0.3
LOOKS = 3
"""Looks in a row that must agree: single batches are noisy."""
WAIT_LOOKS, WAIT_STEPS = 5, 50
REPEAT_AFTER = 100
"""Looks until a condition that still holds is said again."""
GRACE = 0.1
"""Share of a stage, at least its warmup, before the encoder is judged: an untrained one without batch norm (a vision
transformer) gives nearly the same features to all images."""


@dataclass(frozen=True)
class Alarm:
    """What is wrong, in one word and in one sentence."""

    kind: str
    reason: str


class Alarms:
    """Judges a stage by its metrics, look by look. Each kind is said once, and again only after many looks.

    `possible_directions` is the largest RankMe that the projections of a batch can have, where known.
    """

    def __init__(self, total_steps: int, more_data: str = "raise loader.num_processes") -> None:
        self.possible_directions: int | None = None
        self._total_steps, self._more_data = total_steps, more_data
        self._looks = 0
        self._in_a_row: dict[str, int] = {}
        self._said_at: dict[str, int] = {}
        self._loss: float | None = None
        self._first_loss = self._least_loss = float("nan")
        self._most_directions = 0.0
        self._waits: deque[float] = deque(maxlen=WAIT_LOOKS)
        self._first_step = 0

    def see(self, step: int, metrics: Mapping[str, float | None]) -> list[Alarm]:
        """Look at the metrics of a step; returns what is to be said now."""
        known = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
        if "loss" not in known:
            return []
        self._looks += 1
        found = {
            "collapse": self._collapse(known),
            "dimensional collapse": self._dimensional_collapse(step, known),
            "divergence": self._divergence(known),
            "input-bound": self._input_bound(step, known),
        }
        return [Alarm(kind, reason) for kind, reason in found.items() if self._is_due(kind, reason)]

    def _is_due(self, kind: str, reason: str) -> bool:
        self._in_a_row[kind] = self._in_a_row.get(kind, 0) + 1 if reason else 0
        if self._in_a_row[kind] < LOOKS:
            return False
        if kind in self._said_at and self._looks - self._said_at[kind] < REPEAT_AFTER:
            return False
        self._said_at[kind] = self._looks
        return True

    def _collapse(self, known: Mapping[str, float]) -> str:
        """All projections point the same way."""
        std = known.get("health/std_projection")
        if std is None or std >= MIN_STD:
            return ""
        shows = f", of a collapsed encoder {known['loss_collapsed']:.3f}" if "loss_collapsed" in known else ""
        return (
            f"the projections of all images are nearly the same (std {std:.3f}; spread evenly it is 1), so nothing is "
            f"learned (loss {known['loss']:.3f}{shows}); lower optim.lr, lengthen optim.warmup or weaken the views"
        )

    def _dimensional_collapse(self, step: int, known: Mapping[str, float]) -> str:
        """Projections or features that differ, but in few directions."""
        directions = known.get("health/rankme_projection")
        if directions is None or known.get("health/std_projection", 1.0) < MIN_STD:
            return ""
        self._most_directions = max(self._most_directions, directions)
        mend = "lower optim.lr or weaken the views"
        possible = self.possible_directions
        if directions < max(MIN_DIRECTIONS, MIN_SHARE * (possible or 0)):
            of = f" of {possible} that this batch allows" if possible else ""
            return f"the projections differ in few directions (RankMe {directions:.1f}{of}); {mend}"
        if directions < FALLEN_TO * self._most_directions:
            return f"the projections lose directions (RankMe {directions:.1f}, was {self._most_directions:.1f}); {mend}"
        encoder = known.get("health/rankme_encoder")
        if encoder is not None and encoder < MIN_DIRECTIONS and step > GRACE * self._total_steps:
            return f"the encoder's features differ in few directions (RankMe {encoder:.1f}); {mend}"
        return ""

    def _divergence(self, known: Mapping[str, float]) -> str:
        """A loss that explodes, or comes back to where nothing is told apart."""
        loss, collapsed = known["loss"], known.get("loss_collapsed")
        if self._loss is None:
            self._loss = self._first_loss = self._least_loss = loss
        self._loss += SMOOTHING * (loss - self._loss)
        self._least_loss = min(self._least_loss, self._loss)
        mend = "lower this stage's optim.lr or lengthen its warmup, and set on_change=redo"
        # A fresh head may well begin above the collapsed value: it is sure of the wrong pairs.
        top = max(self._first_loss, collapsed if collapsed is not None else self._first_loss)
        if self._loss > top + max(1.0, abs(top)):
            return f"the loss has risen to {self._loss:.3f} (it began at {self._first_loss:.3f}); {mend}"
        if collapsed is not None and self._least_loss < LEARNED * collapsed and self._loss > collapsed:
            return (
                f"the loss was down to {self._least_loss:.3f} and is back at {self._loss:.3f}, above the "
                f"{collapsed:.3f} of an encoder that tells nothing apart; {mend}"
            )
        return ""

    def _input_bound(self, step: int, known: Mapping[str, float]) -> str:
        """A device that waits for its data. The first look is left out: loaders and kernels start then."""
        share = known.get("time/data_wait")
        if share is None:
            return ""
        if self._looks == 1:
            self._first_step = step
            return ""
        self._waits.append(share)
        mean = sum(self._waits) / len(self._waits)
        enough = len(self._waits) == WAIT_LOOKS and step - self._first_step >= WAIT_STEPS
        if not enough or mean <= MAX_DATA_WAIT:
            return ""
        speed = f" ({known['samples_per_s']:.3g} samples/s)" if "samples_per_s" in known else ""
        return f"{100 * mean:.0f} % of the time goes into waiting for data{speed}; {self._more_data}"
