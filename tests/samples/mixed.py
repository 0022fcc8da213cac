"""A test of each outcome, with output, warnings and fixtures."""

import sys
import time
import unittest
import warnings

import pytest


@pytest.fixture(scope="module")
def module_value():
    yield 1


def test_passes(module_value):
    print("to stdout")
    print("to stderr", file=sys.stderr)


def test_fails(module_value):
    print("before failing")
    assert module_value == 2, "two is wanted"


@pytest.mark.isolated(False)
def test_in_runner(module_value):
    pass


def test_skips():
    pytest.skip("no reason")


@pytest.mark.skipif(True, reason="by mark")
def test_skipped():
    pass


@pytest.mark.xfail(reason="known bug")
def test_xfails():
    assert 0


@pytest.mark.xfail(reason="fixed")
def test_xpasses():
    pass


@pytest.mark.xfail(reason="fixed", strict=True)
def test_xpasses_strictly():
    pass


@pytest.mark.xfail(run=False, reason="would hang")
def test_not_run():
    time.sleep(1000)


@pytest.fixture
def broken():
    raise LookupError("set-up")


def test_error_in_setup(broken):
    pass


@pytest.fixture
def broken_later():
    yield
    raise LookupError("teardown")


def test_error_in_teardown(broken_later):
    print("the call passes")


def test_fails_then_errs(broken_later):
    assert 0, "first"


@pytest.mark.parametrize("value", ["a", "\u00e4", 3.5])
def test_parametrised(value):
    assert value != 3.5


def test_warns():
    warnings.warn("be warned", UserWarning)


class TestClass:
    def test_method(self, tmp_path):
        (tmp_path / "file").write_text("x")


class TestUnit(unittest.TestCase):
    def setUp(self):
        self.addCleanup(print, "cleaned up")

    def test_unit(self):
        self.assertEqual(1, 1)

    def test_unit_fails(self):
        self.assertEqual({"a": 1}, {"a": 2})

    @unittest.skip("unit skip")
    def test_unit_skip(self):
        pass

    @unittest.expectedFailure
    def test_unit_xfail(self):
        self.assertEqual(1, 2)


def test_chained():
    try:
        {"a": 1}["missing"]
    except KeyError as error:
        raise ValueError("while looking") from error


def test_group():
    if sys.version_info >= (3, 11):
        raise BaseExceptionGroup("several", [OSError(2, "x")])  # noqa: F821 -- Python 3.11
    raise OSError


def test_logs():
    import logging

    logging.getLogger("a.b").warning("logged %s", 1)
    assert 0
