"""One test changes a global that the other relies on: isolated, they pass in either order.

Every isolated test starts from the state that the modules had right after collection. Try
``pytest test_order.py::test_default_is_quiet test_order.py::test_can_be_loud`` and the reverse.
"""

import pytest

pytestmark = pytest.mark.isolated

SETTINGS = {"loud": False}


def greet():
    return "HELLO" if SETTINGS["loud"] else "hello"


def test_can_be_loud():
    SETTINGS["loud"] = True
    assert greet() == "HELLO"


def test_default_is_quiet():
    assert greet() == "hello"
