"""What a client does when the network breaks, comes back, or is slow, in a network of its own.

No root, no mock: packets go from the client's host over a router to the server's. If a test
fails, its report says where the packets that it saw were kept.
"""

import threading
import time

import pytest
from client import fetch
from server import Server

from pytest_nsisolate.network.topology.network import NetworkError

SERVER = ("server", 7000)
SOON = 30
"""Seconds in which what must happen happens, also on a machine that is very busy."""

pytestmark = pytest.mark.isolated(net="client -- router -- server", pcap="failed", timeout=100)


@pytest.fixture
def net(sandbox):
    """Start a server in the network: a socket stays in the host that it was made in."""
    with sandbox.net["server"]:
        server = Server(SERVER[1])
    yield sandbox.net
    server.close()


def test_fetches(net):
    with net["client"]:
        assert fetch(SERVER, patience=SOON) == b"hello"


def test_gives_up(net):
    net.cut("client router", "server")
    with net["client"], pytest.raises(TimeoutError, match=r"within 0\.5 s"):
        fetch(SERVER, patience=0.5)


def test_gets_through_when_the_network_is_back(net):
    """The cut is silent: nobody is told, packets are lost. It is healed while the client tries."""
    cut = net.cut("client router", "server")
    healer = threading.Timer(0.7, cut.heal)
    healer.start()
    with net["client"]:
        assert fetch(SERVER, patience=SOON) == b"hello"
    healer.join()


def test_a_pulled_cable_is_put_back(net):
    with net.link("client", "router").down(), net["client"], pytest.raises(TimeoutError):
        fetch(SERVER, patience=0.2)
    with net["client"]:
        assert fetch(SERVER, patience=SOON) == b"hello"


def test_narrow_link(net):
    """A limited rate needs no netem: 10,000 bytes more take most of a second at 100 kbit/s."""
    with net["server"]:
        server = Server(7001, b"x" * 12_500)
    begin = time.monotonic()
    with net.link("router", "server").shape(rate="100kbit"), net["client"]:
        assert len(fetch(("server", 7001), patience=SOON, attempt=SOON)) == 12_500
    server.close()
    assert time.monotonic() - begin > 0.5


def test_long_and_lossy_link(net):
    """With netem: 100 ms each way, one packet of ten is lost, and TCP makes up for it."""
    link = net.link("client", "router")
    try:
        link.shape(delay="100ms", loss=10)
    except NetworkError as error:
        pytest.skip(f"needs netem: {error}")  # `pytest --ns-doctor` tells beforehand
    begin = time.monotonic()
    with net["client"]:
        assert fetch(SERVER, patience=SOON, attempt=SOON) == b"hello"
    assert time.monotonic() - begin > 0.35  # twice there and back
