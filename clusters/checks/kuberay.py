"""RayCluster and RayJob of KubeRay (ray.io/v1): the fields that its operator 1.5 and 1.6 know, held to their types."""

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from clusters.checks.containers import Anything, ContainerSecurity, Fields, Mount, Quantity, Resources, Variable
from clusters.checks.job_stops import stated_by, too_short
from clusters.checks.mistakes import Mistake
from clusters.checks.open_pods import check_container, check_pod, check_service_account
from clusters.checks.pod_commands import check_pod_commands, check_runtime_env
from clusters.checks.pods import Metadata, PodTemplate, Service
from clusters.checks.resource_names import RayResource, StartOption
from clusters.checks.slips import slip_of
from clusters.checks.tokens import tokens_off
from clusters.checks.yaml_lines import Document
from clusters.config import nearest


class AuthOptions(Fields):
    """The operator makes a Secret with a token and gives it to every container of the cluster."""

    mode: Literal["token", "disabled"]
    secretName: str | None = None


class AutoscalerOptions(Fields):
    """The autoscaler beside the head."""

    version: Literal["v1", "v2"] | None = None
    idleTimeoutSeconds: int | None = None
    upscalingMode: Literal["Default", "Conservative", "Aggressive"] | None = None
    image: str | None = None
    imagePullPolicy: str | None = None
    resources: Resources | None = None
    env: list[Variable] | None = None
    envFrom: list[Anything] | None = None
    volumeMounts: list[Mount] | None = None
    securityContext: ContainerSecurity | None = None


class HeadGroup(Fields):
    """The head's pod."""

    template: PodTemplate
    rayStartParams: dict[StartOption, str] | None = None
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None
    headService: Service | None = None
    enableIngress: bool | None = None
    labels: dict[str, str] | None = None
    resources: dict[RayResource, Quantity] | None = None


class WorkerGroup(Fields):
    """Workers of one kind."""

    groupName: str
    template: PodTemplate
    replicas: int | None = None
    minReplicas: int | None = None
    maxReplicas: int | None = None
    idleTimeoutSeconds: int | None = None
    numOfHosts: int | None = None
    rayStartParams: dict[StartOption, str] | None = None
    scaleStrategy: Anything | None = None
    suspend: bool | None = None
    labels: dict[str, str] | None = None
    resources: dict[RayResource, Quantity] | None = None


class ClusterSpec(Fields):
    """A Ray cluster."""

    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] | None = None
    rayVersion: str | None = None
    authOptions: AuthOptions | None = None
    autoscalerOptions: AutoscalerOptions | None = None
    enableInTreeAutoscaling: bool | None = None
    gcsFaultToleranceOptions: Anything | None = None
    headServiceAnnotations: dict[str, str] | None = None
    managedBy: str | None = None
    networkPolicy: Anything | None = None
    suspend: bool | None = None
    tlsOptions: Anything | None = None
    upgradeStrategy: Anything | None = None


class JobSpec(Fields):
    """A job, with a cluster of its own or one chosen by labels."""

    entrypoint: str | None = None
    rayClusterSpec: ClusterSpec | None = None
    activeDeadlineSeconds: int | None = None
    backoffLimit: int | None = None
    clusterSelector: dict[str, str] | None = None
    deletionStrategy: Anything | None = None
    entrypointNumCpus: float | int | None = None
    entrypointNumGpus: float | int | None = None
    entrypointResources: str | None = None
    jobId: str | None = None
    managedBy: str | None = None
    metadata: dict[str, str] | None = None
    preRunningDeadlineSeconds: int | None = None
    runtimeEnvYAML: str | None = None
    shutdownAfterJobFinishes: bool | None = None
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] | None = None
    submitterConfig: Anything | None = None
    submitterPodTemplate: PodTemplate | None = None
    suspend: bool | None = None
    ttlSecondsAfterFinished: int | None = None


class RayCluster(Fields):
    """A RayCluster."""

    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class RayJob(Fields):
    """A RayJob."""

    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


def check_kuberay(document: Document) -> Iterator[Mistake]:
    """What is wrong with a RayCluster or a RayJob."""
    kinds: dict[str, type[BaseModel]] = {"RayCluster": RayCluster, "RayJob": RayJob}
    kind = kinds.get(str(document.value.get("kind")))
    if "kind" not in document.value:
        meant = [name for name in document.value if slip_of(name, ["kind"])]
        where = document.line(meant[:1]) if meant else document.first_line
        yield Mistake(
            where, f"Kubernetes reads no '{meant[0]}' (nearest: kind)" if meant else "kind is missing", "mend it"
        )
        return
    if kind is None:
        what = (
            f"there is no check for a {document.value.get('kind')}{nearest(str(document.value.get('kind')), [*kinds])}"
        )
        yield Mistake(document.line(["kind"]), what, "keep what is none of these in a file of its own")
        return
    try:
        kind.model_validate(document.value)
    except ValidationError as error:
        yield from _wrong_fields(document, kind, error)
        return
    path: list[str | int] = ["spec"] if kind is RayCluster else ["spec", "rayClusterSpec"]
    for off in tokens_off(document.value):
        yield Mistake(
            document.line(list(off)), "token authentication is turned off", "set RAY_AUTH_MODE=token, or leave it"
        )
    yield from check_pod_commands(document)
    if document.value["spec"].get("clusterSelector") is not None:
        what = "the job runs on another cluster, at which no check looks"
        yield Mistake(document.line(["spec", "clusterSelector"]), what, "give it a rayClusterSpec of its own")
    if kind is RayJob:
        yield from check_runtime_env(document)
    cluster = document.value["spec"] if kind is RayCluster else document.value["spec"].get("rayClusterSpec")
    if cluster is not None:
        yield from _check_cluster(document, path, cluster)
    submitter = document.value["spec"].get("submitterPodTemplate")
    if submitter is not None:
        yield from check_pod(document, ["spec", "submitterPodTemplate"], submitter)


