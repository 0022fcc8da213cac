"""The page of ``--ns-report FILE.html``, looked at in a real browser."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from helpers.browser import opened
from helpers.json_schema import problems

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers.browser import Page
    from helpers.run import Run

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox")]

TESTS = """
    import select

    @pytest.mark.parametrize("mib", [1, 40, 20])
    def test_memory(mib):
        assert bytearray(mib << 20)

    def test_slow():
        select.select([], [], [], 0.3)

    def test_fails():
        assert 0

    def test_crashes():
        ctypes.string_at(0)

    # Split, or this very text would end the script element of a page about it.
    @pytest.mark.parametrize(
        "markup", ["</scr" "ipt><img src=http://127.0.0.1:9/x onerror=alert(1)>", "<!-- <script>"]
    )
    def test_markup(markup):
        pass

    @pytest.mark.isolated(False)
    def test_plain():
        pass
"""
COUNT = 9


@pytest.fixture
def page(run: Run) -> Iterator[Page]:
    """The page of a session, in a browser."""
    run.tests(TESTS)
    result = run.isolated("--ns-report=page.html", "--ns-report=page.json", "--ns-jobs=2")
    assert result.ret == 1, str(result)
    with opened() as page:
        page.open(run.path / "page.html")
        yield page


def column(page: Page, number: int) -> list[str]:
    """What the table shows in a column, hidden rows left out."""
    text: list[str] = page.evaluate(
        "[...document.querySelectorAll('#rows tr')].filter(row => !row.hidden)"
        f".map(row => row.children[{number}].firstChild?.textContent ?? '')"
    )
    return text


def names(page: Page) -> list[str]:
    """The tests that are shown, without their file."""
    return [name.partition("::")[2] for name in column(page, 0)]


def sorting(page: Page) -> list[list[str]]:
    """Which columns say that they are sorted, and how."""
    found: list[list[str]] = page.evaluate(
        "[...document.querySelectorAll('#head th')].map(one => [one.dataset.key, one.ariaSort])"
        ".filter(one => one[1] != 'none')"
    )
    return found


def test_the_data_is_that_of_the_json(run: Run) -> None:
    """The page holds the documented report, and refers to nothing outside."""
    run.tests(TESTS)
    run.isolated("--ns-report=page.html", "--ns-report=page.json")
    text = (run.path / "page.html").read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    value = json.loads(found[1])
    assert problems(value) == []
    assert value == json.loads((run.path / "page.json").read_text())
    assert text.count("</script>") == 2
    rest = text.replace(found[1], "").replace('"http://www.w3.org/2000/svg"', "")
    assert not re.search(r"(src|href)=(?!\"data:,\")|@import|url\(|https?://", rest)


@pytest.mark.needs("browser")
def test_it_shows_every_test(page: Page) -> None:
    """Every test has its row, loads nothing else, and nothing complains."""
    assert len(names(page)) == COUNT
    assert set(column(page, 1)) == {"passed", "failed"}
    assert "CRASHED with signal 11 (SIGSEGV)" in page.evaluate("document.body.innerText")
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert [url.partition(":")[0] for url in page.requests if not url.startswith("data:")] == [
        "file"
    ]
    assert page.complaints == []


@pytest.mark.needs("browser")
def test_sorted_by_click(page: Page) -> None:
    """A click sorts by a column, the most first; another one turns it round."""
    assert sorting(page) == []
    page.click("th[data-key=memory] button")
    assert names(page)[:2] == ["test_memory[40]", "test_memory[20]"]
    assert names(page)[-1] == "test_plain", "what is not known comes last"
    assert sorting(page) == [["memory", "descending"]]
    page.click("th[data-key=memory] button")
    assert sorting(page) == [["memory", "ascending"]]
    assert names(page)[-3:] == ["test_memory[20]", "test_memory[40]", "test_plain"]
    page.click("th[data-key=wall] button")
    assert names(page)[0] == "test_slow"
    page.click("th[data-key=test] button")
    assert sorting(page) == [["test", "ascending"]]
    assert names(page) == sorted(names(page))
    assert page.complaints == []


@pytest.mark.needs("browser")
def test_sorted_by_key(page: Page) -> None:
    """The keyboard does what the mouse does: Tab to a title, Enter or Space."""
    page.evaluate("document.getElementById('text').focus()")
    for _ in range(4):  # the table itself scrolls by keys; then three columns
        page.press("Tab", 9)
    assert page.evaluate("document.activeElement.textContent") == "Peak memory"
    page.press("Enter", 13, "\r")
    assert sorting(page) == [["memory", "descending"]]
    page.press(" ", 32, " ")
    assert sorting(page) == [["memory", "ascending"]]


@pytest.mark.needs("browser")
def test_filtered(page: Page) -> None:
    """Tests are shown by outcome and by name, and the number that is shown is told."""
    page.click("#outcomes input[value=passed]")
    assert set(names(page)) == {"test_fails", "test_crashes"}
    assert page.evaluate("document.getElementById('shown').textContent") == f"2 of {COUNT} shown"
    page.click("#outcomes input[value=passed]")
    page.click("#text")
    page.call("Input.insertText", text="memory")
    assert len(names(page)) == 3
    assert page.complaints == []


@pytest.mark.needs("browser")
def test_view_in_the_address(run: Run, page: Page) -> None:
    """A view can be kept: its address brings it back."""
    page.click("th[data-key=wall] button")
    page.click("#outcomes input[value=failed]")
    fragment = page.evaluate("location.hash")
    shown = names(page)
    page.open(run.path / "page.html", fragment)
    assert names(page) == shown
    assert sorting(page) == [["wall", "descending"]]
    page.open(run.path / "page.html", "#sort=nothing&outcome=%22<&order=x")
    assert names(page) == []
    assert page.complaints == []


@pytest.mark.needs("browser")
def test_timeline(page: Page) -> None:
    """The timeline has a mark for each isolated test, in lanes, and leads to its row."""
    marks = page.evaluate(
        "[...document.querySelectorAll('#timeline rect')].map(mark => [mark.textContent,"
        " ...['x', 'y', 'width', 'height'].map(name => mark.getBoundingClientRect()[name])])"
    )
    assert len(marks) == COUNT - 1
    assert len({y for _, _, y, _, _ in marks}) == 2
    width = {text.split("\n")[0].partition("::")[2]: wide for text, _, _, wide, _ in marks}
    assert max(width, key=lambda name: width[name]) == "test_slow"
    page.click("#timeline rect.failed")
    assert page.evaluate("document.activeElement.id").startswith("t")
    assert page.evaluate("document.activeElement.dataset.outcome") == "failed"


CONTRAST = """
    (() => {
      const light = text => {
        const [r, g, b] = text.match(/[0-9.]+/g).slice(0, 3)
          .map(one => one / 255).map(c => c <= 0.04 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const paper = light(getComputedStyle(document.body).backgroundColor);
      const nodes = document.querySelectorAll("p, td, th, label, caption, .faint, button");
      return [paper, Math.min(...[...nodes].map(one => light(getComputedStyle(one).color))
        .map(ink => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)))];
    })()
"""


@pytest.mark.needs("browser")
def test_light_and_dark(page: Page) -> None:
    """The page follows the user's scheme, and is legible in both (WCAG AA: 4.5 to 1)."""
    papers = {}
    for scheme in ("light", "dark"):
        wish = [{"name": "prefers-color-scheme", "value": scheme}]
        page.call("Emulation.setEmulatedMedia", features=wish)
        papers[scheme], contrast = page.evaluate(CONTRAST)
        assert contrast >= 4.5, scheme
    assert papers["light"] > 0.8
    assert papers["dark"] < 0.05


@pytest.mark.needs("browser")
def test_parts_have_names(page: Page) -> None:
    """What can be used has a name for those who don't see it."""
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes]
    for role in ("button", "checkbox", "searchbox", "region", "heading", "columnheader"):
        found = [name for one, name in roles if one == role]
        assert found, role
        assert all(found), role
    assert any(role in ("image", "img") and "Timeline of" in name for role, name in roles)


