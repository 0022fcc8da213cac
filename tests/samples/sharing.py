"""Tests of a module that share a process."""

import glob
import os

import pytest


@pytest.fixture(scope="session")
def session_wide():
    return []


@pytest.fixture(scope="module")
def module_wide(tmp_path_factory):
    print("set up")
    open("/tmp/made", "x").close()
    yield {"pid": os.getpid()}
    print("torn down")
    os.unlink("/tmp/made")


@pytest.fixture(autouse=True)
def told(record_property):
    record_property("pid", os.stat("/proc/self/ns/pid").st_ino)
    record_property("process", os.getpid())


def test_first(module_wide, session_wide):
    session_wide.append(1)
    os.environ["LEFT"] = "here"


def test_second(module_wide, session_wide):
    assert session_wide == [1] and os.environ["LEFT"] == "here"
    assert module_wide["pid"] == os.getpid()


class TestMethods:
    @pytest.fixture(scope="class", autouse=True)
    def class_wide(self):
        assert not os.path.exists("/tmp/class")
        open("/tmp/class", "x").close()
        yield
        os.unlink("/tmp/class")

    def test_third(self, module_wide):
        assert os.path.exists("/tmp/class")

    def test_fourth(self, module_wide):
        assert os.path.exists("/tmp/class")


def test_last(module_wide):
    assert not os.path.exists("/tmp/class")
    assert glob.glob("/tmp/made")
