"""Look up network devices by name, and wait until one passes packets (netdevice(7))."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING

from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.core.linux import link_setup, netlink
from pytest_nsisolate.core.linux.kernel_files import is_set
from pytest_nsisolate.core.linux.netlink import IFF_RUNNING

if TYPE_CHECKING:
    from pytest_nsisolate.network.topology.rtnetlink import Netlink

_IFREQ = struct.Struct("16s24x")
_SIOCGIFFLAGS, _SIOCGIFHWADDR = 0x8913, 0x8927
_RTMGRP_LINK = 1
#: How long both ends of a link may take to see each other, in seconds.
_CARRIER_LIMIT = 10


def open_events() -> socket.socket:
    """Open a socket that receives changes of links, in the network namespace of this process."""
    return netlink.open_socket(netlink.NETLINK_ROUTE, "open a netlink socket", _RTMGRP_LINK)


def _ask(control: socket.socket, request: int, name: str) -> bytes:
    try:
        return fcntl.ioctl(control.fileno(), request, _IFREQ.pack(name.encode()))
    except OSError as error:
        raise StageError("find the link", error.errno or errno.EIO, name) from None


def index_of(name: str) -> int:
    """Return the index of a link.

    Raises:
        StageError: it is not there.
    """
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise StageError("find the link", error.errno or errno.ENODEV, name) from None


def mac_of(name: str) -> bytes:
    """Return the hardware address of a link."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return _ask(control, _SIOCGIFHWADDR, name)[18:24]


def wait_for_carrier(events: socket.socket, control: Netlink, index: int, name: str) -> None:
    """Wait until packets get through a link that is up.

    The kernel starts the queues of both ends, one after the other, some time after the
    second has come up; before that it drops what is sent. It holds one lock over both, and
    a change of the link has to take the same lock.

    Args:
        events: `open_events`, from before the link was brought up.
    """
    events.settimeout(_CARRIER_LIMIT)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        while not struct.unpack_from("=H", _ask(asker, _SIOCGIFFLAGS, name), 16)[0] & IFF_RUNNING:
            try:
                events.recv(65536)
            except OSError as error:
                raise StageError(
                    "wait for the link", error.errno or errno.ETIMEDOUT, name
                ) from None
    control.do(link_setup.up(index, name))


def has_ipv6() -> bool:
    """Return whether new links of this network namespace can have IPv6 addresses."""
    return os.path.exists("/proc/sys/net/ipv6/conf/") and not any(
        is_set(f"net.ipv6.conf.{which}.disable_ipv6") for which in ("all", "default")
    )
