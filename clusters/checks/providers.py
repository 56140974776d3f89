"""The cloud of a file for `ray up`: what Ray reads of its `provider`, which its own schema lets anything stand in."""

from collections.abc import Iterator
from typing import Any

from clusters.checks.mistakes import Mistake
from clusters.checks.yaml_lines import Document
from clusters.config import nearest

# What Ray's autoscaler reads beside the fields that its schema describes (_private/autoscaler.py, updater.py,
# aws/config.py, gcp/config.py of 2.60). Of other clouds, and of providers of one's own, it reads what no list holds.
OF_ALL = [
    "disable_launch_config_check", "disable_node_updaters", "foreground_node_launch", "type", "use_external_head_ip",
    "use_internal_ips", "worker_liveness_check",
]  # fmt: skip
READ = {"aws": [*OF_ALL, "aws_credentials", "key_pair"], "gcp": [*OF_ALL, "_has_tpus"]}
NEEDED = {"aws": ["region"], "gcp": ["region", "availability_zone", "project_id"]}


def check_provider(document: Document, provider: dict[str, Any], described: list[str]) -> Iterator[Mistake]:
    """What is wrong with the names in a `provider` of AWS or Google Cloud; `described`: those of Ray's schema."""
    cloud = provider["type"]
    if cloud not in READ:
        return
    known = sorted({*READ[cloud], *described})
    unknown = [name for name in provider if name not in known]
    for name in unknown:
        what = f"Ray reads no '{name}' of a provider of type {cloud}{nearest(name, known)}"
        yield Mistake(document.line(["provider", name]), what, "mend or remove it: it would be passed over")
    for name in NEEDED[cloud]:
        if provider.get(name) is None and not any(f": {name})" in nearest(wrong, known) for wrong in unknown):
            yield Mistake(document.line(["provider"]), f"Ray needs a {name} of a provider of type {cloud}", "state it")
