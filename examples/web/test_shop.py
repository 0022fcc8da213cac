"""A web service as it is deployed, on port 80, in every test, without root.

Each test has its own shop and its own file of orders, also with ``--ns-jobs 2``. A shop that is
not stopped, since a test crashed or timed out, ends with the sandbox.
"""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.isolated(timeout=50)


@pytest.fixture
def shop():
    """Start the shop; the address to ask."""
    program = Path(__file__).with_name("shop.py")
    command = [sys.executable, program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "open\n", f"it ended with status {server.wait()}"
        yield "http://localhost/orders"
        server.terminate()


def ask(url, text=None):
    """GET, or POST a text."""
    # Not by way of a proxy that the environment may name.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, text and text.encode(), timeout=30) as answer:
        return json.load(answer)


def test_begins_without_orders(shop):
    assert ask(shop) == {"orders": 0}


@pytest.mark.parametrize("number", [1, 3])
def test_counts_its_orders(shop, number):
    for _ in range(number):
        ask(shop, "a book")
    assert ask(shop) == {"orders": number}


def test_knows_no_other_page(shop):
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        ask(shop + "/none")
    caught.value.close()
