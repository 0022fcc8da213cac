"""Make the host's ends of links to sandboxes in a slot, and remove those of killed sessions.

    host: nsv<slot>-<n>  198.18.<slot>.1/30  ─── veth ───  eth0  198.18.<slot>.2/30  :sandbox

Names and addresses derive from a slot of the host's network namespace, which is held by a
lock as long as the session lives, and by an abstract socket against those who don't see the
lock (another user, another /run). The kernel removes a link with its sandbox.

Guarantees: what another session holds is never touched; closing leaves no link of this one;
what a killed session left is removed by the next owner of its slot, or by `sweep_all`.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import ipaddress
import os
import socket
from typing import TYPE_CHECKING, final

from pytest_nsisolate.core import locks
from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.core.linux import link_setup
from pytest_nsisolate.network.topology import link_messages
from pytest_nsisolate.network.topology.rtnetlink import Batch, Netlink

from . import devices, nft_nat
from .addresses import INSIDE, Block

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Network, IPv6Network

    from pytest_nsisolate.core.locks import Slot

    from .addresses import Ranges

    _Route = tuple[IPv4Network | IPv6Network, int]

#: Where the indexes of the host's ends begin, which are chosen here: if both ends happened to
#: have one index, the kernel would take the link for nobody's other end, and could let a
#: second pass until it starts its queues (linkwatch_urgent_event). Also, the counter by which
#: the host numbers its own links stays as it is.
_FIRST_INDEX = 1 << 29
_INDEXES = 1 << 18  # of each slot


def allowed() -> StageError | None:
    """Return why this process may not change the network that it is in, if so.

    The kernel looks at the rights before it looks for the link, which does not exist.
    """
    with Netlink() as control:
        try:
            control.do(link_setup.remove(0x7FFFFFFF, ""))
        except StageError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                return StageError("make the link to the host", error.errno)
    return None


def _places() -> list[str]:
    """Return where the slots of this network namespace are."""
    number = os.stat("/proc/self/ns/net").st_ino
    return [f"{place}-net{number}" for place in locks.directories()]


def _open_files() -> set[int]:
    try:
        names = os.listdir("/proc/self/fd")
    except OSError as error:
        raise StageError.of("look for the files of the links", error) from None
    # Without the one by which the directory was read.
    return {int(name) for name in names if os.path.lexists(f"/proc/self/fd/{name}")}


def _free(numbers: list[int]) -> Iterator[Slot]:
    found: OSError | None = None
    for place in _places():
        try:
            yield from locks.free(place, numbers)
        except OSError as error:
            found = error
        else:
            return
    if found is not None:
        code = found.errno or errno.EIO
        raise StageError("take a slot of the network", code, found.filename or "")


def _guard(slot: int) -> socket.socket | None:
    """Hold a slot against all that share this network; None if another process holds it."""
    try:
        guard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    except OSError as error:
        raise StageError.of("take a slot of the network", error) from None
    try:
        guard.bind(f"\0nsisolate-net-{slot}")
    except OSError:
        guard.close()
        return None
    return guard


def _ends(prefix: str) -> list[tuple[int, str]]:
    try:
        links = socket.if_nameindex()
    except OSError as error:
        raise StageError.of("look for links that were left", error) from None
    return [(index, name) for index, name in links if name.startswith(prefix)]


def _sweep(slot: Slot, control: Netlink) -> list[str]:
    """Remove what a killed session of this slot left; says what that was."""
    removed = []
    for index, name in _ends(f"nsv{slot.number}-"):
        try:
            control.do(link_setup.remove(index, name))
        except StageError as error:
            if error.errno != errno.ENODEV:  # gone by itself meanwhile
                raise
        removed.append(f"link {name}")
    if slot.made():
        nft_nat.remove(slot.name)
        removed.append(f"nft table {slot.name}")
    return removed


def sweep_all() -> tuple[list[str], list[str]]:
    """Remove what killed sessions of this user left; return what was removed, and what stays."""
    removed: list[str] = []
    lasting: list[str] = []
    for place in _places():
        for slot in locks.abandoned(place):
            try:
                guard = _guard(slot.number)
            except StageError as error:
                lasting.append(f"network slot {slot.number}: {error}")
                guard = None
            if guard is None:
                slot.release(clean=False)
                continue
            with guard, Netlink() as control:
                try:
                    removed += _sweep(slot, control)
                except StageError as error:
                    lasting.append(f"network slot {slot.number}: {error}")
                    slot.release(clean=False)
                else:
                    slot.release()
    return removed, lasting


class Attached:
    """One link, between its making and its sandbox's end."""

    __slots__ = ("index", "name", "number")

    def __init__(self, index: int, name: str, number: int) -> None:
        self.index = index  # of its addresses in the block
        self.name = name
        self.number = number  # by which the kernel knows the host's end


