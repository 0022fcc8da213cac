"""However much a test has to tell, its outcome arrives, in bounded memory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from helpers.hosts import DEADLINE
from helpers.run import normalised, some

if TYPE_CHECKING:
    from helpers.run import Result, Run

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox")]

MIB = 1 << 20

CONFTEST = """
    import hashlib, os, pathlib
    RUNNER = os.getpid()
    HERE = pathlib.Path(__file__).parent

    def pytest_runtest_logreport(report):
        text = repr([report.longreprtext, report.sections, report.user_properties[:5]])
        seen = [report.nodeid, report.when, report.outcome, len(text),
                hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()]
        with (HERE / "seen.txt").open("a") as file:
            print(*seen, file=file)

    def pytest_unconfigure():
        if os.getpid() == RUNNER:
            lines = pathlib.Path("/proc/self/status").read_text().splitlines()
            peak = [line.split()[1] for line in lines if line.startswith("VmHWM")]
            (HERE / "peak.txt").write_text(peak[0])
"""
"""Takes down what arrived of each report, and how large the runner became, in KiB."""


def finished(run: Run, *args: str) -> tuple[Result, list[str], int]:
    """Run it; give how it ended, what arrived, and the peak of the runner's memory in MiB."""
    seen, peak = run.path / "seen.txt", run.path / "peak.txt"
    seen.unlink(missing_ok=True)
    run.write("conftest.py", CONFTEST)
    # Its record would hold all of it once more.
    result = run(*args, "-p", "no:ns_recorder", timeout=3 * DEADLINE)
    return result, seen.read_text("utf-8").splitlines(), int(peak.read_text("utf-8")) >> 10


def ends_well(run: Run, *args: str, most: int = 600) -> tuple[Result, str]:
    """The next test is unharmed, and the runner small; how it ended, and its output."""
    result, seen, peak = finished(run, "--ns-isolate", *args)
    assert peak < most
    assert "INTERNALERROR" not in result.out + result.err
    assert [line.split()[:3] for line in seen[-3:]] == [
        ["test_it.py::test_next", when, "passed"] for when in ("setup", "call", "teardown")
    ]
    return result, result.out


NEXT = "def test_next():\n    pass\n"

LARGE = {
    "a message of one line": "raise AssertionError('difference: ' + 'x' * 30_000_000)",
    "a message of many lines": "raise AssertionError('it:\\n' + 300_000 * ('x, [' * 15 + '\\n'))",
    "a message of any letters": "raise ValueError('\\xe4\\u2713' * 4_000_000 + '\\U0001f600')",
    "output of 100 MB": "[print('x' * 999_999) for _ in range(100)]",
    "output of 100 MB on both, of a failure": "[(print('x' * 999_999), print('y' * 999_999,"
    " file=sys.stderr)) for _ in range(50)]; assert 0, 'it'",
    "properties": "record_property('a', 'x' * 30_000_000); record_property('b', ['y' * 9**7])",
    "numbers": "record_property('numbers', list(range(1_000_000)))",
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    some(LARGE, "a message of one line", "output of 100 MB on both, of a failure", "properties"),
)
def test_what_is_large_arrives_as_in_plain_pytest(run: Run, name: str) -> None:
    """The terminal's text, junit's file, and what plugins see, to the last byte."""
    run.tests(f"def test_it(record_property):\n    {LARGE[name]}\n", NEXT)
    found = []
    for more in ([], ["--ns-isolate"]):
        result, seen, _ = finished(run, "--junitxml=junit.xml", *more)
        xml = (run.path / "junit.xml").read_text("utf-8")
        xml = re.sub(r' (time|timestamp|hostname)="[^"]*"|0x[0-9a-f]{8,}', "", xml)
        if more:  # what this plugin adds to it
            xml = re.sub(r'<property name="ns_[^>]*>', "", xml)
            xml = xml.replace("<properties></properties>", "").replace('"></testcase>', '" />')
        seen = [line.rpartition(" ")[0] for line in seen if "properties" not in name]
        found.append((result.ret, normalised(result.out), xml, len(seen)))
    plain, isolated = found
    for what, one, other in zip(("exit", "terminal", "junit"), plain, isolated, strict=False):
        alike = one == other  # told apart from its assertion, whose message would be as large
        assert alike, f"{what} differs: {difference(str(one), str(other))}"


