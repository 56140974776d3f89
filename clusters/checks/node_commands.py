"""What `ray up` runs on its machines: commands, and the containers in which they run."""

import re
from collections.abc import Iterator
from typing import Any

from clusters.checks.docker_options import options_in, values_of_variable, wrong_docker_options, wrong_docker_runs
from clusters.checks.downloads import RUN_UNSEEN, runs_downloads
from clusters.checks.images import wrong_installs
from clusters.checks.mistakes import Mistake
from clusters.checks.python_commands import wrong_python
from clusters.checks.ray_options import wrong_options
from clusters.checks.starts import TOKEN_MODE, starts_ray, wrong_starts
from clusters.checks.tokens import opens_the_token
from clusters.checks.words import commands_in
from clusters.checks.yaml_lines import Document, Place

OUTSIDE = "initialization_commands"  # these run on the machine, before its container
COMMANDS = (OUTSIDE, "setup_commands", "head_setup_commands", "worker_setup_commands")
RUN_OPTIONS = ("run_options", "head_run_options", "worker_run_options")
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")


def check_commands(document: Document, config: dict[str, Any]) -> Iterator[Mistake]:
    """What is wrong with the commands of a file for `ray up`, those of its node types too."""
    for key in STARTS:
        mend = f"state {key} with {TOKEN_MODE} before `ray start`"
        if not config.get(key):
            yield Mistake(1, f"{key} is left to Ray, which starts without token authentication", mend)
        elif not any(map(starts_ray, config[key])):
            yield Mistake(document.line([key]), f"in {key} stands no `ray start` that a check could see", mend)
    asked = _containers_ask_for_tokens(config)
    for path, command in _commands(document, config):
        line = document.line(path)
        starts = wrong_starts(command, on=asked and not {OUTSIDE, "node_config"} & set(path))
        for what, mend in (
            *starts, *wrong_options(command), *wrong_docker_runs(command), *wrong_installs(command),
            *wrong_python(command),
        ):  # fmt: skip
            yield Mistake(line, what, mend)
        if opens_the_token(command):
            yield Mistake(line, "others on the machine could read the token", "leave the file 0600")
    loaded: set[str] = set()
    for path, text in document.texts():
        if runs_downloads(text, loaded):
            yield Mistake(document.line(path), RUN_UNSEEN, "have it in the image, from the lock")


def check_containers(document: Document, config: dict[str, Any]) -> Iterator[Mistake]:
    """What is wrong with the options that Ray gives to `docker run`, those of node types too."""
    types = config.get("available_node_types") or {}
    sections: list[tuple[Place, Any]] = [(("docker",), config.get("docker"))]
    sections += [(("available_node_types", name, "docker"), types[name].get("docker")) for name in types]
    for path, docker in sections:
        for key in RUN_OPTIONS:
            options = (docker or {}).get(key) or []
            placed = [(n, word) for n, option in enumerate(options) for word in _words(option)]
            words = [word for _, word in placed]
            for place, what, mend in wrong_docker_options(words):
                yield Mistake(document.line([*path, key, placed[place][0]]), what, mend)
            end = _end_of_options(words)
            if end < len(words):
                line = document.line([*path, key, placed[end][0]])
                yield Mistake(line, f"{words[end]} would be taken for the image", "take it out")
            for place, option in enumerate(options):
                if re.search(r"[;&|`\n]|\$\(", str(option)):
                    line = document.line([*path, key, place])
                    yield Mistake(line, "a command of the machine's shell stands among the options", "take it out")


def _commands(document: Document, config: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    """Each command with its place, and each text among a machine's fields, which it may run as it boots."""
    yield from ((path, text) for path, text in document.texts() if "node_config" in path)
    sections: list[tuple[Place, Any]] = [((), config)]
    sections += [(("available_node_types", n), t) for n, t in (config.get("available_node_types") or {}).items()]
    for path, section in sections:
        for key in (*COMMANDS, *STARTS):
            for place, command in enumerate(section.get(key) or []):
                yield (*path, key, place), str(command)


def _containers_ask_for_tokens(config: dict[str, Any]) -> bool:
    """Whether every container has RAY_AUTH_MODE=token among its variables, whatever its own options add to all's."""
    docker = config.get("docker") or {}
    if not (docker.get("image") or (docker.get("head_image") and docker.get("worker_image"))):
        return False
    of_all, types = docker.get("run_options") or [], config.get("available_node_types") or {}
    of_types = [(t.get("docker") or {}).get("worker_run_options") for t in types.values()]
    own = [docker.get("head_run_options"), docker.get("worker_run_options"), *of_types]
    stated = (
        values_of_variable([word for option in [*of_all, *(more or [])] for word in _words(option)], "RAY_AUTH_MODE")
        for more in own
    )
    return all(values[-1:] == ["token"] for values in stated)


def _words(option: Any) -> list[str]:
    """The words of one option of `docker run` as a file for `ray up` has it: `--env A=1`, or one of the two alone."""
    return [word for command in commands_in(str(option)) for word in command]


def _end_of_options(words: list[str]) -> int:
    """The place of the first word that is no option and no option's value."""
    options = options_in(words)
    if not options:
        return 0
    last = options[-1]
    takes_next = "=" not in words[last.place] and words[last.place + 1 : last.place + 2] == [last.value]
    return last.place + (2 if takes_next else 1)
