"""NAT without rights: pasta(1) or slirp4netns(1), one process for each sandbox.

It makes the sandbox's ``eth0``, and carries connections by sockets of its own, as this user.
The host's loopback can't be reached through it. It dies with the runner and is ended with its
sandbox. The inside waits until it has done its part.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import time
from typing import TYPE_CHECKING

from pytest_nsisolate.core import bare_process
from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.core.linux.kernel_files import write_sysctl

from .addresses import INSIDE, Link

if TYPE_CHECKING:
    from collections.abc import Sequence

_TUN = "/dev/net/tun"
#: Seconds: for the way out, beyond that for the one by IPv6, and between two looks.
_LIMIT, _LIMIT6, _LOOK = 10.0, 1.0, 0.002
_SIOCGIFADDR = 0x8915
#: The name server that slirp4netns is itself.
SLIRP_RESOLVER = "nameserver 10.0.2.3\n"


def program() -> str | None:
    """Return the path of the program to use, None if none is installed."""
    return shutil.which("pasta") or shutil.which("slirp4netns")


def missing() -> StageError | None:
    """Return why no such program can be used here, None if one can."""
    if program() is None:
        return not_installed("pasta")
    try:
        os.close(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return StageError("start pasta or slirp4netns", error.errno or errno.EIO, _TUN)
    return None


def not_installed(name: str) -> StageError:
    """Make the error for a program that is not installed."""
    return StageError("start pasta or slirp4netns", errno.ENOENT, name)


def words(path: str, pid: int) -> list[str]:
    """Return the command for the sandbox whose PID 1 is *pid*."""
    if os.path.basename(path) == "slirp4netns":
        options = ["--configure", "--disable-host-loopback", "--mtu=65520"]
        return [path, *options, str(pid), INSIDE]
    options = ["--foreground", "--quiet", "--config-net", "--ns-ifname", INSIDE, "--no-map-gw"]
    for direction in ("-t", "-u", "-T", "-U"):  # no port of either side on the other
        options += [direction, "none"]
    if os.geteuid() == 0:
        options += ["--runas", "0:0"]
    return [path, *options, str(pid)]


class UserNat:
    """The process for one sandbox."""

    def __init__(self, path: str, pid: int) -> None:
        try:
            self._process = bare_process.start_program(
                words(path, pid),
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise StageError("start pasta or slirp4netns", error.errno or errno.EIO, path) from None

    def end(self) -> None:
        """End it, and wait for that."""
        self._process.kill()
        self._process.wait()


def expects_ipv6(path: str) -> bool:
    """Return whether NAT will have IPv6 as well: pasta sets it up if the host has it."""
    return not path.endswith("slirp4netns") and bool(_gateway6(_lines("/proc/net/ipv6_route"), ""))


def wait_for(*, ipv6: bool) -> Link:
    """Wait, inside a sandbox, until NAT is there; return the addresses.

    Args:
        ipv6: also one by IPv6, which the program sets up last.

    Raises:
        StageError: there is none in time.
    """
    # Nobody else is there whom the kernel could ask whether an address is taken.
    for which in ("default", INSIDE):
        with contextlib.suppress(StageError):
            write_sysctl(f"net.ipv6.conf.{which}.accept_dad", "0")
    deadline = time.monotonic() + _LIMIT
    since = 0.0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        while True:
            address, gateway = _address(asker), _gateway(_lines("/proc/net/route"))
            gateway6 = _gateway6(_lines("/proc/net/ipv6_route"), INSIDE)
            if address is not None and gateway:
                # It leaves IPv6 out for reasons of its own, too.
                since = since or time.monotonic()
                ready6 = not _waits6(_lines("/proc/net/if_inet6")) and (gateway6 or not ipv6)
                if ready6 or time.monotonic() > since + _LIMIT6:
                    break
            if time.monotonic() > deadline:
                raise StageError("wait for pasta or slirp4netns", errno.ETIMEDOUT, INSIDE)
            time.sleep(_LOOK)
    address6 = _address6(_lines("/proc/net/if_inet6"))
    return Link(gateway, address, gateway6, address6, b"", b"")


def _address(asker: socket.socket) -> str | None:
    try:
        found = fcntl.ioctl(asker, _SIOCGIFADDR, struct.pack("16s24x", INSIDE.encode()))
    except OSError:
        return None
    return socket.inet_ntoa(found[20:24])


def _lines(path: str) -> list[list[str]]:
    try:
        with open(path, encoding="ascii") as stream:
            return [line.split() for line in stream]
    except OSError:
        return []


def _waits6(lines: Sequence[Sequence[str]]) -> bool:
    """Return whether an address is still being checked (IFA_F_TENTATIVE)."""
    return any(words_[-1] == INSIDE and int(words_[4], 16) & 0x40 for words_ in lines)


def _gateway(lines: Sequence[Sequence[str]]) -> str:
    for words_ in lines:
        if words_[:2] == [INSIDE, "00000000"]:
            return socket.inet_ntoa(struct.pack("=I", int(words_[2], 16)))
    return ""


def _gateway6(lines: Sequence[Sequence[str]], link: str) -> str:
    """Return the default router, on *link* if that is given; "" if there is none."""
    for words_ in lines:
        if words_[1] == "00" and (not link or words_[-1] == link) and words_[4].strip("0"):
            return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words_[4]))
    return ""


def _address6(lines: Sequence[Sequence[str]]) -> str:
    for words_ in lines:
        if words_[-1] == INSIDE and words_[3] == "00":  # of global scope
            return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words_[0]))
    return ""
