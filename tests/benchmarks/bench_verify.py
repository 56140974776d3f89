"""verify against a plain read and SHA-256 of the same files, one after another, in as many processes.

The peer hashes each file once and knows nothing of images; verify also holds every image against the index. Both hash
each byte once.
Pages of the files are dropped before a cold round (what lies in the disk's own cache stays there), and read once
before a warm one.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from clusters.storage import BLOCK_BYTES, Folder
from data.cases import Case, RawDataset, SourceImage
from data.config import ImportConfig, num_cores
from data.identities import load_identities
from data.index import build_manifest, count_duplicates, write_index
from data.manifest import INDEX, MANIFEST, FileRecord, manifest_bytes
from data.plan import WORK, plan_import, shard_name
from data.segments import Segment, tar_member
from data.shards import write_shard
from data.verify import verify

NUM_IMAGES, IMAGE_BYTES, IMAGES_PER_SHARD, ROUNDS = 48_000, 31_000, 6_000, 3


def run() -> list[dict[str, Any]]:
    """Megabytes per second in all, best of the rounds, taken in turns."""
    with tempfile.TemporaryDirectory() as folder:
        _write_dataset(folder)
        files = sorted(Path(folder).glob("*.*"))
        size_mb = sum(file.stat().st_size for file in files) / 1e6
        with ProcessPoolExecutor(num_cores(), get_context("spawn")) as pool:
            list(pool.map(_hash, [Path(__file__)] * 64))  # the processes are there before the clock starts
            rates = {
                state: _rates(
                    size_mb, partial(_each, before, files), partial(verify, folder), partial(_peer, pool, files)
                )
                for state, before in (("cold", _drop), ("warm", _hash))
            }
    return [
        {
            "name": f"verify of {size_mb:,.0f} MB, {state}, {num_cores()} cores; peer reads and hashes once",
            "ours": round(ours, 1),
            "peer": round(peer, 1),
            "unit": "MB/s",
            "ratio": round(ours / peer, 2),
            "floor": 0.6,
            "goal": 0.9,
        }
        for state, (ours, peer) in rates.items()
    ]


def _rates(size_mb: float, before: Callable[[], Any], *works: Callable[[], Any]) -> list[float]:
    best = [0.0 for _ in works]
    for _ in range(ROUNDS):
        for place, work in enumerate(works):
            before()
            started = time.perf_counter()
            work()
            best[place] = max(best[place], size_mb / (time.perf_counter() - started))
    return best


def _peer(pool: ProcessPoolExecutor, files: list[Path]) -> None:
    list(pool.map(_hash, files))


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as opened:
        while block := opened.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _each(function: Callable[[Path], Any], files: list[Path]) -> None:
    for file in files:
        function(file)


def _drop(file: Path) -> None:
    """Give back the pages of a file that stands on the disk already."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write_dataset(folder: str) -> None:
    """A dataset whose images are random bytes: verify never decodes one."""
    cases = [Case(f"c{number}", f"p{number}", (SourceImage(f"image {number}", bytes),)) for number in range(NUM_IMAGES)]
    raw = RawDataset("CC0", "nobody", "unlabelled", (), cases, "an image")
    config = ImportConfig(source="random", raw="/raw", out=folder, images_per_shard=IMAGES_PER_SHARD)
    plan, out = plan_import(raw, config, load_identities(config)), Folder(folder)
    records = [write_shard(out, number, _segments(planned)) for number, planned in enumerate(plan.shards)]
    rows = [out.read_json(f"{WORK}/{shard_name(record.shard)}.json")["rows"] for record in records]
    index, census = write_index(out, rows, raw, plan)
    files = {INDEX: index} | {
        shard_name(r.shard): FileRecord(size=r.size, sha256=r.sha256, rest_sha256=r.rest_sha256) for r in records
    }
    known = census.known()
    counts = count_duplicates(known, config, lambda image: rows[0][image])
    out.write(MANIFEST, manifest_bytes(build_manifest(raw, config, plan, known, [], 0, counts, files)))
    out.remove(WORK)


def _segments(cases: tuple[Case, ...]) -> Iterator[Segment]:
    for case in cases:
        content = os.urandom(IMAGE_BYTES)
        digest = hashlib.sha256(content).hexdigest()
        member = f"{case.key}.0.jpg"
        row = {
            "name": member, "key": case.key, "patient": case.patient, "split": case.split, "member": member,
            "offset": 512, "size": len(content), "extension": "jpg", "width": 256, "height": 256, "sha256": digest,
            "pixel_sha256": digest, "dhash": int(digest[:16], 16), "uncertain": [],
        }  # fmt: skip
        yield Segment(tar_member(member, content), [row], [], 1, 0)
