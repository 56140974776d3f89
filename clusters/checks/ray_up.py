"""Files for `ray up`: Ray's own schema and defaults, authentication, firewalls, and nothing unpinned."""

import copy
import functools
import logging
from collections.abc import Iterator
from typing import Any

from clusters.checks.cloud_nodes import check_nodes
from clusters.checks.firewall import is_ssh, too_wide
from clusters.checks.images import is_pinned
from clusters.checks.job_stops import stated_in, too_short
from clusters.checks.machine_folders import holds_keys
from clusters.checks.mistakes import Mistake
from clusters.checks.node_commands import check_commands, check_containers
from clusters.checks.providers import check_provider
from clusters.checks.slips import RESOURCES, slip_of
from clusters.checks.starts import TOKEN_MODE
from clusters.checks.tokens import tokens_off
from clusters.checks.yaml_lines import Document
from clusters.config import nearest


def check_ray_up(document: Document) -> Iterator[Mistake]:
    """What is wrong with a cluster file for `ray up`."""
    broken = list(_check_schema(document))
    yield from broken
    if broken:  # what follows reads fields of the right types
        return
    yield from _check_prepared(document)
    config = document.value
    yield from check_provider(document, config["provider"], sorted(_schema()["properties"]["provider"]["properties"]))
    yield from _check_authentication(document, config)
    yield from check_commands(document, config)
    yield from check_containers(document, config)
    yield from _check_job_stops(document, config)
    yield from _check_openings(document, config)
    yield from _check_pins(document, config)
    yield from check_nodes(document, config)
    yield from _check_resources(document, config)


def _check_resources(document: Document, config: dict[str, Any]) -> Iterator[Mistake]:
    """Names that Ray takes for a resource of one's own, so that nothing finds the cores, GPUs or memory."""
    for node_type, node in (config.get("available_node_types") or {}).items():
        for name in node.get("resources") or {}:  # of types that Ray's schema has looked at
            meant = slip_of(str(name), RESOURCES)
            if meant is not None:
                where = document.line(["available_node_types", node_type, "resources", name])
                yield Mistake(where, f"Ray knows no {RESOURCES[meant]} by '{name}'", f"write {meant}")


def _check_schema(document: Document) -> Iterator[Mistake]:
    import jsonschema

    for error in jsonschema.Draft7Validator(_schema()).iter_errors(document.value):
        path = list(error.absolute_path)
        where = ".".join(map(str, path)) or "the file"
        if error.validator == "additionalProperties" and isinstance(error.schema, dict):
            known = sorted(error.schema.get("properties", {}))
            for name in [name for name in error.instance if name not in known]:
                hint = nearest(str(name), known)
                yield Mistake(document.line([*path, name]), f"{where} takes no '{name}'{hint}", "mend or remove it")
        else:
            needed = [str(name) for name in error.validator_value] if error.validator == "required" else []
            for name in error.instance if needed else ():  # a section that takes any name says no more than what lacks
                meant = slip_of(str(name), [one for one in needed if one not in error.instance])
                if meant is not None:
                    line = document.line([*path, name])
                    yield Mistake(line, f"{where} takes no '{name}' (nearest: {meant})", "mend or remove it")
            mend = "see Ray's cluster YAML reference"
            yield Mistake(document.line(path), f"{where}: {error.message.splitlines()[0]}", mend)


@functools.cache
def _schema() -> dict[str, Any]:
    """Ray's own schema of a file for `ray up`."""
    import json
    from pathlib import Path

    import ray.autoscaler

    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def _check_prepared(document: Document) -> Iterator[Mistake]:
    """What Ray itself does with the file before it starts anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        validate_config(prepare_config(copy.deepcopy(document.value)))
    except Exception as error:  # it raises whatever its parts raise
        keys = [key for key in document.value if f"`{key}`" in str(error)] or ["available_node_types"]
        yield Mistake(document.line([keys[0]]), " ".join(str(error).split()), "see Ray's cluster YAML reference")


def _check_authentication(document: Document, config: dict[str, Any]) -> Iterator[Mistake]:
    for path in tokens_off(config):
        yield Mistake(document.line(list(path)), "token authentication is turned off", f"write {TOKEN_MODE}")
    mounts = config.get("file_mounts") or {}
    if not any(str(target).endswith(".ray/auth_token") for target in mounts):
        mend = "add `~/.ray/auth_token: ~/.ray/auth_token` to file_mounts"
        yield Mistake(document.line(["file_mounts"]), "the nodes get no token file", mend)
    synced = [(("cluster_synced_files", n), path) for n, path in enumerate(config.get("cluster_synced_files") or [])]
    for place, source in [*((("file_mounts", target), mounts[target]) for target in mounts), *synced]:
        if holds_keys(str(source)):
            line = document.line(place)
            mend = "give the machines a role or an account of their own"
            yield Mistake(line, f"{source} takes keys of yours to every machine", mend)


def _check_job_stops(document: Document, config: dict[str, Any]) -> Iterator[Mistake]:
    """How long jobs have to end, by the environment of the head: its container's, and that of its `ray start`."""
    docker, starts = config.get("docker") or {}, config.get("head_start_ray_commands") or []
    given = [*(docker.get("run_options") or []), *(docker.get("head_run_options") or []), *starts]
    for what, mend in too_short([value for text in given for value in stated_in(str(text))]):
        yield Mistake(document.line(["docker", "run_options"] if docker else ["head_start_ray_commands"]), what, mend)


def _check_openings(document: Document, config: dict[str, Any]) -> Iterator[Mistake]:
    """What lets others in by firewall rules."""
    rules = (config["provider"].get("security_group") or {}).get("IpPermissions") or []
    for place, network in too_wide(rules):
        line = document.line(["provider", "security_group", "IpPermissions", place])
        whom = "the whole internet" if network.prefixlen == 0 else f"all of {network}"
        yield Mistake(line, f"a port is open to {whom}", "open 22 alone, and tunnel")
    for place, rule in enumerate(rules):
        if isinstance(rule, dict) and rule.get("PrefixListIds") and not is_ssh(rule):
            line = document.line(["provider", "security_group", "IpPermissions", place])
            yield Mistake(line, "a port is open to a prefix list, whose ranges no check sees", "name the ranges")


def _check_pins(document: Document, config: dict[str, Any]) -> Iterator[Mistake]:
    for key in ("setup_commands", "head_setup_commands"):
        if key not in config:
            yield Mistake(1, f"{key} is left to Ray, whose default installs what no lock names", f"state `{key}: []`")
    sections: list[tuple[list[str], Any]] = [(["docker"], config.get("docker"))]
    types = config.get("available_node_types") or {}
    sections += [(["available_node_types", name, "docker"], types[name].get("docker")) for name in types]
    for path, docker in sections:
        for key in ("image", "head_image", "worker_image"):
            if docker and key in docker and not is_pinned(docker[key]):
                what = f"the image {docker[key]} is not pinned"
                mend = "give a tag with a full version (:0.1.0) or a digest"
                yield Mistake(document.line([*path, key]), what, mend)
