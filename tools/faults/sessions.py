"""The sessions on whose path faults are made: few tests, each with an ending that is known.

In each there is a test that fails and one that is skipped, so that a fault which makes a test
seem better than it is would show.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helpers import crippled, networks
from helpers.hosts import NOBODY

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPECTED = "as was to be expected"
"""What a test fails with that has to fail."""

TESTS = f"""
    def test_passes(tmp_path):
        (tmp_path / "file").write_text("x")

    def test_fails():
        assert 0, "{EXPECTED}"

    def test_skips():
        pytest.skip("no reason")

    def test_last():
        print("x" * 1000)
"""
VERDICTS = {
    "test_passes": "passed",
    "test_fails": "failed",
    "test_skips": "skipped",
    "test_last": "passed",
}
FIXTURE = """
    @pytest.fixture(scope="module", autouse=True)
    def shared(tmp_path_factory):
        (tmp_path_factory.mktemp("shared") / "file").write_text("x")
        yield 1
"""


@dataclass(frozen=True, kw_only=True)
class Session:
    """One of them: how its tests are marked, and how pytest is called."""

    name: str
    keys: str = ""
    """The arguments of the tests' marker."""
    before: str = ""
    """What stands in the test module before the tests."""
    arguments: tuple[str, ...] = ()
    uid: int | None = None
    host: str = ""
    """What `crippled` calls the host that it runs on."""
    linked: bool = False
    """Whether its host has a network of its own."""
    needs: tuple[str, ...] = ("sandbox", "root")
    again: tuple[str, ...] = ()
    """Roles whose calls are tried here as well, though they have been elsewhere."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The parts of its test module."""
        return (f"pytestmark = pytest.mark.isolated({self.keys})", self.before, TESTS)

    @contextlib.contextmanager
    def place(self) -> Iterator[list[str]]:
        """Its host, as a command that runs the rest of its arguments there."""
        prefix = next((one.prefix for one in crippled.HOSTS if one.name == self.host), [])
        if not self.linked:
            yield prefix
            return
        with networks.host() as host:
            yield [*host.prefix, *prefix]


SESSIONS = (
    Session(name="plain"),
    Session(
        name="as a user",
        uid=NOBODY,
        needs=("sandbox", "unprivileged"),
        again=("keeper", "inner keeper", "init 1", "test 1"),
    ),
    Session(name="two at once", arguments=("--ns-jobs=2",), again=("runner", "template", "test 1")),
    Session(name="to the terminal", arguments=("-s",), again=("test 1", "test 2")),
    Session(
        name="one process",
        keys='scope="module", timeout=50',
        before=FIXTURE,
        again=("runner", "test 1"),
    ),
    Session(
        name="a snapshot",
        keys='snapshot="module"',
        before=FIXTURE,
        again=("test 1", "init 1"),
    ),
    Session(
        name="limits",
        keys='memory="256M", pids=50',
        needs=("sandbox", "root", "limits"),
    ),
    Session(name="hermetic", keys='profile="hermetic"'),
    Session(
        name="a link and a port of the host",
        keys='net="veth", forward=[9]',
        linked=True,
        needs=("sandbox", "veth"),
    ),
    Session(name="a network", keys='net="a -- r -- b"'),
    Session(
        name="without namespaces",
        arguments=("--ns-missing=fork",),
        host="no user namespaces",
        again=("template", "test 1"),
    ),
)
