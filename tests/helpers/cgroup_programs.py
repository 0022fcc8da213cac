"""Programs that run into the limits of a cgroup, and the processes that run them in one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .hosts import DEADLINE

if TYPE_CHECKING:
    from pytest_nsisolate.cgroups.group import Group
    from pytest_nsisolate.cgroups.session import Session
    from pytest_nsisolate.core.usage import Usage
    from pytest_nsisolate.spec.limits import Limits

JOIN = """
import ctypes, os, sys, threading, time
for word in sys.argv[1].split(","):
    os.write(int(word), b"0")
    os.close(int(word))
"""


@dataclass
class Done:
    status: int
    out: str
    usage: Usage
    oom_kills: int
    pids_denied: int
    wall: float = field(default=0.0)


def start(group: Group, source: str) -> subprocess.Popen[str]:
    """A process that joins the group as the first thing it does."""
    fds = group.join_fds()
    command = [sys.executable, "-S", "-c", JOIN + textwrap.dedent(source)]
    return subprocess.Popen(
        [*command, ",".join(map(str, fds))],
        pass_fds=fds,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(session: Session, limits: Limits, source: str) -> Done:
    group = session.group(limits)
    before = time.monotonic()
    process = start(group, source)
    out, _ = process.communicate(timeout=DEADLINE)
    wall = time.monotonic() - before
    found = (group.usage(), group.oom_kills(), group.pids_denied())
    session.end(group)
    return Done(process.returncode, out, *found, wall)


FILL = {
    "in C": "x = bytearray(200 << 20)",
    "in a child process": """
        pid = os.fork()
        if not pid:
            x = bytearray(200 << 20)
            os._exit(0)
        print(os.waitpid(pid, 0)[1])
    """,
    "in threads": """
        kept = []
        threads = [threading.Thread(target=lambda: kept.append(bytearray(25 << 20)))
                   for _ in range(8)]
        for one in threads: one.start()
        for one in threads: one.join()
    """,
    "pages of a tmpfs": """
        fd = os.memfd_create("x")
        for _ in range(200): os.write(fd, bytes(1 << 20))
    """,
}

FORKS = """
    import errno
    end, held = os.pipe()
    count = 1
    try:
        while True:
            if not os.fork():
                os.close(held)
                os.read(end, 1)
                os._exit(0)
            count += 1
    except OSError as error:
        print(count, errno.errorcode[error.errno])
"""

BUSY = """
    end = time.process_time() + {}
    while time.process_time() < end:
        pass
"""

OPEN = """
    for name in ("null", "zero"):
        try:
            open("/dev/" + name).close()
            print(name)
        except OSError as error:
            print(error.errno)
"""

DIRECT = """
    import mmap
    data = mmap.mmap(-1, 1 << 20)
    fd = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    before = time.monotonic()
    for _ in range(4):
        os.write(fd, data)
    print(time.monotonic() - before)
"""
