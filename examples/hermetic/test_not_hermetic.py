"""A test that needs more than the checkout: it **fails on purpose**, and says what it tried."""

from pathlib import Path

import pytest
import reports


@pytest.mark.isolated(profile="hermetic")
def test_asks_the_network():
    out = reports.report([1, 2, 3], Path("last-report.txt"))
    assert out.exists()
    reports.latest_price()
