"""What a test process may do and what it inherits: users, capabilities, descriptors."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

CAPABILITIES = """
    def status():
        with open("/proc/self/status") as stream:
            return {line.partition(":")[0]: line.partition(":")[2].strip() for line in stream}
"""


def test_uid_0_keeps_its_capabilities(run_as_each: Run) -> None:
    """As uid 0 a test has the capabilities of root, inside its namespaces."""
    run_as_each.tests(
        CAPABILITIES,
        """
    @pytest.mark.isolated(user="root")
    def test_it():
        assert os.getuid() == os.geteuid() == os.getgid() == 0
        assert int(status()["CapEff"], 16) >> 21 & 1, "CAP_SYS_ADMIN"
        socket.sethostname("mine")
    """,
    )
    run_as_each().expect(passed=1)


def test_same_user_by_default(run_as_each: Run) -> None:
    """Without a key the ids are those of the runner."""
    uid = os.getuid() if run_as_each.uid is None else run_as_each.uid
    run_as_each.tests(f"""
    def test_it():
        assert os.getresuid() == ({uid},) * 3
        assert os.stat("ns_recorder.py").st_uid in (0, {uid}, 65534)
    """)
    run_as_each.isolated().expect(passed=1)


def test_other_uids_have_no_capabilities(run_as_nobody: Run) -> None:
    """As any other uid a test has no capability at all and can't get one."""
    run_as_nobody.tests(
        CAPABILITIES,
        """
    def test_it():
        found = status()
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(found[name], 16) == 0, name
        assert found["NoNewPrivs"] == "1"
    """,
    )
    run_as_nobody.isolated().expect(passed=1)


def test_inherited_descriptors(run_as_each: Run) -> None:
    """Sockets, directories and pipes of the runner are closed, but for one report pipe."""
    run_as_each.tests("""
    def test_it():
        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                found.append((int(name), os.readlink(f"/proc/self/fd/{name}")))
            except FileNotFoundError:
                continue  # the listing itself
        sockets = [fd for fd, target in found if target.startswith("socket:")]
        folders = [fd for fd, target in found if os.path.isdir(f"/proc/self/fd/{fd}")]
        pipes = [fd for fd, target in found if target.startswith("pipe:")]
        assert not sockets, found
        assert not folders, found
        assert len(pipes) <= 1, found
    """)
    folder = os.open("/", os.O_RDONLY)
    pipe = os.pipe()
    with socket.socket() as inherited:
        try:
            fds = (inherited.fileno(), folder, *pipe)
            result = run_as_each.isolated(pass_fds=fds)
        finally:
            for fd in (folder, *pipe):
                os.close(fd)
    result.expect(passed=1)
