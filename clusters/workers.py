"""Where a run works, and among how many workers: a number, or a range within which it may change."""

from collections.abc import Callable
from typing import Any

from pydantic import Field, field_validator

from clusters.config import Config, InputError


class ClusterConfig(Config):
    """Where and on how many workers to run. May change between resumes."""

    num_workers: int | tuple[int, int] = Field(
        default=0,
        description="Ray Train workers; 0: in this process, without Ray; [1,4]: from 1 to 4, as many as there is room "
        "for, which may change while it runs",
    )
    address: str | None = Field(default=None, description="Ray cluster; none: RAY_ADDRESS if set, else a local one")
    use_gpu: bool | None = Field(default=None, description="one GPU a worker; none: if the cluster has any")
    cpus_per_worker: float = Field(default=1.0, gt=0, description="CPU cores reserved for each worker")
    max_failures: int = Field(
        default=3,
        ge=-1,
        description="restarts after a worker or its node dies, without a newer checkpoint between them; -1: without "
        "limit. Of a trial of a search: in all",
    )
    resize_every_s: float = Field(
        default=60.0, ge=0, description="seconds between looks whether there is room for more workers"
    )
    timeout_s: int = Field(default=600, gt=0, description="seconds after which a dead collective is given up")

    @field_validator("num_workers", mode="before")
    @classmethod
    def _one_number_or_two(cls, asked: Any) -> Any:
        if type(asked) is int and asked >= 0:
            return asked
        if isinstance(asked, (list, tuple)) and len(asked) == 2 and all(type(number) is int for number in asked):
            fewest, most = asked
            if 1 <= fewest <= most:
                return (fewest, most) if fewest < most else most
        raise ValueError("give a whole number, 0 or more, or the fewest and the most as [1,4], 1 or more")

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while a run goes on."""
        return not isinstance(self.num_workers, int)

    @property
    def sizes(self) -> range:
        """How many processes there may be that work together, ascending; 1 without Ray."""
        fewest, most = (self.num_workers,) * 2 if isinstance(self.num_workers, int) else self.num_workers
        return range(max(1, fewest), max(1, most) + 1)

    @property
    def said(self) -> str:
        """The number of workers in words."""
        return f"{self.sizes[0]} to {self.sizes[-1]}" if self.elastic else str(self.num_workers)

    def sizes_that_pass(self, check: Callable[[int], None]) -> list[int]:
        """Those of `sizes` that a check does not refuse. Raises InputError where it refuses them all."""
        passed, problems = [], []
        for size in self.sizes:
            try:
                check(size)
                passed.append(size)
            except InputError as error:
                problems.append(error)
        if not passed:
            none = f"cluster.num_workers: none of {self.said} workers will do; " if self.elastic else ""
            raise InputError(f"{none}{problems[0]}")
        return passed
