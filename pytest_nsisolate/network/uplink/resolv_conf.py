"""Choose the name servers of a sandbox with NAT: those of the host that it can reach."""

from __future__ import annotations

import ipaddress

_HOST = "/etc/resolv.conf"
#: What systemd-resolved, whose own address is a loopback's, asks in its turn.
_BEHIND_STUB = "/run/systemd/resolve/resolv.conf"


def for_nat(path: str = _HOST, behind: str = _BEHIND_STUB) -> str | None:
    """Return a resolv.conf(5) without servers on the host's loopback; None if the host has none.

    If that leaves no server, the ones that a resolver on the loopback asks are taken; if
    those aren't known either, there is none, and names outside can't be resolved.
    """
    text = _read(path)
    if text is None:
        return None
    kept = reachable(text)
    if _has_server(kept):
        return kept
    upstream = reachable(_read(behind) or "")
    return upstream if _has_server(upstream) else kept


def reachable(text: str) -> str:
    """Return *text* without the servers that only the host itself can reach."""
    return "".join(line + "\n" for line in text.splitlines() if not _is_local(line))


def _has_server(text: str) -> bool:
    return any(line.split()[:1] == ["nameserver"] for line in text.splitlines())


def _is_local(line: str) -> bool:
    words = line.split()
    if len(words) < 2 or words[0] != "nameserver":
        return False
    try:
        return ipaddress.ip_address(words[1].partition("%")[0]).is_loopback
    except ValueError:
        return False


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except OSError:
        return None
