"""Container images and packages by exact version."""

import re

PINNED_PACKAGE = re.compile(r"==|@ |--require-hashes")
INSTALL = re.compile(r"\bpip install\b(?P<rest>[^;&|\n]*)")


def is_pinned(image: str) -> bool:
    """Whether an image's name says which one: by digest, or by a tag with a full version."""
    name = image.rsplit("/", 1)[-1]
    return "@sha256:" in name or re.search(r":v?\d+\.\d+\.\d+", name) is not None


def unpinned_installs(command: str) -> list[str]:
    """The packages that a command's `pip install` names without a version, unless hashes are asked for."""
    found = []
    for match in INSTALL.finditer(command):
        words = [word.strip("\"'") for word in match["rest"].split()]
        if "--require-hashes" not in words:
            found += [w for w in words if re.match(r"[A-Za-z]", w) and not PINNED_PACKAGE.search(w) and w != "."]
    return found
