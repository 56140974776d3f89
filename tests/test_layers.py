"""The rooms stand in a line, and what the project says of itself is true."""

import ast
import itertools
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from clusters.drivers import PACKAGES
from data.dicom.decode import DECODER

ROOT = Path(__file__).parents[1]
ROOMS = ["clusters", "data", "pretrain", "finetune"]


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    later = set(ROOMS[ROOMS.index(room) + 1 :])
    assert sources(room)
    for path in sources(room):
        assert not imports_of(path) & later, path


def test_only_clusters_knows_ray_and_wandb() -> None:
    for room in ROOMS[1:]:
        for path in sources(room):
            assert not imports_of(path) & {"ray", "wandb"}, path
    top_level = [
        node.names[0].name if isinstance(node, ast.Import) else node.module
        for path in sources("clusters")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    assert not {"ray", "wandb"} & {str(name).split(".")[0] for name in top_level}


def test_nothing_on_disk_is_code() -> None:
    """No pickle is read anywhere: not by name, and not through torch.load, pandas or numpy's allow_pickle.

    What the driver hands to its workers, by way of Ray, which pickles it anyhow, is not on disk.
    """
    code = re.compile(
        r"(?<!safetensors\.)torch\.(load|save|jit\.load)\(|^from torch import .*\b(load|save)\b|torch\.export\.load"
        r"|allow_pickle=True|read_pickle|pickle\.load|\bmarshal\b|\b(eval|exec)\([^)]",
        re.MULTILINE,
    )
    for room in ROOMS:
        for path in sources(room):
            assert not imports_of(path) & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, path
            found = [match[0] for match in code.finditer(path.read_text())]
            assert found == ["pickle.load"] * (path.name == "launch.py"), (path, found)


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.splitlines()]


def test_the_lock_has_a_hash_for_every_package_and_names_no_host() -> None:
    text = (ROOT / "requirements.lock").read_text()
    blocks = re.split(r"\n(?=[a-z0-9])", text.strip())
    assert len(blocks) > 50
    for block in blocks:
        assert "==" in block
        assert "--hash=sha256:" in block, block.splitlines()[0]
    assert "://" not in text


def test_no_file_names_a_machine_or_a_registry() -> None:
    private = re.compile(
        "|".join(["pypi" + r"\.org", "python" + "hosted", "/" + "work/", "/" + "root/", "/" + r"home/\w"])
    )
    for path in tracked():
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".lock", ""} and path.is_file():
            assert not private.search(path.read_text(errors="replace")), path


def test_what_is_told_to_be_installed_is_what_the_extras_hold_and_not_a_stranger_s_package() -> None:
    """The project is on no index: there its name may be anybody's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "Private :: Do Not Upload" in project["classifiers"]
    extras = project["optional-dependencies"]
    assert {"s3": [PACKAGES["s3"]], "dicom": [DECODER]} == extras
    assert set(PACKAGES.values()) == {*extras["s3"]}
    from_an_index = re.compile(rf"""{project["name"]}\[|pip3? install [^`\n]*\b{project["name"]}\b""")
    for path in tracked():
        if path.suffix in {".py", ".md", ".yaml", ".sh", ""} and path.is_file() and path != Path(__file__):
            assert not from_an_index.search(path.read_text(errors="replace")), path
    assert set(re.findall(r"pip install '\.\[(\w+)\]'", (ROOT / "README.md").read_text())) == extras.keys()


def test_the_readme_s_tree_is_the_tree() -> None:
    """Every file that the README's tree names exists, and it leaves out no file of a room.

    A folder that it names as a whole (`sources/`, `methods/`) speaks for its files.
    """
    readme = (ROOT / "README.md").read_text()
    tree = re.search(r"```\n(pyproject\.toml.*?)```", readme, flags=re.DOTALL)
    assert tree is not None
    room, named = ROOT, set()
    for line in tree.group(1).splitlines():
        if not line.strip():
            continue
        words = [word.rstrip(",") for word in line.split()]
        names = list(itertools.takewhile(lambda word: word.endswith(".py"), words)) or words[:1]
        if not line.startswith(" "):
            room = ROOT / names[0]
            assert room.exists(), names[0]
            named.add(room)
        else:
            for name in names:
                assert (room / name).exists(), f"{room.name}/{name}"
                named.add(room / name)
    there = {path for folder in ROOMS for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py"}
    rooms = {ROOT / room for room in ROOMS}
    assert not {path for path in there - named if path.parent in rooms or path.parent not in named}
