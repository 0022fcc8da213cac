"""Whole networks inside a test: hosts that are reached, entered, cut off, slowed and recorded."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.hosts import namespaces
from pytest_nsisolate.cli.doctor_network import rows

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox")]

HELPERS = """
    import contextlib, socket, threading
    from pytest_nsisolate.network.topology.network import NetworkError

    def listen(host, port=7000):
        with host:
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)

    def reaches(one, other, port=7000, family=socket.AF_INET, seconds=0.3):
        address = other.address if family == socket.AF_INET else other.address6
        with one, socket.socket(family) as client:
            client.settimeout(seconds)
            try:
                client.connect((address, port))
            except OSError:
                return False
            return True

    def who_hears(net, family=socket.AF_INET, seconds=0.3):
        with contextlib.ExitStack() as stack:
            clients, heard = {}, set()
            for one in net:
                for other in net:
                    if one is not other:
                        with one:
                            client = stack.enter_context(socket.socket(family))
                        client.setblocking(False)
                        there = other.address if family == socket.AF_INET else other.address6
                        client.connect_ex((there, 7000))
                        clients[one.name + other.name] = client
            end = time.monotonic() + seconds
            while len(heard) < len(clients) and time.monotonic() < end:
                time.sleep(0.002)
                for name, client in clients.items():
                    with contextlib.suppress(OSError):
                        client.getpeername()
                        heard.add(name)
            return heard

    def serve(net, name, *command):
        # The program says its port is open by a line, so nobody has to guess when.
        return net[name].popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    SERVER = (sys.executable, "-u", "-m", "http.server", "80", "--bind", "::")
"""

ACROSS = {
    "a switch": ("srv cli other", "fd00:0:0:1::1"),
    "a router": ("srv -- r -- cli", "fd00:0:0:1::1"),
    "two routers": ("cli -- r1 -- r2 -- srv", "fd00:0:0:3::4"),
}


@pytest.mark.parametrize("across", ACROSS)
def test_http_server_and_curl(run_as_each: Run, across: str) -> None:
    """Real programs, by name and by address, IPv4 and IPv6."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    text, address6 = ACROSS[across]
    run_as_each.tests(
        HELPERS,
        f"""
    @pytest.mark.isolated(net={text!r}, timeout=50)
    def test_it(sandbox):
        net = sandbox.net
        assert net["srv"].address6 == {address6!r}
        with serve(net, "srv", *SERVER) as server:
            try:
                assert "Serving" in server.stdout.readline()
                for flag in "-4", "-6":
                    for target in "srv", net["srv"].address, f"[{{net['srv'].address6}}]":
                        if flag == "-4" and "[" in target or flag == "-6" and target[0] == "1":
                            continue
                        done = net["cli"].run(
                            ["curl", "-sS", flag, "-g", "-m", "5", f"http://{{target}}/"],
                            capture_output=True, text=True, check=True,
                        )
                        assert "Directory listing" in done.stdout
            finally:
                server.kill()
    """,
    )
    run_as_each().expect(passed=1)


@pytest.mark.parametrize("text", ["db cli", "cli -- r1 -- r2 -- db"])
def test_redis(run_as_each: Run, text: str) -> None:
    """Redis of the distribution, over IPv4 and IPv6."""
    if shutil.which("redis-server") is None or shutil.which("redis-cli") is None:
        pytest.skip("needs redis-server and redis-cli (apt-get install redis)")
    run_as_each.tests(
        HELPERS,
        f"""
    @pytest.mark.isolated(net={text!r}, timeout=50)
    def test_it(sandbox, tmp_path):
        net = sandbox.net
        command = ["redis-server", "--bind", "*", "::*", "--protected-mode", "no"]
        command += ["--save", "", "--dir", str(tmp_path)]
        with serve(net, "db", *command) as server:
            try:
                while "Ready to accept connections" not in server.stdout.readline():
                    assert server.poll() is None
                for address in net["db"].address, net["db"].address6, "db":
                    ask = ["redis-cli", "-h", address, "INCR", "counter"]
                    last = net["cli"].run(ask, capture_output=True, text=True, check=True).stdout
                assert last.strip() == "3"
            finally:
                server.kill()
    """,
    )
    run_as_each().expect(passed=1)


