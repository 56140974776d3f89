"""Containers of Kubernetes, as its core/v1 API has them: their fields and types; any other is refused."""

from fractions import Fraction
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from clusters.checks.resource_names import KubernetesResource

Quantity = str | int | float
Anything = dict[str, Any]
LETTERS = "kMGTPE"
SUFFIXES = {
    **{f"{letter.upper()}i": Fraction(1024**power) for power, letter in enumerate(LETTERS, start=1)},
    **{letter: Fraction(1000**power) for power, letter in enumerate(LETTERS, start=1)},
    "m": Fraction(1, 1000),
}


class Fields(BaseModel):
    """A part of a Kubernetes object: unknown fields refused, and no value taken for one of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


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
    hostIP: str | None = None


class Resources(Fields):
    """What a container asks for and may use at most."""

    requests: dict[KubernetesResource, Quantity] | None = None
    limits: dict[KubernetesResource, Quantity] | None = None
    claims: list[Anything] | None = None

    @model_validator(mode="after")
    def _devices_alike(self) -> "Resources":
        """Of what a device plugin offers, as GPUs are, Kubernetes takes no request but the limit."""
        for name, asked in (self.requests or {}).items():
            most = (self.limits or {}).get(name)
            if "/" in name and _amount(most) != _amount(asked):
                raise ValueError(f"{name}: requests {asked} and limits {most}; Kubernetes wants both alike")
        return self


def _amount(quantity: Quantity | None) -> Fraction | str:
    """A quantity of Kubernetes, whichever way it is spelled (1, 1.0, 1000m); what is none stays a text."""
    text = str(quantity)
    suffix = next((suffix for suffix in SUFFIXES if text.endswith(suffix)), "")
    try:
        return Fraction(text.removesuffix(suffix)) * SUFFIXES.get(suffix, 1)
    except ValueError:
        return text


class Mount(Fields):
    """A volume in a container. What is mounted Bidirectional reaches back into the node: refused."""

    name: str
    mountPath: str
    mountPropagation: Literal["None", "HostToContainer"] | None = None
    subPath: str | None = None
    subPathExpr: str | None = None
    readOnly: bool | None = None
    recursiveReadOnly: Literal["Disabled", "IfPossible", "Enabled"] | None = None


class Device(Fields):
    """A volume in a container, as a raw device."""

    name: str
    devicePath: str


class Capabilities(Fields):
    """Rights of the kernel."""

    add: list[str] | None = None
    drop: list[str] | None = None


class Profile(Fields):
    """Which calls, or files, of its node a container may use: seccomp's and AppArmor's profile."""

    type: Literal["RuntimeDefault", "Localhost", "Unconfined"]
    localhostProfile: str | None = None


class SELinux(Fields):
    """A label of SELinux, of the types that the Pod Security Standards know to confine a container."""

    level: str | None = None
    type: Literal["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"] | None = None


class ContainerSecurity(Fields):
    """What a container may do."""

    allowPrivilegeEscalation: bool | None = None
    appArmorProfile: Profile | None = None
    capabilities: Capabilities | None = None
    privileged: bool | None = None
    procMount: Literal["Default"] | None = None
    readOnlyRootFilesystem: bool | None = None
    runAsGroup: int | None = None
    runAsNonRoot: bool | None = None
    runAsUser: int | None = None
    seLinuxOptions: SELinux | None = None
    seccompProfile: Profile | None = None


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
    resizePolicy: list[Anything] | None = None
    restartPolicy: Literal["Always", "OnFailure", "Never"] | None = None
    restartPolicyRules: list[Anything] | None = None
    volumeMounts: list[Mount] | None = None
    volumeDevices: list[Device] | None = None
    securityContext: ContainerSecurity | None = None
    lifecycle: Anything | None = None
    livenessProbe: Anything | None = None
    readinessProbe: Anything | None = None
    startupProbe: Anything | None = None
    stdin: bool | None = None
    stdinOnce: bool | None = None
    terminationMessagePath: str | None = None
    terminationMessagePolicy: Literal["File", "FallbackToLogsOnError"] | None = None
    tty: bool | None = None