def _wrong_fields(document: Document, kind: type[BaseModel], error: ValidationError) -> Iterator[Mistake]:
    for problem in error.errors():
        path = [part for part in problem["loc"] if part not in ("str", "int", "float", "[key]")]
        where = ".".join(map(str, path))
        line = document.line(path)
        if problem["type"] == "extra_forbidden":
            known = sorted(_fields_at(kind, path[:-1]))
            what = f"KubeRay knows no '{path[-1]}' in {where.rpartition('.')[0]}{nearest(str(path[-1]), known)}"
            yield Mistake(line, what, "mend it: it would be dropped or refused")
        elif problem["type"] == "missing":
            yield Mistake(line, f"{where} is missing", "add it")
        else:
            got = "" if problem["loc"][-1:] == ("[key]",) else f" (got {problem['input']!r})"
            what = f"{where}: {problem['msg'].removeprefix('Value error, ')}{got}"
            yield Mistake(line, what, "mend the value" if got else "mend the name")


def _fields_at(kind: type[BaseModel], path: list[str | int]) -> set[str]:
    """The fields of the part of an object that stands at a path."""
    for part in path:
        if isinstance(part, str) and part in kind.model_fields:
            kind = _model_in(kind.model_fields[part].annotation) or kind
    return set(kind.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(part) for part in getattr(annotation, "__args__", ()))
    return next((model for model in found if model is not None), None)


def _check_cluster(document: Document, path: list[str | int], cluster: dict[str, Any]) -> Iterator[Mistake]:
    if (cluster.get("authOptions") or {}).get("mode") != "token":
        line = document.line([*path, "authOptions", "mode"])
        yield Mistake(line, "token authentication is not on", "add `authOptions: {mode: token}` to the cluster's spec")
    ours = version("ray")
    if cluster.get("rayVersion") != ours:
        what = f"rayVersion is {cluster.get('rayVersion')} and this project's Ray is {ours}"
        yield Mistake(document.line([*path, "rayVersion"]), what, f"write `rayVersion: {ours}`")
    if cluster.get("autoscalerOptions"):
        yield from check_container(document, [*path, "autoscalerOptions"], cluster["autoscalerOptions"])
    head = cluster["headGroupSpec"]
    for place in _open_head(head):
        line = document.line([*path, "headGroupSpec", *place])
        yield Mistake(line, "the head, which runs jobs, is open to others", "ClusterIP, and come by port-forward")
    yield from check_pod(document, [*path, "headGroupSpec", "template"], head["template"])
    containers = head["template"]["spec"]["containers"]
    for what, mend in too_short(stated_by(containers[0])) if containers else ():  # the first is Ray's
        line = document.line([*path, "headGroupSpec", "template", "spec", "containers", 0, "env"])
        yield Mistake(line, what, mend)
    if not cluster.get("enableInTreeAutoscaling"):  # the autoscaler beside the head asks Kubernetes for workers
        yield from check_service_account(document, [*path, "headGroupSpec", "template"], head["template"])
    for place, group in enumerate(cluster.get("workerGroupSpecs") or []):
        here = [*path, "workerGroupSpecs", place]
        # Left out, replicas are the minimum's and any number may come: so KubeRay's own defaults.
        low = group.get("minReplicas") or 0
        now = low if group.get("replicas") is None else group["replicas"]
        high = 2**31 - 1 if group.get("maxReplicas") is None else group["maxReplicas"]
        if not low <= now <= high:
            what = f"replicas: {now} is not between minReplicas {low} and maxReplicas {high}"
            yield Mistake(document.line([*here, "replicas"]), what, "mend one of them")
        yield from check_pod(document, [*here, "template"], group["template"])
        yield from check_service_account(document, [*here, "template"], group["template"])


def _open_head(head: dict[str, Any]) -> Iterator[list[str]]:
    """Where the head's service is one that others than the cluster's own pods can reach."""
    if head.get("serviceType", "ClusterIP") != "ClusterIP":
        yield ["serviceType"]
    if head.get("enableIngress"):
        yield ["enableIngress"]
    service = (head.get("headService") or {}).get("spec") or {}
    if service.get("type", "ClusterIP") != "ClusterIP":
        yield ["headService", "spec", "type"]
    if service.get("externalIPs"):
        yield ["headService", "spec", "externalIPs"]
