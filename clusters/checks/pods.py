"""Pods of Kubernetes, as far as a Ray cluster's file has need of them; a field not named here is refused.

Names and types are those of the Kubernetes core/v1 API. Parts that are seldom written wrongly (affinity, probes) are
taken as they are.
"""

from typing import Any, Literal

from pydantic import ConfigDict

from clusters.checks.containers import Anything, Container, Fields, Profile, Quantity, Resources, SELinux
from clusters.checks.resource_names import KubernetesResource


class Metadata(Fields):
    """Of any object."""

    name: str | None = None
    generateName: str | None = None
    namespace: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    creationTimestamp: Any = None
    finalizers: list[str] | None = None
    ownerReferences: list[Anything] | None = None


class Claim(Fields):
    """A claimed volume."""

    claimName: str
    readOnly: bool | None = None


class EmptyDir(Fields):
    """A folder that ends with its pod."""

    medium: Literal["", "Memory"] | None = None
    sizeLimit: Quantity | None = None


class ImageVolume(Fields):
    """The files of an image."""

    reference: str
    pullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None


class Volume(Fields):
    """A volume of a pod, of one kind; those by which a node runs what a repository or a driver of its own says, not."""

    name: str
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None
    secret: Anything | None = None
    configMap: Anything | None = None
    csi: Anything | None = None
    nfs: Anything | None = None
    ephemeral: Anything | None = None
    projected: Anything | None = None
    downwardAPI: Anything | None = None
    image: ImageVolume | None = None
    awsElasticBlockStore: Anything | None = None
    azureDisk: Anything | None = None
    azureFile: Anything | None = None
    cephfs: Anything | None = None
    cinder: Anything | None = None
    fc: Anything | None = None
    gcePersistentDisk: Anything | None = None
    glusterfs: Anything | None = None
    iscsi: Anything | None = None
    portworxVolume: Anything | None = None
    rbd: Anything | None = None
    vsphereVolume: Anything | None = None
    hostPath: Anything | None = None


class PodSecurity(Fields):
    """As whom a pod runs."""

    appArmorProfile: Profile | None = None
    fsGroup: int | None = None
    fsGroupChangePolicy: Literal["Always", "OnRootMismatch"] | None = None
    runAsGroup: int | None = None
    runAsNonRoot: bool | None = None
    runAsUser: int | None = None
    seLinuxChangePolicy: Literal["MountOption", "Recursive"] | None = None
    seLinuxOptions: SELinux | None = None
    seccompProfile: Profile | None = None
    supplementalGroups: list[int] | None = None
    supplementalGroupsPolicy: Literal["Merge", "Strict"] | None = None
    sysctls: list[Anything] | None = None


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

    activeDeadlineSeconds: int | None = None
    containers: list[Container]
    dnsConfig: Anything | None = None
    dnsPolicy: Literal["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"] | None = None
    enableServiceLinks: bool | None = None
    hostAliases: list[Anything] | None = None
    hostIPC: bool | None = None
    hostNetwork: bool | None = None
    hostPID: bool | None = None
    hostUsers: bool | None = None
    hostname: str | None = None
    hostnameOverride: str | None = None
    initContainers: list[Container] | None = None
    volumes: list[Volume] | None = None
    nodeName: str | None = None
    nodeSelector: dict[str, str] | None = None
    os: Anything | None = None
    overhead: dict[KubernetesResource, Quantity] | None = None
    preemptionPolicy: Literal["PreemptLowerPriority", "Never"] | None = None
    priority: int | None = None
    tolerations: list[Toleration] | None = None
    affinity: Anything | None = None
    topologySpreadConstraints: list[Anything] | None = None
    readinessGates: list[Anything] | None = None
    resourceClaims: list[Anything] | None = None
    resources: Resources | None = None
    schedulingGates: list[Anything] | None = None
    serviceAccount: str | None = None
    serviceAccountName: str | None = None
    setHostnameAsFQDN: bool | None = None
    shareProcessNamespace: bool | None = None
    subdomain: str | None = None
    automountServiceAccountToken: bool | None = None
    securityContext: PodSecurity | None = None
    imagePullSecrets: list[Anything] | None = None
    restartPolicy: Literal["Always", "OnFailure", "Never"] | None = None
    terminationGracePeriodSeconds: int | None = None
    priorityClassName: str | None = None
    runtimeClassName: str | None = None
    schedulerName: str | None = None


class PodTemplate(Fields):
    """A pod to be made."""

    metadata: Metadata | None = None
    spec: PodSpec
