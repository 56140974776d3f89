"""Tasks and trials on a real local Ray, and an import whose shards are written by them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clusters.config import Config, InputError, Transient
from clusters.launch import ClusterConfig
from clusters.preflight import Needs
from clusters.search import run_trials
from clusters.storage import Folder
from clusters.tasks import map_tasks
from data.shards import write_dataset
from data.sources import read_raw, synthetic
from data.verify import verify
from tests.drawn_cases import files
from tests.rays import use_own_ray

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def two_cores() -> Iterator[None]:
    """A local Ray with two cores, connected to."""
    with pytest.MonkeyPatch.context() as patch:
        use_own_ray(patch)
        import ray

        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def options(out: Path, **fields: object) -> synthetic.Options:
    values = {"source": "synthetic", "out": str(out), "num_cases": 90, "size_px": 32, "images_per_shard": 40}
    return synthetic.Options.model_validate({**values, **fields})


def test_every_task_gives_its_result_once(two_cores: None) -> None:
    def double(number: int) -> int:
        return 2 * number

    assert sorted(map_tasks(double, range(40))) == list(range(0, 80, 2))
    assert list(map_tasks(double, [])) == []


def test_what_a_task_raises_is_raised_here(two_cores: None) -> None:
    with pytest.raises(ValueError, match="'x'"):
        list(map_tasks(lambda text: int(text), ["1", "x", "2"]))


def test_shards_written_by_ray_tasks_have_the_same_bytes(two_cores: None, tmp_path: Path) -> None:
    here, ray = options(tmp_path / "here", num_processes=1), options(tmp_path / "ray", on_ray=True)
    write_dataset(read_raw(here), here)
    write_dataset(read_raw(ray), ray)
    assert len(list((tmp_path / "ray").glob("*.tar"))) > 3
    assert files(tmp_path / "ray") == files(tmp_path / "here")
    assert verify(str(tmp_path / "ray")).startswith("OK")


@dataclass(frozen=True)
class Dies:
    """Ends its process the first times that it is read, as the kernel does when memory is short."""

    marks: str

    def __call__(self, _: int) -> int:
        import os

        mark = Path(self.marks)
        mark.write_text(mark.read_text() + "x")
        if len(mark.read_text()) < 3:
            os._exit(1)
        return 7


def test_a_task_whose_process_dies_is_done_again(two_cores: None, tmp_path: Path) -> None:
    import ray

    marks = tmp_path / "marks"
    marks.touch()
    dies = Dies(str(marks))
    assert list(map_tasks(lambda number: dies(number), [1])) == [7]
    assert marks.read_text() == "xxx"
    assert ray.is_initialized(), "a Ray that was there before stays"


class Trial(Config):
    """A trial that leaves a file; the second one's process dies at its first try."""

    number: int
    out: str


def test_trials_run_in_processes_of_their_own_and_one_that_dies_is_tried_again(two_cores: None, tmp_path: Path) -> None:
    def trial(config: Trial) -> None:
        import os

        tried = Path(config.out) / f"tried-{config.number}"
        first = not tried.exists()
        tried.touch()
        if config.number == 1 and first:
            os._exit(1)
        (Path(config.out) / f"done-{config.number}").write_text(str(os.getpid()))

    trials = [Trial(number=number, out=str(tmp_path)) for number in range(2)]
    run_trials(trial, trials, ClusterConfig(num_workers=2), Folder(tmp_path))
    assert {path.name for path in tmp_path.glob("done-*")} == {"done-0", "done-1"}
    assert str(os.getpid()) not in {path.read_text() for path in tmp_path.glob("done-*")}
    assert not (tmp_path / ".ray").exists()
    with pytest.raises(InputError, match=r"on \S+: the dataset /nothing cannot be read"):
        run_trials(trial, trials, ClusterConfig(num_workers=2), Folder(tmp_path), Needs(["/nothing"]))


def test_bad_input_in_a_trial_is_told_and_not_tried_again_and_what_may_pass_is(two_cores: None, tmp_path: Path) -> None:
    def trial(config: Trial) -> None:
        tries = Path(config.out) / f"tries-{config.number}"
        with tries.open("a") as file:
            file.write("x")
        if config.number == 0:
            raise InputError("shard 3 is missing; import it again")
        if tries.read_text() == "x":
            raise Transient("memory ran out")

    (tmp_path / ".ray/search-0").mkdir(parents=True)  # of a search whose driver was killed
    trials = [Trial(number=number, out=str(tmp_path)) for number in range(2)]
    with pytest.raises(InputError, match="shard 3 is missing; import it again"):
        run_trials(trial, trials, ClusterConfig(num_workers=2), Folder(tmp_path))
    assert [(tmp_path / f"tries-{number}").read_text() for number in range(2)] == ["x", "xx"]
    assert not (tmp_path / ".ray").exists()


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    if ray.is_initialized():
        ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    with pytest.raises(InputError, match="RAY_ADDRESS: the Ray at nowhere cannot be reached"):
        list(map_tasks(abs, [1]))
