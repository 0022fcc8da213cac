"""The sources of test processes: keeper and template of the session, or a snapshot.

A snapshot is asked for sandboxes and forks just as these are: the PID 1 of its own sandbox
builds those of its tests inside, and its process is their template.
"""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING

from pytest_nsisolate.core.linux.syscalls import StageError
from pytest_nsisolate.core.messages import ENDED, FAILED, LEFT, PID, UP
from pytest_nsisolate.runner.events import (
    Forked,
    Gone,
    LeftRunning,
    NotForked,
    NotMade,
    SandboxMade,
    TemplateFailed,
    Waited,
)
from pytest_nsisolate.sandbox.client import KeeperGone, Maker

if TYPE_CHECKING:
    import socket

    from pytest_nsisolate.runner.events import ServerEvent
    from pytest_nsisolate.sandbox.operations.plan import Plan

    from .sandbox_pool import Pool
    from .template_client import Template


class ForkServer:
    """Who builds the sandboxes of some tests, and whose forks they are.

    Attributes:
        maker: None for tests without namespaces.
    """

    def __init__(self, maker: Maker | None, template: Template, pool: Pool | None) -> None:
        self.maker = maker
        self.template = template
        self.pool = pool
        self._up = False

    def sockets(self) -> list[socket.socket]:
        """Return the sockets of its maker and its template."""
        return [one.socket for one in (self.maker, self.template) if one is not None]

    def receive(self, fd: int, *, busy: bool) -> ServerEvent | None:
        """Take in the next message; return the event that it is, None if it changes nothing.

        Args:
            fd: of the one of its sockets that has the message.
            busy: whether tests hold sandboxes, which they give back.
        """
        if fd == self.template.socket.fileno():
            return self._from_template()
        assert self.pool is not None
        try:
            failure = self.pool.receive(busy=busy)
        except KeeperGone:
            return Gone("keeper", errno.EPIPE)
        return SandboxMade() if failure is None else NotMade(*failure)

    def _from_template(self) -> ServerEvent | None:
        try:
            kind, number, value, text = self.template.receive()
        except EOFError:
            return Gone("template", errno.EPIPE)
        if kind == UP:
            self._up = True
        elif kind == FAILED and number == 0:
            if self._up:
                return Gone("template", value)
            return TemplateFailed(StageError(text.decode("utf-8", "replace"), value))
        elif kind == FAILED:
            stage = "fork the test process into the sandbox"
            return NotForked(number, StageError(stage, value))
        elif kind == PID:
            return Forked(number, value)
        elif kind == LEFT:
            return LeftRunning(number, text.decode("utf-8", "replace").splitlines())
        elif kind == ENDED:
            return Waited(number, value, text)
        return None

    def close(self) -> None:
        """Release that of a snapshot, whose processes end by the end of its sandbox."""
        if self.pool is not None:
            self.pool.close()
        for one in self.sockets():
            one.close()


class ForkServers:
    """The fork servers that the runner listens to.

    Args:
        poll: where their sockets are registered.
    """

    def __init__(self, poll: select.poll) -> None:
        self._poll = poll
        self._by_fd: dict[int, ForkServer] = {}

    def listen(self, server: ForkServer) -> None:
        """Watch the sockets of a server from now on."""
        for one in server.sockets():
            self._poll.register(one, select.POLLIN)
            self._by_fd[one.fileno()] = server

    def ignore(self, server: ForkServer) -> None:
        """Watch the sockets of a server no more."""
        for fd in [fd for fd, one in self._by_fd.items() if one is server]:
            self.mute(fd)

    def mute(self, fd: int) -> None:
        """Watch a socket no more, because the process at its other end has ended."""
        self._poll.unregister(fd)
        del self._by_fd[fd]

    def with_socket(self, fd: int) -> ForkServer | None:
        """Return the server with this socket."""
        return self._by_fd.get(fd)

    def pools(self) -> set[Pool]:
        """Return the pools of the servers: the sandboxes that are ready or requested."""
        return {server.pool for server in self._by_fd.values() if server.pool is not None}

    def descriptors(self) -> list[int]:
        """Return the runner's own descriptors for the servers, which no test may have."""
        return [*self._by_fd, *(fd for pool in self.pools() for fd in pool.descriptors())]


class InnerMaker(Maker):
    """The PID 1 of a snapshot's sandbox, which gets a plan when it is first needed."""

    def __init__(self, channel: socket.socket, plans: list[Plan]) -> None:
        super().__init__(channel)
        self._all = plans
        self._known: set[int] = set()

    def ask(self, number: int, plan: int) -> None:
        if plan not in self._known:
            self._known.add(plan)
            self.add_plan(plan, self._all[plan])
        super().ask(number, plan)
