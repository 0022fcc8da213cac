"""Every key, in every way to run a test: what the table says is what happens.

`pytest_nsisolate.spec.holds` says of each key whether it is held, refused or means nothing in a
sandbox, under --ns-missing=fork and under --ns-missing=run. Here each key has a value and a probe,
which runs inside and fails unless the key is held.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from helpers.crippled import COMMON, HOSTS, NO_COUNTERS, NO_TIME_NAMESPACES
from helpers.hosts import become
from pytest_nsisolate.spec.holds import TABLE, Facts, Mode, Verdict, judge
from pytest_nsisolate.spec.keys import KEYS
from pytest_nsisolate.spec.parsing import parse_value
from pytest_nsisolate.spec.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers.run import Result, Run

pytestmark = pytest.mark.needs("sandbox")

CRIPPLED = HOSTS[0]
CPU = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One key, or a few that belong together, and what shows that they are held."""

    name: str
    keys: str
    """Arguments of the marker."""
    probe: str = "pass"
    """Fails unless the keys are held. ``MODE`` is the way that the test runs."""
    fails: str = ""
    """How the failure begins that shows that they are held; "" if the test then passes."""
    fixtures: str = ""
    special: bool = False
    """Whether sandboxes need a special host for it: other tests have these."""


def case(name: str, keys: str, probe: str = "pass", **others: str | bool) -> Case:
    """A `Case`."""
    return Case(name=name, keys=keys, probe=probe, **others)  # type: ignore[arg-type]


#: In a sandbox the names of control groups are not seen.
IN_GROUP = "assert MODE == 'sandbox' or 'nsisolate' in open('/proc/self/cgroup').read()"
CASES = [
    case("profile", "profile='hermetic'", "assert os.environ['TZ'] == 'UTC'"),
    case("net_host", "net='host'", "assert inode('net') == HOST['net']"),
    case("net_veth", "net='veth'", "assert sandbox.address", fixtures="sandbox", special=True),
    case("net_topology", "net='a b'", "assert sandbox.net['a']", fixtures="sandbox"),
    case(
        "pcap",
        "pcap='failed'",
        "assert [*tmp_path_factory.getbasetemp().glob('packets-*/*.pcap')]",
        fixtures="tmp_path_factory",
    ),
    case("nat", "net='veth', nat=True", special=True),
    case("forward", "forward=[PORT]", "socket.create_connection(('127.0.0.1', PORT)).close()"),
    case(
        "forward_moved",
        "forward=[f'{PORT}:79']",
        "socket.create_connection(('127.0.0.1', 79)).close()",
    ),
    case("fs_overlay", "fs='overlay'"),
    case("fs_readonly", "fs='readonly'", "with pytest.raises(OSError): open('new', 'w')"),
    case("rootfs", "rootfs='tree'", special=True),
    case("writable", "writable=['folder']", "open('folder/written', 'w').close()"),
    case("hide", "hide=['secrets']", "assert os.listdir('secrets') == []"),
    case(
        "propagation",
        "propagation='slave'",
        "assert MODE == 'sandbox' or inode('mnt') == HOST['mnt']",
    ),
    case(
        "tmpfs",
        "tmpfs='3M'",
        "found = os.statvfs('/tmp'); assert found.f_blocks * found.f_frsize == 3 << 20",
    ),
    case("timeout", "timeout=1", "time.sleep(60)", fails="TIMED OUT after 1 s"),
    case("user", "user='root'", "assert os.getuid() == 0"),
    case("hostname", "hostname='box'", "assert os.uname().nodename == 'box'"),
    case("share", "share=['ipc']", "assert inode('ipc') == HOST['ipc']"),
    case("env", "env={'NS_ADDED': 'x'}", "assert os.environ['NS_ADDED'] == 'x'"),
    case("env_clean", "env='clean'", "assert 'NS_SECRET' not in os.environ"),
    case("clock", "clock=10**6", "assert time.monotonic() - HOST_TIME > 900_000"),
    case("memory", "memory='64M'", "bytearray(200 << 20)", fails="OUT OF MEMORY|MemoryError"),
    case(
        "cpus",
        "cpus=0.2",
        """
        begin = time.monotonic()
        until = time.process_time() + 0.2
        while time.process_time() < until: pass
        assert time.monotonic() - begin > 0.5
        """,
    ),
    case(
        "pids",
        "pids=8",
        """
        with pytest.raises(BlockingIOError):
            for _ in range(20): os.posix_spawn('/bin/sleep', ['sleep', '60'], {})
        """,
    ),
    case("cpuset", f"cpuset='{CPU}'", f"assert os.sched_getaffinity(0) == {{{CPU}}}"),
    case("io", "io={'rbps': '50M'}", IN_GROUP),
    case("cpu_weight", "cpu_weight=300", IN_GROUP),
    case("io_weight", "io_weight=300", IN_GROUP),
    case("devices", "devices=['/dev/null']", "assert not os.path.exists('/dev/zero')"),
    case("counters", "counters=True"),
    case("scope", "scope='module'", "PIDS.append(os.getpid())"),
    case("scope_second", "scope='module'", "assert PIDS == [os.getpid()]"),
    case(
        "snapshot",
        "snapshot='module'",
        "assert (made != inode('pid')) == (MODE == 'sandbox')",
        fixtures="made",
    ),
]

