"""Checkpoints: exact, verified, and never a silent start from step 0."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters import checkpoint_files
from clusters import checkpoint_policy as policy
from clusters.attempt import Superseded
from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.checkpoint_files import Name
from clusters.config import InputError
from clusters.storage import Folder

CONFIG = CheckpointConfig(keep=2)
GOLDEN = Path(__file__).parent / "golden/checkpoint-format-1"


def state(value: float) -> dict[str, Any]:
    return {
        "weight": torch.tensor(value),
        "optimizer": {"state": {0: {"step": 3, "m": torch.full((4,), value)}}},
    }


def saved(location: str, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(Folder(location), CONFIG)
    for step in steps:
        checkpoints.save(step, state(float(step)))
    checkpoints.wait()
    return checkpoints


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif kind == "truncated":
        path.write_bytes(content[:-10])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


def rewrite(folder: Path, **told: Any) -> None:
    """Have a checkpoint's MANIFEST tell something else, as if it had been written so."""
    manifest = {**json.loads((folder / "MANIFEST.json").read_text()), **told}
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b))
    return a == b


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.text(max_size=8),
    st.lists(st.floats(width=32, allow_nan=False), max_size=4).map(torch.tensor),
)  # fmt: skip
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.integers(0, 99), st.text("abc./", min_size=1, max_size=3)), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(STATES)
def test_any_state_comes_back_as_it_was(value: Any) -> None:
    folder = Folder("memory://states")
    folder.remove()
    checkpoints = Checkpoints(folder, CONFIG)
    checkpoints.save(7, value)
    checkpoints.wait()
    restored = checkpoints.restore()
    assert restored is not None
    assert restored.step == 7
    assert equal(restored.state, value)


@pytest.mark.parametrize("location", ["local", "memory://bucket/run"])
def test_the_newest_is_restored_and_old_ones_go(tmp_path: Path, location: str) -> None:
    location = str(tmp_path) if location == "local" else location
    restored = saved(location, 9, 10, 100).restore()
    assert restored is not None
    assert (restored.step, float(restored.state["weight"])) == (100, 100.0)
    assert (Folder(location) / "checkpoints").names() == ["step-000000010", "step-000000100"]


@pytest.mark.parametrize("kind", ["flipped", "truncated", "empty", "missing"])
@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "MANIFEST.json"])
def test_a_damaged_newest_is_passed_over(tmp_path: Path, name: str, kind: str) -> None:
    checkpoints = saved(str(tmp_path), 1, 2)
    damage(tmp_path / "checkpoints/step-000000002" / name, kind)
    restored = checkpoints.restore()
    assert restored is not None
    assert (restored.step, float(restored.state["weight"])) == (1, 1.0)


