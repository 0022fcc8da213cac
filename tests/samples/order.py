"""Tests that disturb each other where they share a process."""

import json
import os
import random
import socket
import time

import pytest

cache: dict[str, str] = {}


@pytest.fixture(scope="session")
def shared():
    return []


def test_fills_cache():
    cache["user"] = "ann"
    assert cache == {"user": "ann"}


def test_wants_empty_cache():
    assert cache == {}


def test_adds_to_shared(shared):
    shared.append(1)
    assert shared == [1]


def test_adds_to_shared_too(shared):
    shared.append(2)
    assert shared == [2]


def test_writes_state():
    with open("/tmp/order-state.json", "x") as stream:
        json.dump({"seen": True}, stream)


def test_wants_no_state():
    assert not os.path.exists("/tmp/order-state.json")


def test_leaves_a_server():
    globals()["server"] = socket.create_server(("127.0.0.1", 8017))


def test_wants_the_port():
    socket.create_server(("127.0.0.1", 8017)).close()


def test_patches():
    time.time = lambda: 0
    assert time.time() == 0


def test_wants_the_clock():
    assert time.time() > 0


def test_moves():
    os.chdir("/")
    os.environ["MOVED"] = "yes"
    os.umask(0o777)


def test_wants_its_place(pytestconfig):
    assert os.getcwd() == str(pytestconfig.invocation_params.dir)
    assert "MOVED" not in os.environ


def test_draws():
    assert random.random() == random.Random(5).random()


def test_draws_again():
    assert random.random() == random.Random(5).random()
