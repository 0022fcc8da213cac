"""How a test process ended: every ending has a name and a text."""

from __future__ import annotations

import dataclasses
import enum
import errno
import os
import signal

from .text import mebibytes
from .usage import Timing, Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .errors import StageError


class Kind(enum.Enum):
    """The endings of a test process."""

    COMPLETED = "completed"
    CRASHED = "crashed"
    EXITED = "exited"
    STOPPED = "stopped"
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    TOO_MANY_PROCESSES = "too many processes"
    TOO_MUCH_OUTPUT = "too much output"
    SANDBOX_FAILED = "setup failed"
    TRUNCATED = "truncated"


@dataclasses.dataclass
class Outcome:
    """The ending of one attempt of one test.

    Attributes:
        kind: its name.
        number: signal number, exit code, or errno; 0 where none applies.
        detail: stage and path of a failed sandbox, or what was wrong with the stream.
        timeout: seconds, of a test that timed out.
        limit: bytes, processes or bytes of output, of a test that reached that limit.
        group: the value of the key ``scope``, if a whole group of tests was held to the limit.
        running: the processes then, a line each; of a limit the largest.
        trace: what faulthandler wrote: a native traceback, or the stacks at the timeout or
            when memory ran short.
        out, err: captured output that no report holds yet.
        written: what it wrote to the terminal since its last report; pytest-timeout's
            method "thread" shows its stacks so, before it ends the process.
        snapshot: the value of the key ``snapshot``, if not the test ended so but its snapshot.
        left: what it left running, as "command (pid N)"; of many the first, then "N more".
        wall: seconds.
        usage: what the test used.
        source: where the figures of its usage come from: "cgroup" or "wait4".
        timing: when and where it ran, if a report asks for it.
        artifacts: the directory with what it exported, and what else was brought out.
        written_files: files that a hermetic test wrote, and that are gone.
        brought: what a person has to know of that, a line each.
        counters: events that the kernel counted, by name.
        asked: of a test that timed out, whether it was asked to end before it was killed.
        kept: the id of its sandbox, if that is to outlive the session.
        refusal: the whole text of the failure, of a test that asks for what can't be held.
    """

    kind: Kind
    number: int = 0
    detail: str = ""
    path: str = ""
    timeout: float | None = None
    limit: int = 0
    group: str = ""
    snapshot: str = ""
    running: list[str] = dataclasses.field(default_factory=list)
    trace: str = ""
    out: str = ""
    err: str = ""
    written: str = ""
    left: list[str] = dataclasses.field(default_factory=list)
    wall: float = 0.0
    usage: Usage = Usage()  # noqa: RUF009 -- frozen
    source: str = "wait4"
    timing: Timing | None = None
    artifacts: str = ""
    brought: tuple[str, ...] = ()
    written_files: tuple[str, ...] = ()
    counters: dict[str, int] = dataclasses.field(default_factory=dict)
    asked: bool = True
    kept: str = ""
    refusal: str = ""

    @classmethod
    def failed(cls, error: StageError) -> Outcome:
        """Make the outcome of a test whose sandbox, or process, could not be made."""
        return cls(Kind.SANDBOX_FAILED, error.errno, error.stage, error.path)

    @classmethod
    def of_status(cls, status: int) -> Outcome:
        """Make the outcome of a process that ended by itself before it had reported."""
        if os.WIFSIGNALED(status):
            return cls(Kind.CRASHED, os.WTERMSIG(status))
        return cls(Kind.EXITED, os.WEXITSTATUS(status))

    @property
    def cpu(self) -> float | None:
        """CPU seconds, user and system together."""
        return self.usage.cpu

    @property
    def peak_memory(self) -> int | None:
        """Bytes; see `Usage`."""
        return self.usage.peak_memory

    @property
    def headline(self) -> str:
        """The first line of the failure text."""
        if self.refusal:
            return self.refusal.partition("\n")[0]
        if self.kind is Kind.CRASHED:
            return f"CRASHED with signal {self.number} ({signal_name(self.number)})"
        if self.kind is Kind.EXITED:
            return f"EXITED with code {self.number} before reporting"
        if self.kind is Kind.STOPPED:
            return f"STOPPED by signal {self.number} ({signal_name(self.number)})"
        if self.kind is Kind.TIMED_OUT:
            return f"TIMED OUT after {self.timeout:g} s"
        if self.kind is Kind.OUT_OF_MEMORY:
            peak = "unknown" if self.peak_memory is None else mebibytes(self.peak_memory)
            return f"OUT OF MEMORY: limit {mebibytes(self.limit)}, peak {peak}"
        if self.kind is Kind.TOO_MANY_PROCESSES:
            return f"TOO MANY PROCESSES: limit {self.limit}"
        if self.kind is Kind.TOO_MUCH_OUTPUT:
            return f"TOO MUCH OUTPUT: limit {mebibytes(self.limit)}"
        if self.kind is Kind.TRUNCATED:
            return f"REPORT BROKEN: {self.detail}"
        if self.kind is Kind.SANDBOX_FAILED:
            name = errno_name(self.number)
            return f"SANDBOX FAILED at {' '.join(filter(None, (self.detail, self.path)))}: {name}"
        return "completed"

    @property
    def short(self) -> str:
        """What it did, in pytest-forked's words, which tools look for."""
        if self.snapshot:
            return f"the process of its snapshot (snapshot={self.snapshot!r}): {self.headline}"
        if self.kind is Kind.CRASHED:
            return f"running the test {self.headline}"
        if self.kind is Kind.EXITED:
            return f"running the test EXITED with status {self.number}"
        return f"running the test: {self.headline}"

    @property
    def advice(self) -> str:
        """Why, as far as it can be known, and what to do next."""
        if self.kind is Kind.CRASHED:
            if self.number == signal.SIGKILL:
                return (
                    "Something killed it: the test itself, a process it started, or the "
                    "kernel for want of memory (dmesg would say)."
                )
            if self.trace:
                return "The native traceback below shows which line it was at."
            return "No native traceback: the signal was sent from outside, or not a fault."
        if self.kind is Kind.EXITED:
            return (
                "The process ended, was replaced by exec, or lost its report stream (did the "
                "test close descriptors it doesn't own?) before the report was sent. Look for "
                "os._exit, exec and closed descriptors in the test and in what it calls."
            )
        if self.kind is Kind.STOPPED:
            return (
                "It was stopped for over a second and nobody continued it. A test of job "
                "control should send SIGCONT to what it stops."
            )
        if self.kind is Kind.TIMED_OUT and not self.asked:
            return (
                "The time for setup, call and teardown together was over. It had so many "
                "processes that all were killed without being asked to end; fixtures were not "
                "torn down. Look for what starts processes or threads without end."
            )
        if self.kind is Kind.TIMED_OUT:
            return (
                "The time for setup, call and teardown together was over, and the process did "
                "not react when it was asked to end, so it was killed; fixtures were not torn "
                "down. Look at the stacks below for what it waited for; give it more with "
                "@pytest.mark.isolated(timeout=SECONDS)."
            )
        if self.kind is Kind.OUT_OF_MEMORY:
            return (
                "The kernel killed a process of this test, since together they touched more "
                "memory than the limit; files in /tmp and /dev/shm count. Free or write out "
                "what isn't needed, or give it more with @pytest.mark.isolated(memory=SIZE)."
                + self._together
            )
        if self.kind is Kind.TOO_MANY_PROCESSES:
            return (
                "The kernel refused to start more processes and threads (EAGAIN). Wait for "
                "those that have done their work, or allow more with "
                "@pytest.mark.isolated(pids=NUMBER)." + self._together
            )
        if self.kind is Kind.TOO_MUCH_OUTPUT:
            return (
                "What the test and its processes wrote to standard output and standard error is "
                "kept in memory until it is reported, and was more than is kept of one test, so "
                "the test was ended; fixtures were not torn down. Its beginning and its end are "
                "below. Have it write less, or to a file; with -s nothing is kept."
            )
        if self.kind is Kind.TRUNCATED:
            return (
                "The report of this test can't be trusted, so it counts as failed. Either "
                "something wrote into descriptors that it had inherited, or what it told of itself "
                "is more than is taken of one test (subtests, or what it wrote to the terminal)."
            )
        return ""

    @property
    def _together(self) -> str:
        if not self.group:
            return ""
        return f" The limit is for all tests of the {self.group} together (scope={self.group!r})."


