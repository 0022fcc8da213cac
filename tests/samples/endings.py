"""Tests that use some memory and time, and end in each way."""

import ctypes
import os
import time

import pytest


def test_passes():
    pass


def test_fails():
    assert 0


def test_skips():
    pytest.skip("no")


@pytest.mark.xfail
def test_xfails():
    assert 0


@pytest.mark.xfail
def test_xpasses():
    pass


@pytest.fixture
def broken():
    yield
    raise OSError


@pytest.fixture
def broken_early():
    raise OSError


def test_errs(broken):
    pass


def test_errs_early(broken_early):
    pass


def test_crashes():
    ctypes.string_at(0)


def test_exits():
    os._exit(3)


@pytest.mark.isolated(timeout=0.5)
def test_times_out():
    while True:
        time.sleep(1)


@pytest.mark.isolated(timeout=0.5)
def test_deaf():
    import itertools

    sum(itertools.repeat(0))


@pytest.mark.isolated(False)
def test_plain():
    assert 0