SUITE = """
HOST_TIME = {now}
PORT = {port}
MODE = os.environ["NS_MODE"]
PIDS = []

def inode(name):
    return os.stat(f"/proc/self/ns/{{name}}").st_ino

HOST = {{name: inode(name) for name in ("net", "mnt", "ipc")}}  # of the runner

def mark(name):
    try:
        open(f"ran-{{name}}", "w").close()
    except OSError:
        pass

@pytest.fixture(scope="module")
def made():
    return inode("pid")
"""


def suite(cases: list[Case], port: int) -> list[str]:
    """The parts of a module with a test for each case."""
    parts = [SUITE.format(now=time.monotonic(), port=port)]
    for one in cases:
        head = f"@pytest.mark.isolated({one.keys})\ndef test_{one.name}({one.fixtures}):"
        body = f"mark({one.name!r})\n{textwrap.dedent(one.probe).strip()}"
        parts.append(f"{head}\n{textwrap.indent(body, '    ')}")
    return parts


def prepare(run: Run, cases: list[Case], port: int) -> None:
    """Write the module, and the files that it is about."""
    run.tests(*suite(cases, port))
    run.write("secrets/key", "")
    run.write("tree/etc/passwd", "")
    run.write("folder/kept", "")
    if run.uid is not None:
        os.chown(run.path / "folder", run.uid, run.uid)


def in_mode(run: Run, mode: Mode, *args: str) -> Result:
    """Run the module in a mode; on a host without user namespaces unless it is a sandbox."""
    env = {"NS_MODE": mode.value, "NS_SECRET": "x"}
    for path in run.path.glob("ran-*"):
        path.unlink()
    if mode is Mode.FULL:
        return run(*args, env=env)
    return run(*args, f"--ns-missing={mode.value}", prefix=CRIPPLED.prefix, env=env)


def is_held(one: Case, result: Result) -> bool:
    """The probe has passed, or the test failed in the way that shows it; False for an error."""
    verdict = result.verdicts[f"test_{one.name}"]
    if one.fails and verdict == "failed":
        assert re.search(one.fails, result.of(f"test_{one.name}").text), str(result)
        return True
    assert verdict in ("passed", "error"), f"{one.name}: {verdict}\n{result}"
    assert verdict == "error" or not one.fails, f"{one.name} was not held\n{result}"
    return verdict == "passed"


def is_refused(one: Case, names: set[str], mode: Mode, result: Result, path: Path) -> None:
    """The test is an error that names the keys, and where they stand; it did not run."""
    text = result.of(f"test_{one.name}", "setup").text
    first, *rest = text.splitlines()
    assert first.startswith(f"SANDBOX FAILED: --ns-missing={mode.value} can't hold "), text
    assert set(re.findall(r"\b(\w+)=", first.partition("hold ")[2])) == names, text
    for name in names:
        (line,) = [one for one in rest if one.startswith(f"  {name}=")]
        assert "(@pytest.mark.isolated): " in line
    assert "\nFix: " in text
    if "(limit " not in text:  # which is known before
        assert CRIPPLED.error in text
        assert CRIPPLED.mend in text
    assert not (path / f"ran-{one.name}").exists()


