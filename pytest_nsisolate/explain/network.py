"""Explain why a network is not available here."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING

from .host_facts import DENIED, Explanation, Row, is_at, used_up

if TYPE_CHECKING:
    from pytest_nsisolate.core.linux.syscalls import StageError

_WITHOUT_RIGHTS = (
    "forward=[5432] brings ports of the host's loopback into the sandbox, and a topology such as "
    'net="a b" gives the test a network of several hosts; both work without root'
)


def _no_rights(error: StageError) -> Explanation | None:
    return Explanation(
        "A link to the host takes CAP_NET_ADMIN in the host's network namespace, and this process "
        "hasn't got it.",
        f"Run the tests as root (container: --cap-add NET_ADMIN); or do without: {_WITHOUT_RIGHTS}"
        "; with pasta (package passt) or slirp4netns installed, so does nat=True.",
    )


def _no_veth(error: StageError) -> Explanation | None:
    return Explanation(
        "This kernel has no veth devices, or can't load the module here.",
        f"sudo modprobe veth; or do without: {_WITHOUT_RIGHTS}.",
    )


def _no_addresses(error: StageError) -> Explanation | None:
    if error.errno == errno.ENOSPC:
        return Explanation(
            f"So many links at once as --ns-jobs asks for don't fit into the part of {error.path} "
            "that one session has: at most 64, and a sixteenth of the range.",
            "Lower --ns-jobs, or set a larger range: nsisolate_subnet = 10.99.0.0/16 in the ini.",
        )
    return Explanation(
        f"The range for links overlaps with what the host has routes to ({error.path}), or all of "
        "it is in use by other sessions.",
        "Set a range that the host doesn't use: nsisolate_subnet = 10.99.0.0/16 in the ini file.",
    )


_PROGRAMS = "install pasta (package passt) or slirp4netns, which need no rights and change nothing"


def _no_forwarding(error: StageError) -> Explanation | None:
    return Explanation(
        "This host hands no packets on (net.ipv4.ip_forward = 0), so it is no way out, and this "
        "plugin changes no setting of the host.",
        f"sudo sysctl -w net.ipv4.ip_forward=1; or {_PROGRAMS}.",
    )


def _nftables(error: StageError) -> Explanation | None:
    if error.errno == errno.ENOENT:
        return Explanation(
            "nat=True as root takes the program nft, which is not installed.",
            f"Install nftables; or {_PROGRAMS}.",
        )
    return Explanation(
        "The program nft could not make or remove the table for nat=True; its words stand above.",
        f"See that `sudo nft list ruleset` works; or {_PROGRAMS}.",
    )


def _program(error: StageError) -> Explanation | None:
    if error.errno == errno.ENOENT and not error.path.startswith("/"):
        return Explanation(
            f"{error.path} is not installed.",
            f"Where nat=True is to work without root: {_PROGRAMS}.",
        )
    if error.path == "/dev/net/tun":
        return Explanation(
            "pasta and slirp4netns make a device by /dev/net/tun, which this user can't open.",
            "sudo modprobe tun && sudo chmod 666 /dev/net/tun (container: --device /dev/net/tun)",
        )
    return Explanation(
        "nat=True goes through pasta or slirp4netns here, and it did not make the sandbox's eth0. "
        "They need a default route on the host.",
        "See what it says itself: pasta --config-net -- ip address",
    )


#: What a failing stage of a network needs of the kernel: module, and its setting.
_NETWORK = {
    "network: make a bridge": ("bridge", "CONFIG_BRIDGE"),
    "network: set up a switch": ("nft_fwd_netdev", "CONFIG_NFT_FWD_NETDEV"),
    "network: make a veth pair": ("veth", "CONFIG_VETH"),
    "network: shape by netem": ("sch_netem", "CONFIG_NET_SCH_NETEM"),
    "network: shape by tbf": ("sch_tbf", "CONFIG_NET_SCH_TBF"),
    "network: capture": ("af_packet", "CONFIG_PACKET"),
}


def _network(error: StageError) -> Explanation | None:
    absent = (errno.EOPNOTSUPP, errno.ENOENT, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)
    if error.stage in _NETWORK and error.errno in absent:
        module, setting = _NETWORK[error.stage]
        return Explanation(
            f"This kernel has no module {module} ({setting}), or may not load it for a sandbox.",
            f"sudo modprobe {module}   (if there is none: a kernel with {setting}=m or =y)",
        )
    if error.errno in DENIED:
        return Explanation(
            "This process has no rights over its network namespaces: it needs CAP_SYS_ADMIN, "
            "CAP_NET_ADMIN and, for captures, CAP_NET_RAW in the user namespace that they "
            "belong to. A test with a topology has them; programs that it starts, and "
            "processes that gave them up, don't, unless they are root.",
            'Change the network from the test itself, or run it with user="root".',
        )
    if error.errno == errno.EMFILE:
        return Explanation(
            "Each host takes a file descriptor of the test process, and there are no more left.",
            "ulimit -n 4096, or fewer hosts.",
        )
    if error.errno == errno.ETIMEDOUT:
        return Explanation(
            "The kernel did not make a link ready in time; it is very busy.",
            "Lower --ns-jobs.",
        )
    if error.errno in (errno.ENOSPC, errno.EAGAIN, errno.ENOMEM):
        return used_up(error)
    return None


def _pyroute2(error: StageError) -> Explanation | None:
    what = (
        'pyroute2 is not installed here, and builds the network of topologies and of net="veth".'
        if error.errno == errno.ENOENT
        else f"The pyroute2 that is installed here can't be used: {error.path}."
    )
    return Explanation(what, f"{sys.executable} -m pip install 'pyroute2>=0.9.7'")


#: From the most to the least special; see `explain`.
ROWS: tuple[Row, ...] = (
    (is_at("make the link", errnos=DENIED), _no_rights),
    (is_at("make the link", errnos=(errno.EOPNOTSUPP,)), _no_veth),
    (is_at("find addresses"), _no_addresses),
    (is_at("forward packets"), _no_forwarding),
    (is_at("set up nftables"), _nftables),
    (is_at("start pasta", "wait for pasta"), _program),
    (is_at("import pyroute2"), _pyroute2),
    (is_at("network: "), _network),
)
