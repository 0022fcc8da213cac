"""The test process: from the fork to the body, and out again.

`run` never returns. Before the body it does only what a fork of the template needs to
become the second process of its sandbox. It imports nothing, and makes no system call
that the spec does not need.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from pytest_nsisolate.cgroups import always_on
from pytest_nsisolate.core import wire
from pytest_nsisolate.core.linux import raw_fork
from pytest_nsisolate.core.linux.descriptors import move_up
from pytest_nsisolate.core.linux.syscalls import (
    LINUX,
    PR_SET_PDEATHSIG,
    StageError,
    prctl,
    restore_mask,
)
from pytest_nsisolate.core.messages import GO, SNAPSHOT, Order
from pytest_nsisolate.sandbox.join import join_cgroups, join_sandbox, keep_rights, take_rights
from pytest_nsisolate.spec import profiles

if TYPE_CHECKING:
    from pytest_nsisolate.spec.spec import Spec

#: The exit code of a test process that could not report what happened.
EXIT_UNREPORTED = 3


class Body(Protocol):
    """What a test process does once it is in its sandbox."""

    #: Descriptors that must stay open in the template.
    descriptors: set[int]

    def furnish(self, order: Order) -> None:
        """Add to the sandbox what the spec asks, while the process has all rights over it.

        Raises:
            StageError: a step failed.
        """
        ...

    def rights(self, order: Order) -> int:
        """Return the capabilities, as bits, that the test keeps even if its uid is not 0."""
        ...

    def adopt(self, order: Order) -> None:
        """Put the descriptors of *order* in place."""
        ...

    def release(self) -> None:
        """Close what only a process that runs a test needs."""
        ...

    def run(self, order: Order, word: tuple[int, int, int]) -> None:
        """Run the tests of *order*; *word* is the `GO` that came through the gate.

        Raises:
            StageError: a snapshot can't go on.
        """
        ...


def run(order: Order, body: Body, mask: bytes, directory: str) -> NoReturn:
    """Become the test process of *order*.

    Args:
        mask: the signal mask of the runner.
        directory: where the test starts; "" if it has been removed.
    """
    code = EXIT_UNREPORTED
    stream = order.stream
    try:
        try:
            join_cgroups(order.groups)
            if LINUX:
                restore_mask(mask)
            enter(order, body, directory)
            # Handlers may start threads. These get the rights and the sandbox of this one.
            raw_fork.after_in_child()
            stream = move_up(stream)
            body.adopt(order._replace(stream=stream))
            # Wait until the runner starts this test. End of file: it never will.
            data = os.read(order.gate, GO.size)
        except (StageError, OSError) as error:
            os.write(stream, wire.encode("failed", _fact(error)))
            os._exit(0)
        if data:
            body.run(order, GO.unpack(data))
        code = 0
    except StageError as error:  # of a snapshot
        os.write(stream, wire.encode("failed", _fact(error)))
    except BaseException:  # noqa: BLE001 -- the last line of this process
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


def _fact(error: StageError | OSError) -> list[object]:
    """Describe to the runner the step that failed before the test."""
    if not isinstance(error, StageError):
        error = StageError.of("prepare the test process", error)
    return [error.stage, error.errno, error.path]


def enter(order: Order, body: Body, directory: str) -> None:
    """Join the sandbox and take the rights of this uid.

    Raises:
        StageError: a step failed.
    """
    if order.flags:
        join_sandbox(order.init, order.flags & ~SNAPSHOT, directory)
        if not order.flags & SNAPSHOT:
            body.furnish(order)
    # Its own process group in the session of the template, which has no terminal. A process
    # that leads no session gets no controlling terminal when it opens one, and no SIGHUP later.
    os.setpgid(0, 0)
    if order.flags & SNAPSHOT:
        keep_rights()
    elif order.flags:
        take_rights(body.rights(order))
    if LINUX:
        # After the change of credentials, which clears it. The process ends with its
        # parent, the template.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if not order.flags & SNAPSHOT:
            always_on.offer_test()


def forget_host_name() -> None:
    """Make `platform` read the host name again: it has kept it with the system's name."""
    platform: Any = sys.modules.get("platform")
    if platform is not None:
        platform._uname_cache = None


def apply_environment(spec: Spec) -> None:
    """Set environment, time zone and umask as *spec* says; with a profile /tmp is the test's own.

    The locale of this interpreter stays what it was at the start of the session: changing
    ``LANG`` concerns the programs that the test starts.
    """
    if spec.env != "inherit":
        before = {name: os.environ.get(name) for name in ("TZ", "TMPDIR")}
        environment = spec.environment(os.environ)
        os.environ.clear()
        os.environ.update(environment)
        if os.environ.get("TZ") != before["TZ"] and hasattr(time, "tzset"):
            time.tzset()
        tempfile: Any = sys.modules.get("tempfile")
        if tempfile is not None and os.environ.get("TMPDIR") != before["TMPDIR"]:
            tempfile.tempdir = None  # asked for before the session began, and kept
    if spec.profile is not None:
        os.umask(profiles.UMASK)
        if os.environ.get("HOME") == profiles.HOME:
            with contextlib.suppress(FileExistsError):
                os.mkdir(profiles.HOME, 0o700)
