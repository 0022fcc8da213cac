"""``forward``: ports of the host's loopback appear on the sandbox's, and nothing else does."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.hosts import DEADLINE, marked, proc_bytes, wait_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers.run import Run

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox")]


class Service:
    """A server on the loopback of the host, each connection in a thread."""

    def __init__(
        self,
        serve: Callable[[socket.socket], None],
        family: socket.AddressFamily = socket.AF_INET,
        port: int = 0,
    ) -> None:
        self._serve = serve
        self.server = socket.create_server(
            ("127.0.0.1" if family == socket.AF_INET else "::1", port), family=family, backlog=600
        )
        self.port: int = self.server.getsockname()[1]
        self.errors: list[BaseException] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(caller,), daemon=True).start()

    def _one(self, caller: socket.socket) -> None:
        with caller:
            try:
                self._serve(caller)
            except OSError as error:
                self.errors.append(error)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()


def echo(caller: socket.socket) -> None:
    while data := caller.recv(1 << 16):
        caller.sendall(data)


@pytest.fixture
def service() -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def make(
        serve: Callable[[socket.socket], None],
        family: socket.AddressFamily = socket.AF_INET,
        port: int = 0,
    ) -> Service:
        made.append(Service(serve, family, port))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_as_each_user(
    run_as_each: Run, service: Callable[..., Service], family: socket.AddressFamily
) -> None:
    """By both protocols inside, whichever the service speaks; at the same or another port."""
    port = service(echo, family).port
    run_as_each.tests(
        f"""
        @pytest.mark.isolated(forward=[{port}, "{port}:80"])
        @pytest.mark.parametrize("there", ["127.0.0.1", "::1", "localhost"])
        @pytest.mark.parametrize("port", [{port}, 80])
        def test_echo(there, port):
            with socket.create_connection((there, port), 20) as server:
                server.sendall(b"hello")
                assert server.recv(5) == b"hello"

        @pytest.mark.isolated
        def test_without():
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", {port}), 20)
    """
    )
    result = run_as_each("--ns-jobs=2")
    assert len(result.verdicts) == 7
    assert set(result.verdicts.values()) == {"passed"}, str(result)


def test_needs_no_library(run: Run, service: Callable[..., Service]) -> None:
    port = service(echo).port
    run.tests(
        f"""
        @pytest.mark.isolated(forward=[{port}])
        def test_modules():
            assert "pyroute2" not in sys.modules
    """
    )
    result = run()
    assert result.verdicts == {"test_modules": "passed"}, str(result)


def test_half_close(run: Run, service: Callable[..., Service]) -> None:
    """Either side may say all it has to say, and then listen on."""
    said: list[bytes] = []

    def answer_at_the_end(caller: socket.socket) -> None:
        caller.sendall(b"first")
        caller.shutdown(socket.SHUT_WR)
        everything = b""
        while data := caller.recv(1 << 16):
            everything += data
        said.append(everything)

    def ask_to_the_end(caller: socket.socket) -> None:
        everything = b""
        while data := caller.recv(1 << 16):
            everything += data
        caller.sendall(everything.upper())

    one, other = service(answer_at_the_end), service(ask_to_the_end)
    run.tests(
        f"""
        @pytest.mark.isolated(forward=[{one.port}, {other.port}])
        def test_both():
            with socket.create_connection(("127.0.0.1", {one.port}), 20) as server:
                assert server.makefile("rb").read() == b"first"
                server.sendall(b"still here")
                server.shutdown(socket.SHUT_WR)
                assert server.recv(1) == b""
            with socket.create_connection(("127.0.0.1", {other.port}), 20) as server:
                server.sendall(b"question")
                server.shutdown(socket.SHUT_WR)
                assert server.makefile("rb").read() == b"QUESTION"
    """
    )
    result = run()
    assert result.verdicts == {"test_both": "passed"}, str(result)
    assert said == [b"still here"]


SIZE = 1 << 30


def test_a_gigabyte_each_way(run: Run, service: Callable[..., Service]) -> None:
    """What comes out is what went in."""
    sums: list[str] = []
    block = os.urandom(1 << 20)

    def take_and_give(caller: socket.socket) -> None:
        found = hashlib.blake2b()
        while data := caller.recv(1 << 20):
            found.update(data)
        sums.append(found.hexdigest())
        for _ in range(SIZE >> 20):
            caller.sendall(block)

    port = service(take_and_give).port
    run.tests(
        f"""
        import hashlib

        @pytest.mark.isolated(forward=[{port}])
        def test_much(record_property):
            block, sent, found, count = os.urandom(1 << 20), hashlib.blake2b(), hashlib.blake2b(), 0
            with socket.create_connection(("127.0.0.1", {port}), 60) as server:
                for _ in range({SIZE >> 20}):
                    sent.update(block)
                    server.sendall(block)
                server.shutdown(socket.SHUT_WR)
                while data := server.recv(1 << 20):
                    found.update(data)
                    count += len(data)
            assert count == {SIZE}
            record_property("sent", sent.hexdigest())
            record_property("found", found.hexdigest())
    """
    )
    result = run(timeout=2 * DEADLINE)
    assert result.verdicts == {"test_much": "passed"}, str(result)
    assert [result.value("test_much", "sent")] == sums
    whole = hashlib.blake2b()
    for _ in range(SIZE >> 20):
        whole.update(block)
    assert result.value("test_much", "found") == whole.hexdigest()


def test_five_hundred_connections(run: Run, service: Callable[..., Service]) -> None:
    """All open at once, each with its own words; and the relay has but one process."""
    port = service(echo).port
    run.tests(
        f"""
        import resource

        @pytest.mark.isolated(forward=[{port}])
        def test_many():
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            open_ = [socket.create_connection(("localhost", {port}), 30) for _ in range(500)]
            for number, one in enumerate(open_):
                one.sendall(b"%08d" % number * 100)
            for number, one in reversed(list(enumerate(open_))):
                expected, found = b"%08d" % number * 100, b""
                while len(found) < len(expected):
                    found += one.recv(4096)
                assert found == expected
    """
    )
    result = run()
    assert result.verdicts == {"test_many": "passed"}, str(result)


def test_a_service_that_is_down_refuses(run: Run, service: Callable[..., Service]) -> None:
    """As it would outside: ECONNREFUSED; once it is up it is there, and down again it refuses."""
    up, down = run.path / "up", run.path / "down"
    os.mkfifo(up)
    os.mkfifo(down)
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    run.tests(
        f"""
        def refused(there):
            with pytest.raises(ConnectionRefusedError) as caught:
                socket.create_connection((there, {port}), 20)
            assert caught.value.errno == errno.ECONNREFUSED

        def until(wanted):
            end = time.monotonic() + 20
            while time.monotonic() < end:
                try:
                    with socket.create_connection(("127.0.0.1", {port}), 20) as server:
                        server.sendall(b"hello")
                        found = server.recv(5) == b"hello"
                except OSError:
                    found = False
                if found == wanted:
                    return
            pytest.fail("it stays as it is")

        @pytest.mark.isolated(forward=[{port}])
        def test_down():
            for _ in range(200):
                refused("127.0.0.1")
                refused("::1")
            open({str(up)!r}, "w").close()
            until(True)
            open({str(down)!r}, "w").close()
            until(False)
            for _ in range(200):
                refused("127.0.0.1")
                refused("::1")
    """
    )
    running = run.start()
    try:
        running.reached(up)
        made = service(echo, port=port)
        running.reached(down)
        made.close()
        result = running.wait(DEADLINE)
    finally:
        running.kill()
    assert result.verdicts == {"test_down": "passed"}, str(result)


def test_a_service_that_is_up_is_there_at_once(run: Run, service: Callable[..., Service]) -> None:
    """No test begins before its ports are served."""
    port = service(echo).port
    run.tests(
        f"""
        @pytest.mark.isolated(forward=[{port}])
        @pytest.mark.parametrize("n", range(30))
        def test_once(n):
            socket.create_connection(("127.0.0.1", {port}), 20).close()
    """
    )
    result = run("--ns-jobs=2")
    assert set(result.verdicts.values()) == {"passed"}, str(result)


def test_a_reset_is_passed_on(run: Run, service: Callable[..., Service]) -> None:
    def reset(caller: socket.socket) -> None:
        caller.recv(1)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    port = service(reset).port
    run.tests(
        f"""
        @pytest.mark.isolated(forward=[{port}])
        def test_reset():
            with socket.create_connection(("127.0.0.1", {port}), 20) as server:
                server.sendall(b"x")
                with pytest.raises(ConnectionResetError):
                    server.recv(1)
    """
    )
    result = run()
    assert result.verdicts == {"test_reset": "passed"}, str(result)


def test_who_does_not_read_is_not_read_for(run: Run, service: Callable[..., Service]) -> None:
    """The relay holds back, and keeps other connections going."""
    sent: list[int] = []

    def pour(caller: socket.socket) -> None:
        caller.settimeout(2)
        count = 0
        try:
            while True:
                count += caller.send(b"x" * (1 << 16))
        except TimeoutError:
            sent.append(count)
            full.set()

    def tell(caller: socket.socket) -> None:
        full.wait(DEADLINE)
        caller.sendall(b"k")

    full = threading.Event()
    fast, slow, told = service(echo).port, service(pour).port, service(tell).port
    run.tests(
        f"""
        @pytest.mark.isolated(forward=[{fast}, {slow}, {told}])
        def test_slow():
            with socket.create_connection(("127.0.0.1", {slow}), 20) as unread:
                with socket.create_connection(("127.0.0.1", {fast}), 20) as server:
                    for _ in range(1000):
                        server.sendall(b"hello")
                        assert server.recv(5) == b"hello"
                with socket.create_connection(("127.0.0.1", {told}), {DEADLINE}) as until_full:
                    assert until_full.recv(1) == b"k"
    """
    )
    result = run()
    assert result.verdicts == {"test_slow": "passed"}, str(result)
    assert sent
    assert sent[0] < 64 << 20


def test_connections_end_with_the_sandbox(run: Run, service: Callable[..., Service]) -> None:
    """Whoever serves one sees its end, though what held it was killed."""
    ends: list[BaseException | bytes] = []
    ended = threading.Event()

    def wait(caller: socket.socket) -> None:
        caller.sendall(b"x")
        try:
            ends.append(caller.recv(1))
        except OSError as error:
            ends.append(error)
        ended.set()

    port = service(wait).port
    run.tests(
        f"""
        @pytest.mark.isolated(forward=[{port}])
        def test_left():
            server = socket.create_connection(("127.0.0.1", {port}), 20)
            assert server.recv(1) == b"x"
            os._exit(0)

        @pytest.mark.isolated
        def test_next():
            pass
    """
    )
    result = run()
    assert result.verdicts == {"test_left": "failed", "test_next": "passed"}, str(result)
    assert ended.wait(DEADLINE)


def relays(marker: str) -> list[int]:
    return [
        pid
        for pid in marked(marker)
        if b"pytest_nsisolate.network.uplink.relay" in proc_bytes(pid, "cmdline")
    ]


def test_the_relay_has_no_rights_and_is_started_again(
    run: Run, service: Callable[..., Service]
) -> None:
    port = service(echo).port
    fifo, go = run.path / "reached", run.path / "go"
    os.mkfifo(fifo)
    os.mkfifo(go)
    run.tests(
        f"""
        @pytest.mark.isolated(forward=[{port}])
        def test_before():
            socket.create_connection(("127.0.0.1", {port}), 20).close()

        @pytest.mark.isolated(timeout=30)
        def test_meanwhile():
            open({str(fifo)!r}, "w").close()
            open({str(go)!r}).close()

        @pytest.mark.isolated(False)
        def test_between():
            pass

        @pytest.mark.isolated(forward=[{port}])
        @pytest.mark.parametrize("n", range(5))
        def test_after(n):
            pass
    """
    )
    running = run.start()
    try:
        running.reached(fifo)
        (relay,) = relays(running.marker)
        status = proc_bytes(relay, "status").decode()
        for line in ("CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"):
            assert line in status
        os.kill(relay, signal.SIGKILL)
        os.close(os.open(go, os.O_WRONLY))
        result = running.wait(DEADLINE)
    finally:
        running.kill()
    found = dict(result.verdicts)
    # What was parked with the relay that was killed may see that it is gone; no others.
    assert found.pop("test_before") == found.pop("test_meanwhile") == "passed"
    assert set(found.values()) == {"passed"}, str(result)


def test_the_relay_dies_with_the_runner(run: Run, service: Callable[..., Service]) -> None:
    port = service(echo).port
    fifo = run.path / "reached"
    os.mkfifo(fifo)
    run.tests(
        f"""
        @pytest.mark.isolated(forward=[{port}])
        def test_long():
            open({str(fifo)!r}, "w").close()
            signal.pause()
    """
    )
    running = run.start()
    try:
        running.reached(fifo)
        assert len(relays(running.marker)) == 1
        running.process.kill()
        running.process.wait()
        assert not wait_gone(running.marker)
    finally:
        running.kill()


# as fast as can be expected

PLAIN = """
import socket, sys, threading
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
def pump(a, b):
    while data := a.recv(1 << 16):
        b.sendall(data)
    b.shutdown(socket.SHUT_WR)