@pytest.fixture
def port() -> Iterator[int]:
    """A port of the host's loopback on which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def counts(run: Run, prefix: list[str]) -> bool:
    """Whether the user of the run may count any event."""
    source = (
        "from pytest_nsisolate.cgroups.perf_counters import Counters\n"
        "print(bool(Counters().values()))"
    )
    command = [*become(run.uid), *prefix, sys.executable, "-c", source]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    return done.stdout == "True\n"


def test_each_key_in_each_mode(run_as_each: Run, port: int) -> None:
    """Held keys are held, refused keys are errors that name them, and the others harm nothing."""
    run = run_as_each
    prepare(run, [one for one in CASES if not one.special], port)
    full = in_mode(run, Mode.FULL)
    groups = set()
    for one in CASES:
        if one.special:
            continue
        if is_held(one, full):
            groups.add(one.name)
        else:  # takes what this host, or this user, doesn't have: an error that says so
            text = full.of(f"test_{one.name}", "setup").text
            assert re.match(r"SANDBOX FAILED at (limit|count) ", text), text
            assert not (run.path / f"ran-{one.name}").exists()
    for gone in ("fs_overlay", "fs_readonly", "profile"):
        assert not (run.path / f"ran-{gone}").exists()
    assert (run.path / "folder/written").exists()
    for mode in (Mode.FORK, Mode.RUN):
        check_mode(run, mode, groups, port)


def check_mode(run: Run, mode: Mode, groups: set[str], port: int) -> None:
    """What the table says of a mode is what happens."""
    prepare(run, CASES, port)
    result = in_mode(run, mode, "--ns-properties")
    refused = set()
    for one in CASES:
        given = eval(f"dict({one.keys})", {"PORT": port})
        asked = {key: parse_value(key, value, one.name) for key, value in given.items()}
        facts = Facts(
            root=(run.uid if run.uid is not None else os.geteuid()) == 0,
            group=one.name in groups,
            counts=counts(run, CRIPPLED.prefix) if one.name == "counters" else False,
            cpus=frozenset(os.sched_getaffinity(0)),
        )
        names = {found.key for found in judge(asked, mode, facts)}
        if names:
            assert result.verdicts[f"test_{one.name}"] == "error", f"{one.name}\n{result}"
            is_refused(one, names, mode, result, run.path)
            refused |= names
        elif mode is Mode.RUN and one.name.startswith("scope"):
            assert result.verdicts[f"test_{one.name}"] == "passed", str(result)
        else:
            assert is_held(one, result), f"{one.name}\n{result}"
            assert (run.path / f"ran-{one.name}").exists()
    if "counters" not in refused:
        assert result.value("test_counters", "ns_page_faults") > 0
    said = result.out.partition("\n\n")[0]
    lists = re.findall(
        rf"they fail: --ns-missing={mode.value} can't hold (.+)$", said, re.MULTILINE
    )
    assert {key for one in lists for key in one.split(", ")} == refused, said


def test_every_key_has_a_case() -> None:
    """And every key has its row, in the order of the keys, with a cell for every mode."""
    assert [*TABLE] == [*KEYS]
    assert {key for one in CASES for key in re.findall(r"(\w+)=", one.keys)} == set(KEYS)
    for key, row in TABLE.items():
        assert set(row.cells) == set(Mode), key
        assert row.cells[Mode.FULL].verdict is Verdict.HELD


def test_defaults_are_never_refused() -> None:
    for mode in Mode:
        assert judge(Spec().asked, mode, Facts(linux=False)) == []


def test_where_the_key_stands(run_as_each: Run) -> None:
    """A refused default of the ini file or the command line is named so; a marker overrides it."""
    run_as_each.write("pytest.ini", "[pytest]\nnsisolate_fs = overlay\n")
    run_as_each.tests("""
    @pytest.mark.isolated
    def test_default():
        open("ran", "w").close()

    @pytest.mark.isolated(fs="host", hostname="isolated", net="loopback", timeout=60)
    def test_own():
        pass

    def test_plain():
        pass
    """)
    run = run_as_each
    result = run("--ns-missing=fork", prefix=CRIPPLED.prefix)
    expected = {"test_default": "error", "test_own": "passed", "test_plain": "passed"}
    assert result.verdicts == expected, str(result)
    assert "  fs='overlay' (ini nsisolate_fs): " in result.of("test_default", "setup").text
    said = result.out.partition("\n\n")[0]
    assert "1 of 2 isolated tests can't be isolated here (" in said
    assert "they fail: --ns-missing=fork can't hold fs\n" in f"{said}\n"
    assert "they run as forked processes WITHOUT NAMESPACES (--ns-missing=fork)" in said
    result = run("--ns-missing=run", "--ns-clock=5", prefix=CRIPPLED.prefix)
    expected = {"test_default": "error", "test_own": "error", "test_plain": "passed"}
    assert result.verdicts == expected, str(result)
    assert "  clock=5.0 (option --ns-clock): " in result.of("test_own", "setup").text
    assert "  timeout=60.0 (@pytest.mark.isolated): " in result.of("test_own", "setup").text
    assert not (run.path / "ran").exists()


def test_the_keys_of_a_profile_are_named_by_it(run: Run) -> None:
    """Of a bundle only its own name is refused; what is given beside it counts by itself."""
    run.tests("""
    @pytest.mark.isolated(profile="hermetic", tmpfs="1G")
    def test_it():
        pass
    """)
    text = run("--ns-missing=fork", prefix=CRIPPLED.prefix).of("test_it", "setup").text
    assert text.startswith(
        "SANDBOX FAILED: --ns-missing=fork can't hold profile='hermetic', tmpfs='1G'\n"
    )


def test_a_key_that_its_plan_fails_for(run: Run) -> None:
    """Where the rest of the sandbox works, --ns-missing=fork does not drop the one key either."""
    run.tests("""
    @pytest.mark.isolated(clock=5)
    def test_clock():
        pass

    @pytest.mark.isolated
    def test_it():
        assert os.getppid() == 0
    """)
    prefix = [sys.executable, "-c", COMMON + NO_TIME_NAMESPACES]
    result = run("--ns-missing=fork", prefix=prefix)
    assert result.verdicts == {"test_clock": "error", "test_it": "passed"}, str(result)
    text = result.of("test_clock", "setup").text
    assert text.startswith("SANDBOX FAILED: --ns-missing=fork can't hold clock=5.0\n"), text
    assert "CONFIG_TIME_NS" in text
    assert "1 of 2 isolated tests can't be isolated here (unshare time" in result.out


def test_counters_where_nothing_can_be_counted(run_as_each: Run) -> None:
    """That is an error, in a sandbox and without one; where page faults count all is well."""
    run_as_each.tests("""
    @pytest.mark.isolated(counters=True)
    def test_it():
        pass

    @pytest.mark.isolated
    def test_other():
        pass
    """)
    prefix = [sys.executable, "-c", COMMON + NO_COUNTERS]
    for args, head in (
        ((), "SANDBOX FAILED at count page faults: EACCES\n"),
        (("--ns-missing=fork",), "SANDBOX FAILED: --ns-missing=fork can't hold counters=True\n"),
    ):
        result = run_as_each(*args, prefix=prefix)
        assert result.verdicts == {"test_it": "error", "test_other": "passed"}, str(result)
        text = result.of("test_it", "setup").text
        assert text.startswith(head), text
        assert "kernel.perf_event_paranoid" in text


def test_cpus_that_pytest_may_not_use() -> None:
    """An affinity can't hold a test to them: the kernel would drop them silently."""
    asked = {"cpuset": "0-1"}
    assert judge(asked, Mode.FORK, Facts(cpus=frozenset({0, 1, 2}))) == []
    assert [one.key for one in judge(asked, Mode.FORK, Facts(cpus=frozenset({0})))] == ["cpuset"]
    assert judge(asked, Mode.FORK, Facts(cpus=frozenset({0}), group=True)) == []
