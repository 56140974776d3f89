"""Machines of a cluster: EC2's fields by botocore's own model, Google's by its reference; nobody is asked."""

import functools
import re
from collections.abc import Iterator
from typing import Any

from clusters.checks.google_nodes import check_google_node
from clusters.checks.mistakes import Mistake
from clusters.checks.yaml_lines import Document
from clusters.config import InputError, nearest


def check_nodes(document: Document, config: dict[str, Any]) -> Iterator[Mistake]:
    """What is wrong with the machines that each node type of a file for `ray up` asks for."""
    types = config.get("available_node_types") or {}
    if not types:
        line = document.line(["available_node_types"])
        yield Mistake(line, "which machines there are is left to Ray, whose own no check sees", "name node types")
    for name, node_type in types.items():
        path = ("available_node_types", name, "node_config")
        check_node = {"aws": _check_aws_node, "gcp": check_google_node}.get(config["provider"]["type"])
        if config["provider"]["type"] == "aws" and name == config.get("head_node_type"):
            yield from _check_aws_head(document, path, node_type["node_config"])
        if check_node is not None:
            yield from check_node(document, path, node_type["node_config"])


def _check_aws_head(document: Document, path: tuple[str, ...], node: dict[str, Any]) -> Iterator[Mistake]:
    if "IamInstanceProfile" not in node:
        what = "the head would get Ray's own role, which may write every bucket"
        yield Mistake(
            document.line(path), what, "give it an IamInstanceProfile with iam:PassRole for the workers' role alone"
        )


def _check_aws_groups(document: Document, path: tuple[str, ...], node: dict[str, Any]) -> Iterator[Mistake]:
    """Groups that are named instead of written down, here or at a network interface."""
    places: list[tuple[tuple[str | int, ...], Any]] = [((), node)]
    interfaces = node.get("NetworkInterfaces")
    places += [
        (("NetworkInterfaces", n), one) for n, one in enumerate(interfaces if isinstance(interfaces, list) else [])
    ]
    for place, section in places:
        for key in ("SecurityGroupIds", "SecurityGroups", "Groups"):
            if isinstance(section, dict) and section.get(key):
                what = f"{key} names a firewall whose rules no check sees"
                mend = "take it out: Ray makes one with port 22 alone, or as provider.security_group says"
                yield Mistake(document.line([*path, *place, key]), what, mend)


def _check_aws_subnets(document: Document, path: tuple[str, ...], node: dict[str, Any]) -> Iterator[Mistake]:
    """Ray's own SubnetIds, of which it gives EC2 one as SubnetId (aws/node_provider.py), whatever stood there."""
    names = node.get("SubnetIds", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        yield Mistake(document.line([*path, "SubnetIds"]), "SubnetIds is no list of names", "write [subnet-…]")
    if "SubnetId" in node:
        line = document.line([*path, "SubnetId"])
        yield Mistake(line, "Ray puts a subnet of its own choice over SubnetId", "write `SubnetIds: [subnet-…]`")


def _check_aws_node(document: Document, path: tuple[str, ...], node: dict[str, Any]) -> Iterator[Mistake]:
    """EC2's RunInstances, from the model that botocore carries; nothing is asked of AWS."""
    try:
        from botocore.validate import ParamValidator
    except ImportError:
        raise InputError("aws: pip install boto3, which `ray up` asks for too; EC2's fields are read from it") from None
    yield from _check_aws_groups(document, path, node)
    yield from _check_aws_subnets(document, path, node)
    asked = {name: value for name, value in node.items() if name not in ("SubnetIds", "SubnetId")}
    report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **asked}, _run_instances())
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
