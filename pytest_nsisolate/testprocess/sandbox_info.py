"""The value of the ``sandbox`` fixture: a test's view of its sandbox."""

from __future__ import annotations

import os
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_nsisolate.cgroups.group import Group
    from pytest_nsisolate.network.topology.network import Network
    from pytest_nsisolate.network.uplink.addresses import Link
    from pytest_nsisolate.spec.spec import Spec


class Usage(NamedTuple):
    """What a test has used so far.

    Attributes:
        peak_memory: bytes. With a limit, of all its processes and files in memory; else
            of the largest process, with what pytest had when the test began.
        cpu: seconds, of the test and of its children; without a limit, of those that
            have been waited for.
        pids: processes that run now, the test's own included.
        source: "cgroup" if the test has a limit, else "wait4".
    """

    peak_memory: int
    cpu: float
    pids: int
    source: str


class SandboxInfo:
    """The sandbox of the running test.

    Attributes:
        id: number of the sandbox, unique within the session.
        spec: what the test asked for, all keys filled in.
    """

    def __init__(
        self,
        number: int,
        spec: Spec,
        *,
        group: Callable[[], Group | None] | None = None,
        export: Callable[[str | os.PathLike[str]], None] | None = None,
        link: Link | None = None,
    ) -> None:
        self.id = f"{number}"
        self.spec = spec
        self._group = group
        self._export = export
        self._link = link

    @property
    def hostname(self) -> str:
        """The host name inside, as gethostname(2) gives it."""
        return os.uname().nodename

    @property
    def namespaces(self) -> dict[str, int]:
        """Inode numbers of the namespaces by name, as under /proc/self/ns."""
        from pytest_nsisolate.sandbox.operations.namespaces import inodes  # noqa: PLC0415 -- only where it is asked for

        return inodes()

    @property
    def net(self) -> Network:
        """The hosts and links of the test's topology; AttributeError if it has none."""
        if inside.network is None:
            raise AttributeError(
                f"sandbox.net: this test has no topology, but net={self.spec.net!r}; "
                '@pytest.mark.isolated(net="a b c") gives it one'
            )
        return inside.network

    @property
    def address(self) -> str:
        """The IPv4 address of the sandbox, with ``net="veth"``; else AttributeError."""
        return self._linked("address").address

    @property
    def gateway(self) -> str:
        """The IPv4 address of the host's end of the link; its name inside is ``gateway``."""
        return self._linked("gateway").gateway

    @property
    def address6(self) -> str:
        """As `address`, IPv6."""
        return self._linked("address6").address6

    @property
    def gateway6(self) -> str:
        """As `gateway`, IPv6."""
        return self._linked("gateway6").gateway6

    def _linked(self, name: str) -> Link:
        if self._link is None:
            raise AttributeError(
                f"sandbox.{name}: this sandbox has no link to the host; "
                '@pytest.mark.isolated(net="veth") gives it one'
            )
        return self._link

    def usage(self) -> Usage:
        """Return what the test has used so far."""
        return _measure(self._group() if self._group is not None else None)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Copy a file or a directory out, to the directory for this test's artifacts.

        It is copied as it is now; what comes later, a crash too, doesn't matter.

        Raises:
            OSError: it is not there, is neither of both, or does not fit into ``tmpfs``.
        """
        if self._export is None:
            raise RuntimeError("only the test process itself can export files")
        self._export(path)

    def __repr__(self) -> str:
        return f"<sandbox {self.id}>"


def _measure(group: Group | None) -> Usage:
    """Measure the test of this process, by its cgroup *group* if it has one."""
    from pytest_nsisolate.core.linux.proc import descendants  # noqa: PLC0415 -- if asked for
    from pytest_nsisolate.core.usage import of_this_process  # noqa: PLC0415 -- as above

    used = of_this_process()
    if os.getppid() == 0:  # as in a pid namespace of its own
        pids = sum(1 for name in os.listdir("/proc") if name.isdigit()) - 1  # but for PID 1
    else:
        pids = 1 + len(descendants(os.getpid()))
    measured = group.usage() if group is not None else None
    # A fresh cgroup2 file system shows nothing above the sandbox's own cgroup.
    if measured is None or measured.peak_memory is None or measured.cpu is None:
        return Usage(used.peak_memory or 0, used.cpu or 0.0, pids, "wait4")
    return Usage(measured.peak_memory, measured.cpu, pids, "cgroup")


class Inside:
    """Whether this process is a test process, and of which sandbox."""

    def __init__(self) -> None:
        self.sandbox: SandboxInfo | None = None
        self.network: Network | None = None


#: Of this process.
inside = Inside()