def difference(one: str, other: str) -> str:
    """Where two long texts begin to differ."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return f"{one[low - 40 : low + 90]!r}, {other[low - 40 : low + 90]!r}"


def test_reports_that_plugins_see_are_the_same(run: Run) -> None:
    """The sections of each phase, which come once over the wire and stand in several reports."""
    run.tests("""
    @pytest.fixture
    def fixture():
        print("a" * 30_000_000)
        yield
        print("z" * 30_000_000)

    def test_it(fixture):
        print("m" * 30_000_000)
    """)
    (_, plain, _), (_, isolated, _) = finished(run), finished(run, "--ns-isolate")
    # The last one has properties of this plugin.
    assert isolated[:2] == plain[:2]
    assert len(isolated) == len(plain) == 3


@pytest.mark.parametrize("scope", ["function", "module"])
def test_each_test_may_be_large(run: Run, scope: str) -> None:
    """It is for each to weigh what it may, also in a process that they share."""
    run.tests("""
    @pytest.mark.parametrize("n", range(4))
    def test_it(n, record_property):
        record_property("text", str(n) * 90_000_000)
    """)
    result, seen, _ = finished(run, "--ns-isolate", f"--ns-scope={scope}")
    assert result.ret == 0, str(result)
    assert len(seen) == 12


TOO_LARGE = {
    "message": "raise AssertionError('head ' + 'x' * 300_000_000 + ' tail')",
    "message in lines": "raise AssertionError('head ' + ('x' * 99 + '\\n') * 3_000_000 + ' tail')",
    "failure without a trace": "pytest.fail('head ' + 'x' * 300_000_000 + ' tail', pytrace=False)",
    "output": "print('head ' + 'x' * 1_000_000_000 + ' tail'); raise AssertionError('head tail')",
    "property": "record_property('a', 'x' * 1_000_000_000); raise AssertionError('head tail')",
    "bytes": "record_property('a', b'x' * 300_000_000); raise AssertionError('head tail')",
    "numbers": "record_property('a', list(range(40_000_000))); raise AssertionError('head tail')",
    "warning": "warnings.warn('x' * 300_000_000); raise AssertionError('head tail')",
}


@pytest.mark.parametrize("name", some(TOO_LARGE, "message in lines", "output", "property"))
def test_what_no_runner_could_hold_is_cut(run: Run, name: str) -> None:
    """Outcome, exception, place and both ends of the text stay; how much is missing is said."""
    run.tests(f"def test_it(record_property):\n    {TOO_LARGE[name]}\n", NEXT)
    result, out = ends_well(run, "-W", "default", most=1500)
    assert result.ret == 1
    assert "REPORT BROKEN" not in out
    assert "FAILED test_it.py::test_it - " in out
    assert "head" in out
    assert "tail" in out
    if "fail" not in name:
        assert re.search(r"^test_it.py:\d+: AssertionError$", out, re.MULTILINE)
    if "message" in name or name in ("output", "warning"):
        assert re.search(r"\.\.\. \d+ bytes left out \.\.\.", out)


STREAM = """
    import gc, json, struct

    def stream():
        from pytest_nsisolate.testprocess.frame_stream import Stream
        return next(one for one in gc.get_objects() if type(one) is Stream)

    def pour(data):
        fd = stream().fd
        while True:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view):]

    def frame(payload, kind="warning"):
        text = json.dumps([kind, payload], separators=(",", ":")).encode()
        return struct.pack(">I", len(text)) + text
