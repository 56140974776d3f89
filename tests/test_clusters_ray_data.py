"""The end of a map by Ray Data, whose threads outlive it; without Ray, with threads of the name that it gives them."""

import threading
from collections.abc import Iterator

import pytest

from clusters import ray_data


@pytest.fixture
def threads() -> Iterator[list[tuple[threading.Thread, threading.Event]]]:
    """Two that work until their events are set."""
    made = []
    for number in range(2):
        event = threading.Event()
        thread = threading.Thread(target=event.wait, name=f"StreamingExecutor-{number}", daemon=True)
        thread.start()
        made.append((thread, event))
    yield made
    for thread, event in made:
        event.set()
        thread.join()


Threads = list[tuple[threading.Thread, threading.Event]]


def test_the_end_waits_for_a_thread_that_is_slow_and_not_for_those_of_others(
    threads: Threads, capsys: pytest.CaptureFixture[str]
) -> None:
    (others, _), (ours, event) = threads
    threading.Timer(0.3, event.set).start()
    ray_data._wait_for_executors([others], timeout_s=60)
    assert not ours.is_alive()
    assert others.is_alive()
    assert capsys.readouterr().err == ""


def test_a_thread_that_does_not_end_is_said(threads: Threads, capsys: pytest.CaptureFixture[str]) -> None:
    (others, _), (ours, _) = threads
    ray_data._wait_for_executors([others], timeout_s=0.1)
    assert ours.is_alive()
    assert "(StreamingExecutor-1) still works after 0.1 s" in capsys.readouterr().err
