"""Pods of Kubernetes, as far as a Ray cluster's file has need of them; a field not named here is refused.

Names and types are those of the Kubernetes core/v1 API. Parts that are seldom written wrongly (affinity, probes) are
taken as they are.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Quantity = str | int | float
Anything = dict[str, Any]


class Fields(BaseModel):
    """A part of a Kubernetes object: unknown fields refused, and no value taken for one of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Fields):
    """Of any object."""

    name: str | None = None
    generateName: str | None = None
    namespace: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class Variable(Fields):
    """One variable of a container's environment."""

    name: str
    value: str | None = None
    valueFrom: Anything | None = None


class Port(Fields):
    """A port that a container serves."""

    containerPort: int
    name: str | None = None
    protocol: Literal["TCP", "UDP", "SCTP"] | None = None
    hostPort: int | None = None


class Resources(Fields):
    """What a container asks for and may use at most."""

    requests: dict[str, Quantity] | None = None
    limits: dict[str, Quantity] | None = None


class Mount(Fields):
    """A volume in a container."""

    name: str
    mountPath: str
    subPath: str | None = None
    readOnly: bool | None = None


class ContainerSecurity(Fields):
    """What a container may do."""

    allowPrivilegeEscalation: bool | None = None
    capabilities: Anything | None = None
    privileged: bool | None = None
    readOnlyRootFilesystem: bool | None = None
    runAsGroup: int | None = None
    runAsNonRoot: bool | None = None
    runAsUser: int | None = None
    seccompProfile: Anything | None = None


class Container(Fields):
    """One container of a pod."""

    name: str
    image: str
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    workingDir: str | None = None
    env: list[Variable] | None = None
    envFrom: list[Anything] | None = None
    ports: list[Port] | None = None
    resources: Resources | None = None
    volumeMounts: list[Mount] | None = None
    securityContext: ContainerSecurity | None = None
    lifecycle: Anything | None = None
    livenessProbe: Anything | None = None
    readinessProbe: Anything | None = None
    startupProbe: Anything | None = None


class Claim(Fields):
    """A claimed volume."""

    claimName: str
    readOnly: bool | None = None


class EmptyDir(Fields):
    """A folder that ends with its pod."""

    medium: Literal["", "Memory"] | None = None
    sizeLimit: Quantity | None = None


class Volume(Fields):
    """A volume of a pod, of one kind."""

    name: str
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None
    secret: Anything | None = None
    configMap: Anything | None = None
    csi: Anything | None = None
    nfs: Anything | None = None
    ephemeral: Anything | None = None
    projected: Anything | None = None
    hostPath: Anything | None = None


class PodSecurity(Fields):
    """As whom a pod runs."""

    fsGroup: int | None = None
    fsGroupChangePolicy: Literal["Always", "OnRootMismatch"] | None = None
    runAsGroup: int | None = None
    runAsNonRoot: bool | None = None
    runAsUser: int | None = None
    seccompProfile: Anything | None = None
    supplementalGroups: list[int] | None = None


class ServiceSpec(Fields):
    """A service, as far as it is looked at: Kubernetes has more fields, and refuses what it does not know itself."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] | None = None
    externalIPs: list[str] | None = None


class Service(Fields):
    """What a Ray head is reached by."""

    apiVersion: str | None = None
    kind: Literal["Service"] | None = None
    metadata: Metadata | None = None
    spec: ServiceSpec | None = None
    status: Anything | None = None


class Toleration(Fields):
    """A taint of nodes that a pod puts up with."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    tolerationSeconds: int | None = None


class PodSpec(Fields):
    """A pod."""

    containers: list[Container]
    initContainers: list[Container] | None = None
    volumes: list[Volume] | None = None
    nodeSelector: dict[str, str] | None = None
    tolerations: list[Toleration] | None = None
    affinity: Anything | None = None
    topologySpreadConstraints: list[Anything] | None = None
    serviceAccountName: str | None = None
    automountServiceAccountToken: bool | None = None
    securityContext: PodSecurity | None = None
    imagePullSecrets: list[Anything] | None = None
    restartPolicy: Literal["Always", "OnFailure", "Never"] | None = None
    terminationGracePeriodSeconds: int | None = None
    priorityClassName: str | None = None
    runtimeClassName: str | None = None
    schedulerName: str | None = None
    hostNetwork: bool | None = None


class PodTemplate(Fields):
    """A pod to be made."""

    metadata: Metadata | None = None
    spec: PodSpec
