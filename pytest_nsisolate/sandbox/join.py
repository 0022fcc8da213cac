"""Join a sandbox and take the rights of the test in it.

A test process and the launcher of ``nsisolate run`` do this between their fork and the test
or command. The order counts: cgroups first, then namespaces, then rights.
"""

from __future__ import annotations

import errno
import os

from pytest_nsisolate.core.linux.syscalls import (
    CAP_SYS_ADMIN,
    CLONE_NEWPID,
    PR_SET_NO_NEW_PRIVS,
    StageError,
    drop_capabilities,
    keep_capability,
    new_session_keyring,
    prctl,
    setns,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def join_cgroups(fds: Sequence[int]) -> None:
    """Move this process into the cgroups that *fds* are of (`Group.join_fds`).

    Call it first: the kernel charges memory to the cgroup of the process that
    touches it. Call it before `join_sandbox`: kernels before 5.17 check the rights
    of the writer, not of the process that opened the file.

    Raises:
        StageError: the process can't join. ENODEV: the cgroup has been removed.
    """
    for fd in fds:
        try:
            os.write(fd, b"0")
        except OSError as error:
            raise StageError("join the cgroup", error.errno or errno.EIO) from None
        os.close(fd)


def join_sandbox(init: int, flags: int, directory: str) -> None:
    """Enter the namespaces *flags* of the process whose pidfd *init* is, and *directory*, if any.

    The fork that made this process has entered the pid namespace.

    Raises:
        StageError: a step failed.
    """
    setns(init, flags & ~CLONE_NEWPID, stage="enter the sandbox")
    if directory:
        try:
            os.chdir(directory)
        except OSError as error:
            raise StageError("enter the directory", error.errno or 0, directory) from None


def take_rights(keep: int = 0) -> None:
    """Take the rights of this uid: all for uid 0, else no capability and no way to one.

    Args:
        keep: bits of capabilities that another uid keeps. Its programs don't inherit them.
    """
    new_session_keyring()
    if os.getuid() != 0:
        prctl(PR_SET_NO_NEW_PRIVS, 1, stage="set no_new_privs")
        drop_capabilities(keep)


def keep_rights() -> None:
    """Do as `take_rights`, but keep the right to fork into other sandboxes, not in effect."""
    new_session_keyring()
    if os.getuid() != 0:
        prctl(PR_SET_NO_NEW_PRIVS, 1, stage="set no_new_privs")
        keep_capability(CAP_SYS_ADMIN)
