"""Set up NAT for a session's links: a table of nftables(8).

One table in the name of the slot, put up before the first test and removed after the last.
Settings of the host are looked at and never changed: whether it forwards packets at all is
for its owner to say.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
from typing import TYPE_CHECKING

from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.core.linux.kernel_files import is_set

if TYPE_CHECKING:
    from pytest_nsisolate.core.locks import Slot

    from .addresses import Block

_LIMIT = 30
_SETTING4, _SETTING6 = "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"
_TABLE = """\
table inet {name}
delete table inet {name}
table inet {name} {{
    chain outward {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{prefix}*" return
        ip saddr {ipv4} masquerade
        ip6 saddr {ipv6} masquerade
    }}
}}
"""


def missing() -> StageError | None:
    """Return the first thing that this host lacks for NAT, found without changing anything."""
    return missing_forwarding() or missing_program()


def missing_forwarding() -> StageError | None:
    """Return an error if the host forwards no packets."""
    if is_set(_SETTING4):
        return None
    return StageError("forward packets", errno.EPERM, _SETTING4)


def missing_program() -> StageError | None:
    """Return an error if nft is not installed."""
    if shutil.which("nft") is not None:
        return None
    return StageError("set up nftables", errno.ENOENT, "nft")


def has_ipv6() -> bool:
    """Return whether the host forwards IPv6 as well."""
    return is_set(_SETTING6)


def rules(name: str, block: Block) -> str:
    """Return the rules for nft."""
    return _TABLE.format(name=name, prefix=block.prefix, ipv4=block.ipv4, ipv6=block.ipv6)


def _nft(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["nft", *words],
            input=text,
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
        )
    except FileNotFoundError:
        raise StageError("set up nftables", errno.ENOENT, "nft") from None
    except (OSError, subprocess.TimeoutExpired):
        raise StageError("set up nftables", errno.EIO, "nft") from None


def set_up(slot: Slot, block: Block) -> None:
    """Make the table, after a note of it in the slot's record.

    Raises:
        StageError: this host can't.
    """
    slot.record([f"/nft/{slot.name}"])
    done = _nft("-f", "-", text=rules(slot.name, block))
    if done.returncode:
        code = errno.EPERM if "not permitted" in done.stderr else errno.EOPNOTSUPP
        slot.record([])
        raise StageError("set up nftables", code, (done.stderr.splitlines() or ["nft"])[0])


def remove(name: str) -> None:
    """Remove a session's table; one that is not there is no error."""
    refused = missing_program()
    if refused is not None:
        raise refused
    done = _nft("delete", "table", "inet", name)
    if done.returncode and "No such file" not in done.stderr:
        raise StageError("set up nftables", errno.EPERM, (done.stderr.splitlines() or ["nft"])[0])