#: Title of the section that names what a test left behind; terminals show
#: sections of a teardown by this word.
LEFT_TITLE = "Processes left running at teardown"


#: Title of the section with what a hermetic test tried, of its own process.
TRIED_TITLE = "Not hermetic: tried outside of the sandbox's own"
#: Title of the section with what a hermetic test wrote, whichever process did.
WRITTEN_TITLE = "Not hermetic: files written that are gone after teardown"
#: Title of the section that tells of files that were brought out.
BROUGHT_TITLE = "Files brought out at teardown"
#: Title of the section that says how its sandbox is entered.
KEPT_TITLE = "Sandbox kept at teardown"


def left_text(left: list[str]) -> str:
    """Return the text of the section `LEFT_TITLE`."""
    return "".join(f"left running: {one}\n" for one in left)


def left_of(sections: list[tuple[str, str]]) -> list[str]:
    """Return the leaked processes that the sections of a report name."""
    lines = [line for title, text in sections if title == LEFT_TITLE for line in text.splitlines()]
    return [line.removeprefix("left running: ") for line in lines]


def signal_name(number: int) -> str:
    """Return the name of a signal: SIGSEGV for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def errno_name(number: int) -> str:
    """Return the name of an errno: EPERM for 1."""
    return errno.errorcode.get(number, str(number))
