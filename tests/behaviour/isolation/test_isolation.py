"""A test has namespaces, processes, a network and scratch space of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.crippled import CGROUP2_ALONE, COMMON
from helpers.hosts import namespaces

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

NAMES = """
    NAMES = ("user", "pid", "mnt", "net", "uts", "ipc", "cgroup")

    def inodes():
        return {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in NAMES}
"""
MEET = """
    def test_first():
        {first}
        with open({fifo!r}):  # returns once the other test has come as far as this
            {check}

    def test_second():
        {second}
        with open({fifo!r}, "w"):
            {check}
"""


def meeting(run: Run, *, first: str, second: str, check: str) -> str:
    """Two tests that each do one thing, then wait until the other has done its thing."""
    fifo = run.path / "meeting"
    os.mkfifo(fifo, 0o666)
    fifo.chmod(0o666)
    return MEET.format(fifo=str(fifo), first=first, second=second, check=check)


def test_every_namespace_is_fresh(run_as_each: Run) -> None:
    """Two tests alive at once share none of the seven, with each other or with the host."""
    source = meeting(
        run_as_each,
        first='record_property("inodes", inodes())',
        second='record_property("inodes", inodes())',
        check="pass",
    )
    run_as_each.tests(NAMES, source.replace("():", "(record_property):"))
    result = run_as_each.isolated("--ns-jobs=2")
    result.expect(passed=2)
    first, second = (result.value(name, "inodes") for name in ("test_first", "test_second"))
    host = namespaces()
    assert set(first) == set(host)
    for name in host:
        assert len({host[name], first[name], second[name]}) == 3, name


def test_share_leaves_one_out(run_as_each: Run) -> None:
    """share=("ipc",) keeps the host's IPC namespace and no other."""
    run_as_each.tests(
        NAMES,
        """
    @pytest.mark.isolated(share=("ipc",))
    def test_shares(record_property):
        record_property("inodes", inodes())
    """,
    )
    result = run_as_each()
    result.expect(passed=1)
    inside, host = result.value("test_shares", "inodes"), namespaces()
    assert [name for name in host if inside[name] == host[name]] == ["ipc"]


