"""An import that is killed, fails or finds the disk full goes on, and ends in the bytes of an undisturbed one."""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from clusters.config import InputError
from clusters.run_lock import run_lock
from clusters.storage import Folder
from data.__main__ import main
from data.cases import RawFile
from data.dataset import open_dataset
from data.plan import WORK
from data.processing import in_processes
from data.shards import write_dataset
from tests.drawn_cases import Drawn, cases, config, files, interrupted

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "dataset"
    write_dataset(cases(30), config(out))
    return out


def test_an_interrupted_import_goes_on_and_ends_in_the_same_bytes(written: Path, tmp_path: Path) -> None:
    out, repaired = tmp_path / "dataset", tmp_path / "repaired"
    raw = interrupted(written, repaired)
    with pytest.raises(RuntimeError, match="stops here"):
        write_dataset(raw, config(out))
    with pytest.raises(InputError, match=r"no manifest\.json"):
        open_dataset(str(out))
    finished = {shard: shard.stat().st_ino for shard in out.glob("*.tar")}
    assert 0 < len(finished) < 4
    (out / ".shard-000003.tar.0a1b2c3d.part").write_bytes(b"half")  # as SIGKILL would leave it
    repaired.touch()
    assert not write_dataset(raw, config(out)).reused
    assert all(shard.stat().st_ino == inode for shard, inode in finished.items())
    assert files(out) == files(written)


def test_bad_images_do_not_make_an_import_begin_again_unless_they_were_mended(written: Path, tmp_path: Path) -> None:
    out, repaired, absent = tmp_path / "dataset", tmp_path / "repaired", tmp_path / "absent"
    last = int(str(open_dataset(str(written)).column("key")[-1]).removeprefix("case-"))
    first = int(str(open_dataset(str(written)).column("key")[0]).removeprefix("case-"))
    waits = {10 * last: Drawn(10 * last, str(repaired)), 10 * first: RawFile(Folder(tmp_path), "absent")}
    raw = cases(30, lambda seed: waits.get(seed, Drawn(seed)))

    def stopped_after() -> int:
        with pytest.raises(RuntimeError):
            write_dataset(raw, config(out, missing="skip"))
        return (out / "shard-000000.tar").stat().st_ino

    begun = stopped_after()
    assert stopped_after() == begun, "the shard with the absent image is kept"
    absent.write_bytes(Drawn(10 * first)())
    assert stopped_after() != begun
    repaired.touch()
    write_dataset(raw, config(out, missing="skip"))
    assert files(out) == files(written)


def test_a_shard_damaged_between_two_starts_is_written_again(written: Path, tmp_path: Path) -> None:
    out, repaired = tmp_path / "dataset", tmp_path / "repaired"
    raw = interrupted(written, repaired)
    with pytest.raises(RuntimeError):
        write_dataset(raw, config(out))
    first = next(out.glob("*.tar"))
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    repaired.touch()
    write_dataset(raw, config(out))
    assert files(out) == files(written)


def test_a_damaged_dataset_is_not_reused(written: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(written, tmp_path / "copy"))
    (folder / "shard-000001.tar").unlink()
    with pytest.raises(InputError, match=r"shard-000001\.tar is missing; copy the dataset or import it again"):
        write_dataset(cases(30), config(folder))


def test_an_unfinished_import_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    raw = cases(9, lambda seed: Drawn(seed, "/nowhere" if seed == 40 else ""))
    with pytest.raises(RuntimeError):
        write_dataset(raw, config(tmp_path / "out"))
    with pytest.raises(InputError, match=r"unfinished import with other settings .jpeg_quality: 92 -> 80"):
        write_dataset(raw, config(tmp_path / "out", jpeg_quality=80))


def test_of_two_imports_into_one_folder_the_second_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with run_lock(Folder(out) / WORK), pytest.raises(InputError, match="another run is at work in this folder"):
        write_dataset(cases(9), config(out))
    write_dataset(cases(9), config(out))


def test_nothing_is_put_into_a_folder_of_other_files(tmp_path: Path) -> None:
    for name in ("thesis.txt", "scan.zip.part", ".scan.part"):
        folder = tmp_path / name.strip(".")
        folder.mkdir()
        (folder / name).touch()
        with pytest.raises(InputError, match="not empty and not an unfinished import"):
            write_dataset(cases(9), config(folder))
        assert [path.name for path in folder.iterdir()] == [name]


