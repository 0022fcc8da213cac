"""Replace a bare process by a program that is killed when its starter ends.

Nothing can be done safely between fork and exec in a process with threads. So a bare process
sets PR_SET_PDEATHSIG, which stays over its exec.
"""

from __future__ import annotations

import os
import signal
import sys

from .linux.syscalls import PR_SET_PDEATHSIG, prctl


def main(parent: int) -> None:
    """Replace this process by the program in ``sys.argv[1:]``, if *parent* is still its parent."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Python ignores SIGPIPE, and pasta of 2023 doesn't start where it is ignored.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if os.getppid() == parent:
        os.execv(sys.argv[1], sys.argv[1:])
