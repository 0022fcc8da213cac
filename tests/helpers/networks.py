"""A host to test links with: a network namespace of the test's own, with or without a world behind.

Nothing of the real host's network is touched, so that tests can run side by side, and so that
what is left can be compared byte for byte.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .hosts import DEADLINE, lacks_root

if TYPE_CHECKING:
    from collections.abc import Iterator

HOLD = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x40000000):  # CLONE_NEWNET
    sys.exit(f"unshare net: {os.strerror(ctypes.get_errno())}")
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
print("up", flush=True)
sys.stdin.read()
"""
WORLD = "10.88.0.2", "fd88::2"
"""The addresses of the world behind a host that has one; the host's end in .1 and ::1."""
SERVE = """
import http.server, socket, sys
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.client_address[0].encode())
    def log_message(self, *args):
        pass
server = Server(("::", 8000), Handler)
print("up", flush=True)
server.serve_forever()
"""


@functools.cache
def lacks_veth() -> str | None:
    """Why no veth devices can be made here, in a network of one's own; None if they can."""
    reason = lacks_root()
    if reason is not None:
        return reason
    for program in ("ip", "nsenter"):
        if shutil.which(program) is None:
            return f"no {program}"
    with host() as one:
        done = one.shell("ip link add v0 type veth peer name v1", check=False)
        return None if done.returncode == 0 else done.stderr.strip()


def lacks_nft() -> str | None:
    """Why there are no nftables for a network of one's own."""
    reason = lacks_veth()
    if reason is not None or shutil.which("nft") is None:
        return reason or "no nft"
    with host() as one:
        table = "table inet t { chain c { type nat hook postrouting priority 0; masquerade; }; }"
        done = one.shell(f"nft '{table}'", check=False)
        return None if done.returncode == 0 else done.stderr.strip()


def lacks_program(name: str) -> str | None:
    """Why a program can't be a way out for sandboxes."""
    reason = lacks_veth()
    if reason is None and shutil.which(name) is None:
        reason = f"no {name}"
    if reason is None and not os.path.exists("/dev/net/tun"):
        reason = "no /dev/net/tun"
    return reason


@dataclass(frozen=True)
class Host:
    """A network namespace that stays as long as its holder."""

    pid: int

    @property
    def prefix(self) -> list[str]:
        """Runs the rest of a command in there."""
        return ["nsenter", "-t", str(self.pid), "-n"]

    def shell(self, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a script in there."""
        done = subprocess.run(
            [*self.prefix, "sh", "-ec", script],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert not (check and done.returncode), done.stderr
        return done

    def state(self) -> str:
        """Its interfaces, addresses, routes and tables."""
        nft = "nft list ruleset" if shutil.which("nft") else ":"
        settings = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding"
        return self.shell(
            "ip -d address; ip route show table all; ip -6 route show table all; ip rule;"
            f"ip -6 rule; ip neigh; {nft}; {settings}"
        ).stdout


@contextlib.contextmanager
def host() -> Iterator[Host]:
    """A host with nothing but its loopback."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        try:
            yield Host(holder.pid)
        finally:
            holder.stdin.close()
            holder.wait(DEADLINE)


@contextlib.contextmanager
def host_with_world() -> Iterator[Host]:
    """A host with an uplink, and a web server behind it that answers with the client's address."""
    with host() as one, host() as world:
        one.shell(
            f"ip link add up0 type veth peer name w0 netns {world.pid};"
            "ip link set up0 addrgenmode none;"
            "ip address add 10.88.0.1/24 dev up0; ip address add fd88::1/64 dev up0 nodad;"
            "ip address add fe80::1/64 dev up0 nodad;"
            "ip link set up0 up"
        )
        world.shell(
            "ip link set w0 addrgenmode none;"
            "ip address add 10.88.0.2/24 dev w0; ip address add fd88::2/64 dev w0 nodad;"
            "ip link set w0 up;"
            # It would answer to whatever the host hands on as it is.
            "ip route add default via 10.88.0.1; ip -6 route add default via fd88::1"
        )
        one.shell(f"ip route add default via {WORLD[0]}; ip -6 route add default via {WORLD[1]}")
        with subprocess.Popen(
            [*world.prefix, sys.executable, "-I", "-c", SERVE], stdout=subprocess.PIPE
        ) as server:
            assert server.stdout is not None
            try:
                assert server.stdout.readline() == b"up\n"
                yield one
            finally:
                server.kill()