def test_hosts(run_as_each: Run) -> None:
    """What hosts say of themselves is what programs in them see."""
    if shutil.which("ip") is None:
        pytest.skip("needs ip (iproute2)")
    run_as_each.tests(
        HELPERS,
        """
    @pytest.mark.isolated(net="lan: a b r; r -- c", timeout=50)
    def test_it(sandbox):
        net = sandbox.net
        assert [host.name for host in net] == ["a", "b", "r", "c"]
        assert "a" in net and "x" not in net and len(net) == 4
        r = net["r"]
        assert r.forwards and not net["a"].forwards
        assert list(r.interfaces) == ["eth0", "eth1"]
        assert r.interfaces["eth0"].switch == "lan"
        assert r.address == r.interfaces["eth0"].address == "10.0.1.3"
        for host in net:
            shown = host.run(["ip", "addr"], capture_output=True, text=True, check=True).stdout
            for interface in host.interfaces.values():
                assert f"inet {interface.address}/24" in shown
                assert f"inet6 {interface.address6}/64" in shown
                assert interface.mac in shown
            assert "tentative" not in shown
        assert os.listdir("/sys/class/net") == ["lo"]
        found = {info[4][0] for info in socket.getaddrinfo("r", 80)}
        assert r.address in found
        assert socket.gethostbyname("r.eth1") == r.interfaces["eth1"].address
        with pytest.raises(KeyError, match="no host is named 'nobody'; there are a, b, r, c"):
            net["nobody"]

    @pytest.mark.isolated(net="a b")
    def test_port_80_and_namespaces(sandbox):
        with sandbox.net["a"]:
            socket.create_server(("", 80)).close()
            inside = os.stat("/proc/thread-self/ns/net").st_ino
            with sandbox.net["b"]:
                assert os.stat("/proc/thread-self/ns/net").st_ino != inside
            assert os.stat("/proc/thread-self/ns/net").st_ino == inside
        assert os.stat("/proc/thread-self/ns/net").st_ino == sandbox.namespaces["net"]
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/self/fd/{name}")
                assert not target.startswith("net:") or not os.get_inheritable(int(name))
        assert not os.path.exists("/run/netns") or not os.listdir("/run/netns")

    @pytest.mark.isolated(net="a b", env="clean", user="root")
    def test_as_root_inside(sandbox):
        server = listen(sandbox.net["a"])
        assert reaches(sandbox.net["b"], sandbox.net["a"])

    @pytest.mark.isolated
    def test_without(sandbox):
        with pytest.raises(AttributeError, match="no topology"):
            sandbox.net
    """,
    )
    run_as_each("--ns-jobs=2").expect(passed=4)


def test_rights(run_as_nobody: Run) -> None:
    """A test without root keeps three capabilities over its sandbox; its programs have none."""
    run_as_nobody.tests(
        """
    def capabilities(text):
        return {line[3:6]: int(line[7:], 16) for line in text.splitlines() if line[:3] == "Cap"}

    @pytest.mark.isolated(net="a b")
    def test_topology(sandbox):
        mine = capabilities(open("/proc/self/status").read())
        assert mine == {"Eff": 0x203000, "Prm": 0x203000, "Inh": 0, "Bnd": 0, "Amb": 0}
        for run in subprocess.run, sandbox.net["a"].run:
            status = run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
            assert not any(capabilities(status).values())
            assert "NoNewPrivs:\\t1" in status

    @pytest.mark.isolated
    def test_loopback():
        assert not any(capabilities(open("/proc/self/status").read()).values())
    """
    )
    run_as_nobody().expect(passed=2)


