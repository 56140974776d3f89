"""Checkpoints: exact, verified, and never a silent start from step 0."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters.checkpoint import CheckpointConfig, Checkpoints, Superseded
from clusters.config import InputError
from clusters.storage import Folder

CONFIG = CheckpointConfig(keep=2)


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


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    saved(str(tmp_path / "original"), 1)
    name = "checkpoints/step-000000001/state.safetensors"
    content = (tmp_path / "original" / name).read_bytes()
    for place in range(0, len(content), 7):
        shutil.copytree(tmp_path / "original", tmp_path / "copy", dirs_exist_ok=True)
        altered = bytearray(content)
        altered[place] ^= 0x10
        (tmp_path / "copy" / name).write_bytes(altered)
        with pytest.raises(InputError):
            Checkpoints(Folder(tmp_path / "copy"), CONFIG).restore()
        shutil.rmtree(tmp_path / "copy")


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


def test_all_ranks_agree_on_what_is_intact(tmp_path: Path, ranks) -> None:
    saved(str(tmp_path), 1, 2)
    damage(tmp_path / "checkpoints/step-000000002/state.safetensors", "flipped")
    assert ranks.run("agree_on_a_checkpoint", str(tmp_path)) == [(1, 1.0), (1, 1.0)]


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
