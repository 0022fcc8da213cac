"""``nat=True``: a way out of the sandbox, by the host as root or by a program without rights.

What is outside is a network that the test made: nothing leaves the machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from helpers.commands import PROGRAM
from helpers.hosts import become, wait_gone
from helpers.networks import WORLD, Host, host_with_world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers.run import Result, Run

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox", "veth")]

FORWARDS = "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
TUN = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.unshare(0x20000)
libc.mount(b"none", b"/", None, 0x44000, None)
libc.mount(b"tmpfs", b"/dev/net", b"tmpfs", 0, b"mode=755")
os.mknod("/dev/net/tun", 0o20666, os.makedev(10, 200))
os.chmod("/dev/net/tun", 0o666)
with open("resolv.conf", "w") as file:
    file.write("nameserver 10.88.0.2\\nnameserver 127.0.0.53\\nsearch example\\n")
os.chmod("resolv.conf", 0o644)
if os.path.isfile("/etc/resolv.conf"):
    libc.mount(b"resolv.conf", os.path.realpath("/etc/resolv.conf").encode(), None, 0x1000, None)
if sys.argv[1] != "-":
    os.environ["PATH"] = sys.argv[1]
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Runs the rest of the command where everybody may open the tun device, as on most hosts."""


@pytest.fixture
def place() -> Iterator[Host]:
    with host_with_world() as one:
        yield one


def prefix(place: Host, run: Run, *, without: tuple[str, ...] = ()) -> list[str]:
    """Runs a command on that host, where some programs are not installed."""
    path = "-"
    if without:
        folder = run.path / ".bin"  # pytest collects nothing there
        folder.mkdir(exist_ok=True)
        for one in os.environ["PATH"].split(":"):
            for name in os.listdir(one) if os.path.isdir(one) else ():
                if name not in without and not (folder / name).is_symlink():
                    (folder / name).symlink_to(f"{one}/{name}")
        path = str(folder)
    return [*place.prefix, sys.executable, "-I", "-c", TUN, path]


OUTWARD = f"""
    import urllib.request

    def ask(there):
        return urllib.request.urlopen(f"http://{{there}}:8000/", timeout=20).read().decode()

    @pytest.mark.isolated(net="veth", nat=True)
    def test_outward(sandbox, record_property):
        record_property("seen as", ask("{WORLD[0]}"))
        record_property("seen as", ask("[{WORLD[1]}]")) if SIX else None
        servers = [line.split()[1] for line in open("/etc/resolv.conf")
                   if line.startswith("nameserver")]
        record_property("servers", servers)
        record_property("address", sandbox.address)

    @pytest.mark.isolated(net="veth")
    def test_kept_in(sandbox):
        for family, there in ((socket.AF_INET, "{WORLD[0]}"), (socket.AF_INET6, "{WORLD[1]}")):
            with socket.socket(family, socket.SOCK_STREAM) as one:
                one.settimeout(0.5)
                with pytest.raises(OSError):
                    one.connect((there, 8000))
"""


def seen(text: str, name: str, result: Result) -> list[object]:
    found = result.of(name, "teardown").properties
    return [value for key, value in found if key == text]


@pytest.mark.needs("nft")
def test_by_the_host(run: Run, place: Host) -> None:
    """As the host itself by both protocols; those without nat stay in, whatever the host does."""
    place.shell(FORWARDS)
    before = place.state()
    run.tests("SIX = True", OUTWARD)
    result = run("--ns-debug", prefix=prefix(place, run))
    assert result.verdicts == {"test_outward": "passed", "test_kept_in": "passed"}, str(result)
    assert seen("seen as", "test_outward", result) == ["::ffff:10.88.0.1", "fd88::1"]
    assert result.value("test_outward", "servers") == ["10.88.0.2"]
    assert result.value("test_outward", "address") == "198.18.0.2"
    assert "nft table inet nsisolate-0-0" in result.out
    assert "with the servers: 10.88.0.2" in result.out
    assert without_neighbours(place.state()) == without_neighbours(before)


def without_neighbours(state: str) -> list[str]:
    """Whom the host has talked to over its uplink is known to it then."""
    return [line for line in state.splitlines() if " dev up0 lladdr " not in line]


@pytest.mark.needs("nft")
def test_tests_without_nat_stay_in_where_the_host_forwards(run: Run, place: Host) -> None:
    """No test with nat in the session: the host would hand packets on all the same."""
    place.shell(FORWARDS)
    run.tests("SIX = True", OUTWARD)
    result = run("-k", "kept_in", prefix=prefix(place, run))
    assert result.verdicts == {"test_kept_in": "passed"}, str(result)