def test_cut_and_heal(run_as_each: Run) -> None:
    """Exactly what is cut does not pass, over IPv4 and IPv6; what was connected goes on after."""
    run_as_each.tests(
        HELPERS,
        """
    ALL = {x + y for x in "abcd" for y in "abcd" if x != y}

    def without(*pairs):
        return ALL - {p for pair in pairs for p in (pair, pair[::-1])}

    @pytest.mark.isolated(net="a b c d", timeout=100)
    def test_switch(sandbox):
        net = sandbox.net
        servers = [listen(host) for host in net]
        assert who_hears(net) == ALL
        with net.cut("a", "b c"):
            assert who_hears(net) == without("ab", "ac")
            assert who_hears(net, family=socket.AF_INET6) == without("ab", "ac")
            with net.cut("c", [net["d"]]) as inner:
                assert who_hears(net) == without("ab", "ac", "cd")
                with net.heal():
                    assert who_hears(net) == ALL
                assert who_hears(net) == without("ab", "ac", "cd")
                inner.heal()
                assert who_hears(net) == without("ab", "ac")
            assert who_hears(net) == without("ab", "ac")
        assert who_hears(net) == ALL
        net.cut("d")
        assert who_hears(net) == without("da", "db", "dc")
        net.heal()
        assert who_hears(net) == ALL
        with net.link("a", "c").down():
            assert who_hears(net) == without("ac")
        with net.link("b").down():
            assert who_hears(net) == without("ba", "bc", "bd")
        assert who_hears(net) == ALL

    @pytest.mark.isolated(net="cli -- r -- srv", timeout=50)
    def test_router(sandbox):
        net = sandbox.net
        server = listen(net["srv"])
        with net["cli"]:
            client = socket.create_connection((net["srv"].address, 7000), 5)
        peer, _ = server.accept()
        for change in (
            lambda: net.cut("cli", "r srv"), net.link("cli", "r").down, net.link("r", "srv").down
        ):
            with change():
                assert not reaches(net["cli"], net["srv"])
                client.send(b"x")
            assert peer.recv(1) == b"x"
            assert reaches(net["cli"], net["srv"])
        with pytest.raises(ValueError, match="cli and srv still reach each other over r"):
            net.cut("cli", "srv")

    @pytest.mark.isolated(net="lan: a b; wan: a b c; b -- c")
    def test_wrong_use(sandbox):
        net = sandbox.net
        for call, says in [
            (lambda: net.link("a", "b"), "share more than one switch"),
            (lambda: net.link("a"), "has 2 interfaces"),
            (lambda: net.link("a", "a"), "nothing joins"),
            (lambda: net.link("c", "lan"), "is not on it"),
            (lambda: net.link("a", "b", on="dmz"), "no switch is named 'dmz'; there are lan, wan"),
            (lambda: net.link("a", "z"), "no host is named 'z'"),
            (lambda: net.cut("a b", "b"), "b is on two sides"),
            (lambda: net.cut("a", "z"), "no host is named 'z'"),
            (lambda: net.cut("a", ""), "a host each"),
            (lambda: net.cut(), "two sides"),
            (lambda: net.capture("a", "x", interface="eth7"), "eth0, eth1, lo"),
            (lambda: net.link("a", "wan").shape(delay="soon"), "delay='soon'"),
        ]:
            with pytest.raises((ValueError, KeyError)) as caught:
                call()
            assert says in str(caught.value)
        assert repr(net.link("a", "b", on="lan")) == "<link a -- b>"
        assert repr(net.link("a", "wan")) == "<link a -- wan>"
    """,
    )
    run_as_each().expect(passed=3)


@pytest.mark.needs("native")
def test_cut_is_quick(run: Run) -> None:
    """Nothing that is sent after the call arrives, which takes less than 50 ms."""
    run.tests(
        HELPERS,
        """
    @pytest.mark.isolated(timeout=50)
    @pytest.mark.parametrize("sides", [("a", "b c"), ("a", "b")])
    @pytest.mark.parametrize("net_text", [
        pytest.param("a b c", marks=pytest.mark.isolated(net="a b c")),
        pytest.param("c -- a -- b", marks=pytest.mark.isolated(net="c -- a -- b")),
    ])
    def test_it(sandbox, sides, net_text):
        net = sandbox.net
        with net["b"]:
            sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sink.bind(("", 7000))
        with net["a"]:
            source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            source.connect((net["b"].address, 7000))
        source.send(b"0")
        assert sink.recv(10) == b"0"
        took = []
        for _ in range(21):
            begin = time.monotonic()
            with net.cut(*sides):
                took.append(time.monotonic() - begin)
                with contextlib.suppress(OSError):
                    source.send(b"lost")
                sink.settimeout(0.02)
                with pytest.raises(TimeoutError):
                    sink.recv(10)
            sink.settimeout(5)
            source.send(b"1")
            assert sink.recv(10) == b"1"
        # Other sandboxes of a busy machine may hold the kernel's one lock for links meanwhile.
        assert sorted(took)[10] < 0.05
    """,
    )
    run("-p", "no:timeout").expect(passed=4)


def test_rate(run_as_each: Run) -> None:
    """A rate needs no netem; it holds in both directions, and on nothing else."""
    if any("tbf" in row and "FAILS" in row for row in rows()):
        pytest.skip("needs the kernel's module sch_tbf")
    run_as_each.tests(
        HELPERS,
        """
    def seconds(net, one, other, size=600_000):
        server = listen(net[other], 7001)
        with net[one]:
            client = socket.create_connection((net[other].address, 7001))
        peer, _ = server.accept()
        sender = threading.Thread(target=lambda: (client.sendall(b"x" * size), client.close()))
        begin = time.monotonic()
        sender.start()
        while peer.recv(1 << 16):
            pass
        sender.join()
        server.close()
        return time.monotonic() - begin

    @pytest.mark.isolated(timeout=100)
    @pytest.mark.parametrize("where", [
        pytest.param(("a", "b"), marks=pytest.mark.isolated(net="a b c")),
        pytest.param(("a", "lan"), marks=pytest.mark.isolated(net="lan: a b c")),
        pytest.param(("a", "b"), marks=pytest.mark.isolated(net="a -- b -- c")),
    ])
    def test_it(sandbox, where):
        net = sandbox.net
        link = net.link(*where)
        with link.shape(rate="8mbit"):  # 1 MB/s: 0.6 s, and some of it passes at once
            assert seconds(net, "a", "b") > 0.3
            assert seconds(net, "b", "a") > 0.3
            assert seconds(net, "b", "c") < 0.3
            with net.cut("a"):
                server = listen(net["a"])
                assert not reaches(net["b"], net["a"])
            assert seconds(net, "a", "b") > 0.3
            link.shape(rate="80mbit")
            assert seconds(net, "a", "b") < 0.3
            link.shape(rate="8mbit")
        assert seconds(net, "a", "b") < 0.3
        assert reaches(net["c"], net["a"])
    """,
    )
    run_as_each("--ns-jobs=1").expect(passed=3)