def test_a_damaged_one_is_set_aside_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = saved(str(tmp_path), 1, 2)
    damage(tmp_path / "checkpoints/step-000000002/state.safetensors", "flipped")
    checkpoints.restore()
    said = capsys.readouterr().out
    assert "step-000000002 is damaged" in said
    assert any(name.startswith("damaged-step-000000002") for name in (Folder(tmp_path) / "checkpoints").names())


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "MANIFEST.json"])
def test_every_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    """And none is taken for another format, which would stop the run rather than set the checkpoint aside.

    The last digit of a fraction may change and the number be the same: such a MANIFEST says what it said.
    """
    saved(str(tmp_path), 1)
    folder = tmp_path / "checkpoints/step-000000001"
    content = (folder / name).read_bytes()
    assert checkpoint_files.verify(Folder(folder), 1) is None
    for place in range(8 * len(content)):
        altered = bytearray(content)
        altered[place // 8] ^= 1 << place % 8
        (folder / name).write_bytes(altered)
        found = checkpoint_files.verify(Folder(folder), 1)
        assert found or (name == "MANIFEST.json" and json.loads(altered) == json.loads(content)), f"bit {place}"


def test_a_damaged_number_of_the_attempt_is_told_anew_from_the_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(str(tmp_path), 1)
    stalled = saved(str(tmp_path), 2)
    (tmp_path / "attempt.json").write_bytes(b'{"attempt": \x92')
    again = saved(str(tmp_path), 3)
    assert "attempt.json is damaged; written anew, from the names" in capsys.readouterr().out
    assert (Folder(tmp_path) / "checkpoints").names()[-1] == "step-000000003-attempt-3"
    stalled.save(4, state(4.0))
    with pytest.raises(Superseded):
        stalled.wait()
    restored = again.restore()
    assert restored is not None and restored.step == 3

    # Damaged while one is at work: it goes on, and one that was replaced still does not
    (tmp_path / "attempt.json").write_bytes(b'{"attempt": \x92')
    assert not stalled.attempt.is_newest()
    again.save(4, state(4.0))
    again.wait()
    assert json.loads((tmp_path / "attempt.json").read_text())["attempt"] == 3
    stalled.save(5, state(5.0))
    with pytest.raises(Superseded, match="attempt 3 of this run has taken over from attempt 2"):
        stalled.wait()


def test_never_a_silent_start_from_nothing(tmp_path: Path) -> None:
    checkpoints = saved(str(tmp_path), 1, 2)
    for step in (1, 2):
        damage(tmp_path / f"checkpoints/step-00000000{step}/state.json", "truncated")
    for _ in range(2):
        with pytest.raises(InputError, match=r"none of its checkpoints is intact \(2 damaged\)"):
            checkpoints.restore()


def test_a_writer_that_was_replaced_stops(tmp_path: Path) -> None:
    stalled = saved(str(tmp_path), 1)
    saved(str(tmp_path), 2)
    stalled.save(3, state(3.0))
    with pytest.raises(Superseded):
        stalled.wait()
    assert "step-000000003" not in (Folder(tmp_path) / "checkpoints").names()


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    checkpoints = saved(str(tmp_path), 1)
    with pytest.raises(TypeError, match="optimizer"):
        checkpoints.save(2, {"optimizer": object()})
    restored = checkpoints.restore()
    assert restored is not None
    assert restored.step == 1


def test_a_lone_checkpoint_without_its_commit_is_named_before_a_start_from_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be a first save that was cut off, or a whole one that lost a file: a person should know."""
    checkpoints = saved(str(tmp_path), 1)
    (tmp_path / "checkpoints/step-000000001/MANIFEST.json").unlink()
    assert checkpoints.restore() is None
    said = capsys.readouterr().out
    assert str(tmp_path / "checkpoints/step-000000001") in said
    assert "starts from step 0" in said
    assert saved(str(tmp_path / "other")).restore() is None
    assert capsys.readouterr().out == ""


def test_several_checkpoints_without_their_commit_are_no_cut_off_save(tmp_path: Path) -> None:
    """A copy of the run without them, say: the stage would start from step 0 and remove them one after the other."""
    checkpoints = saved(str(tmp_path), 1, 2)
    for manifest in tmp_path.rglob("MANIFEST.json"):
        manifest.unlink()
    with pytest.raises(
        InputError, match=r"2 checkpoints without their MANIFEST.json, and none with it; copy the folder"
    ):
        checkpoints.restore()
    assert len(list((tmp_path / "checkpoints").glob("step-*/state.safetensors"))) == 2


def test_starts_that_were_each_cut_off_in_their_first_save_go_on_from_nothing(tmp_path: Path) -> None:
    for step in (1, 2):
        saved(str(tmp_path), step)
        next(tmp_path.rglob("MANIFEST.json")).unlink()
    assert len(list((tmp_path / "checkpoints").glob("step-*/state.safetensors"))) == 2
    assert Checkpoints(Folder(tmp_path), CONFIG).restore() is None


def test_a_checkpoint_of_the_first_format_is_read(tmp_path: Path) -> None:
    """Written before MANIFESTs told their format, from a training on channels-last weights in bfloat16 moments."""
    shutil.copytree(GOLDEN, tmp_path / "checkpoints/step-000000003")
    restored = Checkpoints(Folder(tmp_path), CONFIG).restore()
    assert restored is not None and restored.step == 3
    group = {"lr": 0.1, "betas": [0.9, 0.999], "maximize": False, "foreach": None, "params": [0]}
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.full((2,), 0.5, dtype=torch.bfloat16)}
    expected = {
        "module": {
            "conv.weight": torch.arange(16.0).reshape(2, 2, 2, 2), "norm.num_batches_tracked": torch.tensor(3)
        },
        "optimizer": {"state": {0: moments}, "param_groups": [group]},
        "not_finite": {"in_a_row": 0, "seen": 3, "left_out": 0},
    }  # fmt: skip
    assert equal(restored.state, expected)


def test_what_is_written_now_is_the_same_but_for_its_manifest(tmp_path: Path) -> None:
    """So it stays until FORMAT is raised."""
    shutil.copytree(GOLDEN, tmp_path / "checkpoints/step-000000003")
    restored = Checkpoints(Folder(tmp_path), CONFIG).restore()
    assert restored is not None
    again = Checkpoints(Folder(tmp_path / "again"), CONFIG)
    again.save(3, restored.state)
    again.wait()
    for name in ("state.safetensors", "state.json"):
        assert (tmp_path / "again/checkpoints/step-000000003" / name).read_bytes() == (GOLDEN / name).read_bytes()
    assert Folder(tmp_path / "again/checkpoints/step-000000003").read_json("MANIFEST.json")["format"] == 2


def test_a_later_format_is_refused_and_not_taken_for_damage(tmp_path: Path) -> None:
    checkpoints = saved(str(tmp_path), 1, 2)
    rewrite(tmp_path / "checkpoints/step-000000002", format=9)
    with pytest.raises(InputError, match="step-000000002: a checkpoint of format 9, and this Manyview reads") as told:
        checkpoints.restore()
    assert "\n" not in str(told.value)
    assert (Folder(tmp_path) / "checkpoints").names() == ["step-000000001", "step-000000002"]


def test_the_file_is_what_safetensors_itself_would_write(tmp_path: Path) -> None:
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]
    tensors = {f"{place} é{kind}": torch.arange(6).reshape(2, 3).to(kind) for place, kind in enumerate(kinds)}
    tensors |= {"scalar": torch.tensor(2.5), "none": torch.empty(0, 3), "last": torch.randn(2, 4, 3, 3)}
    laid_out = {**tensors, "last": tensors["last"].to(memory_format=torch.channels_last)}
    checkpoints = Checkpoints(Folder(tmp_path), CONFIG)
    checkpoints.save(1, laid_out)
    checkpoints.wait()
    path = tmp_path / "checkpoints/step-000000001/state.safetensors"
    assert path.read_bytes() == safetensors.torch.save({f"/{name}": tensor for name, tensor in tensors.items()})
    alone = safetensors.torch.load_file(path)
    assert all(torch.equal(alone[f"/{name}"], tensor) for name, tensor in tensors.items())
    assert path.stat().st_mode & 0o777 == (path.parent / "state.json").stat().st_mode & 0o777


def test_the_best_and_one_of_every_so_many_hours_are_kept_over_a_resume(tmp_path: Path) -> None:
    config = CheckpointConfig(keep=2, keep_best=1, every_s=1e9)
    for start, scores in (((1, 2, 3, 4), (0.7, 0.9, 0.9, 0.8)), ((5, 6, 7), (0.6, None, 0.85))):
        checkpoints = Checkpoints(Folder(tmp_path), config)
        checkpoints.restore()
        for step, score in zip(start, scores):
            told = {} if score is None else {"probe/knn_auroc": score}
            assert checkpoints.due(step, told) == (score is not None)
            checkpoints.save(step, state(float(step)), told)
        checkpoints.wait()
    names = ["step-000000002", "step-000000006-attempt-2", "step-000000007-attempt-2"]
    assert (Folder(tmp_path) / "checkpoints").names() == names
    newest, best = CheckpointConfig(keep=2), CheckpointConfig(keep=2, keep_best=2)
    found = policy.saved(Folder(tmp_path) / "checkpoints")
    assert [str(name) for name in policy.kept(found, newest)] == names[1:]
    assert policy.kept(found, best) == {
        found[0].name: ["best, probe/knn_auroc 0.9000"],
        found[1].name: ["newest"],
        found[2].name: ["newest", "best, probe/knn_auroc 0.8500"],
    }


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 50), st.none() | st.floats(0, 1)), max_size=12),
    st.integers(0, 3),
    st.integers(1, 9),
)
def test_what_is_kept_does_not_depend_on_when_the_others_went(
    history: list[tuple[float, float | None]], keep_best: int, hours: int
) -> None:
    """Removing after each save leaves what removing once at the end does; the newest always stay."""
    config = CheckpointConfig(keep=2, keep_best=keep_best, keep_every_h=float(hours))
    trained_h, everything, there = 0.0, [], []
    for step, (spent_h, score) in enumerate(history):
        trained_h += spent_h
        one = policy.Saved(Name(step, 1), 3600 * trained_h, score)
        everything.append(one)
        there = [old for old in [*there, one] if old.name in policy.kept([*there, one], config)]
    assert {one.name for one in there} == set(policy.kept(everything, config))
    assert [one.name for one in everything[-2:]] == [one.name for one in there[-2:]]
    periods = {int(one.trained_s // (3600 * hours)) for one in everything} - {0}
    assert periods <= {int(one.trained_s // (3600 * hours)) for one in there}


def test_the_time_that_a_stage_was_trained_for_goes_on_over_a_resume(tmp_path: Path) -> None:
    saved(str(tmp_path), 1)
    folder = tmp_path / "checkpoints/step-000000001"
    assert 0 <= json.loads((folder / "MANIFEST.json").read_text())["trained_s"] < 600
    rewrite(folder, trained_s=5000.0)
    checkpoints = Checkpoints(Folder(tmp_path), CONFIG)
    checkpoints.restore()
    checkpoints.save(2, state(2.0))
    checkpoints.wait()
    assert 5000 <= policy.saved(Folder(tmp_path) / "checkpoints")[-1].trained_s < 5600


def test_what_was_never_finished_goes_at_the_next_start_but_for_the_last(tmp_path: Path) -> None:
    saved(str(tmp_path), 1, 3)
    for name in ("step-000000002", "step-000000004", "step-000000004-attempt-2"):
        (Folder(tmp_path) / "checkpoints" / name).write("state.safetensors", b"begun")
    restored = Checkpoints(Folder(tmp_path), CONFIG).restore()
    assert restored is not None and restored.step == 3
    kept = ["step-000000001", "step-000000003", "step-000000004-attempt-2"]
    assert (Folder(tmp_path) / "checkpoints").names() == kept


@pytest.mark.gpu
def test_a_state_on_a_gpu_is_copied_between_two_steps(tmp_path: Path) -> None:
    weight = torch.zeros(1 << 22, device="cuda")
    checkpoints = Checkpoints(Folder(tmp_path), CONFIG)
    for step in (1, 2):
        weight += 1
        checkpoints.save(step, {"weight": weight})
        weight.mul_(-5)  # queued at once, and must come after the copy
        weight.fill_(step)
    checkpoints.wait()
    restored = checkpoints.restore()
    assert restored is not None and not restored.state["weight"].is_cuda
    assert restored.state["weight"].unique().tolist() == [2.0]
