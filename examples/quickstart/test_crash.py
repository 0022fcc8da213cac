"""A test brings its interpreter down: that test alone fails, and the report says how it ended.

It is marked ``xfail`` to keep this run green. Take the mark away to read the report: it names the
signal and shows the native traceback.
"""

import ctypes

import pytest

pytestmark = pytest.mark.isolated


@pytest.mark.xfail(reason="reads from address 0", strict=True)
def test_segfaults():
    ctypes.string_at(0)


def test_after_the_crash_goes_on():
    assert ctypes.sizeof(ctypes.c_int64) == 8
