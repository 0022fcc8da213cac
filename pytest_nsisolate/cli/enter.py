"""``nsisolate enter ID [COMMAND...]``: run a command, or a shell, in a living sandbox.

The command joins all namespaces of the sandbox, with the rights, the directory and the
environment that its test had, and the caller's terminal. It is in none of its control
groups: a limit that the test has reached would stop the command as well.

Root enters anybody's sandbox, as the user whose it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from typing import TYPE_CHECKING

from pytest_nsisolate.core.linux.syscalls import StageError, getcwd
from pytest_nsisolate.core.outcome import errno_name, signal_name
from pytest_nsisolate.explain.explain import explain

from . import launcher
from .foreground_job import Attended, Interrupted, Signals, not_executed, open_standard_streams

if TYPE_CHECKING:
    from pytest_nsisolate.runner.kept.live import Living
    from pytest_nsisolate.runner.kept.registry import Process

#: The exit code where no command could be started, as env(1) has it.
FAILED = 125
#: Of the caller's environment: what describes the terminal, and the way to talk with it.
_OF_THE_TERMINAL = ("TERM", "COLORTERM", "LANG", "LC_ALL", "LC_CTYPE")
_STAGE = "enter the directory"


def enter(one: Living, command: tuple[str, ...]) -> int:
    """Run *command* in the sandbox, a shell if it is empty; return its exit status."""
    open_standard_streams()
    environment = _environment(one)
    start = launcher.Start(
        command=command or (_shell(one, environment),),
        environment=environment,
        directory=one.directory or getcwd(),
        keeper=-1,
        init=-1,
        flags=one.flags,
        group=(),
        mask=b"",
        ignored=frozenset(),
        user=_user(one),
    )
    code = _attempt(one, start)
    if code is None:
        _say(f"nsisolate enter: there is no {start.directory} in there; this is /")
        code = _attempt(one, start._replace(directory=""))
    return FAILED if code is None else code


def _say(text: str) -> None:
    # Nobody may be reading any more: the exit status still counts.
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _environment(one: Living) -> dict[str, str]:
    if one.environment is None:
        return dict(os.environ)
    terminal = {name: os.environ[name] for name in _OF_THE_TERMINAL if name in os.environ}
    return {**one.environment, **terminal}


def _shell(one: Living, environment: dict[str, str]) -> str:
    """Return the user's shell if the sandbox has it too, else /bin/sh."""
    for path in (os.environ.get("SHELL", ""), environment.get("SHELL", "")):
        if path.startswith("/") and os.path.lexists(f"/proc/{one.init.pid}/root{path}"):
            return path
    return "/bin/sh"


def _attempt(one: Living, start: launcher.Start) -> int | None:
    """Run the command and return its exit status; None if its directory is missing."""
    signals = Signals()
    try:
        with contextlib.ExitStack() as stack:
            keeper, init = (_open(process, stack) for process in (one.keeper, one.init))
            start = start._replace(
                keeper=keeper, init=init, mask=signals.mask, ignored=signals.ignored
            )
            attended = Attended(start, signals, stack, [])
            attended.wait()
            killed = attended.status is not None and os.WIFSIGNALED(attended.status[0])
            attended.terminal.take_back(modes=killed)
            if attended.error is None:
                return _code(attended, start.command)
            if attended.error.stage == _STAGE and start.directory:
                return None
            return _refused(attended.error)
    except StageError as error:
        return _refused(error)
    except OSError as error:  # no descriptors or processes left
        return _refused(StageError("start the command", error.errno or errno.EIO))
    except Interrupted as stop:
        return 128 + stop.number


def _open(process: Process, stack: contextlib.ExitStack) -> int:
    pidfd = process.open()
    if pidfd is None:
        raise StageError("find the sandbox", errno.ESRCH)
    stack.callback(os.close, pidfd)
    return pidfd


def _user(one: Living) -> tuple[int, int, tuple[int, ...]] | None:
    uid, gid = one.owner
    if os.geteuid() != 0 or uid == 0:
        return None
    import pwd  # noqa: PLC0415 -- other systems than Linux may lack it

    groups = [gid]
    with contextlib.suppress(KeyError, OSError):
        groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    return uid, gid, tuple(groups)


def _refused(error: StageError) -> int:
    where = f" {error.path}" if error.path else ""
    _say(f"nsisolate enter: can't {error.stage}{where}: {errno_name(error.errno)}")
    if error.errno == errno.ESRCH:
        _say("it has ended; `nsisolate ps` lists those that are alive")
    else:
        found = explain(error)
        _say(f"why: {found.meaning}")
    return FAILED


def _code(attended: Attended, command: tuple[str, ...]) -> int:
    if attended.exec_error is not None:
        code, lines = not_executed(command[0], attended.exec_error)
        _say("\n".join(f"nsisolate enter: {line}" for line in lines))
        return code
    if attended.status is None or attended.started is None:
        return _refused(StageError("start the command", errno.EPIPE))
    status = attended.status[0]
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status)
    number = os.WTERMSIG(status)
    if number not in (signal.SIGINT, signal.SIGPIPE):
        _say(f"nsisolate enter: ended by signal {number} ({signal_name(number)})")
    return 128 + number
