"""Pods that are open to others: to their node's own network and files, as root, or by what no check sees."""

from collections.abc import Iterator
from typing import Any

from clusters.checks.images import is_pinned
from clusters.checks.mistakes import Mistake
from clusters.checks.secrets import is_secret_name
from clusters.checks.yaml_lines import Document
from clusters.config import nearest

Path = list[str | int]
PIN = "give a tag with a full version (:0.1.0) or a digest"
OF_THE_NODE = {
    "hostNetwork": "the pod's ports, the dashboard's too, are its node's own",
    "hostPID": "the pod sees every process of its node",
    "hostIPC": "the pod shares memory with every process of its node",
}


def check_pod(document: Document, path: Path, template: dict[str, Any]) -> Iterator[Mistake]:
    """What is wrong with the pods of a template."""
    pod, path = template["spec"], [*path, "spec"]
    if not (pod.get("securityContext") or {}).get("runAsNonRoot"):
        mend = "add `securityContext: {runAsNonRoot: true, runAsUser: 1000}`"
        yield Mistake(document.line([*path, "securityContext", "runAsNonRoot"]), "the pod may run as root", mend)
    for key, what in OF_THE_NODE.items():
        if pod.get(key):
            yield Mistake(document.line([*path, key]), what, f"take `{key}` out")
    yield from _check_calls(document, path, pod)
    volumes = pod.get("volumes") or []
    for place, volume in enumerate(volumes):
        if volume.get("hostPath") is not None:
            line = document.line([*path, "volumes", place, "hostPath"])
            yield Mistake(line, "the pod reaches into its node's own files", "use a claim or an emptyDir")
        image = (volume.get("image") or {}).get("reference")
        if image is not None and not is_pinned(image):
            line = document.line([*path, "volumes", place, "image", "reference"])
            yield Mistake(line, f"the image {image} is not pinned", PIN)
    for kind in ("initContainers", "containers"):
        for place, container in enumerate(pod.get(kind) or []):
            here = [*path, kind, place]
            yield from check_container(document, here, container)
            yield from _check_rights(document, here, container)
            yield from _check_mounts(document, here, container, [volume["name"] for volume in volumes])


def check_service_account(document: Document, path: Path, template: dict[str, Any]) -> Iterator[Mistake]:
    """Whether pods that have no need of Kubernetes itself are given a token for it, as they are unless told not to."""
    if template["spec"].get("automountServiceAccountToken") is not False:
        line = document.line([*path, "spec", "automountServiceAccountToken"])
        mend = "write `automountServiceAccountToken: false`"
        yield Mistake(line, "what runs in the pod gets a token for Kubernetes", mend)


def check_container(document: Document, path: Path, container: dict[str, Any]) -> Iterator[Mistake]:
    """What is wrong with one container, the autoscaler's too, which may be left without an image."""
    image = container.get("image")
    if image is not None and not is_pinned(image):
        yield Mistake(document.line([*path, "image"]), f"the image {image} is not pinned", PIN)
    rights = container.get("securityContext") or {}
    here = [*path, "securityContext"]
    if rights.get("privileged"):
        line = document.line([*here, "privileged"])
        yield Mistake(line, "a privileged container owns its node", "take `privileged` out")
    if rights.get("runAsNonRoot") is False:
        line = document.line([*here, "runAsNonRoot"])
        yield Mistake(line, "the container may run as root", "take it out: the pod's `runAsNonRoot: true` holds then")
    if (rights.get("capabilities") or {}).get("add"):
        line = document.line([*here, "capabilities", "add"])
        yield Mistake(line, "the container has rights over its node", "take `add` out of its capabilities")
    if rights.get("allowPrivilegeEscalation"):
        line = document.line([*here, "allowPrivilegeEscalation"])
        yield Mistake(line, "what runs in the container may become root", "set allowPrivilegeEscalation to false")
    for number, port in enumerate(container.get("ports") or []):
        if port.get("hostPort"):
            line = document.line([*path, "ports", number, "hostPort"])
            yield Mistake(line, f"port {port['hostPort']} of the node is open to others", "take `hostPort` out")
    if container.get("envFrom"):
        what = "envFrom brings variables that no check sees, which may turn token authentication off"
        yield Mistake(document.line([*path, "envFrom"]), what, "name each one in env, with valueFrom")
    for number, variable in enumerate(container.get("env") or []):
        if is_secret_name(variable["name"]) and variable.get("value"):
            what = f"the value of {variable['name']} stands in the file"
            yield Mistake(document.line([*path, "env", number]), what, "use valueFrom.secretKeyRef")


def _check_rights(document: Document, path: Path, container: dict[str, Any]) -> Iterator[Mistake]:
    """What a container of a pod gives up, which Kubernetes would leave it otherwise."""
    rights, here = container.get("securityContext") or {}, [*path, "securityContext"]
    if rights.get("allowPrivilegeEscalation") is None and not rights.get("privileged"):
        mend = "add `securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}`"
        yield Mistake(document.line(here), "what runs in the container may become root", mend)
    capabilities = rights.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []) and not capabilities.get("add"):
        line = document.line([*here, "capabilities"])
        yield Mistake(line, "the container keeps rights that it has no need of", "add `capabilities: {drop: [ALL]}`")
    yield from _check_calls(document, path, container)


def _check_calls(document: Document, path: Path, section: dict[str, Any]) -> Iterator[Mistake]:
    """Whether a pod or container may call all of its node's kernel, or without AppArmor's bounds."""
    rights = section.get("securityContext") or {}
    for key, what in (
        ("seccompProfile", "all of the node's kernel can be called"),
        ("appArmorProfile", "AppArmor keeps the container from nothing"),
    ):
        if (rights.get(key) or {}).get("type") == "Unconfined":
            line = document.line([*path, "securityContext", key])
            yield Mistake(line, what, f"write `{key}: {{type: RuntimeDefault}}`")


def _check_mounts(document: Document, path: Path, container: dict[str, Any], volumes: list[str]) -> Iterator[Mistake]:
    for number, mount in enumerate(container.get("volumeMounts") or []):
        if mount["name"] not in volumes:
            line = document.line([*path, "volumeMounts", number])
            what = f"no volume is named {mount['name']}{nearest(mount['name'], sorted(volumes))}"
            yield Mistake(line, what, "mend it")
