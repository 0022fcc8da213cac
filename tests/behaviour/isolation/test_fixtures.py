"""Fixtures of every scope live inside the isolated test, and the runner's own stay sound."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

SCOPES = """
    SCOPES = ("session", "package", "module", "class", "function")

    def log(text):
        with open("log.txt", "a") as stream:
            stream.write(f"{os.getpid() == 2} {text}\\n")

    def make(scope):
        @pytest.fixture(scope=scope, name=f"of_{scope}")
        def fixture():
            log(f"up {scope}")
            yield
            log(f"down {scope}")
        return fixture

    for scope in SCOPES:
        globals()[f"of_{scope}"] = make(scope)

    every_scope = pytest.mark.usefixtures(*[f"of_{scope}" for scope in SCOPES])
"""
UP = [f"up {scope}" for scope in ("session", "package", "module", "class", "function")]
DOWN = [line.replace("up", "down") for line in reversed(UP)]


def log_of(run: Run) -> list[str]:
    """What the fixtures wrote, each line led by whether it was inside a sandbox."""
    return (run.path / "log.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("pass", "passed"),
        ("assert 0", "failed"),
        ("pytest.skip('no')", "skipped"),
        ("raise SystemExit(3)", "failed"),
    ],
)
def test_all_scopes_are_inside(run: Run, body: str, verdict: str) -> None:
    """Each test sets all of them up and finalises all of them, however it ended."""
    run.tests(f"""{SCOPES}
    @every_scope
    class TestIt:
        @pytest.mark.parametrize("n", range(2))
        def test_it(self, n):
            log("call")
            {body}
    """)
    result = run.isolated()
    assert set(result.verdicts.values()) == {verdict}, str(result)
    assert len(result.verdicts) == 2
    assert log_of(run) == [f"True {line}" for line in [*UP, "call", *DOWN] * 2]


def test_finalised_after_a_failed_set_up(run: Run) -> None:
    """A fixture that raises leaves none of the others without its finaliser."""
    run.tests(f"""{SCOPES}
    @pytest.fixture
    def broken(of_function):
        raise LookupError("broken")

    @every_scope
    def test_it(broken):
        pass
    """)
    result = run.isolated()
    result.expect(error=1)
    assert log_of(run) == [f"True {line}" for line in [*UP, *DOWN]]


def test_error_in_a_shared_teardown(run: Run) -> None:
    """A module fixture that breaks in its teardown is an error of each isolated test."""
    run.tests("""
    @pytest.fixture(scope="module")
    def broken():
        yield
        raise LookupError("in module teardown")

    @pytest.mark.parametrize("n", range(2))
    def test_it(broken, n):
        pass
    """)
    result = run.isolated()
    assert set(result.verdicts.values()) == {"passed+error"}, str(result)
    assert "in module teardown" in result.of("test_it[0]", "teardown").text


NEIGHBOURS = """
    import pytest

    @pytest.fixture(scope="module", autouse=True)
    def of_module(request):
        log(f"up {request.module.__name__}")
        yield
        log(f"down {request.module.__name__}")
        if request.config.getoption("ns_break"):
            raise LookupError("in module teardown")

    def log(text):
        import os
        with open("log.txt", "a") as stream:
            stream.write(f"{os.getpid() == 2} {text}\\n")
"""
CONFTEST = """
    def pytest_addoption(parser):
        parser.addoption("--ns-break", action="store_true", dest="ns_break")
