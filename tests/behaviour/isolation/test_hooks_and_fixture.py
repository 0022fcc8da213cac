"""What the plugin offers to tests and to other plugins: fixture, hooks, the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers.hosts import NAMESPACES, namespaces

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")


def test_sandbox_fixture(run_as_each: Run) -> None:
    """It names the sandbox, its namespaces and what the test asked for."""
    run_as_each.tests("""
    @pytest.mark.isolated(hostname="db1", timeout=40)
    @pytest.mark.parametrize("n", range(2))
    def test_it(sandbox, n, record_property):
        assert sandbox.hostname == "db1" == sandbox.spec.hostname
        assert sandbox.spec.timeout == 40
        for name, inode in sandbox.namespaces.items():
            assert os.stat(f"/proc/self/ns/{name}").st_ino == inode
        record_property("id", sandbox.id)
        record_property("namespaces", dict(sandbox.namespaces))
        with pytest.raises(AttributeError):
            sandbox.spec.timeout = 1
    """)
    result = run_as_each()
    result.expect(passed=2)
    assert result.value("test_it[0]", "id") != result.value("test_it[1]", "id")
    inside, host = result.value("test_it[0]", "namespaces"), namespaces()
    assert set(inside) >= set(NAMESPACES)
    assert all(inside[name] != host[name] for name in NAMESPACES)


def test_fixture_outside(run: Run) -> None:
    """In a test that is not isolated the fixture skips, and says what to do."""
    run.tests("""
    def test_it(sandbox):
        assert 0
    """)
    result = run()
    result.expect(skipped=1)
    assert "@pytest.mark.isolated" in result.of("test_it", "setup").text


def test_spec_hook(run: Run) -> None:
    """pytest_nsisolate_spec may change what a test gets; it is asked for isolated tests only."""
    run.write(
        "conftest.py",
        """
        import dataclasses

        asked = []

        def pytest_nsisolate_spec(item, spec):
            asked.append(item.name)
            if "changed" in item.name:
                return dataclasses.replace(spec, hostname="changed")
        """,
    )
    run.tests("""
    @pytest.mark.isolated(hostname="mine")
    def test_changed():
        assert socket.gethostname() == "changed"

    @pytest.mark.isolated(hostname="mine")
    def test_left():
        assert socket.gethostname() == "mine"

    def test_plain():
        from conftest import asked
        assert asked == ["test_changed", "test_left"]
    """)
    run().expect(passed=3)


def test_enter_hook(run: Run) -> None:
    """pytest_nsisolate_enter runs inside, before the first fixture."""
    run.write(
        "conftest.py",
        """
        import os

        entered = []

        def pytest_nsisolate_enter(item, sandbox):
            entered.append((item.name, sandbox.hostname, os.getppid()))
        """,
    )
    run.tests("""
    from conftest import entered

    @pytest.fixture(scope="session", autouse=True)
    def of_session(request):
        return list(entered)

    @pytest.mark.isolated
    @pytest.mark.parametrize("n", range(2))
    def test_it(of_session, n):
        assert of_session == entered == [(f"test_it[{n}]", "isolated", 0)]

    def test_plain():
        assert entered == []
    """)
    run().expect(passed=3)


def test_error_in_the_enter_hook(run: Run) -> None:
    """An exception there is an error of that test and of no other."""
    run.write(
        "conftest.py",
        """
        def pytest_nsisolate_enter(item, sandbox):
            if "bad" in item.name:
                raise LookupError("in the hook")
        """,
    )
    run.tests("""
    def test_bad():
        pass

    def test_good():
        pass
    """)
    result = run.isolated()
    assert result.verdicts == {"test_bad": "error", "test_good": "passed"}, str(result)
    assert "in the hook" in result.of("test_bad", "setup").everything


def test_error_in_the_spec_hook(run: Run) -> None:
    """A hook that returns nonsense is named; nothing runs half isolated."""
    run.write("conftest.py", "def pytest_nsisolate_spec(item, spec): return 'nonsense'\n")
    run.tests("def test_it(): open('ran', 'w').close()")
    result = run.isolated()
    assert result.ret != 0
    assert "pytest_nsisolate_spec" in result.out + result.err
    assert "nonsense" in result.out + result.err
    assert not (run.path / "ran").exists()


def test_outcome_hook(run: Run) -> None:
    """pytest_nsisolate_outcome tells the runner how each test process ended, in order."""
    run.write(
        "conftest.py",
        """
        import os

        runner = os.getpid()

        def pytest_nsisolate_outcome(item, outcome):
            assert os.getpid() == runner
            with open("outcomes.txt", "a") as stream:
                stream.write(f"{item.name}: {outcome.kind.value}\\n")
        """,
    )
    run.tests("""
    def test_good():
        pass

    def test_fails():
        assert 0

    def test_crash():
        os.abort()

    def test_exit():
        os._exit(3)

    @pytest.mark.isolated(timeout=1)
    def test_slow():
        time.sleep(1000)

    @pytest.mark.isolated(False)
    def test_plain():
        pass
    """)
    run.isolated("--ns-jobs=3")
    assert (run.path / "outcomes.txt").read_text().splitlines() == [
        "test_good: completed",
        "test_fails: completed",
        "test_crash: crashed",
        "test_exit: exited",
        "test_slow: timed out",
    ]


def test_plan_is_printed(run: Run) -> None:
    """--ns-debug prints each step of a sandbox, mounts and network, and nothing without it."""
    run.tests("""
    @pytest.mark.isolated(tmpfs="5M", hostname="db1")
    def test_it():
        pass
    """)
    shown = run("--ns-debug", "-s")
    shown.expect(passed=1)
    for part in ("/tmp", "/var/tmp", "/dev/shm", "/proc", "/sys", "tmpfs"):
        assert part in shown.out, part
    assert "db1" in shown.out
    assert "lo" in shown.out.split()
    quiet = run()
    assert "/dev/shm" not in quiet.out


def test_spec_hook_can_contradict(run: Run) -> None:
    """What the hook asks for goes over what the test has; what can't be is a usage error."""
    run.write(
        "conftest.py",
        """
        import dataclasses

        def pytest_nsisolate_spec(item, spec):
            changes = {
                "test_pcap": {"pcap": "failed"},
                "test_host": {"net": "host"},
                "test_profile": {"timeout": 60.0},
                "test_name": {"hostname": "db"},
            }
            return dataclasses.replace(spec, **changes[item.name])
        """,
    )
    run.tests("""
    @pytest.mark.isolated(net="host")
    def test_pcap():
        pass

    @pytest.mark.isolated(pcap="failed")
    def test_host(sandbox):
        assert (sandbox.spec.net, sandbox.spec.pcap) == ("host", None)

    @pytest.mark.isolated(profile="hermetic", fs="host")
    def test_profile(sandbox):
        assert (sandbox.spec.fs, sandbox.spec.env) == ("host", "clean")

    @pytest.mark.isolated(share=("uts", "ipc"))
    def test_name(sandbox):
        assert (sandbox.spec.share, sandbox.hostname) == (("ipc",), "db")
    """)
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.out + result.err
    assert "test_it.py::test_pcap: hook pytest_nsisolate_spec: pcap='failed' needs" in text, text
    run("--deselect=test_it.py::test_pcap").expect(passed=3)
