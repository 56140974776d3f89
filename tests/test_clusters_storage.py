"""Writes that are tried again, and those for which this would be of no use."""

import errno
import os

import pytest

from clusters import retries
from clusters.config import InputError
from clusters.retries import retried
from clusters.storage import Folder


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "RETRY_AFTER_S", (0.0, 0.0, 0.0))


class Busy:
    """Fails so many times, then works."""

    def __init__(self, times: int, error: OSError) -> None:
        self.times, self.error, self.calls = times, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "written"


PASSING = [
    OSError(errno.EIO, "I/O"), OSError(errno.EBUSY, "slow down"), OSError(errno.ESTALE, "stale"), TimeoutError(),
    ConnectionResetError(errno.ECONNRESET, "reset"),
]  # fmt: skip
LASTING = [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EROFS, errno.EFBIG, errno.ENOTDIR]


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("sftp://me:Se-cret@host/data", "sftp://***@host/data"),
        ("simplecache::s3://AKIA:Se-cret@bucket/data", "simplecache::s3://***@bucket/data"),
        ("https://host/data?X-Amz-Signature=Se-cret&x=1", "https://host/data?***&x=1"),
        ("https://host/data?sv=2&sig=Se-cret", "https://host/data?sv=2&***"),
        ("https://Se-cret@host/data", "https://***@host/data"),
        ("ftp://user:p@Se-cret@host/data", "ftp://***@host/data"),
        ("https://host/data;sig=Se-cret", "https://host/data;***"),
        ("https://host/data#access_token=Se-cret", "https://host/data#***"),
        ("https://host/data?%73ig=Se-cret&x=1", "https://host/data?***&x=1"),
        ("sftp://user:pa%2FSe-cret@host/data", "sftp://***@host/data"),
        ("https://Se%2F-cret@host/data", "https://***@host/data"),
        ("https://host/data?password=a%26Se-cret&x=1", "https://host/data?***&x=1"),
        *(
            (f"https://host/data?x=1&{name}=Se-cret", "https://host/data?x=1&***")
            for name in ("api_key", "key", "passwd", "pwd", "secret", "private-token", "X-Plex-Token", "AWSAccessKeyId")
        ),
    ],
)
def test_a_location_with_a_key_is_refused_without_it(location: str, told: str) -> None:
    with pytest.raises(InputError, match="a key stands in this location, and locations are written") as caught:
        Folder(location)
    assert str(caught.value).startswith(told) and "Se-cret" not in str(caught.value)


@pytest.mark.parametrize(
    "location", ["memory://a/b:c@d", "/data/a:b@c", "memory://host/x?signed=1", "memory://a/key=1/b"]
)
def test_other_locations_are_taken_as_they_are(location: str) -> None:
    assert Folder(location).location == location


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__ + str(error.errno))
def test_what_may_pass_is_tried_again_and_said_once(error: OSError, capsys: pytest.CaptureFixture[str]) -> None:
    busy = Busy(2, error)
    assert retried(busy, "s3://bucket/file") == "written"
    assert busy.calls == 3
    said = capsys.readouterr().out
    assert said.count("s3://bucket/file could not be written") == 1 and said.count("\n") == 1


@pytest.mark.parametrize("number", LASTING, ids=errno.errorcode.get)
def test_what_stays_is_raised_at_once(number: int) -> None:
    full = Busy(1, OSError(number, os.strerror(number)))
    with pytest.raises(OSError, match=os.strerror(number)):
        retried(full, "here")
    assert full.calls == 1


def test_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    down = Busy(99, TimeoutError("no answer"))
    with pytest.raises(TimeoutError, match="no answer"):
        retried(down, "here")
    assert down.calls == 4
    assert capsys.readouterr().out.count("trying again") == 1