def test_net_host_is_the_host_s(run_as_each: Run) -> None:
    """net="host" keeps the host's network namespace, and a server there can be reached."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        run_as_each.tests(
            NAMES,
            f"""
        @pytest.mark.isolated(net="host")
        def test_host(record_property):
            record_property("inodes", inodes())
            socket.create_connection(("127.0.0.1", {server.getsockname()[1]})).close()

        @pytest.mark.isolated
        def test_own():
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", {server.getsockname()[1]}))
        """,
        )
        result = run_as_each()
    result.expect(passed=2)
    assert result.value("test_host", "inodes")["net"] == namespaces()["net"]


def test_one_port_for_two_tests_at_once(run_as_each: Run) -> None:
    """Two tests listen on 127.0.0.1:80 at the same time."""
    bind = 'server = socket.create_server(("127.0.0.1", 80))'
    talk = 'socket.create_connection(("127.0.0.1", 80)).close(); server.accept()'
    run_as_each.tests(meeting(run_as_each, first=bind, second=bind, check=talk))
    run_as_each.isolated("--ns-jobs=2").expect(passed=2)


def test_loopback_network(run_as_each: Run) -> None:
    """Only lo, up for IPv4 and IPv6; low ports and ping need no capability."""
    run_as_each.tests("""
    import fcntl

    def test_only_loopback():
        assert os.listdir("/sys/class/net") == ["lo"]
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            request = fcntl.ioctl(sock, 0x8915, b"lo" + bytes(38))  # SIOCGIFADDR
        assert socket.inet_ntoa(request[20:24]) == "127.0.0.1"

    @pytest.mark.parametrize("port", [1, 80, 443, 1023])
    def test_low_ports(port):
        with socket.create_server(("127.0.0.1", port)) as server:
            socket.create_connection(server.getsockname()).close()

    def test_ipv6():
        with socket.create_server(("::1", 80), family=socket.AF_INET6) as server:
            socket.create_connection(server.getsockname()[:2]).close()

    def test_ping():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as ping:
            ping.settimeout(10)
            ping.sendto(bytes([8, 0, 0, 0, 0, 0, 0, 1]) + b"hello", ("127.0.0.1", 0))
            answer = ping.recv(100)
            assert answer[0] == 0 and answer.endswith(b"hello")

    def test_no_way_out():
        with pytest.raises(OSError) as caught:
            socket.create_connection(("192.0.2.1", 80), timeout=10)
        assert caught.value.errno == errno.ENETUNREACH
    """)
    run_as_each.isolated().expect(passed=8)


def test_loopback_counts_as_a_network(run_as_each: Run) -> None:
    """Names resolve for who wants one family if configured; multicast and broadcast arrive."""
    run_as_each.tests("""
    @pytest.mark.parametrize(
        ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    )
    def test_one_family(family, address):
        for name in ("localhost", address) if family == socket.AF_INET else (address,):
            found = socket.getaddrinfo(name, 80, family, flags=socket.AI_ADDRCONFIG)
            assert {info[4][0] for info in found} == {address}

    @pytest.mark.parametrize("target", ["239.1.2.3", "255.255.255.255"])
    def test_many(target):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            listener.bind(("", 9999))
            if target.startswith("239."):
                group = socket.inet_aton(target) + socket.inet_aton("0.0.0.0")
                listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.sendto(b"hello", (target, 9999))
            listener.settimeout(10)
            assert listener.recv(100) == b"hello"
    """)
    run_as_each.isolated().expect(passed=4)


def test_hostname(run_as_each: Run) -> None:
    """The name is "isolated" or what the key says, and resolves to loopback."""
    run_as_each.tests("""
    import platform
    platform.system()  # asks for all there is to say of the system, and keeps it

    def test_default():
        assert socket.gethostname() == os.uname().nodename == platform.node() == "isolated"

    @pytest.mark.isolated(hostname="db1")
    def test_key():
        assert socket.gethostname() == "db1"

    @pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
    def test_resolves(family):
        found = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), 80)}
        assert found and found <= {"127.0.0.1", "127.0.1.1", "::1"}
    """)
    run_as_each.isolated().expect(passed=4)


@pytest.mark.needs("root")
def test_changed_hostname_stays_inside(run: Run) -> None:
    """A test that changes the hostname changes neither the host's nor the next test's."""
    run.tests("""
    @pytest.mark.parametrize("turn", [1, 2])
    def test_changes(turn):
        assert socket.gethostname() == "isolated"
        socket.sethostname("changed")
        assert socket.gethostname() == "changed"
    """)
    before = socket.gethostname()
    run.isolated().expect(passed=2)
    assert socket.gethostname() == before


def test_scratch_space_is_private(run_as_each: Run) -> None:
    """Files in /tmp, /var/tmp and /dev/shm reach neither the host nor the next test."""
    run_as_each.tests(f"""
    @pytest.mark.parametrize("turn", [1, 2])
    @pytest.mark.parametrize("folder", ["/tmp", "/var/tmp", "/dev/shm"])
    def test_writes(folder, turn):
        for number in range(1000):
            with open(f"{{folder}}/litter-{os.getpid()}-{{number}}", "x") as stream:
                stream.write("x")
    """)
    run_as_each.isolated().expect(passed=6)
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        assert not list(Path(folder).glob(f"litter-{os.getpid()}-*"))


def test_size_of_tmp(run_as_each: Run) -> None:
    """/tmp has 256 MiB or what the key says, and is full at that."""
    run_as_each.tests("""
    def size(path):
        stat = os.statvfs(path)
        return stat.f_blocks * stat.f_frsize

    @pytest.mark.isolated
    def test_default():
        assert size("/tmp") == 256 << 20

    @pytest.mark.isolated(tmpfs="8M")
    def test_key():
        assert size("/tmp") == 8 << 20
        with pytest.raises(OSError) as caught, open("/tmp/big", "wb") as stream:
            stream.write(bytes(9 << 20))
        assert caught.value.errno == errno.ENOSPC

    @pytest.mark.isolated(tmpfs=3 << 20)
    def test_bytes():
        assert size("/tmp") == 3 << 20
    """)
    run_as_each().expect(passed=3)


def test_full_shared_memory_stays_inside(run_as_each: Run) -> None:
    """A test that fills /dev/shm takes nothing from the host's or from the next test's."""
    run_as_each.tests("""
    @pytest.mark.parametrize("turn", [1, 2])
    def test_fills(turn):
        stat = os.statvfs("/dev/shm")
        size = stat.f_blocks * stat.f_frsize
        assert 0 < size <= 1 << 30, "bounded, so that no test eats the host's memory"
        assert stat.f_bavail == stat.f_blocks
        with pytest.raises(OSError) as caught, open("/dev/shm/litter", "wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, size + 1)
        assert caught.value.errno == errno.ENOSPC
    """)
    run_as_each.isolated().expect(passed=2)
    assert not Path("/dev/shm/litter").exists()


def test_kill_all_stays_inside(run_as_each: Run) -> None:
    """kill(-1) reaches the test's own processes and nobody else's."""
    with subprocess.Popen(["sleep", "1000"], user=run_as_each.uid) as bystander:
        try:
            run_as_each.tests("""
            from ns_safe import contained

            def test_kills():
                contained()
                child = subprocess.Popen(["sleep", "1000"])
                os.kill(-1, signal.SIGKILL)
                assert child.wait() == -signal.SIGKILL

            def test_after():
                pass
            """)
            run_as_each.isolated().expect(passed=2)
            assert bystander.poll() is None
        finally:
            bystander.send_signal(signal.SIGKILL)


def test_system_mounts(run_as_each: Run) -> None:
    """/proc and the cgroup tree are the sandbox's own."""
    run_as_each.tests("""
    def test_processes():
        assert [int(name) for name in os.listdir("/proc") if name.isdigit()] == [1, 2]
        assert os.getpid() == 2

    def test_cgroup_tree_is_readonly():
        assert os.statvfs("/sys/fs/cgroup").f_flag & os.ST_RDONLY
    """)
    run_as_each.isolated().expect(passed=2)


@pytest.mark.skipif(not Path("/dev/mqueue").is_dir(), reason="the host has no /dev/mqueue")
def test_message_queues(run_as_each: Run) -> None:
    """/dev/mqueue is mounted afresh, so queues reach neither the host nor the next test."""
    run_as_each.tests("""
    def test_message_queues():
        with open("/proc/self/mountinfo") as stream:
            mounts = [line.split() for line in stream]
        kinds = [line[line.index("-") + 1] for line in mounts if line[4] == "/dev/mqueue"]
        assert kinds[-1:] == ["mqueue"]
        assert os.listdir("/dev/mqueue") == []
        open("/dev/mqueue/litter", "x").close()

    def test_message_queues_again():
        test_message_queues()
    """)
    run_as_each.isolated().expect(passed=2)


def test_parent_and_session(run_as_each: Run) -> None:
    """The parent is outside the pid namespace, and so is who leads the session."""
    run_as_each.tests("""
    def test_it():
        assert os.getppid() == os.getsid(0) == 0
        assert os.getpgid(0) == os.getpid()
    """)
    run_as_each.isolated().expect(passed=1)


def test_opened_terminal_is_not_the_tests_own(run_as_each: Run) -> None:
    """As a program of a shell, a test opens terminals and sees them hang up, and lives on."""
    run_as_each.tests("""
    def test_it():
        master, slave = os.openpty()
        again = os.open(os.ttyname(slave), os.O_RDWR)  # without O_NOCTTY
        with pytest.raises(OSError):
            os.open("/dev/tty", os.O_RDWR)
        os.close(master)
        assert os.read(again, 1) == b""
    """)
    run_as_each.isolated().expect(passed=1)


def test_environment(run_as_each: Run) -> None:
    """It is inherited, cleaned but for an allow-list, or added to."""
    run_as_each.tests("""
    @pytest.mark.isolated
    def test_inherited():
        assert os.environ["SECRET_TOKEN"] == "abc"
        os.environ["LITTER"] = "1"

    @pytest.mark.isolated(env="clean")
    def test_clean():
        assert "SECRET_TOKEN" not in os.environ
        assert "LITTER" not in os.environ
        assert os.environ["PATH"]
        output = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
        assert "SECRET_TOKEN" not in output

    @pytest.mark.isolated(env={"ADDED": "1"})
    def test_added():
        assert os.environ["SECRET_TOKEN"] == "abc"
        assert os.environ["ADDED"] == "1"

    def test_runner():
        assert "ADDED" not in os.environ and os.environ["SECRET_TOKEN"] == "abc"
    """)
    run_as_each(env={"SECRET_TOKEN": "abc"}).expect(passed=4)


def test_tmp_path(run_as_each: Run) -> None:
    """tmp_path is on the private tmpfs; that of a failed test is found where pytest puts it."""
    run_as_each.tests("""
    def test_on_tmpfs(tmp_path):
        device = os.stat(tmp_path).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo") as stream:
            mounts = [line.split() for line in stream]
        kinds = {line[line.index("-") + 1] for line in mounts if line[2] == wanted}
        assert kinds == {"tmpfs"}

    @pytest.mark.parametrize("name", ["a", "b"])
    def test_fails(tmp_path, name, record_property):
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "note.txt").write_text(name)
        record_property("path", str(tmp_path))
        assert False
    """)
    result = run_as_each.isolated("--ns-jobs=2")
    result.expect(passed=1, failed=2)
    for name in ("a", "b"):
        path = Path(result.value(f"test_fails[{name}]", "path"))
        assert path.parent == run_as_each.path / "basetemp-1"
        assert (path / "deep" / "note.txt").read_text() == name
        assert path.stat().st_uid == (run_as_each.uid or os.getuid())


def test_root_directory_is_seen(run_as_each: Run) -> None:
    """With the host's file system, what a test writes below the root directory stays."""
    run_as_each.tests("""
    def test_it(pytestconfig):
        assert os.getcwd() == str(pytestconfig.rootpath)
        (pytestconfig.rootpath / "written.txt").write_text("x")
    """)
    run_as_each.isolated().expect(passed=1)
    assert (run_as_each.path / "written.txt").exists()


@pytest.mark.parametrize("fs", ["host", "readonly", "overlay"])
def test_control_groups_in_the_hosts_network(run_as_each: Run, fs: str) -> None:
    """Where the host has cgroup v2 alone, a sandbox shows its own tree of it in any network."""
    run_as_each.tests("""
    @pytest.fixture
    def tree():
        assert open("/proc/self/cgroup").read().splitlines()[-1] == "0::/"
        assert str(os.getpid()) in open("/sys/fs/cgroup/cgroup.procs").read().split()
        assert os.statvfs("/sys/fs/cgroup").f_flag & os.ST_RDONLY

    @pytest.mark.isolated(net="host")
    def test_of_the_host(tree):
        pass

    @pytest.mark.isolated
    def test_of_its_own(tree):
        pass
    """)
    prefix = [sys.executable, "-c", COMMON + CGROUP2_ALONE]
    run_as_each(f"--ns-fs={fs}", prefix=prefix).expect(passed=2)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--ns-fs=overlay",),
        ("--ns-profile=hermetic",),
        ("--ns-keep=failed", "--ns-scope=module"),
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_working_directory_is_gone(run_as_each: Run, options: tuple[str, ...]) -> None:
    """A suite that removes the directory it works in runs as it does plainly."""
    run_as_each.tests("""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)

    def test_it(tmp_path):
        assert not os.path.exists(folder)
        (tmp_path / "file").write_text("text")
    """)
    run_as_each().expect(passed=1)
    run_as_each.isolated(*options).expect(passed=1)


def test_a_failure_for_its_parent_has_a_hint(run: Run) -> None:
    """A test that fails since its parent is outside the sandbox is told so."""
    run.tests("""
    def test_it():
        assert os.getppid() > 0

    def test_other():
        assert os.getpid() == 0
    """)
    result = run.isolated().expect(failed=2)
    assert "os.getppid() is 0" in result.of("test_it").section("Different in a sandbox")
    assert not result.of("test_other").section("Different in a sandbox")
