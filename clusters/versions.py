"""The versions of what decides a result: Python, the packages and our own sources."""

import hashlib
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path

PACKAGES = (
    *("torch", "torchvision", "timm", "lightly", "peft", "ray", "numpy", "safetensors", "pyarrow"),
    *("opencv-python-headless", "pillow", "simplejpeg", "pydicom"),
)
"""Whose versions decide what a step computes, what pixels it sees, or whether processes understand each other."""
MANYVIEW, ROOMS = "manyview", ("clusters", "data", "pretrain", "finetune")
"""What our own sources are called among the versions, and the folders in which they lie."""
ROOT = Path(__file__).parents[1]


def versions_here() -> dict[str, str]:
    """Of this process, by name; our sources by a short hash."""
    packages = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages, MANYVIEW: source_hash(ROOT)}


def source_hash(root: Path) -> str:
    """A short hash of our sources as they lie below a folder: names and contents of *.py, nothing else."""
    digest = hashlib.sha256()
    with suppress(FileNotFoundError):  # Ray may be unpacking them anew for another node of this machine
        for path in sorted(path for room in ROOMS for path in (root / room).rglob("*")):
            if path.suffix == ".py" and "__pycache__" not in path.parts and path.is_file():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:8]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
