"""What a suite does to the process that it runs in doesn't get in the way of its reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")


def test_fake_file_system(run_as_each: Run) -> None:
    """The modules of this plugin keep the real one while a test has that of pyfakefs."""
    pytest.importorskip("pyfakefs")
    run_as_each.plugins += ("fakefs",)
    run_as_each.tests("""
    def test_passes(fs):
        fs.create_file("/nowhere/else", contents="fake")
        with open("/nowhere/else") as stream:
            assert stream.read() == "fake"
        assert not os.path.exists(__file__)
        warnings.warn("told all the same")

    def test_fails(fs):
        print("printed all the same")
        assert os.path.exists("/nowhere/else")

    def test_is_over():
        assert os.path.exists(__file__)
    """)
    result = run_as_each.isolated().expect(passed=2, failed=1)
    assert "assert False" in result.of("test_fails").text, str(result)
    assert result.of("test_fails").section("stdout") == "printed all the same\n"
    assert [warning.text for warning in result.warnings] == ["told all the same"]


def test_watchdog(run_as_each: Run) -> None:
    """One that the suite has started before the tests doesn't keep them from failing."""
    run_as_each.write(
        "conftest.py",
        """
        import faulthandler

        def pytest_configure():
            faulthandler.dump_traceback_later(3600, exit=True)
        """,
    )
    run_as_each.tests("""
    import faulthandler

    def test_fails():
        assert False

    def test_starts_one_too():
        faulthandler.dump_traceback_later(3600)
        faulthandler.cancel_dump_traceback_later()
    """)
    run_as_each.isolated().expect(passed=1, failed=1)
