"""How keys of markers, ini file and command line merge, and how a test opts in or out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")


def test_nearest_key_wins(run: Run) -> None:
    """Key by key: function over class over module over ini over default."""
    run.write("pytest.ini", "[pytest]\nnsisolate_tmpfs = 7M\nnsisolate_hostname = ini\n")
    run.tests("""
    pytestmark = pytest.mark.isolated(hostname="module", timeout=40)

    def keys(sandbox):
        return sandbox.spec.hostname, sandbox.spec.timeout, sandbox.spec.tmpfs >> 20

    @pytest.mark.isolated(hostname="class", env={"A": "1"})
    class TestIt:
        @pytest.mark.isolated(hostname="function")
        def test_function(self, sandbox):
            assert keys(sandbox) == ("function", 40, 7)
            assert os.environ["A"] == "1"

        @pytest.mark.isolated(timeout=50)
        def test_class(self, sandbox):
            assert keys(sandbox) == ("class", 50, 7)

    def test_module(sandbox):
        assert keys(sandbox) == ("module", 40, 7)
        assert "A" not in os.environ
        assert sandbox.spec.net == "loopback"
    """)
    run.write(
        "test_other.py",
        """
        import pytest

        @pytest.mark.isolated
        def test_ini(sandbox):
            assert sandbox.spec.hostname == "ini"
            assert sandbox.spec.timeout is None
        """,
    )
    run().expect(passed=4)


def test_command_line_wins_over_all(run: Run) -> None:
    """An option for a key holds for every isolated test, but isolates none by itself."""
    run.tests("""
    @pytest.mark.isolated(hostname="function", tmpfs="9M")
    def test_isolated(sandbox):
        assert (sandbox.spec.hostname, sandbox.spec.tmpfs) == ("cli", 9 << 20)

    def test_plain():
        assert os.getppid() != 0
    """)
    run("--ns-hostname=cli").expect(passed=2)


WHO = """
    def isolated():
        return os.getppid() == 0
"""


@pytest.mark.parametrize("how", ["option", "ini"])
def test_opting_out(run: Run, how: str) -> None:
    """isolated(False) keeps a test, class or module in the runner."""
    run.tests(
        WHO,
        """
    @pytest.mark.isolated(False)
    def test_out():
        assert not isolated()

    def test_in():
        assert isolated()

    @pytest.mark.isolated(False)
    class TestOut:
        def test_out(self):
            assert not isolated()

        @pytest.mark.isolated
        def test_in_again(self):
            assert isolated()
    """,
    )
    if how == "ini":
        run.write("pytest.ini", "[pytest]\nnsisolate_isolate = true\n")
        run().expect(passed=4)
    else:
        run.isolated().expect(passed=4)


def test_marking_on_the_fly(run: Run) -> None:
    """A marker that a hook adds at collection, or one on a parameter, counts."""
    run.write(
        "conftest.py",
        """
        import pytest

        def pytest_collection_modifyitems(items):
            for item in items:
                if "hooked" in item.name:
                    item.add_marker(pytest.mark.isolated(hostname="hooked"))
        """,
    )
    run.tests(
        WHO,
        """
    @pytest.mark.parametrize(
        "inside", [False, pytest.param(True, marks=pytest.mark.isolated)]
    )
    def test_parameter(inside):
        assert isolated() == inside

    def test_hooked():
        assert socket.gethostname() == "hooked"
    """,
    )
    run().expect(passed=3)


def test_marker_is_registered(run: Run) -> None:
    """--strict-markers knows it, and --markers explains it."""
    run.tests("@pytest.mark.isolated\ndef test_it(): pass")
    run("--strict-markers").expect(passed=1)
    assert "@pytest.mark.isolated" in run("--markers").out


def test_switched_off(run: Run) -> None:
    """-p no:nsisolate leaves the marker without effect."""
    run.tests(
        WHO,
        """
    @pytest.mark.isolated
    def test_it():
        assert not isolated()
    """,
    )
    run("-p", "no:nsisolate").expect(passed=1)


def test_collecting_alone(pytester: pytest.Pytester) -> None:
    """Whoever collects with a config that was parsed and no more gets what there is."""
    path = pytester.makepyfile("def test_it(): pass")
    config = pytester.parseconfig("--ns-isolate", path)
    session = pytest.Session.from_config(config)
    assert [node.name for node in session.perform_collect(genitems=False)] == [path.name]


def test_values_of_keys_are_read_where_one_is_given(run: Run) -> None:
    """A session without isolated tests loads the names of keys alone."""
    run.tests("""
    LOADED = {name for name in sys.modules if name.startswith("pytest_nsisolate.")}

    def test_it():
        assert "pytest_nsisolate.spec.keys" in LOADED
        assert not LOADED & {"pytest_nsisolate.spec.parsing", "pytest_nsisolate.spec.spec"}
    """)
    run().expect(passed=1)
    run("--ns-timeout=5").expect(failed=1)
