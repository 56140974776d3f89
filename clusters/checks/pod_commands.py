"""What the containers of a KubeRay file and its job run: nothing downloaded unseen, installed or without a token."""

import shlex
from collections.abc import Iterator
from typing import Any

import yaml

from clusters.checks.downloads import RUN_UNSEEN, runs_downloads
from clusters.checks.images import wrong_installs
from clusters.checks.mistakes import Mistake
from clusters.checks.python_commands import wrong_python
from clusters.checks.starts import wrong_starts
from clusters.checks.yaml_lines import Document, Place

INSTALLERS = ("pip", "uv", "conda", "container", "image_uri")
FOLDERS = ("working_dir", "py_modules")


def check_pod_commands(document: Document) -> Iterator[Mistake]:
    """What is wrong with any text of the file that may be a command: a container's, a probe's, a job's."""
    loaded: set[str] = set()
    for path, text in document.texts():
        if runs_downloads(text, loaded):
            yield Mistake(document.line(path), RUN_UNSEEN, "have it in the image, from the lock")
        for what, mend in (*wrong_starts(text, on=True), *wrong_installs(text), *wrong_python(text)):
            yield Mistake(document.line(path), what, mend)
    for path, words in _listed(document.value):
        for what, mend in (*wrong_starts(words, on=True), *wrong_installs(words), *wrong_python(words)):
            yield Mistake(document.line(path), what, mend)


def check_runtime_env(document: Document) -> Iterator[Mistake]:
    """What a job's runtime environment would bring to the nodes beside the image."""
    text, line = document.value["spec"].get("runtimeEnvYAML"), document.line(["spec", "runtimeEnvYAML"])
    if text is None:
        return
    try:
        asked = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        asked = None
    if not isinstance(asked, dict):
        yield Mistake(line, "runtimeEnvYAML is no `key: value` lines", "mend it")
        return
    for key in asked:
        if key in INSTALLERS:
            yield Mistake(line, f"runtimeEnvYAML installs by {key} what no lock holds", "have it in the image")
        elif key in FOLDERS and "://" in str(asked[key]):
            yield Mistake(line, f"the {key} of runtimeEnvYAML is fetched and run unseen", "have it in the image")


def _listed(value: Any, path: Place = ()) -> Iterator[tuple[Place, str]]:
    """Each container's `command` and `args`, and each `command` of a probe or hook, whose words stand in a list."""
    if isinstance(value, dict):
        parts = [value[key] for key in ("command", "args") if isinstance(value.get(key), list)]
        if parts and all(len(str(word).split()) < 2 for part in parts for word in part):  # others are texts themselves
            yield (*path, "command" if "command" in value else "args"), shlex.join(str(w) for p in parts for w in p)
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _listed(item, (*path, key))