"""

FLOODS = {
    "large frames": "pour(frame('x' * (8 << 20)))",
    "reports": "pour(frame({'nodeid': request.node.nodeid, 'x': 'x' * (8 << 20)}, 'report'))",
    "tiny frames": "pour(frame(1) * 10_000)",
    "brackets": "pour(frame([[]] * 1_000_000))",
    "braces": "pour(frame([{}] * 100))",
    "text that does not end": "pour(struct.pack('>I', 1 << 31 | 1 << 20) + b'x' * (1 << 20))",
    "tiny texts": "pour((struct.pack('>I', 3 << 30 | 1) + b'x') * 10_000)",
    "one frame of a gigabyte": "pour(struct.pack('>I', 1 << 29) + b'x' * (1 << 20))",
    "no frames": "pour(b'no frame at all' * 10_000)",
}


@pytest.mark.parametrize("name", FLOODS)
@pytest.mark.parametrize("options", some(["", "--ns-jobs=2", "--ns-scope=module"], ""))
def test_a_flood_of_frames_ends_its_test(run: Run, name: str, options: str) -> None:
    """With a clear text, in bounded memory, and nothing else is lost."""
    run.tests(STREAM, f"def test_it(request):\n    {FLOODS[name]}\n", NEXT)
    result, out = ends_well(run, *options.split())
    assert result.ret == 1
    assert "REPORT BROKEN: " in out
    if name != "no frames":
        assert "its reports are too large: at most 256 MiB are taken of one test" in out


def test_what_is_only_shown_is_not_held(run: Run) -> None:
    """A test may write to the terminal for as long as it likes."""
    run.tests("""
    def test_it(request):
        terminal = request.config.pluginmanager.getplugin("terminalreporter")
        for _ in range(300):
            terminal.write("x" * 999_999 + "\\n")
            terminal.flush()
    """, NEXT)  # fmt: skip
    result, out = ends_well(run, most=400)
    assert result.ret == 0
    assert out.count("x" * 999_999) == 300


OUTPUT = {
    "standard output": "while True: os.write(1, b'x' * 100_000)",
    "standard error": "while True: os.write(2, b'x' * 100_000)",
    "print": "while True: print('x' * 100_000)",
    "a program": "subprocess.run(['yes'])",
    "one that ignores errors": "while True:\n"
    "        try: os.write(1, b'x' * 100_000)\n        except OSError: pass",
    "a setup": "pass",
}


@pytest.mark.parametrize(
    "name", some(OUTPUT, "standard output", "one that ignores errors", "a setup")
)
def test_a_flood_of_output_ends_its_test(run: Run, name: str) -> None:
    """It is stopped at a limit, which the failure names; both ends of the output are shown."""
    fixture = """
    @pytest.fixture(autouse=True)
    def fixture(request):
        while request.node.name == "test_it":
            print("x" * 100_000)
    """
    test = f"def test_it():\n    print('the beginning', flush=True)\n    {OUTPUT[name]}\n"
    run.tests(fixture if name == "a setup" else "", test, NEXT)
    result, out = ends_well(run, most=400)
    assert result.ret == 1
    assert "TOO MUCH OUTPUT: limit 1024 MiB" in out
    (left_out,) = re.findall(r"\.\.\. (\d+) bytes left out \.\.\.", out)
    assert 1000 * MIB < int(left_out) < 2048 * MIB
    if name != "a setup":
        assert "the beginning" in out


def test_a_flood_of_output_in_a_group_ends_its_test_alone(run: Run) -> None:
    run.tests("def test_it():\n    while True: print('x' * 100_000)\n", NEXT)
    result, out = ends_well(run, "--ns-scope=module", most=400)
    assert result.ret == 1
    assert "TOO MUCH OUTPUT: limit 1024 MiB" in out


@pytest.mark.parametrize("capture", ["no", "tee-sys"])
def test_output_that_is_not_kept_goes_to_the_terminal(run: Run, capture: str) -> None:
    run.tests("def test_it():\n    for _ in range(100): print('x' * 999_999)\n", NEXT)
    result, out = ends_well(run, f"--capture={capture}")
    assert result.ret == 0
    assert out.count("x" * 999_999) == 100


def test_a_flood_is_ended_at_its_timeout(run: Run) -> None:
    """What comes slowly is no flood: time is what ends it."""
    run.tests(
        STREAM,
        """
    @pytest.mark.isolated(timeout=1)
    def test_it(request):
        while True:
            stream().send("write", "x")
            time.sleep(0.01)
    """,
        NEXT,
    )
    result, out = ends_well(run)
    assert result.ret == 1
    assert "TIMED OUT after 1 s" in out