def netem_missing() -> bool:
    """Whether the doctor says so."""
    return any("netem" in row and "FAILS" in row for row in rows())


def test_delay_without_netem(run_as_each: Run) -> None:
    """A refusal that names the module, and a link as it was before."""
    if not netem_missing():
        pytest.skip("this kernel has netem")
    run_as_each.tests(
        HELPERS,
        """
    @pytest.mark.isolated(timeout=50)
    @pytest.mark.parametrize("text", [
        pytest.param("", marks=pytest.mark.isolated(net=text))
        for text in ("a b c", "a -- b -- c")
    ])
    def test_it(sandbox, text):
        net = sandbox.net
        server = listen(net["b"])
        link = net.link("a", "b")
        for _ in range(2):
            with pytest.raises(NetworkError, match="sch_netem") as caught:
                link.shape(delay="50ms")
            assert "modprobe sch_netem" in str(caught.value)
            assert caught.value.error.errno == errno.ENOENT
            with net.cut("b"):
                assert not reaches(net["a"], net["b"])
            assert reaches(net["a"], net["b"])
        link.shape()
        assert reaches(net["a"], net["b"])
        assert reaches(net["c"], net["b"])
    """,
    )
    run_as_each().expect(passed=2)


def test_delay(run_as_each: Run) -> None:
    """50 ms in each direction are a round trip of 100 ms, give or take a tenth."""
    if netem_missing():
        pytest.skip("needs the kernel's module sch_netem")
    run_as_each.tests(
        HELPERS,
        """
    def round_trip(one, other):
        with other:
            echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            echo.bind(("", 7002))
        with one:
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.connect((other.address, 7002))
        times = []
        for _ in range(6):
            begin = time.monotonic()
            client.send(b"x")
            _, source = echo.recvfrom(10)
            echo.sendto(b"y", source)
            client.recv(10)
            times.append(time.monotonic() - begin)
        echo.close()
        return sorted(times[1:])[2]

    @pytest.mark.isolated(timeout=100)
    @pytest.mark.parametrize("where", [
        pytest.param(("a", "b"), marks=pytest.mark.isolated(net="a b c")),
        pytest.param(("a", "lan"), marks=pytest.mark.isolated(net="lan: a b c")),
        pytest.param(("a", "b"), marks=pytest.mark.isolated(net="a -- b -- c")),
    ])
    def test_it(sandbox, where):
        net = sandbox.net
        with net.link(*where).shape(delay="50ms"):
            assert 0.09 <= round_trip(net["a"], net["b"]) <= 0.11
            assert round_trip(net["b"], net["c"]) < 0.04
        assert round_trip(net["a"], net["b"]) < 0.04
        with net.link(*where).shape(loss=100):
            assert not reaches(net["a"], net["b"])
    """,
    )
    run_as_each("--ns-jobs=1").expect(passed=3)


READ = """
    import struct

    def packets(path):
        with open(path, "rb") as stream:
            magic, _, _, _, _, _, kind = struct.unpack("=IHHiIII", stream.read(24))
            assert (magic, kind) == (0xA1B23C4D, 1)
            found = []
            while header := stream.read(16):
                seconds, nanoseconds, length, whole = struct.unpack("=IIII", header)
                assert nanoseconds < 10**9 and length <= whole and abs(seconds - time.time()) < 100
                data = stream.read(length)
                assert len(data) == length
                found.append(data)
            return found
"""


