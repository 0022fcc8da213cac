"""One session after the other with a fault in each, judged."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from faults.calls import CALLS
from faults.judge import complaints
from faults.sessions import VERDICTS, Session
from faults.supervisor import Fault, Site, Supervisor
from helpers.hosts import DEADLINE, marked, proc_bytes
from helpers.run import Result, Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from helpers.run import Running

NOT_TRIED = ("other", "program")
"""Roles of processes that are no part of a session: what tests start, say."""
ENDS = 2 * DEADLINE
"""Seconds within which a session has to end: a sandbox that isn't built is given up after 30."""
NOT_OURS = ("chdir", "dup2")
"""Calls of the runner that are pytest's own, as the interpreter's for its imports are."""


class Trial(NamedTuple):
    """One session with one fault."""

    session: Session
    fault: Fault
    reached: bool
    seconds: float
    wrong: tuple[str, ...]
    result: Result

    @property
    def headlines(self) -> list[str]:
        """How failures of it begin, each once."""
        found = (phase.text.partition("\n")[0] for phase in self.result.phases)
        return list(dict.fromkeys(line for line in found if line and line[0].isupper()))

    def __str__(self) -> str:
        """The fault, and what is wrong."""
        wrong = "".join(f"\n    {line}" for one in self.wrong for line in one.splitlines())
        return f"{self.session.name}: {self.fault}{wrong}"


def record(session: Session, folder: Path) -> list[Site]:
    """The calls that the session makes, in order."""
    supervisor = Supervisor()
    _, result, wrong = _run(session, supervisor, folder)
    assert not wrong, f"{session.name}: {wrong}\n{result}"
    assert result.verdicts == VERDICTS, f"{session.name}\n{result}"
    return supervisor.order


def faults(session: Session, order: Iterable[Site], tried: set[Site]) -> Iterator[Fault]:
    """What there is to try at these sites, without kinds that have been *tried*; adds to them.

    Of each kind the first call and one in the middle, with each errno; and a kill at each of them.
    What is tried again is so with the first errno and a kill, at the first call.
    """
    counts = Counter(site._replace(nth=1) for site in order)
    for kind, count in counts.items():
        if kind.role.endswith("later") or kind.role in NOT_TRIED:
            continue
        again = kind in tried
        if again and kind.role not in session.again:
            continue
        if kind.role == "runner" and (kind.call in NOT_OURS or kind.what == "the package"):
            continue
        tried.add(kind)
        for number in {1} if again else sorted({1, (count + 1) // 2}):
            site = kind._replace(nth=number)
            errnos = CALLS[kind.call].errnos
            for code in (*(errnos[:1] if again else errnos), 0):
                yield Fault(site, code)


def attempt(session: Session, fault: Fault, folder: Path) -> Trial:
    """Run the session with the fault."""
    supervisor = Supervisor(fault)
    seconds, result, wrong = _run(session, supervisor, folder)
    if supervisor.reached:
        wrong += complaints(fault, result)
    return Trial(session, fault, supervisor.reached, seconds, tuple(wrong), result)


def sample(everything: list[Fault], count: int, seed: int) -> list[Fault]:
    """So many of them, the same ones for a seed, spread over the roles."""
    dice = random.Random(seed)
    shuffled = dice.sample(everything, len(everything))
    by_role: dict[str, list[Fault]] = {}
    for fault in shuffled:
        by_role.setdefault(fault.site.role, []).append(fault)
    found: list[Fault] = []
    while len(found) < min(count, len(everything)):
        for rest in by_role.values():
            if rest and len(found) < count:
                found.append(rest.pop())
    return found


@contextlib.contextmanager
def workplace(session: Session) -> Iterator[Path]:
    """A directory for one run, that the session's user may write to."""
    path = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        if session.uid is not None:
            shutil.chown(path, session.uid, session.uid)
        yield path
    finally:
        shutil.rmtree(path)


def _run(session: Session, supervisor: Supervisor, folder: Path) -> tuple[float, Result, list[str]]:
    run = Run(path=folder, uid=session.uid)
    run.tests(*session.sources)
    environment, inherited = supervisor.prepare(folder)
    begin = time.monotonic()
    with session.place() as prefix:
        running = run.start(
            "-p",
            "ns_faults",
            *session.arguments,
            env=environment,
            prefix=prefix,
            pass_fds=inherited,
        )
        try:
            end = supervisor.serve(running.process.pid, inherited, begin + ENDS)
            wrong = []
            if end != "gone":
                waited = time.monotonic() - begin
                wrong.append(f"{end} after {waited:.0f} s:\n{_processes(running)}")
                running.kill()
            ret = running.process.wait()
        finally:
            supervisor.close()
            running.kill()
    return time.monotonic() - begin, running.result(ret=ret), wrong


def _processes(running: Running) -> str:
    """The processes of a run that should have ended, and what they wait for."""
    lines = []
    for pid in marked(running.marker):
        command = proc_bytes(pid, "cmdline").replace(b"\0", b" ").decode("utf-8", "replace")
        lines.append(f"{pid} {command[:60]} in {proc_bytes(pid, 'wchan').decode()}")
    return "\n".join(lines)
