"""What a test process may do and what it inherits: users, capabilities, descriptors."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support import Run

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


def test_forged_pages(run: Run) -> None:
    """What a test says of its memory reaches neither the run nor anybody's files."""
    run.tests("""
    def write(payload):
        import json
        data = json.dumps(["pages", payload]).encode()
        for fd in map(int, os.listdir("/proc/self/fd")):
            try:
                if "pipe" in os.readlink(f"/proc/self/fd/{fd}"):
                    os.write(fd, len(data).to_bytes(4, "big") + data)
            except OSError:
                pass

    @pytest.mark.parametrize("number", range(30))
    def test_pages(number, request):
        if number < 4:
            write([[], [4096], [1 << 40], list(range(0, 4096 * 3000, 4096))][number])

    def test_files(tmp_path):
        os.closerange(3, 200)
        files = [open(tmp_path / str(number), "wb") for number in range(20)]
        request = None
        globals()["files"] = files

    @pytest.mark.parametrize("number", range(5))
    def test_more(number):
        pass
    """)
    result = run.isolated("--ns-jobs=2", "-p", "no:cacheprovider")
    bad = {name for name, verdict in result.verdicts.items() if verdict != "passed"}
    assert bad <= {"test_files"} | {f"test_pages[{number}]" for number in range(4)}, str(result)
    left = [path for path in run.path.glob("basetemp-*/**/*") if path.is_file()]
    assert all(
        path.stat().st_size == 0 for path in left if path.parent.name.startswith("test_files")
    )
