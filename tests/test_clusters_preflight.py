"""What a node cannot do is said before anything waits for it, with the node's name and the mend."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clusters import preflight
from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.config import InputError
from clusters.connection import check_resources
from clusters.preflight import Needs
from clusters.storage import Folder
from clusters.versions import source_hash
from clusters.workers import ClusterConfig
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.fits import needs_of

ROOT = Path(__file__).parents[1]


def test_a_node_that_can_do_all_is_passed_and_nothing_is_left_behind(
    synthetic_dataset: Dataset, tmp_path: Path
) -> None:
    report = preflight.look(str(tmp_path / "run"), [synthetic_dataset.location])
    assert report.problems == []
    assert report.versions["torch"] != "missing"
    assert report.free_bytes is not None and report.free_bytes > 0
    preflight.judge(report, [report], Needs(states=[1]))
    assert list((tmp_path / "run").iterdir()) == []
    assert preflight.look("memory://preflight/run", []).free_bytes is None


def test_storage_that_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    report = preflight.look(str(tmp_path / "file/run"), [str(tmp_path / "nothing")])
    assert len(report.problems) == 2
    with pytest.raises(InputError, match=r"on \S+: \S+file/run cannot be written .*; it must be on storage"):
        preflight.judge(report, [], Needs())
    fine = preflight.look(str(tmp_path / "run"), [])
    elsewhere = dataclasses.replace(report, host="node-2", problems=report.problems[1:])
    with pytest.raises(InputError, match=r"on node-2: the dataset \S+nothing cannot be read"):
        preflight.judge(fine, [fine, elsewhere], Needs())


def test_a_full_disk_is_told_with_the_numbers(tmp_path: Path) -> None:
    report = dataclasses.replace(preflight.look(str(tmp_path / "run"), []), free_bytes=2_000_000_000)
    with pytest.raises(InputError, match=r"has 2 GB free and checkpoints take 2.4 GB; .*lower checkpoint.keep"):
        preflight.judge(report, [], Needs(states=[600_000_000], num_kept=3))
    preflight.judge(report, [], Needs(states=[600_000_000], num_kept=2))
    for more in ({"every_h": 1.0}, {"states": [600_000_000, 300_000_000]}, {"at_once": 2}):
        needs = dataclasses.replace(Needs(states=[600_000_000], num_kept=2), **more)
        with pytest.raises(InputError, match=r"has 2 GB free and checkpoints take 2.4 GB"):
            preflight.judge(report, [], needs)


def test_what_a_run_has_kept_is_no_reason_to_refuse_that_it_goes_on(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Folder(tmp_path / "run/1-simclr"), CheckpointConfig(keep=2))
    for step in (1, 2, 3):
        checkpoints.save(step, {"weight": torch.zeros(1000)})
        checkpoints.wait()
    found = preflight.look(str(tmp_path / "run"), [])
    assert 2 * 4000 < found.checkpoint_bytes < 2 * 6000
    tight = dataclasses.replace(found, free_bytes=4000, checkpoint_bytes=8000)
    preflight.judge(tight, [], Needs(states=[4000], num_kept=2))
    with pytest.raises(InputError, match=r"has 4e-06 GB free beside 4e-06 GB of checkpoints and .* take 1.2e-05 GB"):
        preflight.judge(dataclasses.replace(tight, checkpoint_bytes=4000), [], Needs(states=[4000], num_kept=2))
    with pytest.raises(InputError, match=r"has 4e-06 GB free beside 8e-06 GB of checkpoints"):  # more is no room
        preflight.judge(dataclasses.replace(tight, checkpoint_bytes=10**9), [], Needs(states=[8000], num_kept=1))


def test_for_a_url_the_temporary_folder_must_hold_a_checkpoint() -> None:
    found = preflight.look("memory://preflight/run", [])
    assert found.free_bytes is None and found.temporary_bytes is not None and found.temporary_bytes > 0
    preflight.judge(found, [], Needs(states=[1], num_kept=10**18))
    with pytest.raises(InputError, match=r"the temporary folder's disk has .* 1e\+09 GB for a checkpoint; .*TMPDIR"):
        preflight.judge(found, [found], Needs(states=[10**18]))


def test_a_dataset_is_read_as_far_as_its_first_shard(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    shutil.copytree(synthetic_dataset.location, folder)
    assert preflight.look(str(tmp_path / "run"), [str(folder)]).problems == []
    shard = folder / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:100])
    (told,) = preflight.look(str(tmp_path / "run"), [str(folder)]).problems
    assert told.startswith(f"the dataset {shard} cannot be read (cut off)")
    shard.unlink()
    (told,) = preflight.look(str(tmp_path / "run"), [str(folder)]).problems
    assert told.startswith(f"the dataset {shard} cannot be read (No such file")


def test_every_stage_s_checkpoints_are_counted(tmp_path: Path) -> None:
    stage = {"method": "simclr", "batch_size": 16, "projection_hidden": 16, "projection_dim": 8, "steps": 1}
    values = {"data": "/d", "run": "/r", "encoder": {"name": "resnet18"}, "stages": [stage, stage]}
    keeps = {"keep": 2, "keep_best": 1, "keep_every_h": 4.0}
    config = PretrainConfig.model_validate({**values, "checkpoint": keeps, "cluster": {"num_workers": 2}})
    needs = needs_of(config)
    assert len(needs.states) == 2 and needs.written_bytes == needs.states[0] > 10_000_000
    assert needs.kept_bytes == 2 * 4 * needs.states[0]


def test_versions_that_differ_are_named_with_both(tmp_path: Path) -> None:
    here = preflight.look(str(tmp_path / "run"), [])
    other = dataclasses.replace(here, host="node-2", versions={**here.versions, "torch": "1.0.0"})
    with pytest.raises(InputError, match=rf"on node-2: torch is 1.0.0 and {here.versions['torch']} on"):
        preflight.judge(here, [here, other], Needs())


def test_what_makes_the_pixels_is_compared_too(tmp_path: Path) -> None:
    here = preflight.look(str(tmp_path / "run"), [])
    for name in ("opencv-python-headless", "pillow", "simplejpeg", "pydicom", "lightly", "peft"):
        assert here.versions[name] != "missing"
        other = dataclasses.replace(here, host="node-2", versions={**here.versions, name: "0.1"})
        with pytest.raises(InputError, match=rf"on node-2: {name} is 0\.1 and .* on .*; install the same requirements"):
            preflight.judge(here, [here, other], Needs())


def test_sources_that_differ_are_named_with_both_hashes(tmp_path: Path) -> None:
    here = preflight.look(str(tmp_path / "run"), [])
    assert here.versions["manyview"] == source_hash(ROOT)
    other = dataclasses.replace(here, host="node-2", versions={**here.versions, "manyview": "5e6f7a8b"})
    told = rf"on node-2: manyview is 5e6f7a8b and {here.versions['manyview']} on {here.host}; submit with --working-dir"
    with pytest.raises(InputError, match=told):
        preflight.judge(here, [here, other], Needs())


def test_the_sources_hash_is_of_code_alone(tmp_path: Path) -> None:
    """The copy that a Ray job uploads leaves out caches, notes and all that lies beside the rooms."""
    for name in ("data/order.py", "clusters/checks/job.py", "finetune/run.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    first = source_hash(tmp_path)
    assert len(first) == 8
    for name in ("data/__pycache__/order.py", "data/order.pyc", "data/recipe.yaml", "runs/a.py", "setup.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "data/.#order.py").symlink_to("nobody@nowhere")
    assert source_hash(tmp_path) == first
    (tmp_path / "clusters/checks/job.py").write_text("changed")
    second = source_hash(tmp_path)
    (tmp_path / "data/order.py").rename(tmp_path / "data/other.py")
    assert len({first, second, source_hash(tmp_path)}) == 3


def test_looking_needs_no_ray_and_no_torch() -> None:
    script = "import sys, clusters.preflight; print([m for m in ('ray', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_workers_do_not_silently_train_on_cpus_while_nodes_with_gpus_come(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    assert check_resources(ClusterConfig(num_workers=1))
    with pytest.raises(InputError, match="no GPU for each of 2 workers, the cluster has 1; wait for its nodes"):
        check_resources(ClusterConfig(num_workers=2))
    assert not check_resources(ClusterConfig(num_workers=2, use_gpu=False))