def test_capture(run_as_each: Run) -> None:
    """Every packet, whole, and in a file that tshark reads; nothing of other hosts."""
    run_as_each.tests(
        HELPERS,
        READ,
        """
    @pytest.mark.isolated(net="a -- r -- b", timeout=50)
    def test_it(sandbox, tmp_path):
        net = sandbox.net
        server = listen(net["b"])
        paths = {name: tmp_path / f"{name}.pcap" for name in ("a", "r", "r0", "b")}
        with contextlib.ExitStack() as stack:
            captures = {
                name: stack.enter_context(net.capture(name[0], path, interface=interface))
                for (name, path), interface in zip(paths.items(), ["", "", "eth0", "lo"])
            }
            with net["a"]:
                client = socket.create_connection((net["b"].address, 7000))
            peer, _ = server.accept()
            sent = os.urandom(300_000)
            thread = threading.Thread(target=client.sendall, args=(sent,))
            thread.start()
            left = len(sent)
            while left:
                left -= len(peer.recv(1 << 16))
            thread.join()
        found = {name: packets(path) for name, path in paths.items()}
        for name, capture in captures.items():
            assert capture.dropped == 0
            assert capture.packets == len(found[name])
        payload = b"".join(found["a"])
        assert len(payload) > len(sent) and sent[:500] in payload and sent[-500:] in payload
        assert sum(sent[:500] in data for data in found["r"]) == 2
        assert sum(sent[:500] in data for data in found["r0"]) == 1
        assert not found["b"]

    @pytest.mark.isolated(net="a b", timeout=50)
    def test_a_lot(sandbox, tmp_path):
        net = sandbox.net
        server = listen(net["b"])
        with net.capture("b", tmp_path / "b.pcap") as capture:
            for _ in range(300):
                with net["a"]:
                    socket.create_connection((net["b"].address, 7000)).close()
                server.accept()[0].close()
        found = packets(tmp_path / "b.pcap")
        assert len(found) == capture.packets and capture.dropped == 0
        tcp = [data for data in found if data[12:14] == b"\\x08\\0" and data[23] == 6]
        assert sum(data[47] & 0x12 == 0x02 for data in tcp) == 300  # SYN without ACK
        with pytest.raises(OSError):
            net.capture("b", tmp_path / "none" / "b.pcap")

    @pytest.mark.isolated(net="a b", timeout=50)
    def test_loopback_once(sandbox, tmp_path):
        with sandbox.net.capture("a", tmp_path / "a.pcap"), sandbox.net["a"]:
            sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sink.bind(("127.0.0.1", 0))
            sink.sendto(b"only once", sink.getsockname())
        assert sum(b"only once" in data for data in packets(tmp_path / "a.pcap")) == 1
    """,
    )
    run_as_each().expect(passed=3)


