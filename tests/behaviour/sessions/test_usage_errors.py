"""Bad input is a usage error that names test, key, value and what is allowed; nothing runs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from helpers.refusals import GOOD, bad_tests, is_refused, said

if TYPE_CHECKING:
    from helpers.run import Run


MARKERS = [
    # arguments of the marker, and what the message has to name
    ("memroy='64M'", ["memroy", "timeout"]),
    ("timeout=-1", ["timeout", "-1"]),
    ("timeout=0", ["timeout", "0"]),
    ("timeout='soon'", ["timeout", "'soon'"]),
    ("timeout=float('nan')", ["timeout", "nan"]),
    ("timeout=True", ["timeout", "True"]),
    ("tmpfs='lots'", ["tmpfs", "'lots'", "K, M"]),
    ("tmpfs=-5", ["tmpfs", "-5"]),
    ("tmpfs='0'", ["tmpfs", "'0'"]),
    ("tmpfs=1.5", ["tmpfs", "1.5"]),
    ("user='bob'", ["user", "'bob'", "same", "root"]),
    ("user=0", ["user=0", "same", "root"]),
    ("net='wifi'", ["net", "'wifi'", "loopback", "host"]),
    ("nat=True", ["nat=True", 'net="veth"', "loopback"]),
    ("nat=True, net='host'", ["nat=True", "net='host'"]),
    ("nat='perhaps'", ["nat", "'perhaps'", "True or False"]),
    ("nat=True, net='veth', share=('net',)", ["net", "share"]),
    ("forward=[5432], net='host'", ["forward=[5432]", "net='host'"]),
    ("forward=['8080:80'], share=('net',)", ["forward=['8080:80']", "share=('net',)"]),
    ("pcap='failed', net='host'", ["pcap='failed'", "net='host'", 'net="veth"', "topology"]),
    ("pcap='failed', share=('net',)", ["pcap='failed'", "share=('net',)"]),
    ("forward=5432", ["forward=5432", "[5432,"]),
    ("forward=[0]", ["forward=[0]", "1 to 65535"]),
    ("forward=[65536]", ["forward", "65536"]),
    ("forward=['80:']", ["forward", "80:"]),
    ("forward=['1:2:3']", ["forward", "1:2:3"]),
    ("forward=[True]", ["forward", "True"]),
    ("forward=[80, '8080:80']", ["forward", "8080:80", "once"]),
    ("forward=list(range(1, 102))", ["forward", "100 at most"]),
    ("hostname=''", ["hostname", "''"]),
    ("hostname='a b'", ["hostname", "'a b'"]),
    ("hostname='x' * 65", ["hostname", "64"]),
    ("hostname=7", ["hostname", "7"]),
    ("share=('ipc', 'soul')", ["share", "'soul'", "ipc"]),
    ("share=('ipc', 'user')", ["share", "'user'", "ipc"]),
    ("share=7", ["share", "7"]),
    ("env='dirty'", ["env", "'dirty'", "inherit", "clean"]),
    ("env={'A': 1}", ["env", "1"]),
    ("env={'A=B': 'x'}", ["env", "A=B"]),
    ("env={'A': 'x\\0y'}", ["env", "A"]),
    ("clock='noon'", ["clock", "'noon'", "seconds"]),
    ("clock=float('nan')", ["clock", "nan"]),
    ("clock=5e9", ["clock", "5000000000", "-4000000000"]),
    ("clock=True", ["clock", "True"]),
    ("net='loopback', share=('net',)", ["net", "share"]),
    ("hostname='db', share=('uts',)", ["hostname", "share", "uts"]),
    ("scope='module', snapshot='module'", ["scope='module'", "snapshot='module'"]),
    *(
        (f"snapshot='module', {key}={value}", ["snapshot='module'", f"{key}={value}", allowed])
        for key, value, allowed in (
            ("fs", "'overlay'", "fs='host'"),
            ("fs", "'readonly'", "fs='host'"),
            ("rootfs", "'/'", "rootfs=None"),
            ("writable", "['/opt']", "writable=()"),
            ("hide", "['/opt']", "hide=()"),
            ("propagation", "'slave'", "propagation='private'"),
            ("profile", "'hermetic'", "profile=None"),
            ("net", "'veth'", "net='loopback' or net='host'"),
            ("net", "'a b c'", "net='loopback' or net='host'"),
            ("forward", "[5432]", "forward=()"),
            ("pcap", "'failed'", "pcap=None"),
            ("clock", "3600.0", "clock=None"),
        )
    ),
    ("'loopback'", ["'loopback'"]),
    ("False, timeout=1", ["False", "timeout"]),
]


def test_markers(run: Run) -> None:
    """Bad markers stop the session before its first test; one run names them all."""
    run.tests(GOOD, bad_tests([arguments for arguments, _ in MARKERS]))
    result = run()
    is_refused(run, result)
    lines = said(result)
    for number, (arguments, says) in enumerate(MARKERS):
        line = lines[f"test_it.py::test_bad_{number}"]
        for part in says:
            assert part in line, f"{part!r} is not said of {arguments}\n{line}"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nsisolate_timeout = soon", ["nsisolate_timeout", "soon"]),
        ("nsisolate_tmpfs = lots", ["nsisolate_tmpfs", "lots"]),
        ("nsisolate_user = bob", ["nsisolate_user", "bob"]),
        ("nsisolate_jobs = 0", ["nsisolate_jobs", "0"]),
        ("nsisolate_missing = perhaps", ["nsisolate_missing", "perhaps", "error"]),
        ("nsisolate_isolate = perhaps", ["nsisolate_isolate", "perhaps"]),
        ("nsisolate_properties = 2", ["nsisolate_properties", "'2'", "true or false"]),
    ],
)
def test_ini(run: Run, line: str, says: list[str]) -> None:
    """A bad value in the ini file names the option."""
    run.write("pytest.ini", f"[pytest]\n{line}\n")
    run.tests(GOOD)
    is_refused(run, run.isolated(), *says)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--ns-jobs=0", ["--ns-jobs", "0"]),
        ("--ns-jobs=-3", ["--ns-jobs", "-3"]),
        ("--ns-jobs=many", ["--ns-jobs", "many", "auto"]),
        ("--ns-missing=perhaps", ["--ns-missing", "perhaps", "error"]),
        ("--ns-usage=0", ["--ns-usage", "'0'", "from 1 up"]),
        ("--ns-usage=-1", ["--ns-usage", "'-1'", "from 1 up"]),
        ("--ns-usage=some", ["--ns-usage", "'some'", "from 1 up"]),
        ("--ns-report=report.xml", ["--ns-report", "report.xml", ".json", ".html"]),
        ("--ns-report=json", ["--ns-report", "'json'", ".json", ".html"]),
        ("--ns-report=test_it.py/r.json", ["--ns-report", "test_it.py/r.json", "directory"]),
        ("--ns-report=/proc/r.html", ["--ns-report", "/proc/r.html", "directory"]),
        ("--ns-trace=/proc/nowhere/t.json", ["--ns-trace", "/proc/nowhere/t.json"]),
        ("--ns-trace=trace.txt", ["--ns-trace", "trace.txt", ".json"]),
    ],
)
def test_command_line(run: Run, option: str, says: list[str]) -> None:
    """A bad option names itself."""
    run.tests(GOOD)
    is_refused(run, run.isolated(option), *says)


def test_one_file_for_two(run: Run) -> None:
    """Two options can't write the same file, however it is spelled."""
    run.tests(GOOD)
    result = run.isolated("--ns-report=./x.json", "--ns-trace=x.json")
    is_refused(run, result, "--ns-trace", "--ns-report")