def test_a_host_that_hands_nothing_on(run: Run, place: Host) -> None:
    """No setting of it is changed: it is said what to do."""
    before = place.state()
    run.tests("SIX = False", OUTWARD)
    gone = ("pasta", "slirp4netns")
    result = run("-k", "outward", prefix=prefix(place, run, without=gone))
    assert result.verdicts == {"test_outward": "error"}, str(result)
    text = result.of("test_outward", "setup").text
    assert "SANDBOX FAILED at forward packets net.ipv4.ip_forward" in text
    for part in ("sysctl -w net.ipv4.ip_forward=1", "pasta", "slirp4netns"):
        assert part in text
    assert place.state() == before


def test_no_nft(run: Run, place: Host) -> None:
    place.shell(FORWARDS)
    run.tests("SIX = False", OUTWARD)
    gone = ("pasta", "slirp4netns", "nft")
    result = run("-k", "outward", prefix=prefix(place, run, without=gone))
    assert result.verdicts == {"test_outward": "error"}, str(result)
    text = result.of("test_outward", "setup").text
    assert "SANDBOX FAILED at set up nftables nft: ENOENT" in text
    assert "Install nftables" in text


BLOCKED = """
    @pytest.mark.isolated(net="veth", nat=True)
    def test_blocked(sandbox):
        for there in ("127.0.0.1", sandbox.gateway, "10.0.2.2", sandbox.address):
            with socket.socket() as one:
                one.settimeout(0.5)
                with pytest.raises(OSError):
                    one.connect((there, PORT))
"""


@pytest.mark.parametrize(
    ("program", "other"), [("pasta", "slirp4netns"), ("slirp4netns", "pasta")], ids=lambda one: one
)
@pytest.mark.parametrize("who", ["root", "nobody"])
def test_by_a_program(
    request: pytest.FixtureRequest, place: Host, program: str, other: str, who: str
) -> None:
    """Without a right, and without the host's loopback; it ends with the sandbox."""
    request.getfixturevalue("require_capability")(program)
    run: Run = request.getfixturevalue("run" if who == "root" else "run_as_nobody")
    before = place.state()
    start = prefix(place, run, without=(other,))
    # Becoming another user comes after what takes root to do.
    start += become(run.uid)
    run.uid = None
    server = (
        "import socket; one = socket.create_server(('127.0.0.1', 0)); "
        "print(one.getsockname()[1], flush=True); input()"
    )
    with subprocess.Popen(
        [*place.prefix, sys.executable, "-I", "-c", server],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as local:
        assert local.stdout is not None
        port = int(local.stdout.readline())
        run.tests(f"PORT = {port}\nSIX = {program == 'pasta'}", OUTWARD, BLOCKED)
        running = run.start("-k", "outward or blocked", "--ns-debug", prefix=start)
        try:
            result = running.wait(60)
            assert not wait_gone(running.marker)
        finally:
            running.kill()
            local.kill()
    assert result.verdicts == {"test_outward": "passed", "test_blocked": "passed"}, str(result)
    assert seen("seen as", "test_outward", result)[0] == "::ffff:10.88.0.1"
    assert f"a way out by {run.path}/.bin/{program}" in result.out
    servers = ["10.88.0.2"] if program == "pasta" else ["10.0.2.3"]
    assert result.value("test_outward", "servers") == servers
    assert without_neighbours(place.state()) == without_neighbours(before)


@pytest.mark.needs("pasta")
def test_the_program_dies_with_the_runner(run: Run, place: Host) -> None:
    fifo = run.path / "reached"
    os.mkfifo(fifo)
    run.tests(
        f"""
        @pytest.mark.isolated(net="veth", nat=True)
        def test_long():
            open({str(fifo)!r}, "w").close()
            signal.pause()
    """
    )
    running = run.start(prefix=prefix(place, run))
    try:
        running.reached(fifo)
        running.process.kill()
        running.process.wait()
        assert not wait_gone(running.marker)
    finally:
        running.kill()
    subprocess.run([*place.prefix, *PROGRAM, "gc"], check=True, capture_output=True)


@pytest.mark.needs("pasta")
def test_no_tun_device(run_as_nobody: Run, place: Host) -> None:
    """Where it is root's alone, it is said how to open it to others."""
    run = run_as_nobody
    run.tests("SIX = False", OUTWARD)
    closed = "import os, sys; os.chmod('/dev/net/tun', 0o600); os.execvp(sys.argv[1], sys.argv[1:])"
    start = [*prefix(place, run), sys.executable, "-c", closed, *become(run.uid)]
    run.uid = None
    result = run("-k", "outward", prefix=start)
    assert result.verdicts == {"test_outward": "error"}, str(result)
    text = result.of("test_outward", "setup").text
    assert "SANDBOX FAILED at start pasta or slirp4netns /dev/net/tun: EACCES" in text
    assert "chmod 666 /dev/net/tun" in text