while True:
    a, _ = server.accept()
    b = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    for pair in ((a, b), (b, a)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""


def test_throughput(run: Run, service: Callable[..., Service]) -> None:
    """Within three times of a plain relay on one loopback: socat's, or threads that copy."""
    size = 512 << 20

    def drain(caller: socket.socket) -> None:
        buffer = bytearray(1 << 20)
        while caller.recv_into(buffer):
            pass
        caller.sendall(b"k")

    port = service(drain).port
    if shutil.which("socat"):
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            plain = reserved.getsockname()[1]
        listen = f"TCP-LISTEN:{plain},bind=127.0.0.1,fork,reuseaddr"
        command = ["socat", "-b", "65536", listen, f"TCP:127.0.0.1:{port}"]
    else:
        plain, command = 0, [shutil.which("python3") or "python3", "-I", "-c", PLAIN, str(port)]
    client = f"""
def measure(port):
    block, best = b"x" * (1 << 20), 1e9
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port), 60) as server:
            begin = time.perf_counter()
            for _ in range({size >> 20}):
                server.sendall(block)
            server.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b"k"
            best = min(best, time.perf_counter() - begin)
    return best
"""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as relay:
        try:
            assert relay.stdout is not None
            plain = plain or int(relay.stdout.readline())
            wait_for_port(plain)
            run.tests(
                client,
                f"""
@pytest.mark.isolated(net="host")
def test_plain(record_property):
    record_property("seconds", measure({plain}))

@pytest.mark.isolated(forward=[{port}])
def test_ours(record_property):
    record_property("seconds", measure({port}))
""",
            )
            result = run(timeout=2 * DEADLINE)
        finally:
            relay.kill()
    assert set(result.verdicts.values()) == {"passed"}, str(result)
    ours, theirs = (result.value(name, "seconds") for name in ("test_ours", "test_plain"))
    rates = f"{size / ours / 1e9:.2f} GB/s, {command[0]} {size / theirs / 1e9:.2f} GB/s"
    assert ours < 3 * theirs, rates


def wait_for_port(port: int) -> None:
    end = time.monotonic() + DEADLINE
    while True:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) != errno.ECONNREFUSED:
                return
        assert time.monotonic() < end