def test_report_onto_a_directory(run: Run) -> None:
    """A directory of that name is in the way."""
    run.tests(GOOD)
    (run.path / "taken.json").mkdir()
    is_refused(run, run.isolated("--ns-report=taken.json"), "--ns-report", "taken.json")


def test_report_into_a_closed_directory(run_as_nobody: Run) -> None:
    """A directory that the user may not write to is named at once."""
    run_as_nobody.tests(GOOD)
    result = run_as_nobody.isolated("--ns-report=/usr/report.json")
    is_refused(run_as_nobody, result, "--ns-report", "/usr/report.json", "Permission denied")


def test_under_xdist(run: Run) -> None:
    """What a worker finds wrong ends the session as it would without workers."""
    pytest.importorskip("xdist")
    run.plugins += ("xdist",)
    run.tests(f"""{GOOD}
    @pytest.mark.isolated(timeout=-1)
    def test_bad():
        pass
    """)
    is_refused(run, run("-n2"), "test_it.py::test_bad", "timeout=-1")


@pytest.mark.needs("sandbox")
def test_deselected_bad_test_does_not_matter(run: Run) -> None:
    """Only tests that are to run are checked."""
    run.tests("""
    @pytest.mark.isolated
    def test_good():
        pass

    @pytest.mark.isolated(timeout=-1)
    def test_bad():
        pass
    """)
    run("-k", "good").expect(passed=1)


def test_packets_without_a_directory_to_keep_them_in(run: Run) -> None:
    """Without pytest's plugin for tmp_path pcap has no place: said, not ignored."""
    run.tests("""
    @pytest.mark.isolated(pcap="failed")
    def test_it():
        open("ran", "w").close()
    """)
    # Not by `run`, which has an option of that plugin.
    command = [sys.executable, "-m", "pytest", "-p", "nsisolate", "-p", "no:tmpdir"]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=run.path, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    assert "test_it.py::test_it: pcap='failed' needs a directory for tmp_path" in done.stderr
    assert not (run.path / "ran").exists()
