"""What the soak makes of what it has seen; the soak itself takes half an hour, `make soak`."""

import pytest

from tests.soak import MEASURES, between_kills_s, report

STEADY = (7000.0, 900.0, 700.0, 360.0, 100.0)


def test_steps_between_which_a_kill_came_are_left_out() -> None:
    times = [0.0, 0.5, 1.0, 1.5, 31.5, 32.0, 32.5, 97.5, 98.0]
    assert between_kills_s(times) == pytest.approx(0.5)


@pytest.mark.parametrize(("kept", "code", "share"), [(1600, 0, "0.800"), (1490, 1, "0.745")])
def test_the_share_of_effective_time_is_that_of_the_steps_kept(
    kept: int, code: int, share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recoveries = [5.0] * 9 + [25.0]
    assert report(kept, 0.5, 1000.0, recoveries, [STEADY, STEADY]) == code
    said = capsys.readouterr().out
    assert f"effective training time: {share} (goal 0.75)" in said and f"10 kills in 17 min; {kept} steps kept" in said
    assert "recovery: p50 5.0 s, p95 25.0 s" in said
    assert report(kept, 0.5, 1000.0, [], [STEADY]) == code, "nobody was killed"


@pytest.mark.parametrize("place", range(len(MEASURES)))
def test_what_grows_by_more_than_a_fifth_is_named_but_for_the_disk(
    place: int, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = tuple(1.3 * value if number == place else value for number, value in enumerate(STEADY))
    assert report(1600, 0.5, 1000.0, [5.0], [STEADY, grown]) == (0 if MEASURES[place] == "disk, MB" else 1)
    assert ("grown by more than a fifth" in capsys.readouterr().out) == (MEASURES[place] != "disk, MB")
