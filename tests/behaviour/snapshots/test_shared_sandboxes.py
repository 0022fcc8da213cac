"""Tests that share a sandbox, or fork from a snapshot, and the keys of the sandbox itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.core.outcome import TRIED_TITLE

if TYPE_CHECKING:
    from helpers.networks import Host
    from helpers.run import Run

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox")]

FOLDER = "nsisolate-artifacts"


def base(run: Run) -> Path:
    return run.path / f"basetemp-{run.count}"


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("key", ["scope", "snapshot"])
def test_tmp_path(run_as_each: Run, key: str) -> None:
    """It is brought out, under the path that the test saw, names that are cut included."""
    run = run_as_each
    run.tests(
        f"""
    pytestmark = pytest.mark.isolated({key}="module")

    @pytest.mark.parametrize("n", range(3))
    def test_a_name_of_more_than_thirty_characters(tmp_path, record_property, n):
        (tmp_path / f"note{{n}}").write_text("x")
        record_property("path", str(tmp_path))
        assert n != 1

    def test_last(tmp_path):
        (tmp_path / "note").write_text("x")
    """
    )
    result = run().expect(passed=3, failed=1)
    stem = "test_a_name_of_more_than_thirt"
    seen = [
        Path(result.value(f"test_a_name_of_more_than_thirty_characters[{n}]", "path")).name
        for n in range(3)
    ]
    assert seen == [f"{stem}0", f"{stem}1", f"{stem}2"]
    failed = [f"{stem}1/note1"]
    group = [f"{stem}0/note0", *failed, f"{stem}2/note2", "test_last0/note"]
    assert files(base(run)) == (group if key == "scope" else failed)


@pytest.mark.parametrize("key", ["scope", "snapshot"])
def test_export(run_as_each: Run, key: str) -> None:
    """Each test's files are in a directory of its own, and no test gets another's."""
    run = run_as_each
    run.tests(
        f"""
    pytestmark = pytest.mark.isolated({key}="module")

    def test_one(sandbox):
        open("/tmp/one", "w").write("1")
        sandbox.export("/tmp/one")

    def test_none():
        pass

    def test_two(sandbox):
        open("/tmp/two", "w").write("2")
        sandbox.export("/tmp/two")

    def test_crashes(sandbox):
        open("/tmp/three", "w").write("3")
        sandbox.export("/tmp/three")
        ctypes.string_at(0)

    def test_last():
        pass
    """
    )
    result = run("--ns-properties").expect(passed=4, failed=1)
    folder = base(run) / FOLDER
    assert files(folder) == [
        "test_it.py.test_crashes/three",
        "test_it.py.test_one/one",
        "test_it.py.test_two/two",
    ]
    assert result.value("test_one", "ns_artifacts") == str(folder / "test_it.py.test_one")
    for name in ("test_none", "test_last"):
        assert "ns_artifacts" not in dict(result.of(name, "teardown").properties)


def test_hermetic_group(run_as_each: Run) -> None:
    """What a test tries is told of it alone; the sandbox is one, environment and files too."""
    run_as_each.tests(
        """
    import contextlib

    pytestmark = pytest.mark.isolated(scope="module", profile="hermetic")

    def tries(path):
        with contextlib.suppress(OSError):
            open(path, "w")

    def test_passes():
        tries("/etc/passed")
        assert os.environ["TZ"] == "UTC"

    def test_fails():
        tries("/etc/failed")
        assert not os.environ.get("HOME", "").startswith("/root")
        assert os.path.exists("/etc/passed") or os.getuid()
        assert False

    def test_after():
        pass
    """
    )
    result = run_as_each().expect(passed=2, failed=1)
    told = result.of("test_fails").section(TRIED_TITLE)
    assert "/etc/failed" in told
    assert "/etc/passed" not in told


def test_topology_of_a_group(run_as_each: Run) -> None:
    """The network is built once; packets of a group in which a test fails are kept."""
    run = run_as_each
    run.tests(
        """
    pytestmark = pytest.mark.isolated(scope="module", net="a b", pcap="failed", timeout=50)

    def test_one(sandbox):
        with sandbox.net["a"]:
            assert b"eth0" in open("/proc/net/dev", "rb").read()
            open("/tmp/mark", "w").close()

    def test_fails(sandbox):
        assert os.path.exists("/tmp/mark")
        with sandbox.net["b"]:
            assert b"eth0" in open("/proc/net/dev", "rb").read()
        assert False

    def test_fails_too():
        assert False

    def test_crashes(sandbox):
        ctypes.string_at(0)

    def test_in_a_new_network(sandbox):
        assert not os.path.exists("/tmp/mark")
        with sandbox.net["b"]:
            assert b"eth0" in open("/proc/net/dev", "rb").read()
    """
    )
    result = run().expect(passed=2, failed=3)
    for name in ("test_fails", "test_fails_too"):
        assert "a.pcap, b.pcap" in result.of(name).section("packets")
    (directory,) = base(run).glob("packets-*test_one")
    assert sorted(path.name for path in directory.iterdir()) == ["a.pcap", "b.pcap"]


@pytest.mark.parametrize("fs", ["readonly", "overlay"])
def test_files_of_a_group(run_as_each: Run, fs: str) -> None:
    """A sandbox with another view of the files is as much one as any."""
    run_as_each.tests(
        f"""
    pytestmark = pytest.mark.isolated(scope="module", fs={fs!r}, forward=[5432], clock=1000)

    @pytest.mark.parametrize("n", range(3))
    def test_it(n):
        assert os.path.exists(f"/tmp/{{n - 1}}") == (n > 0)
        open(f"/tmp/{{n}}", "w").close()
        try:
            open("here", "w").close()
        except OSError as error:
            assert {fs!r} == "readonly" and error.errno == errno.EROFS
        else:
            assert {fs!r} == "overlay"
    """
    )
    run_as_each("-p", "no:cacheprovider").expect(passed=3)
    assert not (run_as_each.path / "here").exists()


@pytest.mark.needs("veth")
def test_link_of_a_group(run: Run, place: Host) -> None:
    """One link for the group; another one after a crash; none is left."""
    before = place.state()
    run.tests(
        """
    pytestmark = pytest.mark.isolated(scope="module", net="veth")

    def test_one(sandbox):
        open("/tmp/address", "w").write(sandbox.address)

    def test_two(sandbox):
        assert open("/tmp/address").read() == sandbox.address
        assert socket.gethostbyname("gateway") == sandbox.gateway

    def test_crashes(sandbox):
        ctypes.string_at(0)

    def test_new(sandbox):
        assert not os.path.exists("/tmp/address")
        assert socket.gethostbyname("gateway") == sandbox.gateway
    """
    )
    run(prefix=place.prefix).expect(passed=3, failed=1)
    assert place.state() == before


def test_host_network_of_a_snapshot(run_as_each: Run) -> None:
    """The host's network, for the snapshot and its tests."""
    run_as_each.tests(
        f"""
    HOST = {Path("/proc/self/ns/net").readlink().name!r}

    @pytest.fixture(scope="module")
    def made():
        return os.readlink("/proc/self/ns/net")

    @pytest.mark.isolated(snapshot="module", net="host", fs="host")
    def test_host(made):
        assert made == HOST == os.readlink("/proc/self/ns/net")

    @pytest.mark.isolated(snapshot="module", net="loopback")
    def test_own(made):
        assert len({{made, HOST, os.readlink("/proc/self/ns/net")}}) == 3
    """
    )
    run_as_each().expect(passed=2)


def test_hook_and_snapshot(run: Run) -> None:
    """What a hook puts together is looked at, too."""
    run.write(
        "conftest.py",
        """
    import dataclasses

    def pytest_nsisolate_spec(item, spec):
        return dataclasses.replace(spec, fs="readonly")
    """,
    )
    run.tests("@pytest.mark.isolated(snapshot='module')\ndef test_it(): pass\n")
    result = run()
    assert result.ret == 4
    assert "snapshot='module' contradicts fs='readonly'" in result.err