@final
class Links:
    """See the module.

    Raises:
        StageError: this host or this user can't have links; says why.
    """

    def __init__(self, ranges: Ranges, wanted: int) -> None:
        refused = allowed()
        if refused is not None:
            raise refused
        link_messages.prepare()
        self.block: Block
        self.slot: Slot
        self._guard: socket.socket
        before = _open_files()
        self._control = Netlink()
        #: Whether links have IPv6 addresses.
        self.ipv6 = devices.has_ipv6()
        try:
            self._settle(ranges)
        except BaseException:
            self._control.close()
            raise
        try:
            self._files = _open_files() - before
        except StageError:
            self._guard.close()
            self._control.close()
            self.slot.release()
            raise
        self._number = 0
        self._indexes = collections.deque(range(self.block.links))
        self._names: dict[int, str] = {}  # of the last link of an index
        self._held = True
        if wanted > self.block.links:
            self.close()
            raise StageError("find addresses for so many links", errno.ENOSPC, str(ranges.ipv4))

    def _settle(self, ranges: Ranges) -> None:
        """Take the first slot that is free, and whose addresses are unused."""
        routes = self._routes()
        found = {number: self._overlap(ranges, number, routes) for number in range(ranges.slots)}
        taken = next((route for route in found.values() if route), "")
        for slot in _free([number for number, route in found.items() if not route]):
            try:
                guard = _guard(slot.number)
            except StageError:
                slot.release(clean=False)
                raise
            if guard is None:
                slot.release()
                continue
            try:
                _sweep(slot, self._control)
                # Once more, now that nobody else can come to it.
                route = self._overlap(ranges, slot.number, self._routes())
            except BaseException:
                guard.close()
                slot.release(clean=False)
                raise
            if not route:
                self.slot, self.block, self._guard = slot, ranges.block(slot.number), guard
                return
            taken = route
            guard.close()
            slot.release()
        raise StageError("find addresses for links", errno.EADDRINUSE, taken or str(ranges.ipv4))

    @staticmethod
    def _overlap(ranges: Ranges, number: int, routes: list[_Route]) -> str:
        """Return a route to addresses of a slot, except the slot's own; "" if there is none."""
        first = _FIRST_INDEX + number * _INDEXES
        own = range(first, first + _INDEXES)
        block = ranges.block(number)
        return block.overlapped_by(one for one, index in routes if index not in own) or ""

    def _routes(self) -> list[_Route]:
        """Return what the host has routes to, its own addresses included, and by which link."""
        found: list[_Route] = []
        for family, of_kind in (
            (socket.AF_INET, ipaddress.IPv4Network),
            (socket.AF_INET6, ipaddress.IPv6Network),
        ):
            try:
                routes = self._control.routes(family)
            except StageError as error:
                if error.errno != errno.EOPNOTSUPP:  # a kernel without IPv6 has none
                    raise
                continue
            found += [(of_kind((to, length)), index) for to, length, index in routes]
        return found

    def descriptors(self) -> list[int]:
        """Return the descriptors that no test may have: the lock, and the sockets."""
        return sorted(self._files)

    def attach(self, pid: int, *, forwarded: bool) -> Attached:
        """Link the network namespace of *pid*, up on the host's side; the inside does its own.

        Args:
            forwarded: whether the host may hand on what comes from there.

        Raises:
            StageError: it could not be made.
        """
        if not self._indexes:
            raise StageError("find addresses for so many links", errno.ENOSPC, str(self.block.ipv4))
        index = self._indexes.popleft()
        self._remove(self._names.pop(index, ""))
        self._number += 1
        name = self.block.name(self._number)
        number = _FIRST_INDEX + self.block.slot * _INDEXES + self._number % _INDEXES
        made = Attached(index, name, number)
        try:
            self._make(made, pid)
            self._set_up(made, forwarded=forwarded)
        except StageError:
            self.release(made)
            self._remove(name)
            raise
        return made

    def _make(self, made: Attached, pid: int) -> None:
        link = self.block.link(made.index)
        path = f"/proc/{pid}/ns/net"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StageError("make the link to the host", error.errno or 0, path) from None
        try:
            # In place at once: a link that moves there later waits for all processors.
            pair = link_messages.AddPair(
                made.number,
                made.name,
                0,
                INSIDE,
                0,
                link.mac.hex(":"),
                "",
                near_mac=link.host_mac.hex(":"),
                up=False,
            )
            self._control.run(Batch.of([pair]), [fd])
        except StageError as error:
            raise StageError("make the link to the host", error.errno, made.name) from None
        finally:
            os.close(fd)

    def _set_up(self, made: Attached, *, forwarded: bool) -> None:
        link, name = self.block.link(made.index), made.name
        index = made.number
        messages = [link_setup.address(index, link.gateway, 30)]
        if self.ipv6:
            messages.insert(0, link_setup.no_automatic_addresses(index, name))
            messages.append(link_setup.address(index, link.gateway6, 64))
            messages.append(link_setup.address(index, "fe80::1", 64))
        if not forwarded:
            messages.append(link_setup.keep_in(index, name))
        self._control.do(*messages, link_setup.up(index, name))

    def release(self, made: Attached) -> None:
        """Free a link whose sandbox has ended; the kernel removes it in its own time."""
        self._names[made.index] = made.name
        self._indexes.append(made.index)  # the one that waits longest is used next

    def _remove(self, name: str) -> None:
        if not name:
            return
        with contextlib.suppress(StageError):
            index = devices.index_of(name)
            self._control.do(link_setup.remove(index, name))

    def close(self) -> None:
        """Remove what is left of this session's, and give the slot back."""
        if not self._held:
            return
        self._held = False
        clean = False
        try:
            _sweep(self.slot, self._control)
            clean = True
        except StageError:
            pass  # the next owner of the slot tries again
        finally:
            self._guard.close()
            self.slot.release(clean=clean)
            self._control.close()
