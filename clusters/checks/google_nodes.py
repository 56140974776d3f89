"""Machines of Google Cloud by the references of its REST interfaces, to which Ray passes the fields on unread."""

from collections.abc import Iterator
from typing import Any

from clusters.checks.mistakes import Mistake
from clusters.checks.yaml_lines import Document
from clusters.config import nearest

# An instance of Compute Engine v1 and what stands in it, by path; of parts that are not here any field may stand.
# fmt: off
INSTANCE: dict[str, list[str]] = {
    "": [
        "acceleratorType", "advancedMachineFeatures", "canIpForward", "confidentialInstanceConfig",
        "deletionProtection", "description", "disks", "displayDevice", "guestAccelerators", "hostname",
        "instanceEncryptionKey", "keyRevocationActionType", "labels", "localSsdEncryptionMode", "machineType",
        "metadata", "minCpuPlatform", "name", "networkInterfaces", "networkPerformanceConfig", "params",
        "privateIpv6GoogleAccess", "reservationAffinity", "resourcePolicies", "scheduling", "serviceAccounts",
        "shieldedInstanceConfig", "shieldedInstanceIntegrityPolicy", "sourceInstanceTemplate", "sourceMachineImage",
        "sourceMachineImageEncryptionKey", "tags", "workloadIdentityConfig",
    ],
    "disks": [
        "architecture", "autoDelete", "boot", "deviceName", "diskEncryptionKey", "diskSizeGb", "forceAttach",
        "guestOsFeatures", "index", "initializeParams", "interface", "kind", "licenses", "mode", "savedState",
        "shieldedInstanceInitialState", "source", "type",
    ],
    "disks.initializeParams": [
        "architecture", "description", "diskName", "diskSizeGb", "diskType", "enableConfidentialCompute", "labels",
        "licenses", "onUpdateAction", "provisionedIops", "provisionedThroughput", "replicaZones",
        "resourceManagerTags", "resourcePolicies", "sourceImage", "sourceImageEncryptionKey", "sourceSnapshot",
        "sourceSnapshotEncryptionKey", "storagePool",
    ],
    "guestAccelerators": ["acceleratorCount", "acceleratorType"],
    "networkInterfaces": [
        "accessConfigs", "aliasIpRanges", "aliasIpv6Ranges", "enableVpcScopedDns", "fingerprint", "igmpQuery",
        "internalIpv6PrefixLength", "ipv6AccessConfigs", "ipv6AccessType", "ipv6Address", "kind", "name", "network",
        "networkAttachment", "networkIP", "nicType", "parentNicName", "queueCount", "serviceClassId", "stackType",
        "subnetwork", "vlan",
    ],
    "networkInterfaces.accessConfigs": [
        "externalIpv6", "externalIpv6PrefixLength", "ipCollection", "kind", "name", "natIP", "networkTier",
        "publicPtrDomainName", "securityPolicy", "setPublicPtr", "type",
    ],
    "scheduling": [
        "automaticRestart", "availabilityDomain", "exposeHostTopology", "gracefulShutdown", "hostErrorTimeoutSeconds",
        "instanceTerminationAction", "localSsdRecoveryTimeout", "locationHint", "maxRunDuration", "minNodeCpus",
        "nodeAffinities", "onHostMaintenance", "onInstanceStopAction", "preemptible", "preemptionNoticeDuration",
        "protectionTier", "provisioningModel", "skipGuestOsShutdown", "terminationTime",
    ],
    "serviceAccounts": ["email", "scopes"],
    "shieldedInstanceConfig": ["enableIntegrityMonitoring", "enableSecureBoot", "enableVtpm"],
}
# A node of Cloud TPU v2 and v2alpha1.
TPU: dict[str, list[str]] = {
    "": [
        "acceleratorConfig", "acceleratorType", "autocheckpointEnabled", "bootDiskConfig", "cidrBlock", "dataDisks",
        "description", "labels", "metadata", "multisliceNode", "name", "networkConfig", "networkConfigs",
        "protectionTier", "queuedResource", "runtimeVersion", "schedulingConfig", "serviceAccount",
        "shieldedInstanceConfig", "tags",
    ],
}
# fmt: on


def check_google_node(document: Document, path: tuple[str, ...], node: dict[str, Any]) -> Iterator[Mistake]:
    """What is wrong with the fields of a machine: of Compute Engine, or a TPU, which Ray tells apart in the same way.

    Raises nothing where a part is of another type than it should be: which types there are is not held here.
    """
    is_tpu = "machineType" not in node and ("acceleratorType" in node or "acceleratorConfig" in node)
    known, reader = (TPU, "Cloud TPU") if is_tpu else (INSTANCE, "Compute Engine")
    for place, within in _unknown(node, known, (), ""):
        hint = nearest(str(place[-1]), known[within])
        what = f"{reader} knows no '{place[-1]}'{f' in {within}' if within else ''}{hint}"
        yield Mistake(document.line([*path, *place]), what, "mend it")


def _unknown(
    value: Any, known: dict[str, list[str]], place: tuple[str | int, ...], within: str
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Where fields stand that are not known, with the path of what they stand in."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _unknown(item, known, (*place, number), within)
    elif isinstance(value, dict):
        for name, item in value.items():
            part = f"{within}.{name}" if within else name
            if name not in known[within]:
                yield (*place, name), within
            elif part in known:
                yield from _unknown(item, known, (*place, name), part)
