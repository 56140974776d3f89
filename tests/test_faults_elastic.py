"""A real Ray cluster that loses a node and gets another, and a pretraining that goes on with the workers there are."""

from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest

from clusters.launch import launch
from clusters.storage import Folder
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from tests.elastic_tasks import (
    ANNOUNCED_BEFORE,
    LOST_BEFORE,
    Taken,
    notes,
    train_while_a_node_is_drained,
    train_while_nodes_change,
)
from tests.fault_runs import drain, wait_for
from tests.ranks import Ranks
from tests.rays import use_own_ray
from tests.test_clusters_elastic import SAMPLES, values

STEPS, SAVED_AT = 9, 4


def change_nodes(cluster: Any, second: Any, run: Path) -> None:
    """Take the second node away once two workers have come so far; bring a larger one once the first has gone on."""

    def at(step: int, num_workers: int) -> bool:
        return any((note.step, note.num_workers) == (step, num_workers) for note in notes(run))

    wait_for(lambda: at(LOST_BEFORE - 1, 2), "two workers", timeout_s=500)
    cluster.remove_node(second, allow_graceful=False)
    wait_for(lambda: at(ANNOUNCED_BEFORE - 2, 1), "the one that is left", timeout_s=500)
    cluster.add_node(num_cpus=2)


@pytest.mark.faults
@pytest.mark.timeout(900)  # three times Ray has to start workers, which takes most of a minute on a busy machine
def test_pretraining_loses_a_node_and_gets_another(
    synthetic_dataset: Dataset, tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sample once an epoch, and the losses of the run that nothing happens to."""
    recipe = {"checkpoint": {"every_steps": SAVED_AT}, "gone_before": STEPS}
    undisturbed: list[Taken] = ranks.run("recorded", values(synthetic_dataset, tmp_path / "two", **recipe))[0]

    use_own_ray(monkeypatch)
    import ray
    from ray.cluster_utils import Cluster

    run, elastic = tmp_path / "run", {"num_workers": [1, 4], "resize_every_s": 1}
    told = values(synthetic_dataset, run, **{**recipe, "cluster": elastic})
    del told["gone_before"]
    config = PretrainConfig.model_validate(told)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        with ThreadPoolExecutor(1) as pool:
            # Not the other way round: Ray adds nodes in a main thread only
            learned_by = pool.submit(
                launch, train_while_nodes_change, config, config.cluster, Folder(run), sizes=[1, 2, 4]
            )
            change_nodes(cluster, second, run)
            # Now there is room for three, of whom two can share the batch
            assert learned_by.result()["encoder"]
    finally:
        ray.shutdown()
        cluster.shutdown()

    parts = [list(part) for _, part in groupby(notes(run), key=lambda note: note.num_workers)]
    assert [(part[0].num_workers, part[0].step, part[-1].step) for part in parts] == [
        (2, 0, LOST_BEFORE - 1),
        (1, SAVED_AT, ANNOUNCED_BEFORE - 1),  # without notice: from the last checkpoint on, repeating what followed
        (2, ANNOUNCED_BEFORE, STEPS - 1),  # announced: from the very step on
    ]
    lost_s, announced_s = (after[0].when - before[-1].when for before, after in pairwise(parts))
    print(f"\na lost node costs {lost_s:.1f} s between two steps, a node that comes {announced_s:.1f} s")
    kept = {note.step: note for part in parts for note in part}
    assert [kept[step].fed for step in range(STEPS)] == [step.fed for step in undisturbed]
    assert [note.loss for note in kept.values()] == pytest.approx([step.loss for step in undisturbed], abs=1e-5)
    for epoch in range(3):
        fed = [sample for step in range(3 * epoch, 3 * epoch + 3) for sample, _ in kept[step].fed]
        assert sorted(fed) == list(range(SAMPLES["simclr"]))
    assert not (run / ".ray").exists()


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_where_a_node_is_taken_back_those_that_stay_go_on_at_the_next_step(
    synthetic_dataset: Dataset, tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself counts on that node until it is gone, which is 10 minutes from now."""
    undisturbed: list[Taken] = ranks.run("recorded", values(synthetic_dataset, tmp_path / "two", gone_before=STEPS))[0]

    use_own_ray(monkeypatch)
    import ray
    from ray.cluster_utils import Cluster

    run, elastic = tmp_path / "run", {"num_workers": [1, 2], "resize_every_s": 1, "max_failures": 0}
    changed = {"checkpoint": {"every_steps": 100}, "tracking": {"wandb": "disabled", "every_steps": 1}}
    told = values(synthetic_dataset, run, cluster=elastic, **changed)
    del told["gone_before"]
    config = PretrainConfig.model_validate(told)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        with ThreadPoolExecutor(1) as pool:
            learned_by = pool.submit(
                launch, train_while_a_node_is_drained, config, config.cluster, Folder(run), sizes=[1, 2], heeds=True
            )
            there = (LOST_BEFORE - 1, 2)
            wait_for(lambda: there in [(note.step, note.num_workers) for note in notes(run)], "two workers", 500)
            drain(ray, second.node_id, 600.0)
            assert learned_by.result()["encoder"]
    finally:
        ray.shutdown()
        cluster.shutdown()
    taken, after = notes(run), LOST_BEFORE + 1
    assert [(note.step, note.num_workers) for note in taken] == [(n, 2 if n < after else 1) for n in range(STEPS)]
    print(f"\na node that is taken back costs {taken[after].when - taken[after - 1].when:.1f} s between two steps")
    assert [note.fed for note in taken] == [step.fed for step in undisturbed]
    assert [note.loss for note in taken] == pytest.approx([step.loss for step in undisturbed], abs=1e-5)
