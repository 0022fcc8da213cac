"""``net="veth"``: a link between the sandbox and the host, of which nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.commands import PROGRAM, Commands
from helpers.hosts import DEADLINE, NOBODY, wait_gone

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.networks import Host
    from helpers.run import Run

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox", "veth")]


def ends_alike(place: Host, before: str) -> None:
    """The host is as it was, byte for byte."""
    assert place.state() == before


WEB = """
    import http.server, threading, urllib.request

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.client_address[0].encode())
        def log_message(self, *args):
            pass

    class Both(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6
"""


def test_a_server_in_the_sandbox_answers_the_host(run: Run, place: Host) -> None:
    """By both protocols; the host's curl says who it is seen as."""
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    before = place.state()
    run.tests(
        WEB,
        f"""
        @pytest.mark.isolated(net="veth", forward=[7001])
        def test_serves(sandbox):
            threading.Thread(target=Both(("::", 80), Answer).serve_forever, daemon=True).start()
            with socket.create_connection(("127.0.0.1", 7001), {DEADLINE}) as helper:
                helper.sendall(f"{{sandbox.address}} {{sandbox.address6}}\\n".encode())
                seen = helper.makefile().read().split()
            assert seen == ["::ffff:" + sandbox.gateway, sandbox.gateway6]
    """,
    )
    # What the host does for the test: it asks the server that the test says it has.
    curl = (
        "import socket, subprocess\n"
        "server = socket.create_server(('127.0.0.1', 7001)); print('up', flush=True)\n"
        "caller, _ = server.accept()\n"
        "for one in caller.makefile().readline().split():\n"
        "    url = f'http://[{one}]/' if ':' in one else f'http://{one}/'\n"
        "    found = subprocess.run(['curl', '-sS', '-m', '20', url], capture_output=True)\n"
        "    caller.sendall((found.stdout or found.stderr) + b'\\n')\n"
    )
    with subprocess.Popen(
        [*place.prefix, sys.executable, "-I", "-c", curl], stdout=subprocess.PIPE
    ) as helper:
        assert helper.stdout is not None
        try:
            assert helper.stdout.readline() == b"up\n"
            result = run(prefix=place.prefix)
        finally:
            helper.kill()
    assert result.verdicts == {"test_serves": "passed"}, str(result)
    ends_alike(place, before)


def test_a_server_on_the_host_answers_the_sandbox(run: Run, place: Host) -> None:
    """By the name of the gateway, and by its addresses; the sandbox has names, too."""
    before = place.state()
    run.tests(
        """
        import urllib.request

        @pytest.mark.isolated(net="veth", hostname="shop")
        def test_asks(sandbox):
            found = {one[4][0] for one in socket.getaddrinfo("gateway", 8000)}
            assert found == {sandbox.gateway, sandbox.gateway6}
            own = {one[4][0] for one in socket.getaddrinfo("shop", 8000)}
            assert own == {sandbox.address, sandbox.address6}
            for place in ("gateway", sandbox.gateway, f"[{sandbox.gateway6}]"):
                answer = urllib.request.urlopen(f"http://{place}:8000/", timeout=20)
                assert answer.status == 200
            names = sorted(name for _, name in socket.if_nameindex())
            assert "eth0" in names and "lo" in names
            assert sorted(os.listdir("/sys/class/net")) == names
    """
    )
    serve = (
        "import http.server, socket\n"
        "class Both(http.server.ThreadingHTTPServer):\n"
        "    address_family = socket.AF_INET6\n"
        "server = Both(('::', 8000), http.server.SimpleHTTPRequestHandler)\n"
        "print('up', flush=True); server.serve_forever()\n"
    )
    with subprocess.Popen(
        [*place.prefix, sys.executable, "-I", "-c", serve],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=run.path,
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"up\n"
            result = run(prefix=place.prefix)
        finally:
            server.kill()
    assert result.verdicts == {"test_asks": "passed"}, str(result)
    ends_alike(place, before)


def test_redis(run: Run, place: Host) -> None:
    """Debian's server on the host, Debian's client in the sandbox."""
    if not (shutil.which("redis-server") and shutil.which("redis-cli")):
        pytest.skip("no redis-server")
    run.tests(
        """
        @pytest.mark.isolated(net="veth")
        def test_asks(sandbox):
            for number in range(3):
                for one in (sandbox.gateway, sandbox.gateway6, "gateway"):
                    done = subprocess.run(
                        ["redis-cli", "-h", one, "-p", "6390", "incr", "visits"],
                        capture_output=True, text=True, timeout=20)
                    assert done.stdout.strip().isdigit(), done
            assert int(done.stdout) == 9
    """
    )
    with subprocess.Popen(
        [
            *(*place.prefix, "redis-server", "--port", "6390", "--bind", "0.0.0.0", "::"),
            *("--protected-mode", "no", "--save", "", "--dir", str(run.path)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            assert any("eady to accept" in line for line in server.stdout)
            result = run(prefix=place.prefix)
        finally:
            server.kill()
    assert result.verdicts == {"test_asks": "passed"}, str(result)


def test_sandboxes_at_once_have_their_own_addresses(run: Run, place: Host) -> None:
    before = place.state()
    run.tests(
        """
        @pytest.mark.isolated(net="veth")
        @pytest.mark.parametrize("n", range(40))
        def test_one(n, sandbox, record_property):
            record_property("address", sandbox.address)
            with socket.socket() as closed:
                closed.settimeout(20)
                with pytest.raises(ConnectionRefusedError):
                    closed.connect(("gateway", 9))
    """
    )
    result = run("--ns-jobs=4", prefix=place.prefix)
    assert set(result.verdicts.values()) == {"passed"}, str(result)
    addresses = [result.value(f"test_one[{n}]", "address") for n in range(40)]
    assert len(set(addresses)) == 40, "an address is used again as late as can be"
    ends_alike(place, before)


def test_one_that_does_not_ask_pays_nothing(run: Run, place: Host) -> None:
    """Neither an import nor a link; and without a link there are no addresses."""
    run.tests(
        """
        @pytest.mark.isolated
        def test_plain(sandbox):
            assert not hasattr(sandbox, "address")
            with pytest.raises(AttributeError, match="veth"):
                sandbox.gateway
            assert "pyroute2" not in sys.modules
            assert "pytest_nsisolate.network.uplink.veth" not in sys.modules
    """
    )
    result = run(prefix=place.prefix)
    assert result.verdicts == {"test_plain": "passed"}, str(result)


def test_the_library_is_imported_once(run: Run, place: Host) -> None:
    """In the runner: a test process has it already when it begins."""
    run.tests(
        """
        @pytest.mark.isolated(net="veth")
        @pytest.mark.parametrize("n", range(2))
        def test_linked(n):
            assert "pyroute2" in sys.modules

        @pytest.mark.isolated(False)
        def test_in_runner():
            assert "pyroute2" in sys.modules
    """
    )
    result = run(prefix=place.prefix)
    assert set(result.verdicts.values()) == {"passed"}, str(result)


def test_the_test_has_none_of_it(run: Run, place: Host) -> None:
    """No socket to the host's network, no lock, no right over the link."""
    run.tests(
        """
        import re

        @pytest.mark.isolated(net="veth", forward=[7001])
        def test_descriptors():
            for name in os.listdir("/proc/self/fd"):
                try:
                    target = os.readlink(f"/proc/self/fd/{name}")
                except OSError:
                    continue
                # What a module of the tests opens is the tests' own.
                assert not re.search(r"^socket:|eventpoll|\\.lock$", target), target
    """
    )
    result = run(prefix=place.prefix)
    assert result.verdicts == {"test_descriptors": "passed"}, str(result)


def test_without_rights(run_as_nobody: Run) -> None:
    """A refusal that says what works instead."""
    run = run_as_nobody
    run.tests(
        """
        @pytest.mark.isolated(net="veth")
        def test_linked():
            pass

        @pytest.mark.isolated
        def test_plain():
            pass
    """
    )
    result = run()
    assert result.verdicts == {"test_linked": "error", "test_plain": "passed"}, str(result)
    text = result.of("test_linked", "setup").text
    assert "SANDBOX FAILED at make the link to the host: EPERM" in text
    for part in ("CAP_NET_ADMIN", "forward=[5432]", 'net="a b"', "without root", "pasta"):
        assert part in text
    result = run("--ns-missing=skip")
    assert result.verdicts == {"test_linked": "skipped", "test_plain": "passed"}, str(result)


def test_debug(run: Run, place: Host) -> None:
    run.tests(
        """
        @pytest.mark.isolated(net="veth", forward=["8080:80"])
        def test_linked():
            pass
    """
    )
    result = run("--ns-debug", prefix=place.prefix)
    assert result.ret == 0, str(result)
    for part in (
        "network, for 1 tests",
        "(198.18.0.1/30 and fd6e:7369:736f::1/64) on the host to eth0 (198.18.0.2/30",
        "relay port 80 of its loopback to port 8080 of the host's",
    ):
        assert part in result.out


# addresses


def test_a_range_of_ones_own(run: Run, place: Host) -> None:
    run.write("pytest.ini", "[pytest]\nnsisolate_subnet = 10.77.0.0/20 fd77::/48\n")
    run.tests(
        """
        @pytest.mark.isolated(net="veth")
        def test_linked(sandbox):
            assert sandbox.address == "10.77.0.2"
            assert sandbox.gateway6 == "fd77::1"
    """
    )
    result = run(prefix=place.prefix)
    assert result.verdicts == {"test_linked": "passed"}, str(result)


LINKED = """
    @pytest.mark.isolated(net="veth")
    def test_linked(sandbox, record_property):
        record_property("address", sandbox.address)
"""


def test_the_hosts_own_routes_are_left_alone(run: Run, place: Host) -> None:
    """What overlaps with a route is not taken; a range that is all the host's is refused."""
    run.tests(LINKED)
    place.shell(
        "ip link add dummy0 type veth peer name dummy1; ip link set dummy0 up;"
        "ip route add 198.18.0.128/25 dev dummy0; ip route add 198.18.1.77/32 dev dummy0"
    )
    result = run(prefix=place.prefix)
    assert result.verdicts == {"test_linked": "passed"}, str(result)
    assert result.value("test_linked", "address") == "198.18.2.2"
    place.shell("ip route add 198.16.0.0/13 dev dummy0")
    before = place.state()
    result = run(prefix=place.prefix)
    assert result.verdicts == {"test_linked": "error"}, str(result)
    text = result.of("test_linked", "setup").text
    assert "SANDBOX FAILED at find addresses for links" in text
    assert "198.16.0.0/13" in text
    assert "nsisolate_subnet" in text
    ends_alike(place, before)


def test_an_address_of_the_host_counts_as_a_route(run: Run, place: Host) -> None:
    run.tests(LINKED)
    place.shell("ip address add 198.18.0.200/32 dev lo; ip address add fd6e:7369:736f:40::9 dev lo")
    result = run(prefix=place.prefix)
    assert result.value("test_linked", "address") == "198.18.2.2"


BOTH_WAYS = """
import os
from pytest_nsisolate.network.uplink.addresses import Ranges
from pytest_nsisolate.core.linux.syscalls import CLONE_NEWNET, unshare
from pytest_nsisolate.network.uplink.veth import Links

links = Links(Ranges(), 2)
for forwarded in (False, True):
    begun, begin = os.pipe()
    over, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end)
        unshare(CLONE_NEWNET, stage="test")
        os.write(begin, b"x")
        os.read(over, 1)
        os._exit(0)
    os.read(begun, 1)
    made = links.attach(pid, forwarded=forwarded)
    with open(f"/proc/sys/net/ipv4/conf/{made.name}/forwarding") as setting:
        print(forwarded, setting.read().strip())
    os.close(end)
    os.waitpid(pid, 0)
    links.release(made)
links.close()
"""


def test_a_host_that_forwards_hands_on_nothing_without_nat(place: Host) -> None:
    """A link may be a way to beyond the host only if it was asked for."""
    place.shell("echo 1 > /proc/sys/net/ipv4/ip_forward")
    before = place.state()
    done = subprocess.run(
        [*place.prefix, sys.executable, "-c", BOTH_WAYS],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("False 0\nTrue 1\n", "")
    ends_alike(place, before)


@pytest.mark.parametrize(
    "value",
    [
        *("127.0.0.0/16", "10.0.0.0/25", "10.0.0.0/7", "10.0.0.1/16", "much", "fd00::/64"),
        *("10.0.0.0/16 11.0.0.0/16", "224.0.0.0/16", "169.254.0.0/16"),
    ],
)
def test_no_range(run: Run, value: str) -> None:
    run.write("pytest.ini", f"[pytest]\nnsisolate_subnet = {value}\n")
    run.tests("def test_ran():\n    open('ran', 'w').close()")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"nsisolate_subnet: subnet={value!r} is not allowed" in result.out + result.err
    assert "/8 to /24" in result.out + result.err
    assert not (run.path / "ran").exists()


def test_more_at_once_than_there_are_addresses(run: Run, place: Host) -> None:
    run.write("pytest.ini", "[pytest]\nnsisolate_subnet = 10.77.0.0/24\n")
    run.tests(LINKED)
    result = run("--ns-jobs=2", prefix=place.prefix)
    assert result.verdicts == {"test_linked": "passed"}, str(result)
    result = run("--ns-jobs=3", prefix=place.prefix)
    assert result.verdicts == {"test_linked": "error"}, str(result)
    text = result.of("test_linked", "setup").text
    assert "find addresses for so many links 10.77.0.0/24" in text
    assert "--ns-jobs" in text


# side by side, and killed

MANY = """
    import pathlib

    @pytest.mark.isolated(net="veth")
    @pytest.mark.parametrize("n", range({count}))
    def test_one(n, sandbox, record_property):
        record_property("address", sandbox.address)
        with socket.create_server((sandbox.address, 80)) as server:
            with socket.create_connection((sandbox.address, 80), 20):
                server.accept()
        with socket.socket() as closed:
            closed.settimeout(20)
            with pytest.raises(ConnectionRefusedError):
                closed.connect(("gateway", 9))
        {then}
"""


def test_eight_sessions_with_workers(run: Run, place: Host) -> None:
    """No collision; killed all at once, they leave nothing that the next one doesn't sweep."""
    pytest.importorskip("xdist")
    before = place.state()
    workers = ("-n", "2", "-p", "xdist")
    run.tests(MANY.format(count=8, then=""))
    runs = [run.start(*workers, prefix=place.prefix) for _ in range(8)]
    try:
        for one in runs:
            result = one.wait(DEADLINE * 2)
            assert set(result.verdicts.values()) == {"passed"}, str(result)
            assert len(result.verdicts) == 8
            assert not wait_gone(one.marker)
    finally:
        for one in runs:
            one.kill()
    ends_alike(place, before)

    # Each process of them stands in a test that has its link.
    run.tests(MANY.format(count=4, then="os.mkfifo(f'{os.environ[\"AT\"]}-{n}'); signal.pause()"))
    runs = []
    try:
        for number in range(8):
            env = {"AT": str(run.path / f"reached-{number}")}
            runs.append(run.start(*workers, prefix=place.prefix, env=env))
        end = time.monotonic() + DEADLINE * 2
        while sum(1 for _ in run.path.glob("reached-*")) < 16:
            assert time.monotonic() < end, place.state()
            assert all(one.process.poll() is None for one in runs), str(runs[0].result(ret=-1))
            select_nothing()
        assert place.state().count("nsv") >= 16
        for one in runs:
            one.process.send_signal(signal.SIGKILL)
        for one in runs:
            one.process.wait()
            # A worker of xdist ends a moment after its controller.
            assert not wait_gone(one.marker, DEADLINE)
    finally:
        for one in runs:
            one.kill()
    run.tests(LINKED)
    result = run(prefix=place.prefix)
    assert result.verdicts == {"test_linked": "passed"}, str(result)
    sweep(place)
    ends_alike(place, before)


def select_nothing() -> None:
    """Let others run for a moment between two looks."""
    signal.sigtimedwait([], 0.01)


def sweep(place: Host) -> str:
    """What ``nsisolate gc`` says, on that host."""
    done = subprocess.run(
        [*place.prefix, *PROGRAM, "gc"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    return done.stdout


def leave_behind(place: Host, slot: int, *, table: bool) -> None:
    """What a killed session can leave: a link that nobody ends, and a table."""
    script = (
        "import os, sys\n"
        "from pytest_nsisolate.core import locks\n"
        "from pytest_nsisolate.network.uplink import veth\n"
        "place = veth._places()[0]\n"
        "for one in locks.free(place):\n"
        f"    if one.number == {slot}:\n"
        "        break\n"
        f"if {table}:\n"
        "    one.record([f'/nft/{one.name}'])\n"
        "    os.system(f'nft add table inet {one.name}')\n"
        f"os.system('ip link add nsv{slot}-7 type veth peer name left{slot}')\n"
        "os._exit(0)\n"
    )
    subprocess.run([*place.prefix, sys.executable, "-c", script], check=True, timeout=DEADLINE)


@pytest.mark.needs("nft")
def test_the_next_owner_of_a_slot_sweeps_it_and_no_other(run: Run, place: Host) -> None:
    before = place.state()
    leave_behind(place, 0, table=True)
    leave_behind(place, 3, table=False)
    run.tests(LINKED)
    result = run(prefix=place.prefix)
    assert result.verdicts == {"test_linked": "passed"}, str(result)
    assert result.value("test_linked", "address") == "198.18.0.2"
    state = place.state()
    assert "nsv0-" not in state
    assert "table inet" not in state
    assert "nsv3-7" in state, "of a slot that this session doesn't have"
    assert "removed link nsv3-7" in sweep(place)
    ends_alike(place, before)
    assert "nsv" not in sweep(place)


def test_gc_leaves_alone_what_lives(run: Run, place: Host) -> None:
    before = place.state()
    run.tests(MANY.format(count=1, then="open('reached', 'w').close(); signal.pause()"))
    fifo = run.path / "reached"
    os.mkfifo(fifo)
    running = run.start(prefix=place.prefix)
    try:
        running.reached(fifo)
        during = place.state()
        assert "nsv0-" in during
        assert "nsv0" not in sweep(place)
        assert place.state() == during
    finally:
        running.kill()
    assert not wait_gone(running.marker)
    sweep(place)
    ends_alike(place, before)


# what is said of it


def test_doctor(place: Host, commands: Commands) -> None:
    done = commands("doctor", prefix=tuple(place.prefix))
    assert 'CAP_NET_ADMIN  works: net="veth"' in done.stdout
    assert "FAILS at forward packets net.ipv4.ip_forward" in done.stdout
    for name in ("nft", "pasta", "slirp4netns"):
        row = next(line for line in done.stdout.splitlines() if line.split()[:1] == [name])
        assert ("works" in row) == (shutil.which(name) is not None)


def test_doctor_without_rights(require_capability: Callable[[str], None]) -> None:
    require_capability("unprivileged")
    done = Commands(path=Path("/"), uid=NOBODY)("doctor")
    assert "CAP_NET_ADMIN  FAILS at make the link to the host: EPERM" in done.stdout
    assert "forward=[5432]" in done.stdout
    assert "forward=[...] works" in done.stdout


def test_not_for_commands(commands: Commands) -> None:
    done = commands("run", "--net", "veth", "--", "true")
    assert done.returncode == 2
    assert "net='veth' is not allowed; allowed: loopback, host" in done.stderr
