"""Check which parts of a topology's network this host can build, for the doctor.

Each is tried in a throw-away process with namespaces of its own, as a sandbox would.
"""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING

from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.core.linux.syscalls import CLONE_NEWNET, CLONE_NEWUSER, unshare
from pytest_nsisolate.explain import explain
from pytest_nsisolate.network.topology import link_messages, nft_switch, rtnetlink, shaping

if TYPE_CHECKING:
    from collections.abc import Callable

#: Stage, error number and path.
_Failure = tuple[str, int, str]

_INDEX = 1000
#: Two ports of a switch, the ends of the pair below.
_PORTS = (
    nft_switch.Socket(_INDEX + 1, "v", "02:00:00:00:00:01"),
    nft_switch.Socket(_INDEX + 2, "w", "02:00:00:00:00:02"),
)
#: What is tried: a name for the row, what it is for, and what makes it.
_TRIED: tuple[tuple[str, str, link_messages.Operation | bytes], ...] = (
    ("bridge", "the switches of topologies", link_messages.AddBridge(_INDEX, "b", "")),
    (
        "veth",
        'the links of topologies and of net="veth"',
        link_messages.AddPair(_INDEX + 1, "v", _INDEX + 2, "w", -1, "", ""),
    ),
    (
        "nftables",
        "the same switches without a bridge, which takes the kernel longer",
        nft_switch.put_up("s", _PORTS),
    ),
    (
        "netem",
        "shape() by delay, jitter, loss, reorder and duplicate",
        shaping.Netem(link_messages.LOOPBACK, "lo", 1000, 0, 0, 0, 0, 0),
    ),
    ("tbf", "shape() by a rate alone", shaping.Tbf(link_messages.LOOPBACK, "lo", 1 << 20)),
)


def rows() -> list[str]:
    """Return the lines of the report."""
    try:
        link_messages.prepare()
    except StageError as error:
        return _failed("network", error, 'net="a b c"')
    lines = ["network      (for topologies; other tests need none of it)"]
    outcomes = _in_child(_try_all)
    for name, use, _ in _TRIED:
        found = outcomes.get(name, ("network: try it", errno.EIO, ""))
        if found is None:
            lines.append(f"  {name:<10} works: {use}")
        else:
            lines += _failed(f"  {name:<10}", StageError(*found), use)
    return lines


def _failed(title: str, error: StageError, use: str) -> list[str]:
    found = explain.explain(error)
    return [
        f"{title:<12} FAILS at {error}: no {use}",
        f"  meaning    {found.meaning}",
        f"  mend       {found.mend}",
    ]


def _try_all() -> dict[str, _Failure | None]:
    unshare(CLONE_NEWUSER | CLONE_NEWNET, stage="unshare")
    netlink = rtnetlink.Netlink()
    outcomes: dict[str, _Failure | None] = {}
    for name, _, operation in _TRIED:
        try:
            if isinstance(operation, bytes):
                nft_switch.Rules().carry_out(operation)
            else:
                netlink.do(operation)
        except StageError as error:
            outcomes[name] = (error.stage, error.errno, error.path)
        else:
            outcomes[name] = None
    return outcomes


def _in_child(
    work: Callable[[], dict[str, _Failure | None]],
) -> dict[str, _Failure | None]:
    """Run *work* in a fork; return what it returned, nothing if it failed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        data = stream.read()
    os.waitpid(pid, 0)
    return json.loads(data) if data else {}
