"""Which addresses HTTP tasks may connect to. Checked is the very address that is connected to,
after DNS, for every connection: names that resolve anew, and redirects, get no way around it."""

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            "169.254.169.254",  # AWS, Azure, Google and others; link-local as well
            "fd00:ec2::254",  # AWS
            "fd20:ce::254",  # Google
            "100.100.100.200",  # Alibaba
            "168.63.129.16",  # Azure, the host of a virtual machine
            "192.0.0.192",  # Oracle
        ),
    )
)
_SHARED = ipaddress.ip_network("100.64.0.0/10")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class RefusedAddress(OSError):
    """No connection is made to this address."""


class AddressPolicy:
    """Link-local, metadata, multicast and reserved addresses are refused whatever is allowed."""

    def __init__(self, *, private: bool, loopback: bool) -> None:
        self._private = private
        self._loopback = loopback

    def fault(self, text: str) -> str | None:
        """Why nothing may be sent to an IP address, None if it may."""
        # A scope (fe80::1%eth0) names an interface of this machine.
        address = _inner(ipaddress.ip_address(text.partition("%")[0]))
        if address in _METADATA:
            return f"{text} is the metadata service of a cloud"
        if address.is_link_local:
            return f"{text} is a link-local address"
        if address.is_unspecified or address.is_multicast:
            return f"{text} is no address of a server"
        if address.is_loopback:
            if self._loopback:
                return None
            return f"{text} is a loopback address (setting http_loopback_addresses)"
        # What is shared by a provider's customers is neither private nor global for Python.
        if address.is_private or address in _SHARED:
            if self._private and not (address.is_reserved and address.version == 4):
                return None
            return f"{text} is a private address (setting http_private_addresses)"
        return f"{text} is a reserved address" if address.is_reserved else None

    def socket_factory(self) -> Callable[[Any], socket.socket]:
        """Makes the sockets of a connector; raises RefusedAddress in place of one."""

        def create(address_info: Any) -> socket.socket:
            family, kind, protocol, _, address = address_info
            fault = self.fault(address[0])
            if fault is not None:
                raise RefusedAddress(f"refused: {fault}")
            return socket.socket(family, kind, protocol)

        return create


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 address leads to, if there is one in it."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
