"""Files for `ray up`: Ray's own schema and defaults, EC2's own API model, authentication, and nothing unpinned."""

import copy
import functools
import logging
import re
from collections.abc import Iterator
from typing import Any

from clusters.checks.docker_options import wrong_docker_options, wrong_docker_runs
from clusters.checks.firewall import is_ssh, too_wide
from clusters.checks.images import is_pinned, unpinned_installs
from clusters.checks.mistakes import Mistake
from clusters.checks.ray_options import wrong_options
from clusters.checks.tokens import tokens_off
from clusters.checks.words import commands_in
from clusters.checks.yaml_lines import Document
from clusters.config import InputError, nearest

COMMANDS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
RUN_OPTIONS = ("run_options", "head_run_options", "worker_run_options")
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")
TOKEN_MODE = "RAY_AUTH_MODE=token"
# Instances of Compute Engine and their scheduling, as its REST reference has them; Ray passes them on unread.
# fmt: off
GCP_INSTANCE = [
    "acceleratorType", "canIpForward", "confidentialInstanceConfig", "deletionProtection", "description", "disks",
    "guestAccelerators", "labels", "machineType", "metadata", "minCpuPlatform", "name", "networkInterfaces",
    "reservationAffinity", "resourcePolicies", "scheduling", "serviceAccounts", "shieldedInstanceConfig",
    "sourceInstanceTemplate", "sourceMachineImage", "tags",
]
# fmt: on
# fmt: off
GCP_SCHEDULING = [
    "automaticRestart", "instanceTerminationAction", "localSsdRecoveryTimeout", "maxRunDuration", "minNodeCpus",
    "nodeAffinities", "onHostMaintenance", "preemptible", "provisioningModel",
]
# fmt: on


def check_ray_up(document: Document) -> Iterator[Mistake]:
    """What is wrong with a cluster file for `ray up`."""
    broken = list(_check_schema(document))
    yield from broken
    if broken:  # what follows reads fields of the right types
        return
    yield from _check_prepared(document)
    config = document.value
    yield from _check_authentication(document, config)
    yield from _check_openings(document, config)
    yield from _check_pins(document, config)
    for name, node_type in (config.get("available_node_types") or {}).items():
        path = ("available_node_types", name, "node_config")
        check_node = {"aws": _check_aws_node, "gcp": _check_gcp_node}.get(config["provider"]["type"])
        if config["provider"]["type"] == "aws" and name == config.get("head_node_type"):
            yield from _check_aws_head(document, path, node_type["node_config"])
        if check_node is not None:
            yield from check_node(document, path, node_type["node_config"])


def _check_schema(document: Document) -> Iterator[Mistake]:
    import json
    from pathlib import Path

    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    for error in jsonschema.Draft7Validator(schema).iter_errors(document.value):
        path = list(error.absolute_path)
        where = ".".join(map(str, path)) or "the file"
        if error.validator == "additionalProperties" and isinstance(error.schema, dict):
            known = sorted(error.schema.get("properties", {}))
            for name in [name for name in error.instance if name not in known]:
                hint = nearest(str(name), known)
                yield Mistake(document.line([*path, name]), f"{where} takes no '{name}'{hint}", "mend or remove it")
        else:
            mend = "see Ray's cluster YAML reference"
            yield Mistake(document.line(path), f"{where}: {error.message.splitlines()[0]}", mend)


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
    docker = config.get("docker") or {}
    in_container = any(TOKEN_MODE in str(option) for option in docker.get("run_options", []))
    for key in STARTS:
        commands = config.get(key)
        if not commands:
            mend = f"state {key} with {TOKEN_MODE} before `ray start`"
            yield Mistake(1, f"{key} is left to Ray, which starts without token authentication", mend)
        for place, command in enumerate(commands or []):
            line = document.line([key, place])
            if re.search(r"\bray start\b", command) and TOKEN_MODE not in command and not in_container:
                yield Mistake(line, "`ray start` without token authentication", f"put {TOKEN_MODE} before it")
            for what, mend in wrong_options(command):
                yield Mistake(line, what, mend)
    if not any(str(target).endswith(".ray/auth_token") for target in config.get("file_mounts") or {}):
        mend = "add `~/.ray/auth_token: ~/.ray/auth_token` to file_mounts"
        yield Mistake(document.line(["file_mounts"]), "the nodes get no token file", mend)


