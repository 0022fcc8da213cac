"""The test process: from the fork to the body, and out again.

`run` never returns. What it does before the body is all that a fork of the
template needs to become the second process of its sandbox; nothing is imported
here, and no system call is made that the spec does not need.
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
from pytest_nsisolate.core import raw_fork, wire
from pytest_nsisolate.core.descriptors import move_up
from pytest_nsisolate.core.messages import GO, SNAPSHOT, Order
from pytest_nsisolate.core.syscalls import (
    LINUX,
    PR_SET_PDEATHSIG,
    StageError,
    prctl,
    restore_mask,
)
from pytest_nsisolate.sandbox.join import join_cgroups, join_sandbox, keep_rights, take_rights
from pytest_nsisolate.spec import profiles

if TYPE_CHECKING:
    from pytest_nsisolate.spec.spec import Spec

#: The exit code of a test process that could not say what happened.
EXIT_UNREPORTED = 3


class Body(Protocol):
    """What a test process does once it is in its sandbox."""

    #: Descriptors that must stay open in the template.
    descriptors: set[int]

    def furnish(self, order: Order) -> None:
        """What the test process adds to its sandbox while it still has all rights over it.

        Raises:
            StageError: what could not be done.
        """
        ...

    def rights(self, order: Order) -> int:
        """Capabilities, as bits, that the test keeps over its sandbox whatever its uid is."""
        ...

    def adopt(self, order: Order) -> None:
        """Put the descriptors of *order* in place."""
        ...

    def release(self) -> None:
        """Close what a process that runs no test should not hold."""
        ...

    def run(self, order: Order, word: tuple[int, int, int]) -> None:
        """Run the tests of *order*; *word* is what the runner said at the gate (`GO`).

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
            # They may start threads: which have the rights of this one, and are in its sandbox.
            raw_fork.after_in_child()
            stream = move_up(stream)
            body.adopt(order._replace(stream=stream))
            # Parked here until it is this test's turn; the end of the stream says
            # that it never will be.
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
    """What the runner is told of what could not be done before the test."""
    if not isinstance(error, StageError):
        error = StageError.of("prepare the test process", error)
    return [error.stage, error.errno, error.path]


def enter(order: Order, body: Body, directory: str) -> None:
    """Join the sandbox and take the rights that its uid has.

    Raises:
        StageError: what could not be done.
    """
    if order.flags:
        join_sandbox(order.init, order.flags & ~SNAPSHOT, directory)
        if not order.flags & SNAPSHOT:
            body.furnish(order)
    # A group of its own in the session of the template, which has no terminal: a test that
    # leads no session gets none by opening one, and no SIGHUP when that is closed.
    os.setpgid(0, 0)
    if order.flags & SNAPSHOT:
        keep_rights()
    elif order.flags:
        take_rights(body.rights(order))
    if LINUX:
        # After the change of credentials, which clears it. Its parent is the
        # template, and it ends with it.
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