"""
MODULES = {
    "test_m1.py": "def test_a(): log('a')\n@pytest.mark.isolated\ndef test_b(): log('b')\n",
    "test_m2.py": "def test_c(): log('c')\n",
}


def write_modules(run: Run) -> None:
    """Tests that run in the runner around one that is isolated."""
    run.write("conftest.py", CONFTEST)
    for name, source in MODULES.items():
        run.write(name, NEIGHBOURS)
        with (run.path / name).open("a") as stream:
            stream.write(source)


@pytest.mark.parametrize("jobs", [1, 2])
def test_neighbours_of_an_isolated_test(run: Run, jobs: int) -> None:
    """The runner tears its own module down before it enters the next one."""
    write_modules(run)
    result = run(f"--ns-jobs={jobs}")
    result.expect(passed=3)
    log = log_of(run)
    outside = [line for line in log if line.startswith("False")]
    inside = [line for line in log if line.startswith("True")]
    assert inside == ["True up test_m1", "True b", "True down test_m1"]
    assert outside == [
        "False up test_m1",
        "False a",
        "False down test_m1",
        "False up test_m2",
        "False c",
        "False down test_m2",
    ]


@pytest.mark.parametrize("jobs", [1, 2])
def test_broken_teardown_of_a_neighbour(run: Run, jobs: int) -> None:
    """An error in the teardown of the runner's module is a reported teardown error."""
    write_modules(run)
    result = run("--ns-break", f"--ns-jobs={jobs}")
    assert "INTERNALERROR" not in result.out + result.err
    assert "previous item was not torn down properly" not in result.out
    assert result.ret == 1
    verdicts = {name.partition("::")[2]: found for name, found in result.verdicts.items()}
    assert verdicts == dict.fromkeys(("test_a", "test_b", "test_c"), "passed+error")


def test_isolated_last_and_first(run: Run) -> None:
    """Isolated tests at either end of a module leave the runner's fixtures balanced."""
    write_modules(run)
    source = (run.path / "test_m1.py").read_text().replace("def test_a", "def test_z")
    marked = "@pytest.mark.isolated\ndef test_first(): log('first')\n"
    run.write("test_m3.py", source)
    with (run.path / "test_m3.py").open("a") as stream:
        stream.write(marked)
    run().expect(passed=6)
    outside = [line.split()[1] for line in log_of(run) if line.startswith("False")]
    assert outside == ["up", "a", "down", "up", "c", "down", "up", "a", "down"]


FROZEN = """
    state = ["collected"]

    @pytest.fixture(scope="session", autouse=True)
    def of_session():
        state.append("session")

    {first}
    def test_changes():
        state.append("changed")
        os.environ["CHANGED"] = "1"
        os.chdir("/")
        sys.path.append("/changed")

    @pytest.mark.isolated
    def test_sees(record_property):
        record_property("state", state)
        record_property("environ", os.environ.get("CHANGED"))
        record_property("cwd", os.getcwd())
        record_property("path", "/changed" in sys.path)
"""


@pytest.mark.parametrize("first", ["", "@pytest.mark.isolated"], ids=["in runner", "isolated"])
def test_frozen_start(run: Run, first: str) -> None:
    """An isolated test starts from the state after collection, whatever ran before it."""
    run.tests(FROZEN.format(first=first))
    result = run()
    result.expect(passed=2)
    values = {key: result.value("test_sees", key) for key in ("state", "environ", "cwd", "path")}
    assert values == {
        "state": ["collected", "session"],
        "environ": None,
        "cwd": str(run.path),
        "path": False,
    }


def test_start_holds_what_collection_did(run: Run) -> None:
    """Hooks that run up to the end of collection are seen by every isolated test."""
    run.write(
        "conftest.py",
        """
        import random
        seen = []

        def pytest_sessionstart(session):
            seen.append("sessionstart")

        def pytest_collection_modifyitems(items):
            seen.append(f"collected {len(items)}")

        def pytest_collection_finish(session):
            random.seed(7)
        """,
    )
    run.tests("""
    import random

    @pytest.mark.parametrize("n", range(2))
    def test_sees(record_property, n):
        from conftest import seen
        record_property("seen", seen)
        record_property("random", random.random())
    """)
    result = run.isolated()
    result.expect(passed=2)
    values = [result.value(f"test_sees[{n}]", "seen") for n in range(2)]
    assert values == [["sessionstart", "collected 2"]] * 2, json.dumps(values)
    first, second = (result.value(f"test_sees[{n}]", "random") for n in range(2))
    assert first == second


@pytest.mark.parametrize("mark", ["", "@pytest.mark.isolated"], ids=["in runner", "isolated"])
def test_old_style_set_up(run: Run, mark: str) -> None:
    """setup_module, setup_class and setup_method are fixtures like the others."""
    run.tests(f"""
    calls = []

    def setup_module():
        calls.append("module")

    {mark}
    class TestIt:
        def setup_class(cls):
            calls.append("class")

        def setup_method(self):
            calls.append("method")

        def test_it(self):
            assert calls == ["module", "class", "method"]
    """)
    run().expect(passed=1)
