"""Which process of a session is which, as told by what started it."""

from __future__ import annotations

from dataclasses import dataclass, field

from helpers.hosts import parent, proc_bytes

NUMBERED = 2
"""Of sandboxes and of tests: those beyond are as the last, and have no sites of their own."""


@dataclass
class Roles:
    """The roles by pid. A role never changes but by exec."""

    runner: int
    known: dict[int, str] = field(default_factory=dict)
    forked: dict[int, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def of(self, pid: int) -> str:
        """The role of a process that makes a system call."""
        role = self.known.get(pid)
        if role is None:
            role = self.known[pid] = self._find(pid)
        return role

    def calls(self, pid: int, name: str, flags: int) -> None:
        """It makes this call: what comes of it is told by that."""
        if name in ("vfork", "fork", "clone", "clone3"):
            vfork = name == "vfork" or bool(name == "clone" and flags & 0x4000)
            self.forked[pid] = "vfork" if vfork else "fork"
        elif name == "execve" and self.of(pid) == "spawn":
            self.known.pop(pid)
            self.forked[pid] = "exec"

    def _find(self, pid: int) -> str:
        if pid == self.runner:
            return "runner"
        command = proc_bytes(pid, "cmdline")
        if self.forked.get(pid) == "exec":
            names = {
                b"pytest_nsisolate.sandbox.keeper": "keeper",
                b"pytest_nsisolate.network.uplink.relay": "relay",
            }
            return next((role for word, role in names.items() if word in command), "program")
        above = parent(pid)
        role = self.known.get(above, "")
        if self.forked.get(above) == "vfork":
            return "spawn"
        if role == "runner":
            return "template"
        if role == "keeper":
            return "inner keeper"
        if role == "inner keeper":
            return self._number("init")
        if role == "template":
            return self._number("test")
        if role.startswith("init"):
            return self._number("inner init")
        if role.startswith("test"):
            return self._number("inner test")
        return "other"

    def _number(self, role: str) -> str:
        count = self.counts[role] = self.counts.get(role, 0) + 1
        return f"{role} {count}" if count <= NUMBERED else f"{role} later"
