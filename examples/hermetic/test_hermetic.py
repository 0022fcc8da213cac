"""Green here means green elsewhere: nothing of this machine but the checkout and Python is used.

The same for a whole suite, without a mark: ``pytest --ns-isolate --ns-profile hermetic``, as the
workflow files beside this one have it.
"""

import os
import time
from pathlib import Path

import pytest
import reports

pytestmark = pytest.mark.isolated(profile="hermetic")
HERE = Path(__file__).parent


def test_writes_beside_its_sources():
    """It may write where it likes; nothing of it stays, in the checkout or at home."""
    out = reports.report([1, 2, 3], HERE / "report.txt")
    assert out.read_text() == "sum 6\nzone UTC\n"
    assert Path("~/.report-generator").expanduser().read_text() == str(out)


def test_meets_nothing_that_another_test_wrote():
    assert not (HERE / "report.txt").exists()
    assert list(Path.home().iterdir()) == []


def test_has_no_secrets():
    assert reports.token() is None


def test_is_in_no_time_zone_and_speaks_no_language():
    assert time.tzname[0] == os.environ["TZ"] == "UTC"
    assert os.environ["LANG"] == "C.UTF-8"
