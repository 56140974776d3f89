"""Keys of KubeRay's files that are no fields: resources of Kubernetes, devices and Ray, options of `ray start`."""

from typing import Annotated

from pydantic import AfterValidator

from clusters.checks.ray_options import start_options
from clusters.checks.slips import RESOURCES, slip_of
from clusters.config import nearest

# What Kubernetes has itself (core/v1, and pages of any size); any other name has the domain of who offers it.
STANDARD = ["cpu", "memory", "ephemeral-storage", "hugepages-2Mi", "hugepages-1Gi"]
PAGES = "hugepages-"
# A domain's own names are not known here, so that only what is next to one of these is taken for it.
DEVICES = ["nvidia.com/gpu", "amd.com/gpu", "google.com/tpu", "aws.amazon.com/neuron", "habana.ai/gaudi"]


def _of_kubernetes(name: str) -> str:
    if "/" in name:
        meant = _meant_device(name)
        if meant is not None:
            raise ValueError(f"no node offers {name} (nearest: {meant})")
    elif name not in STANDARD and not name.startswith(PAGES):
        raise ValueError(f"Kubernetes knows no resource '{name}'{nearest(name, STANDARD)}")
    return name


def _meant_device(name: str) -> str | None:
    """By what stands behind the domain, where that is one of the known: it has other names too (nvidia.com/pgpu)."""
    domain, _, own = name.partition("/")
    theirs = [device.partition("/")[2] for device in DEVICES if device.startswith(f"{domain}/")]
    if not theirs:
        return slip_of(name, DEVICES)
    meant = slip_of(own, theirs)
    return meant and f"{domain}/{meant}"


def _of_ray(name: str) -> str:
    meant = slip_of(name, RESOURCES)
    if meant is not None:
        raise ValueError(f"Ray knows no {RESOURCES[meant]} by '{name}' (nearest: {meant})")
    return name


def _of_start(name: str) -> str:
    known = sorted(option.removeprefix("--") for option in start_options())
    if name not in known:
        raise ValueError(f"ray start has no --{name}{nearest(name, known)}")
    return name


KubernetesResource = Annotated[str, AfterValidator(_of_kubernetes)]
RayResource = Annotated[str, AfterValidator(_of_ray)]
StartOption = Annotated[str, AfterValidator(_of_start)]
