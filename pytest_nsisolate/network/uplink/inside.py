"""Set up the inside of a sandbox's network, while the test process has all rights over it.

Configures the inside of the link that the runner has made, names its ends, and opens the
ports that the relay serves. Nothing is imported here that is not there already.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.core.linux import link_setup
from pytest_nsisolate.core.linux.syscalls import MS_BIND, StageError, mount
from pytest_nsisolate.network.topology.rtnetlink import Netlink

from . import devices, port_forward, user_nat
from .addresses import INSIDE

if TYPE_CHECKING:
    from pytest_nsisolate.spec.spec import Spec

    from .addresses import Block, Link

#: How a sandbox names the host's end of its link.
GATEWAY = "gateway"
_HOSTS, _RESOLVER = "/etc/hosts", "/etc/resolv.conf"


class Outside(NamedTuple):
    """What a test process knows of the session's network: the same for all of them.

    Attributes:
        block: the session's addresses, if any test has a link.
        ipv6: whether links have IPv6 addresses.
        forwards6: whether the host hands on IPv6 packets, of every link.
        user: whether the way out is a program's, which makes eth0 itself.
        user6: whether it is one for IPv6, too.
        resolver: the /etc/resolv.conf of tests with nat.
        channel: to the relay, -1 if there is none.
    """

    block: Block | None = None
    ipv6: bool = False
    forwards6: bool = False
    user: bool = False
    user6: bool = False
    resolver: str | None = None
    channel: int = -1


def furnish(outside: Outside, spec: Spec, number: int) -> Link | None:
    """Set up the network of the sandbox that this process has joined; return its link, if any.

    Raises:
        StageError: what could not be done.
    """
    link = None
    if spec.linked:
        if spec.nat and outside.user:
            link = user_nat.wait_for(ipv6=outside.user6)
        else:
            assert outside.block is not None
            link = _configure(outside, spec, outside.block)
        _cover(_HOSTS, hosts_text(_read(_HOSTS), spec.hostname, link))
        if spec.nat and outside.resolver is not None:
            _cover(_RESOLVER, outside.resolver)
    if spec.forward:
        port_forward.offer(outside.channel, number, spec.forward)
    return link


def _configure(outside: Outside, spec: Spec, block: Block) -> Link:
    link = block.of_mac(devices.mac_of(INSIDE))
    index = devices.index_of(INSIDE)
    messages = [link_setup.address(index, link.address, 30)]
    routes = [link_setup.default_route(index, link.gateway)]
    if outside.ipv6:
        messages.insert(0, link_setup.no_automatic_addresses(index, INSIDE))
        messages.append(link_setup.address(index, link.address6, 64))
        messages.append(link_setup.address(index, "fe80::2", 64))
        # Without nat nothing may leave the host, with it nothing is to be lost there.
        if spec.nat == outside.forwards6:
            routes.append(link_setup.default_route(index, link.gateway6))
    with devices.open_events() as events, Netlink() as control:
        control.do(*messages, link_setup.up(index, INSIDE), *routes)
        devices.wait_for_carrier(events, control, index, INSIDE)
    return link if outside.ipv6 else link._replace(address6="", gateway6="")


def hosts_text(text: str, hostname: str, link: Link) -> str:
    """Make /etc/hosts of a sandbox with a link from the one without."""
    own = re.compile(rf"127\.0\.1\.1\s+{re.escape(hostname)}\s*")
    rest = "\n".join(line for line in text.splitlines() if not own.fullmatch(line))
    pairs = [(link.address, hostname), (link.gateway, GATEWAY)]
    pairs += [(link.address6, hostname), (link.gateway6, GATEWAY)]
    # In front: whoever asks for a name gets the first line that has it.
    return "".join(f"{address}\t{name}\n" for address, name in pairs if address) + rest + "\n"


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except OSError:
        return ""


def _cover(path: str, text: str) -> None:
    """Put a file of this sandbox's own over *path*; one that the host lacks can't be covered."""
    path = os.path.realpath(path)
    if not os.path.isfile(path):
        return
    scratch = f"/tmp/.nsisolate-{os.getpid()}"  # noqa: S108 -- the sandbox's own
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        fd = os.open(scratch, flags, 0o644)
    except OSError as error:
        raise StageError("make file", error.errno or errno.EIO, scratch) from None
    try:
        os.fchmod(fd, 0o644)
        os.write(fd, text.encode("utf-8", "surrogateescape"))
        mount(os.fsencode(scratch), os.fsencode(path), b"", MS_BIND, b"", "bind")
    finally:
        os.close(fd)
        os.unlink(scratch)  # what is bound stays