def _check_openings(document: Document, config: dict[str, Any]) -> Iterator[Mistake]:
    """What lets others in: firewall rules, and containers with ports or rights of their machine."""
    rules = (config["provider"].get("security_group") or {}).get("IpPermissions") or []
    for place, network in too_wide(rules):
        line = document.line(["provider", "security_group", "IpPermissions", place])
        whom = "the whole internet" if network.prefixlen == 0 else f"all of {network}"
        yield Mistake(line, f"a port is open to {whom}", "open 22 alone, and tunnel")
    for place, rule in enumerate(rules):
        if isinstance(rule, dict) and rule.get("PrefixListIds") and not is_ssh(rule):
            line = document.line(["provider", "security_group", "IpPermissions", place])
            yield Mistake(line, "a port is open to a prefix list, whose ranges no check sees", "name the ranges")
    types = config.get("available_node_types") or {}
    sections: list[tuple[list[str], Any]] = [(["docker"], config.get("docker"))]
    sections += [(["available_node_types", name, "docker"], types[name].get("docker")) for name in types]
    for path, docker in sections:
        for key in RUN_OPTIONS:
            options = enumerate((docker or {}).get(key) or [])
            words = [(n, word) for n, option in options for part in commands_in(str(option)) for word in part]
            for place, what, mend in wrong_docker_options([word for _, word in words]):
                yield Mistake(document.line([*path, key, words[place][0]]), what, mend)
    for key in (*COMMANDS, *STARTS):
        for place, command in enumerate(config.get(key) or []):
            for what, mend in wrong_docker_runs(command):
                yield Mistake(document.line([key, place]), what, mend)


def _check_pins(document: Document, config: dict[str, Any]) -> Iterator[Mistake]:
    for key in ("setup_commands", "head_setup_commands"):
        if key not in config:
            yield Mistake(1, f"{key} is left to Ray, whose default installs what no lock names", f"state `{key}: []`")
    for key in COMMANDS:
        for place, command in enumerate(config.get(key) or []):
            for package in unpinned_installs(command):
                line = document.line([key, place])
                yield Mistake(line, f"{package} is installed in whatever version there is", f"write {package}==VERSION")
    docker = config.get("docker") or {}
    for key in ("image", "head_image", "worker_image"):
        if key in docker and not is_pinned(docker[key]):
            what = f"the image {docker[key]} is not pinned"
            yield Mistake(document.line(["docker", key]), what, "give a tag with a full version (:0.1.0) or a digest")


def _check_aws_head(document: Document, path: tuple[str, ...], node: dict[str, Any]) -> Iterator[Mistake]:
    if "IamInstanceProfile" not in node:
        what = "the head would get Ray's own role, which may write every bucket"
        yield Mistake(
            document.line(path), what, "give it an IamInstanceProfile with iam:PassRole for the workers' role alone"
        )


def _check_aws_node(document: Document, path: tuple[str, ...], node: dict[str, Any]) -> Iterator[Mistake]:
    """EC2's RunInstances, from the model that botocore carries; nothing is asked of AWS."""
    try:
        from botocore.validate import ParamValidator
    except ImportError:
        raise InputError("aws: pip install boto3, which `ray up` asks for too; EC2's fields are read from it") from None
    shape = _run_instances()
    report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node}, shape)
    for message in report.generate_report().splitlines():
        unknown = re.search(r'"(\w+)", must be one of: (.*)', message)
        if unknown is None:
            yield Mistake(document.line(path), f"EC2 refuses the node: {message}", "see EC2's RunInstances")
            continue
        within = re.search(r"Unknown parameter in (\S+):", message)
        steps = [] if within is None or within[1] == "input" else re.findall(r"\w+", within[1])
        place: list[str | int] = [int(step) if step.isdigit() else step for step in steps]
        hint = nearest(unknown[1], unknown[2].split(", "))
        yield Mistake(document.line([*path, *place, unknown[1]]), f"EC2 knows no '{unknown[1]}'{hint}", "mend it")


@functools.cache
def _run_instances() -> Any:
    import botocore.session

    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _check_gcp_node(document: Document, path: tuple[str, ...], node: dict[str, Any]) -> Iterator[Mistake]:
    for below, known in (((), GCP_INSTANCE), (("scheduling",), GCP_SCHEDULING)):
        section = node.get(below[0], {}) if below else node
        for name in section if isinstance(section, dict) else ():
            if name not in known:
                hint = nearest(name, known)
                yield Mistake(
                    document.line([*path, *below, name]), f"Compute Engine knows no '{name}'{hint}", "mend it"
                )