@pytest.mark.needs("browser")
def test_long_session(run: Run) -> None:
    """Of very many tests the first by the order that was chosen are shown; all, on request."""
    run.tests("""
    @pytest.mark.parametrize("n", range(700))
    def test_it(n):
        pass
    """)
    run("--ns-report=page.html").expect(passed=700)
    with opened() as page:
        page.open(run.path / "page.html")
        assert len(names(page)) == 500
        page.click("th[data-key=test] button")
        page.click("th[data-key=test] button")
        assert names(page)[0] == "test_it[9]"
        assert page.evaluate("document.getElementById('shown').textContent") == "500 of 700 shown"
        page.click("#all")
        assert len(names(page)) == 700
        assert page.evaluate("document.getElementById('all').hidden")
        assert page.complaints == []


@pytest.mark.needs("browser")
def test_empty_session(run: Run) -> None:
    """A session without tests, or without isolated ones, has a page that works."""
    run.tests("def test_it(): pass")
    with opened() as page:
        for options in (["--ns-report=page.html"], ["--ns-report=page.html", "-k", "nothing"]):
            run(*options)
            page.open(run.path / "page.html")
            assert len(names(page)) == (1 if len(options) == 1 else 0)
            page.click("th[data-key=test] button")
            assert page.complaints == []
