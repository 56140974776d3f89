"""Firewall rules, as EC2 has them (IpPermissions): whom they let in, and to which ports."""

import ipaddress
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# A network of one's own is no wider: 10.0.0.0/8 is the widest private one, /32 what a provider of IPv6 is given.
WIDEST = {4: 8, 6: 32}
PRIVATE_6 = ipaddress.IPv6Network("fc00::/7")


def too_wide(rules: Sequence[Any]) -> Iterator[tuple[int, Network]]:
    """The places of rules that open other ports than SSH's to a range that is nobody's own, and that range.

    Ranges are taken together: 0.0.0.0/1 and 128.0.0.0/1 are the whole internet, however they are dealt out.
    """
    named = [(place, network) for place, rule in enumerate(rules) if not is_ssh(rule) for network in _networks(rule)]
    fours = [network for _, network in named if isinstance(network, ipaddress.IPv4Network)]
    sixes = [network for _, network in named if isinstance(network, ipaddress.IPv6Network)]
    together: list[Network] = [*ipaddress.collapse_addresses(fours), *ipaddress.collapse_addresses(sixes)]
    for whole in together:
        if _is_wide(whole):
            parts = [place for place, network in named if _within(network, whole) and not _is_own(network)]
            for place in sorted(set(parts)):
                yield place, whole


def _is_wide(network: Network) -> bool:
    return network.prefixlen < WIDEST[network.version] and not _within(network, PRIVATE_6)


def _is_own(network: Network) -> bool:
    """Whether a range is a private one, which opens nothing even beside another that holds it."""
    return network.is_private and not _is_wide(network)


def _networks(rule: Any) -> Iterator[Network]:
    """What a rule names, however it is spelt (::/0, 0::/0, 10.0.0.1/0)."""
    for network in re.findall(r"[\da-fA-F.:]+/\d+", str(rule)):
        with suppress(ValueError):
            yield ipaddress.ip_network(network, strict=False)


def is_ssh(rule: Any) -> bool:
    """Whether a rule is for port 22 alone; with the protocol -1 its ports say nothing, and all are open."""
    if not isinstance(rule, dict) or str(rule.get("IpProtocol", "tcp")).lower() not in ("tcp", "6"):
        return False
    return (rule.get("FromPort"), rule.get("ToPort")) == (22, 22)


def _within(network: Network, whole: Network) -> bool:
    if isinstance(network, ipaddress.IPv4Network):
        return isinstance(whole, ipaddress.IPv4Network) and network.subnet_of(whole)
    return isinstance(whole, ipaddress.IPv6Network) and network.subnet_of(whole)
