"""Firewall rules, as EC2 has them (IpPermissions): whom they let in, and to which ports."""

import ipaddress
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# A public network of one's own is no wider: /16 is a large university's, /32 what a provider of IPv6 is given.
WIDEST = {4: 16, 6: 32}
# Ranges that no router of the internet knows: private ones, a provider's, this machine's and this link's.
PRIVATE_4 = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16")
PRIVATE_6 = ("fc00::/7", "fe80::/10", "::1/128")
PRIVATE = [ipaddress.ip_network(name) for name in (*PRIVATE_4, *PRIVATE_6)]


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
    return network.prefixlen < WIDEST[network.version] and not _is_own(network)


def _is_own(network: Network) -> bool:
    """Whether a range is a private one, which opens nothing even beside another that holds it."""
    return any(_within(network, private) for private in PRIVATE)


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