def test_after_a_refusal_the_corrected_table_is_imported(tmp_path: Path) -> None:
    """Nothing was written yet; a shard that is there is not written over by another import."""
    raw, out = cases(9), tmp_path / "out"
    lacks = cases(9, lambda seed: RawFile(Folder(tmp_path), "gone") if seed == 40 else Drawn(seed))
    with pytest.raises(InputError, match="1 of 18 images is not there"):
        write_dataset(lacks, config(out))
    (out / ".shard-000000.tar.1234abcd.part").write_bytes(b"x")  # as of one that was killed within its first shard
    corrected = replace(raw, cases=raw.cases[:-1])
    assert write_dataset(corrected, config(out)).manifest.counts.cases == 8
    assert not list(out.glob(".*"))
    with pytest.raises(InputError, match="already holds another dataset"):
        write_dataset(raw, config(out))


def command(out: Path, **fields: object) -> list[str]:
    values = {"source": "synthetic", "out": out, "num_cases": 160, "size_px": 64, "images_per_shard": 25, **fields}
    return [sys.executable, "-m", "data", "import", *(f"{name}={value}" for name, value in values.items())]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "dataset"
    import_here(out)
    return files(out)


def test_an_import_killed_by_sigkill_goes_on_without_redoing_finished_shards(
    undisturbed: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dataset"
    process = subprocess.Popen(command(out, num_processes=2), cwd=ROOT, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(list(out.glob(".import/*.tar.json"))) < 2:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {record.name.removesuffix(".json") for record in out.glob(".import/*.tar.json")}
    assert 2 <= len(finished) < len([name for name in undisturbed if name.endswith(".tar")]), "killed in the middle"
    assert not (out / "manifest.json").exists()
    before = {name: ((out / name).stat().st_ino, (out / name).stat().st_mtime_ns) for name in finished}
    import_here(out)
    assert {name: ((out / name).stat().st_ino, (out / name).stat().st_mtime_ns) for name in finished} == before
    assert files(out) == undisturbed
    assert "kept from before" in capsys.readouterr().err


def import_here(out: Path) -> None:
    main(command(out, num_processes=1)[3:])


def full(out: Path) -> str:
    """The one line of an import that fails for want of space, and nothing of it taken for whole."""
    with pytest.raises(InputError, match="give the same command again") as caught:
        import_here(out)
    assert not (out / "manifest.json").exists()
    assert not list(out.glob(".*.part"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_that_may_not_grow_stops_the_import_with_one_line(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    out, limit = tmp_path / "dataset", 20_000
    assert all(len(content) > limit for name, content in undisturbed.items() if name.endswith(".tar"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        said = full(out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in said and "shard-000000.tar" in said
    assert not list(out.glob("*.tar"))
    import_here(out)
    assert files(out) == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path, undisturbed: dict[str, bytes]):
    """A disk of its own with room for half the dataset, where this machine lets us make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(map(len, undisturbed.values())) // 2
    mount = shutil.which("mount")
    made = mount and subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=False)
    if not made or made.returncode:
        pytest.skip("this user may not mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_stops_the_import_and_with_more_room_it_goes_on(
    undisturbed: dict[str, bytes], small_disk: Path
) -> None:
    out = small_disk / "dataset"
    assert "No space left on device" in full(out)
    finished = {path: path.stat().st_ino for path in out.glob("*.tar")}
    assert finished
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    import_here(out)
    assert files(out) == undisturbed
    kept = [path for path, inode in finished.items() if path.stat().st_ino == inode]
    assert len(kept) >= len(finished) - 1, "the last one may have found no room for its record"


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_ctrl_c_ends_an_import_with_its_processes_and_the_same_command_finishes(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "dataset"
    process = subprocess.Popen(
        command(out, num_processes=2), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 120
    while not list(out.glob(".import/*.tar.json")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said = process.communicate(timeout=60)[1]  # also ends only when no process holds the pipe any more
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("stopped; the same command")
    assert not (out / "manifest.json").exists()
    import_here(out)
    assert files(out) == undisturbed


def test_a_caller_that_wants_no_more_leaves_no_process_behind() -> None:
    others = multiprocessing.active_children()
    results = in_processes(time.sleep, [0, 0, 0, *[0.2] * 37], 2)
    next(results)
    children = [psutil.Process(child.pid) for child in multiprocessing.active_children() if child not in others]
    assert children
    results.close()
    assert not psutil.wait_procs(children, timeout=60)[1]


def test_a_split_that_is_left_empty_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(command(tmp_path / "one", num_cases=1, num_processes=1)[3:])
    told = [line for line in capsys.readouterr().out.splitlines() if line.endswith("is empty: 1 patients in all")]
    assert len(told) == 2
