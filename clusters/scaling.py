"""Which number of workers Ray Train uses where it may choose, and what happens before it changes one."""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

from clusters import notice

NOTICE_S = 120.0
"""How long workers that are to be started anew may take to leave a checkpoint; then the one before must do."""
LOOK_EVERY_S = 1.0


def scaling_policy(sizes: Sequence[int], scaling_config: Any, told_to_leave: Callable[[], str | None]) -> Any:
    """Ray Train's policy with as many workers as one of `sizes`, ascending: the most that there is room for.

    Once the driver is told to leave there is nothing to wait for: the fewest are asked for, which come and leave, or
    do not come in time, where `leaving.failure_policy` ends the run.
    Its own takes any number in the range, starts workers anew without notice, counts on nodes that are about to be
    gone or have been for up to 20 s, and keeps a core busy while it waits for nodes. Its callbacks cannot mend that.
    """
    from ray.train.v2._internal.execution.scaling_policy import (
        ElasticScalingPolicy,
        NoopDecision,
        ResizeDecision,
    )

    class Policy(ElasticScalingPolicy):
        _announced: tuple[ResizeDecision, float] | None = None

        def _count_possible_workers(self, reserved_resources: Any) -> int:
            return largest(sizes, super()._count_possible_workers(on_nodes_that_stay(reserved_resources)))

        def _get_reserved_resources(self) -> Any:
            # The coordinator looks at the nodes now, before it answers the question that follows.
            self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
            return super()._get_reserved_resources()

        def make_decision_for_non_running_worker_group(self) -> Any:
            self._announced = None
            decision = super().make_decision_for_non_running_worker_group()
            with suppress(OSError):
                if isinstance(decision, NoopDecision) and told_to_leave():
                    return self._get_resize_decision(sizes[0])
            if not isinstance(decision, ResizeDecision):
                time.sleep(LOOK_EVERY_S)
            return decision

        def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
            saver = worker_group_state.workers[0]
            if self._announced is None:
                decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
                if isinstance(decision, ResizeDecision):
                    self._announced = decision, time.monotonic() + NOTICE_S
                    saver.execute_async(notice.give)
                    return NoopDecision()
                return decision
            decision, until = self._announced
            if time.monotonic() < until and _still_saves(saver):
                return NoopDecision()
            self._announced = None
            return decision

    return Policy(scaling_config)


def on_nodes_that_stay(reserved: dict[str, Any]) -> dict[str, Any]:
    """The room that Ray has reserved by node; where one of these is drained, that of all that stay instead.

    Ray reserves for the most workers and no more, on whichever nodes: others may have the room too.
    """
    import ray

    with suppress(Exception):  # a head that is out of reach for a moment
        gone = draining_nodes()
        if gone and set(gone) & set(reserved):
            staying = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in gone]
            return {node["NodeID"]: node["Resources"] for node in staying}
    return reserved


def draining_nodes() -> Collection[str]:
    """Ray's ids of nodes that are taken back soon: spot machines, or `ray drain-node`. They take no new workers."""
    import ray

    return ray._private.state.state.get_draining_nodes()  # type: ignore[attr-defined]


def largest(sizes: Sequence[int], room: int) -> int:
    """The largest of some numbers of workers for which there is room; 0 where there is none."""
    return max((size for size in sizes if size <= room), default=0)


def _still_saves(saver: Any) -> bool:
    """Whether a worker has not left the checkpoint that it was asked for; one that died is Ray's next look to find."""
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(saver.execute_async(notice.is_given), timeout=10)
    except RayError:
        return True
