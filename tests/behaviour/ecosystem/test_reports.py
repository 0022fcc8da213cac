"""Plugins that show how the tests went: html, json-report, sugar, rich; and those around mocks."""

from __future__ import annotations

import html
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from helpers.plugins import load
from helpers.run import normalised, same
from helpers.samples import MIXED

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

JOBS = (1, 2)
BOTH = pytest.mark.parametrize("jobs", JOBS)


VARYING = {
    *("address", "created", "duration", "environment", "msecs", "process", "relativeCreated"),
    *("resultsTableRow", "thread"),
}


def comparable(value: Any) -> Any:
    """JSON data without what differs from run to run."""
    if isinstance(value, dict):
        kept = {name: part for name, part in value.items() if name not in VARYING}
        return {name: comparable(part) for name, part in kept.items()}
    if isinstance(value, list):
        return [comparable(part) for part in value]
    if isinstance(value, str):
        return re.sub(r"0x[0-9a-f]+|\d\d:\d\d:\d\d|basetemp-\d+", "N", value)
    return value


@BOTH
def test_json_report(run: Run, jobs: int) -> None:
    """The report has the same tests, phases, logs, warnings and metadata."""
    load(run, "metadata", "pytest_jsonreport")
    run.tests(
        MIXED,
        """
    def test_metadata(json_metadata):
        json_metadata["seen"] = [1, 2]
    """,
    )
    reports = []
    for options in ((), ("--ns-isolate", f"--ns-jobs={jobs}")):
        run("--json-report", "--json-report-file=report.json", *options)
        report = json.loads((run.path / "report.json").read_text("utf-8"))
        reports.append(report)
    plain, isolated = [
        comparable({name: report[name] for name in ("summary", "tests", "warnings", "exitcode")})
        for report in reports
    ]
    assert isolated == plain


def html_data(path: Path) -> Any:
    """What a page of pytest-html shows."""
    found = re.search(r'data-jsonblob="([^"]*)"', path.read_text("utf-8"))
    assert found
    return comparable(json.loads(html.unescape(found[1]))["tests"])


@BOTH
def test_html(run: Run, jobs: int) -> None:
    """The page has the same tests, logs and extras."""
    load(run, "metadata", "html", "html_fixtures")
    run.write(
        "conftest.py",
        """
        import pytest
        import pytest_html

        @pytest.hookimpl(hookwrapper=True)
        def pytest_runtest_makereport(item, call):
            outcome = yield
            report = outcome.get_result()
            if report.when == "call":
                report.extras = [*getattr(report, "extras", []), pytest_html.extras.text("hooked")]
        """,
    )
    run.tests(
        MIXED,
        """
    import pytest_html

    def test_extra(extras):
        extras.append(pytest_html.extras.html("<p>extra</p>"))
        extras.append(pytest_html.extras.url("https://example.org"))
    """,
    )
    run("--html=plain.html", "--self-contained-html")
    run.isolated("--html=isolated.html", "--self-contained-html", f"--ns-jobs={jobs}")
    assert html_data(run.path / "isolated.html") == html_data(run.path / "plain.html")


@BOTH
def test_sugar(run: Run, jobs: int) -> None:
    """The bar counts each test, and failures are shown at once."""
    load(run, "sugar")
    run.tests(MIXED)
    options = ("--force-sugar", "--color=no")
    plain, isolated = run(*options), run.isolated(*options, f"--ns-jobs={jobs}")
    assert isolated.verdicts == plain.verdicts, str(isolated)
    assert sugared(isolated.out) == sugared(plain.out)


def sugared(out: str) -> list[str]:
    """What pytest-sugar printed, without times."""
    return [re.sub(r"\d+\.\d+s", "TIME", line) for line in normalised(out)]


@BOTH
def test_rich(run: Run, jobs: int) -> None:
    """The reporter that replaces pytest's own shows the same outcomes."""
    load(run, "rich")
    run.tests(MIXED)
    plain, isolated = run("--rich"), run.isolated("--rich", f"--ns-jobs={jobs}")
    assert isolated.verdicts == plain.verdicts, str(isolated)
    assert isolated.ret == plain.ret
    assert "INTERNALERROR" not in isolated.out
    counts = re.compile(r"(\d+) (passed|failed|skipped|error)")
    assert counts.findall(isolated.out) == counts.findall(plain.out)


@BOTH
def test_mock(run: Run, jobs: int) -> None:
    """Patches of every scope, spies, and what a failed assertion says of a mock's calls."""
    load(run, "pytest_mock")
    run.tests("""
    def where():
        return os.getcwd()

    def test_patches(mocker):
        mocker.patch("os.getcwd", return_value="patched")
        assert where() == "patched"

    def test_is_undone():
        assert where() != "patched"

    @pytest.fixture(scope="module")
    def patched(module_mocker):
        module_mocker.patch.dict(os.environ, {"OF_MODULE": "x"})

    def test_scope(patched):
        assert os.environ["OF_MODULE"] == "x"

    def test_spy(mocker):
        spy = mocker.spy(os.path, "join")
        os.path.join("a", "b")
        spy.assert_called_once_with("a", "b")

    def test_says_what_differs(mocker):
        stub = mocker.stub("stub")
        stub(1, key=2)
        stub.assert_called_once_with(1, key=3)

    def test_of_the_system(mocker):
        for name in ("os.read", "os.write", "os.getppid", "os.open", "time.time", "time.sleep"):
            mocker.patch(name)
        assert 0
    """)
    same(run, jobs=[jobs])