@pytest.mark.parametrize("jobs", [1, 2])
def test_packets_of_a_failing_test(run_as_each: Run, jobs: int) -> None:
    """They are where its tmp_path is; those of a passing test are not kept."""
    run_as_each.tests(
        HELPERS,
        """
    pytestmark = pytest.mark.isolated(net="a b", pcap="failed", timeout=50)

    def talk(net):
        server = listen(net["a"])
        assert reaches(net["b"], net["a"])

    def test_passes(sandbox):
        talk(sandbox.net)

    def test_fails(sandbox):
        talk(sandbox.net)
        assert 0

    @pytest.fixture
    def breaks():
        yield
        assert 0

    def test_teardown_fails(sandbox, breaks):
        talk(sandbox.net)

    def test_crashes(sandbox):
        talk(sandbox.net)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    @pytest.mark.isolated(net="loopback")
    def test_loopback(sandbox):
        server = socket.create_server(("127.0.0.1", 0))
        socket.create_connection(server.getsockname())
        assert 0
    """,
    )
    result = run_as_each(f"--ns-jobs={jobs}")
    result.expect(**{"passed": 1, "failed": 3, "passed+error": 1})
    (base,) = run_as_each.path.glob("basetemp-*")
    found = {path.name.rpartition("test_it.py_")[2] for path in base.glob("packets-*")}
    assert found == {"test_fails", "test_teardown_fails", "test_crashes", "test_loopback"}
    for name in ("test_fails", "test_teardown_fails", "test_crashes"):
        (directory,) = base.glob(f"packets-*_{name}")
        assert sorted(path.name for path in directory.iterdir()) == ["a.pcap", "b.pcap"]
        for path in directory.iterdir():
            assert path.stat().st_size > 24
            if shutil.which("tshark") is not None:
                done = subprocess.run(
                    ["tshark", "-r", path, "-Y", "tcp.flags.syn == 1"],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                assert "10.0.1.2" in done.stdout
                assert "7000" in done.stdout
    (lo,) = base.glob("packets-*_test_loopback/sandbox.pcap")
    assert lo.stat().st_size > 24
    assert "a.pcap, b.pcap" in result.of("test_fails").section("packets")
    assert str(base) in result.of("test_fails").section("packets")


def test_asyncio(run_as_each: Run) -> None:
    """A socket keeps the host it was made in; links change while a loop runs."""
    run_as_each.tests(
        HELPERS,
        """
    import asyncio

    async def echo(reader, writer):
        while data := await reader.read(100):
            writer.write(data)
            await writer.drain()
        writer.close()

    @pytest.mark.isolated(net="cli -- r -- srv", timeout=50)
    def test_it(sandbox):
        net = sandbox.net

        async def main():
            server = await asyncio.start_server(echo, sock=listen(net["srv"]))
            with net["cli"]:
                client = socket.socket()
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, (net["srv"].address, 7000))
            reader, writer = await asyncio.open_connection(sock=client)
            writer.write(b"one")
            assert await reader.readexactly(3) == b"one"
            with net.link("cli", "r").down():
                writer.write(b"two")
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(reader.readexactly(3), 0.2)
            assert await asyncio.wait_for(reader.readexactly(3), 5) == b"two"
            with net["cli"]:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", "import socket; print(socket.if_nameindex())",
                    stdout=subprocess.PIPE,
                )
            assert b"eth0" in (await process.communicate())[0]
            writer.close()
            server.close()

        asyncio.run(main())

    @pytest.mark.isolated(net="a b")
    def test_only_this_thread(sandbox):
        seen = []
        with sandbox.net["a"]:
            thread = threading.Thread(target=lambda: seen.append(socket.if_nameindex()))
            here = socket.if_nameindex()
            thread.start()
            thread.join()
        assert "eth0" in dict(map(reversed, here))
        assert "eth0" in dict(map(reversed, seen[0]))  # a new thread starts where its maker is
        ready, leave = threading.Event(), threading.Event()

        def stay():
            with sandbox.net["b"]:
                ready.set()
                leave.wait(10)

        thread = threading.Thread(target=stay)
        thread.start()
        ready.wait(10)
        assert "eth0" not in dict(map(reversed, socket.if_nameindex()))
        leave.set()
        thread.join()
    """,
    )
    run_as_each().expect(passed=2)


def test_many_hosts(run: Run) -> None:
    """As many as the grammar allows; one more is a usage error that says the limit."""
    run.tests(
        HELPERS,
        """
    NAMES = [f"h{number}" for number in range(250)]

    @pytest.mark.isolated(net=" ".join(NAMES), timeout=100)
    def test_switch(sandbox):
        server = listen(sandbox.net["h249"])
        assert reaches(sandbox.net["h0"], sandbox.net["h249"], seconds=5)
        with sandbox.net.cut("h0"):
            assert not reaches(sandbox.net["h0"], sandbox.net["h249"])

    @pytest.mark.isolated(net=" -- ".join(NAMES[:61]), timeout=100)
    def test_chain(sandbox):
        server = listen(sandbox.net["h60"])
        for family in socket.AF_INET, socket.AF_INET6:
            assert reaches(sandbox.net["h0"], sandbox.net["h60"], family=family, seconds=5)
    """,
    )
    run("-p", "no:timeout").expect(passed=2)


MARKERS = [
    ("net='a -- -- b'", ["net='a -- -- b'", "missing here (character 6)", "loopback"], 5),
    ("net='a b c a'", ["'a' stands twice", "(character 7)"], 6),
    ("net='a b_c'", ["'_' can't stand in 'b_c'"], 3),
    ("net=' '.join(f'h{n}' for n in range(1000))", ["more than 250 hosts"], None),
    ("net='a ' + 'b' * 64", ["at most 63 characters, not 64"], 2),
    ("net='solo'", ["'solo' is alone"], 0),
    ("net='a isolated'", ["names a host 'isolated'", "hostname='isolated'"], None),
    ("net='a b', share=('net',)", ["contradicts share=('net',)"], None),
    ("net=('a', 'b')", ["net=('a', 'b') is not allowed", "cli -- r -- srv"], None),
    ("net='a b', pcap='all'", ["pcap='all' is not allowed", '"failed"'], None),
]


def test_bad_topologies(run: Run) -> None:
    """A usage error for all of them at once, each with its place."""
    test = "@pytest.mark.isolated({})\ndef test_bad_{}(): pass\n"
    run.tests("".join(test.format(one, number) for number, (one, _, _) in enumerate(MARKERS)))
    result = run()
    text = result.out + result.err
    assert result.ret == pytest.ExitCode.USAGE_ERROR, str(result)
    assert "Traceback" not in text
    lines = text.splitlines()
    for number, (_, says, place) in enumerate(MARKERS):
        (at,) = [i for i, line in enumerate(lines) if f"test_bad_{number}:" in line]
        for part in says:
            assert part in lines[at], str(result)
        if place is not None:
            assert re.match(r" {4}\S", lines[at + 1]), str(result)
            assert lines[at + 2] == " " * (4 + place) + "^", str(result)


def test_options(run: Run) -> None:
    """As for every key: command line over marker over ini file."""
    run.write("pytest.ini", "[pytest]\nnsisolate_net = x -- y\n")
    run.tests("""
    @pytest.mark.isolated
    def test_it(sandbox, record_property):
        record_property("hosts", " ".join(host.name for host in sandbox.net))
    """)
    assert run().expect(passed=1).value("test_it", "hosts") == "x y"
    assert run("--ns-net=a b c").expect(passed=1).value("test_it", "hosts") == "a b c"
    result = run("--ns-net=a; b")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "option --ns-net" in result.err + result.out
    result = run("--ns-share=net")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "ini file: net='x -- y' contradicts share=('net',) (the command line)" in (
        result.err + result.out
    )


def test_with_xdist(run: Run) -> None:
    """Each worker builds its own."""
    pytest.importorskip("xdist")
    run.plugins += ("xdist",)
    run.tests(
        HELPERS,
        """
    @pytest.mark.isolated(net="a b", timeout=50)
    @pytest.mark.parametrize("number", range(6))
    def test_it(sandbox, number):
        server = listen(sandbox.net["a"])
        assert reaches(sandbox.net["b"], sandbox.net["a"])
    """,
    )
    run("-n2", "--ns-jobs=2").expect(passed=6)


def test_not_for_commands(run: Run) -> None:
    """A command has no hands on hosts."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest_nsisolate", "run", "--net=a b", "--", "true"],
        cwd=run.path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "net='a b' is not allowed; allowed: loopback, host" in done.stderr


def test_debug_prints_the_plan(run: Run) -> None:
    """Each step, in order."""
    run.tests("""
    @pytest.mark.isolated(net="cli -- r -- srv")
    def test_it():
        pass
    """)
    out = run("--ns-debug").out
    assert "topology, for 1 tests (test_it.py::test_it ...):" in out
    joined = "nftables, or a bridge where it is missing"
    steps = re.findall(r"^ +\d+\. ((?:cli|r|srv|the fabric|unshare net): ?.*)$", out, re.MULTILINE)
    for step in (
        "unshare net: srv",
        "the fabric: make a veth pair: p1.1, and eth0 in cli",
        "cli: bring lo up",
        "cli: give eth0 the address 10.0.1.1/24",
        "cli: route everything else by 10.0.1.2 (eth0)",
        "r: set net.ipv4.ip_forward = 1",
        f"the fabric: join the ports of the cable of cli, r by {joined}",
    ):
        assert step in steps, out


IMPORTS = """
    import sys
    import pytest

    LOADED = "pyroute2" in sys.modules

    @pytest.fixture(autouse=True)
    def told(record_property):
        record_property("loaded", "pyroute2" in sys.modules)
        record_property("at_import", LOADED)
        record_property("module", id(sys.modules.get("pyroute2")))

    def pytest_sessionfinish(session):
        print("in the runner:", "pyroute2" in sys.modules, id(sys.modules.get("pyroute2")))
"""


def test_pyroute2_only_where_it_is_needed(run: Run) -> None:
    """Not for loopback, nor for captures; for topologies once, before the fork, in the runner."""
    run.write("conftest.py", IMPORTS)
    run.tests("""
    @pytest.mark.isolated
    def test_loopback():
        pass

    @pytest.mark.isolated(pcap="failed")
    def test_pcap():
        pass

    def test_plain():
        pass

    @pytest.mark.isolated(net="a b")
    def test_topology():
        pass

    @pytest.mark.isolated(net="a -- b")
    def test_other():
        pass
    """)
    result = run("-k", "not topology and not other", "-s").expect(passed=3)
    assert "in the runner: False" in result.out
    for name in ("test_loopback", "test_pcap", "test_plain"):
        assert result.value(name, "loaded") is False
    result = run("-s").expect(passed=5)
    found = re.search(r"in the runner: True (\d+)", result.out)
    assert found, str(result)
    assert result.value("test_topology", "at_import") is False
    for name in ("test_topology", "test_other", "test_loopback"):
        assert result.value(name, "loaded") is True
        assert result.value(name, "module") == int(found[1])  # the runner's own, by fork
    result = run("--collect-only", "-s")
    assert "in the runner: False" in result.out


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise ModuleNotFoundError('none here', name='pyroute2')", "pyroute2 is not installed"),
        ("__version__ = '0.7.1'", "can't be used"),
        ("import pyroute2.netlink_that_is_not", "can't be used"),
    ],
    ids=["absent", "old", "broken"],
)
def test_without_pyroute2(run: Run, source: str, says: str) -> None:
    """A failure that says how to get it; other tests run."""
    run.write("shadow/pyroute2/__init__.py", source)
    for name in ("ifinfmsg", "ndtmsg", "tcmsg"):
        run.write(f"shadow/pyroute2/netlink/rtnl/{name}/__init__.py", "")
    run.write("shadow/pyroute2/netlink/__init__.py", "")
    run.write("shadow/pyroute2/netlink/rtnl/__init__.py", "")
    run.tests("""
    @pytest.mark.isolated(net="a b")
    def test_topology():
        pass

    @pytest.mark.isolated
    def test_loopback():
        pass
    """)
    env = {"PYTHONPATH": f"{run.path / 'shadow'}:{run.path}"}
    if "PYTHONPATH" in os.environ:
        env["PYTHONPATH"] += f":{os.environ['PYTHONPATH']}"
    result = run(env=env)
    assert result.verdicts == {"test_topology": "error", "test_loopback": "passed"}, str(result)
    text = result.of("test_topology", "setup").text
    assert "SANDBOX FAILED at import pyroute2" in text
    assert says in text
    assert "pip install 'pyroute2>=0.9.7'" in text
    result = run("--ns-missing=skip", env=env)
    assert result.verdicts == {"test_topology": "skipped", "test_loopback": "passed"}
    assert "1 of 2 isolated tests can't be isolated here (import pyroute2" in result.out
    for missing in ("fork", "run"):
        result = run(f"--ns-missing={missing}", env=env)
        assert result.verdicts == {"test_topology": "error", "test_loopback": "passed"}
        assert f"they fail: --ns-missing={missing} can't hold net" in result.out


def test_by_itself() -> None:
    """The same network without a fixture: whoever has the rights builds one and lets go of it."""
    source = """
import os, socket
from pytest_nsisolate.network.topology.network import Network
from pytest_nsisolate.core.linux.syscalls import unshare, CLONE_NEWNET, CLONE_NEWUSER

unshare(CLONE_NEWUSER, stage="")
before = os.stat("/proc/self/ns/net").st_ino
try:
    Network("a b")
except RuntimeError as error:
    assert "CAP_SYS_ADMIN" in str(error)
assert os.stat("/proc/self/ns/net").st_ino == before
unshare(CLONE_NEWNET, stage="")
before = os.stat("/proc/self/ns/net").st_ino
links = socket.if_nameindex()
with Network("cli -- r -- srv") as net:
    with net["srv"]:
        server = socket.create_server(("", 7000))
    with net["cli"]:
        client = socket.create_connection((net["srv"].address, 7000), 5)
    server.accept()
    assert os.stat("/proc/self/ns/net").st_ino == before
    assert socket.if_nameindex() == links
for name in os.listdir("/proc/self/fd"):
    if os.path.exists(path := f"/proc/self/fd/{name}"):
        assert not os.readlink(path).startswith("net:")
try:
    Network("solo")
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'solo' is alone" in done.stdout
    assert "\n    ^" in done.stdout


def test_nothing_is_left(run_as_each: Run) -> None:
    """No namespace of a host outlives its test, not even one that was killed; nothing outside."""
    run_as_each.tests(
        HELPERS,
        """
    pytestmark = pytest.mark.isolated(net="a b", timeout=20)

    def note(sandbox):
        with open("namespaces", "a") as stream:
            for host in sandbox.net:
                with host:
                    print(os.stat("/proc/thread-self/ns/net").st_ino, file=stream)

    def test_leaves_a_program(sandbox):
        note(sandbox)
        sandbox.net["a"].popen(["sleep", "1000"], start_new_session=True)

    def test_crashes(sandbox):
        note(sandbox)
        ctypes.string_at(0)

    def test_hangs_inside(sandbox):
        note(sandbox)
        with sandbox.net["a"]:
            os.kill(os.getpid(), signal.SIGKILL)
    """,
    )
    before = namespaces()["net"]
    result = run_as_each()
    assert result.verdicts["test_leaves_a_program"] in ("passed", "passed+error"), str(result)
    made = {int(line) for line in (run_as_each.path / "namespaces").read_text().split()}
    assert len(made) >= 6
    assert namespaces()["net"] == before
    there = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            there.add((process / "ns" / "net").stat().st_ino)
        except OSError:
            continue
    assert not made & there


@pytest.mark.parametrize("jobs", [1, 2])
def test_sandboxes_do_not_meet(run: Run, jobs: int) -> None:
    """The same addresses in each, and nobody hears another test's hosts."""
    run.tests(
        HELPERS,
        """
    @pytest.mark.isolated(net="a b", timeout=50)
    @pytest.mark.parametrize("number", range(12))
    def test_it(sandbox, number):
        assert not reaches(sandbox.net["b"], sandbox.net["a"])
        server = listen(sandbox.net["a"])
        assert reaches(sandbox.net["b"], sandbox.net["a"])
        with pytest.raises(OSError):
            socket.create_connection((sandbox.net["a"].address, 7000), 0.2)
    """,
    )
    run(f"--ns-jobs={jobs}").expect(passed=12)