# what a sandbox without it can reach


def test_nothing_outside_can_be_reached(run_as_each: Run, service: Callable[..., Service]) -> None:
    """From a loopback sandbox: TCP, UDP, abstract sockets, netlink, /sys, whoever asks."""
    run = run_as_each
    port = service(echo).port
    own = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout
    addresses = ["127.0.0.1", "::1", *own.split()]
    with (
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as everywhere,
    ):
        abstract.bind(f"\0nsisolate-test-{os.getpid()}")
        abstract.listen()
        everywhere.bind(("0.0.0.0", 0))
        everywhere.listen()
        datagrams.bind(("0.0.0.0", 0))
        datagrams.settimeout(0)
        families = [socket.AF_INET6 if ":" in one else socket.AF_INET for one in addresses[2:]]
        packed = [socket.inet_pton(*one) for one in zip(families, addresses[2:], strict=True)]
        links = sorted(path.name for path in Path("/sys/class/net").iterdir())
        run.tests(
            f"""
            import struct

            ADDRESSES = {addresses!r}
            PORTS = [{port}, {everywhere.getsockname()[1]}]

            @pytest.mark.isolated
            @pytest.mark.parametrize("address", ADDRESSES)
            def test_tcp(address):
                for port in PORTS:
                    with pytest.raises(OSError) as caught:
                        socket.create_connection((address, port), 5)
                    assert caught.value.errno in (errno.ECONNREFUSED, errno.ENETUNREACH,
                                                  errno.EADDRNOTAVAIL), caught.value

            @pytest.mark.isolated
            @pytest.mark.parametrize("address", ADDRESSES)
            def test_udp(address):
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                with socket.socket(family, socket.SOCK_DGRAM) as one:
                    try:
                        one.sendto(b"x", (address, {datagrams.getsockname()[1]}))
                    except OSError as error:
                        assert error.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL)

            @pytest.mark.isolated
            def test_abstract():
                with socket.socket(socket.AF_UNIX) as one:
                    with pytest.raises(ConnectionRefusedError):
                        one.connect("\\0nsisolate-test-{os.getpid()}")
                assert "nsisolate-test" not in open("/proc/net/unix").read()

            @pytest.mark.isolated
            def test_links(record_property):
                names = sorted(name for _, name in socket.if_nameindex())
                record_property("names", names)
                assert sorted(os.listdir("/sys/class/net")) == names
                assert "lo" in names

            @pytest.mark.isolated
            def test_netlink(record_property):
                # RTM_GETADDR, all there are
                with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as one:
                    one.send(struct.pack("=IHHIIB3x", 20, 22, 0x301, 1, 0, 0))
                    data = one.recv(1 << 20)
                for packed in {packed!r}:
                    assert packed not in data
        """
        )
        result = run()
        assert set(result.verdicts.values()) == {"passed"}, str(result)
        inside = result.value("test_links", "names")
        assert not [one for one in inside if one in links and one.startswith(("eth", "en", "wl"))]
        with pytest.raises(BlockingIOError):
            datagrams.recv(1)
        abstract.settimeout(0)
        with pytest.raises(BlockingIOError):
            abstract.accept()
        everywhere.settimeout(0)
        with pytest.raises(BlockingIOError):
            everywhere.accept()
