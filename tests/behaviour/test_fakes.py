"""What a test replaces while it runs doesn't get in the way of its reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support import Run

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
