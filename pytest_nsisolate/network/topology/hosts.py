"""One host of a topology: a network namespace that threads and programs enter."""

from __future__ import annotations

import os
import subprocess
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.core.linux.syscalls import CLONE_NEWNET, setns

from . import rtnetlink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_nsisolate.spec.topology import Node, Switch


#: What a process that is not root needs to change and enter its networks, and to capture:
#: bits of CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN (capabilities(7)).
RIGHTS = 1 << 12 | 1 << 13 | 1 << 21


class NetworkError(RuntimeError):
    """The network could not be made or changed.

    Attributes:
        error: the step that failed, with its errno.
    """

    def __init__(self, error: StageError) -> None:
        super().__init__(error)
        self.error = error

    def __str__(self) -> str:
        from pytest_nsisolate.explain.explain import explain  # noqa: PLC0415 -- only where something fails

        found = explain(self.error)
        return f"{self.error}\nwhy: {found.meaning}\nmend: {found.mend}"


class UnknownName(KeyError):
    """Nothing in the topology is named so."""

    def __str__(self) -> str:
        return str(self.args[0])


class Interface(NamedTuple):
    """An interface of a host.

    Attributes:
        name: in the host, such as ``eth0``.
        address, address6: "" for the latter where the kernel has no IPv6.
        mac: hardware address.
        switch: the name of the switch that it is on, "" if it has none.
    """

    name: str
    address: str
    address6: str
    mac: str
    switch: str


class Host:
    """One host of a topology: a network namespace.

    As a context manager it takes the current thread, and no other, into the host: a socket
    made there stays there, wherever it is used later. In asyncio code make the socket
    within the block, and await outside of it.

    Attributes:
        name: as in the topology.
        address, address6: of its first interface.
        interfaces: by name, `Interface`.
        forwards: whether it is a router.
        node: its place in the topology.
    """

    def __init__(self, node: Node, fd: int, switches: Sequence[Switch], *, ipv6: bool) -> None:
        self.name = node.name
        self.forwards = node.forwards
        self.interfaces = {
            port.name: Interface(
                port.name,
                port.address,
                port.address6 if ipv6 else "",
                port.mac,
                switches[port.switch - 1].name,
            )
            for port in node.ports
        }
        first = next(iter(self.interfaces.values()))
        self.address = first.address
        self.address6 = first.address6
        self.node = node
        self._fd = fd
        self._before = threading.local()

    def __repr__(self) -> str:
        return f"<host {self.name} {self.address}>"

    def __enter__(self) -> Host:  # noqa: PYI034 -- typing.Self is newer than 3.10
        before = rtnetlink.open_namespace()
        try:
            setns(self._fd, CLONE_NEWNET, stage="network: enter a host")
        except StageError as error:
            os.close(before)
            raise NetworkError(error) from None
        if not hasattr(self._before, "fds"):
            self._before.fds = []
        self._before.fds.append(before)
        return self

    def __exit__(self, *_: object) -> None:
        before = self._before.fds.pop()
        try:
            setns(before, CLONE_NEWNET, stage="network: leave a host")
        finally:
            os.close(before)

    def run(self, *args: Any, **kwargs: Any) -> subprocess.CompletedProcess[Any]:
        """Call `subprocess.run` with the program in this host."""
        with self:
            return subprocess.run(*args, **kwargs)  # noqa: PLW1510 -- the caller's choice

    def popen(self, *args: Any, **kwargs: Any) -> subprocess.Popen[Any]:
        """Call `subprocess.Popen` with the program in this host."""
        with self:
            return subprocess.Popen(*args, **kwargs)
