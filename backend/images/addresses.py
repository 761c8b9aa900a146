"""Network addresses: blocked ones and public ones."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

NEVER = {
    "0.0.0.0/8": "no address",
    "::/128": "no address",
    "169.254.0.0/16": "link-local, used for cloud credentials",
    "fe80::/10": "link-local",
    "100.100.100.200/32": "a cloud's metadata service",  # Alibaba
    "168.63.129.16/32": "a cloud's metadata service",  # Azure
    "192.0.0.192/32": "a cloud's metadata service",  # Oracle
    "fd00:ec2::/32": "a cloud's metadata service",  # AWS
    "fd20:ce::254/128": "a cloud's metadata service",  # Google
    "224.0.0.0/4": "multicast",
    "ff00::/8": "multicast",
    "255.255.255.255/32": "broadcast",
}
"""Network -> description. These addresses never serve images, even if an operator lists their host."""
NOT_PUBLIC = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16",
    "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
    "2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
)  # fmt: skip
"""Networks for special purposes, of IANA's registries; `ipaddress` lacks some, and each Python others."""
PUBLIC_IPV6 = ip_network("2000::/3")
"""The addresses that IANA assigns to hosts: none beyond are public, such as fec0::/10."""
_NOT_PUBLIC = tuple(ip_network(network) for network in NOT_PUBLIC)
_NEVER = {ip_network(network): what for network, what in NEVER.items()}
_NAT64 = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"))


def refusal(address: str, public_only: bool) -> str:
    """Returns why an address must not be contacted.

    Args:
        address: IPv4 or IPv6, as text; a zone (`%eth0`) is ignored.
        public_only: Also refuse private, loopback and reserved addresses.

    Returns:
        The kind of address; empty if it is allowed.

    Raises:
        ValueError: not an IP address.
    """
    for meant in _meanings(ip_address(address.partition("%")[0])):
        for network, what in _NEVER.items():
            if meant in network:
                return what
        if public_only and not _is_public(meant):
            return "not a public one"
    return ""


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if address in _NAT64[0]:  # of networks without IPv4; the address inside is checked by itself
        return True
    beyond = isinstance(address, IPv6Address) and address not in PUBLIC_IPV6
    return address.is_global and not beyond and not any(address in network for network in _NOT_PUBLIC)


def is_loopback(host: str) -> bool:
    """Whether a name or listening address is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _meanings(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address | IPv6Address]:
    """The address itself, and any IPv4 address embedded in it."""
    yield address
    if isinstance(address, IPv4Address):
        return
    # Routers and kernels deliver these to the IPv4 address inside, which has to pass the same rules.
    carried = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in _NAT64) or int(address) >> 32 == 0 < int(address) >> 1:
        carried.append(IPv4Address(int(address) & 0xFFFFFFFF))
    yield from filter(None, carried)
