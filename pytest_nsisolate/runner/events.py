"""What happens to test processes: events that the event loop waits for and handles.

Those of frames come from a test process, which is not trusted; the others from the keeper, a
template, or the PID 1 of a snapshot's sandbox.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pytest_nsisolate.core.linux.syscalls import StageError
    from pytest_nsisolate.core.outcome import Outcome


class TestOver(NamedTuple):
    """A test has ended, and its process goes on with the next one."""

    end: dict[str, Any]


class Completed(NamedTuple):
    """The last test of a process has ended."""

    end: dict[str, Any]


class NotEntered(NamedTuple):
    """A process could not enter its sandbox, or prepare it."""

    error: StageError


class SetUp(NamedTuple):
    """A process, that of a snapshot, has set up and takes orders from now on."""


class Reported(NamedTuple):
    """A phase of the current test has been reported."""

    report: dict[str, Any]


class DebuggerStarts(NamedTuple):
    """The current test waits for the terminal."""


class Broken(NamedTuple):
    """The stream of a process makes no sense: nothing more is taken of it."""

    outcome: Outcome


FrameEvent = TestOver | Completed | NotEntered | SetUp | Reported | DebuggerStarts | Broken


class Forked(NamedTuple):
    """A template has forked a process, whose pid is *pid* as the template sees it."""

    number: int
    pid: int


class NotForked(NamedTuple):
    """A template could not fork a process into its sandbox."""

    number: int
    error: StageError


class LeftRunning(NamedTuple):
    """The guard of a process found processes that it had left, a line each."""

    number: int
    lines: list[str]


class Waited(NamedTuple):
    """A process has ended, stopped or continued, as its wait *status* says.

    Attributes:
        usage: the figures of its end as text, of the template that waited for it.
    """

    number: int
    status: int
    usage: bytes


class SandboxMade(NamedTuple):
    """A sandbox is ready, or will be asked for again."""


class NotMade(NamedTuple):
    """No sandbox can be built by a plan."""

    plan: int
    error: StageError


class TemplateFailed(NamedTuple):
    """The session's template could not start."""

    error: StageError


class Gone(NamedTuple):
    """The keeper or the template of a server has ended.

    Attributes:
        what: "keeper" or "template".
        number: the error that it ended of.
    """

    what: str
    number: int


ServerEvent = (
    Forked | NotForked | LeftRunning | Waited | SandboxMade | NotMade | TemplateFailed | Gone
)
