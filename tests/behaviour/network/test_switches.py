"""Switches: without a bridge until a test changes them, and the same to their hosts either way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

NO_NFTABLES = {
    "nftables": "",
    "no such sockets": """
        from pytest_nsisolate.core.linux import netlink
        netlink.NETLINK_NETFILTER = 31  # a protocol that no kernel has
    """,
    "no such tables": """
        from pytest_nsisolate.network.topology import nft_switch
        nft_switch._NETDEV = 99  # a family that no kernel has
    """,
}
"""What a conftest does so that the kernel itself refuses; the switches are bridges then."""

HELPERS = """
    import os, socket, struct, threading
    from pytest_nsisolate.core.linux.syscalls import CLONE_NEWNET, setns

    def bridges(net):
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        setns(net._built.places[0], CLONE_NEWNET, stage="test")
        try:
            return sorted(name for _, name in socket.if_nameindex() if name.startswith("s"))
        finally:
            setns(home, CLONE_NEWNET, stage="test")
            os.close(home)

    def raw(host):
        with host:
            found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
            found.bind(("eth0", 0x88B5))  # of local experiments
        found.settimeout(5)
        return found

    def mac(text):
        return bytes.fromhex(text.replace(":", ""))

    def who_gets(sender, target, listeners):
        source = mac("02:00:00:00:99:99") + b"\\x88\\xb5"
        frame, last = target + source + os.urandom(20), b"\\xff" * 6 + source + os.urandom(20)
        sender.send(frame)
        sender.send(last)  # which everybody gets, and after the first
        found = set()
        for name, listener in listeners.items():
            while (heard := listener.recv(100)[:34]) != last:
                if heard == frame:
                    found.add(name)
        return "".join(sorted(found))
"""


@pytest.mark.parametrize("how", NO_NFTABLES)
def test_who_gets_a_frame(run_as_each: Run, how: str) -> None:
    """One for a host only that host, all others everybody but the sender; with a bridge or not."""
    run_as_each.write("conftest.py", NO_NFTABLES[how])
    run_as_each.tests(
        HELPERS,
        f"""
    BRIDGED = {how != "nftables"}
    """,
        """
    @pytest.mark.isolated(net="a b c d", timeout=50)
    @pytest.mark.parametrize("changed", [False, True])
    def test_switch(sandbox, changed):
        net = sandbox.net
        assert bridges(net) == (["s1"] if BRIDGED else [])
        if changed:
            net.cut("a").heal()
            assert "s1" in bridges(net)
        ports = {host.name: raw(host) for host in net}
        for name, port in ports.items():  # a bridge has to learn first
            own = mac(net[name].interfaces["eth0"].mac)
            port.send(b"\\xff" * 6 + own + b"\\x88\\xb5" + bytes(46))
        for name, port in ports.items():
            others = {other: listener for other, listener in ports.items() if other != name}
            for other in others:
                address = mac(net[other].interfaces["eth0"].mac)
                assert who_gets(port, address, others) == other
            everybody = "".join(sorted(others))
            assert who_gets(port, b"\\xff" * 6, others) == everybody
            assert who_gets(port, mac("01:00:5e:00:00:fb"), others) == everybody
            assert who_gets(port, mac("02:00:00:00:77:77"), others) == everybody

    @pytest.mark.isolated(net="a -- r -- b", timeout=50)
    def test_cables(sandbox):
        net = sandbox.net
        assert bridges(net) == (["s1", "s2"] if BRIDGED else [])
        with net["b"]:
            server = socket.create_server(("", 80))
        with net.link("a", "r").down():
            pass
        assert bridges(net) == (["s1", "s2"] if BRIDGED else [])
        with net["a"]:
            socket.create_connection((net["b"].address, 80), 5)
        with net.cut("a", "r b"):
            assert "s1" in bridges(net)
        with net["a"]:
            socket.create_connection((net["b"].address, 80), 5)

    @pytest.mark.isolated(net=" ".join("abcdefghi"), timeout=50)
    def test_many_ports(sandbox):
        net = sandbox.net
        assert bridges(net) == ["s1"]
        with net["i"]:
            server = socket.create_server(("", 80))
        with net["a"]:
            socket.create_connection((net["i"].address, 80), 5)
    """,
    )
    run_as_each().expect(passed=4)


def test_nothing_is_lost_when_it_becomes_a_bridge(run: Run) -> None:
    """Packets pass while a switch is changed for the first time, each of them once."""
    run.tests(
        HELPERS,
        """
    @pytest.mark.isolated(net="a b c d", timeout=50)
    @pytest.mark.parametrize("number", range(5))
    def test_it(sandbox, number):
        net = sandbox.net
        with net["b"]:
            sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            sink.bind(("", 7000))
        with net["a"]:
            source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            source.connect((net["b"].address, 7000))
        sent, over = 0, threading.Event()
        sink.settimeout(5)
        def send():
            nonlocal sent
            while not over.is_set():
                source.send(struct.pack("=I", sent))
                assert sink.recv(10) == struct.pack("=I", sent)
                sent += 1
        failed = []
        def run():
            try:
                send()
            except BaseException as error:
                failed.append(error)
        thread = threading.Thread(target=run)
        thread.start()
        while sent < 50:
            assert thread.is_alive(), failed
        assert bridges(net) == []
        before = sent
        with net.cut("d"):
            assert "s1" in bridges(net)
            after = sent
            while sent < after + 50:
                assert thread.is_alive(), failed
        over.set()
        thread.join()
        assert not failed
        sink.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sink.recv(10)
    """,
    )
    run("-p", "no:timeout").expect(passed=5)


def test_another_takes_its_address_over(run: Run) -> None:
    """Where a host is gone, who takes on its hardware address gets what is for it."""
    run.tests(
        HELPERS,
        """
    @pytest.mark.isolated(net="a b c", timeout=50, user="root")
    def test_it(sandbox):
        net = sandbox.net
        one, other = raw(net["a"]), raw(net["c"])
        address = net["b"].interfaces["eth0"].mac
        assert who_gets(one, mac(address), {"c": other}) == ""
        with net.link("b").down():
            net["c"].run(["ip", "link", "set", "eth0", "address", address], check=True)
            other.send(b"\\xff" * 6 + mac(address) + b"\\x88\\xb5" + bytes(46))
            assert who_gets(one, mac(address), {"c": other}) == "c"

    @pytest.mark.isolated(net="a b c", timeout=50, user="root")
    def test_a_new_one(sandbox):
        net = sandbox.net
        one, other = raw(net["a"]), raw(net["c"])
        net["c"].run(["ip", "link", "set", "eth0", "address", "02:00:00:00:77:77"], check=True)
        assert who_gets(one, mac("02:00:00:00:77:77"), {"c": other}) == "c"
    """,
    )
    run().expect(passed=2)
