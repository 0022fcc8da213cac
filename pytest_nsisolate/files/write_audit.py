"""Record what a hermetic test tries to write to, or to reach, outside of its sandbox.

An audit hook (PEP 578): it sees what this process does by way of Python, before it is
done, and not whether it worked; what programs do that the test starts it does not see.
It is there only in tests with a profile, and nothing of it is reported of tests that pass.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from pytest_nsisolate.sandbox.operations.plan import PRIVATE
from pytest_nsisolate.spec.profiles import is_noise

#: So much is remembered, and told.
_MANY, _TOLD = 1000, 20
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: Events that change the path in their first argument, by the index of its directory's
#: descriptor; those with two paths come below.
_CHANGES = {
    "os.mkdir": (2, "make directory"),
    "os.rmdir": (1, "remove directory"),
    "os.remove": (1, "remove"),
    "os.truncate": (None, "truncate"),
    "os.chmod": (2, "change mode"),
    "os.chown": (3, "change owner"),
    "os.utime": (3, "change times"),
    "os.setxattr": (None, "set attribute"),
    "os.removexattr": (None, "remove attribute"),
}
_LOOPBACK = ("127.", "::1", "::ffff:127.", "localhost")
_LISTENS = "0A"  # in /proc/net/tcp

# Bound now: a test may patch these names in their modules.
_abspath, _fspath, _fsdecode, _readlink, _open = (
    os.path.abspath,
    os.fspath,
    os.fsdecode,
    os.readlink,
    open,
)


class Witness:
    """Listens to one test process, and says what was tried.

    Args:
        visible: directories that stay the host's where the sandbox has private ones.
        basetemp: pytest's directory for ``tmp_path``, which is the test's own.
    """

    def __init__(self, visible: list[str], basetemp: str | None) -> None:
        self._visible = tuple(visible)
        self._basetemp = basetemp
        self._tried: dict[str, None] = {}  # a set that keeps its order
        self._busy = False
        self._others = {
            "os.rename": self._renamed,
            "os.link": self._linked,
            "os.symlink": self._linked,
            "sqlite3.connect": self._database,
            "socket.connect": self._connected,
            "socket.sendto": self._sent,
            "socket.sendmsg": self._sent,
            "socket.getaddrinfo": self._looked_up,
            "socket.gethostbyname": self._looked_up,
        }

    def install(self) -> None:
        """Begin; there is no end to it but that of the process."""
        sys.addaudithook(self._hook)

    def told(self) -> str:
        """Return what has been tried since the last call, one line each."""
        lines = list(self._tried)
        self._tried.clear()
        more = len(lines) - _TOLD
        return "\n".join(lines[:_TOLD] + ([f"... and {more} more"] if more > 0 else []))

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if arguments[2] & _WRITES and not self._busy:
                self._take(self._opened, arguments)
        elif event.startswith(("os.", "socket.", "sqlite3.")) and not self._busy:
            if event in _CHANGES:
                place, what = _CHANGES[event]
                self._take(self._changed, arguments, place, what)
            elif event in self._others:
                self._take(self._others[event], arguments)

    def _take(self, handler: Any, *arguments: Any) -> None:
        self._busy = True
        try:
            handler(*arguments)
        # Whatever objects a test passes: this may neither fail it nor change it.
        except Exception:  # noqa: BLE001, S110 -- as said above
            pass
        finally:
            self._busy = False

    def _add(self, line: str) -> None:
        if len(self._tried) < _MANY:
            self._tried[line] = None

    # files

    def _opened(self, arguments: tuple[Any, ...]) -> None:
        self._changed(arguments, None, "open for writing")

    def _changed(self, arguments: tuple[Any, ...], place: int | None, what: str) -> None:
        directory = -1 if place is None else arguments[place]
        self._path(arguments[0], directory, what)

    def _path(self, given: object, directory: object, what: str) -> None:
        if isinstance(given, int):
            return  # a descriptor: it has been opened before
        path = _fsdecode(_fspath(given))  # type: ignore[call-overload]
        if isinstance(directory, int) and directory >= 0 and not path.startswith("/"):
            path = f"{_readlink(f'/proc/self/fd/{directory}')}/{path}"
        path = _abspath(path)
        if not self.is_own(path):
            self._add(f"{what}: {path}")

    def is_own(self, path: str) -> bool:
        """Return whether *path* is the sandbox's own, or is ignored."""
        if is_noise(path):
            return True
        if self._basetemp is not None and _below(path, self._basetemp):
            return True
        private = any(_below(path, top) for top in PRIVATE)
        return private and not any(_below(path, one) for one in self._visible)

    def _renamed(self, arguments: tuple[Any, ...]) -> None:
        source, target, of_source, of_target = arguments
        self._path(source, of_source, "rename")
        self._path(target, of_target, "rename to")

    def _linked(self, arguments: tuple[Any, ...]) -> None:
        self._path(arguments[1], arguments[-1], "make link")

    def _database(self, arguments: tuple[Any, ...]) -> None:
        if arguments[0] not in {":memory:", b":memory:", ""}:
            self._path(arguments[0], -1, "open database")

    # addresses

    def _connected(self, arguments: tuple[Any, ...]) -> None:
        self._address(arguments[0], arguments[1], "connect to")

    def _sent(self, arguments: tuple[Any, ...]) -> None:
        if arguments[1] is not None:
            self._address(arguments[0], arguments[1], "send to")

    def _address(self, socket_: Any, address: Any, what: str) -> None:
        if isinstance(address, (str, bytes)):
            path = _fsdecode(address)
            if path.startswith("\0"):
                return  # of its own network namespace
            if not self.is_own(_abspath(path)):
                self._add(f"{what}: {path}")
        elif socket_.family in {socket.AF_INET, socket.AF_INET6}:
            host, port = str(address[0]), int(address[1])
            name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            if not host.startswith(_LOOPBACK):
                self._add(f"{what}: {name}")
            elif socket_.type == socket.SOCK_STREAM and not _somebody_listens(port):
                self._add(f"{what}: {name}, where nothing listens in the sandbox")

    def _looked_up(self, arguments: tuple[Any, ...]) -> None:
        host = arguments[0]
        name = _fsdecode(host) if isinstance(host, (str, bytes)) else ""
        numeric = name.replace(".", "").isdigit() or ":" in name
        if name and not numeric and name not in {"localhost", socket.gethostname()}:
            self._add(f"look up: {name}")


def _below(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")


def _somebody_listens(port: int) -> bool:
    wanted = f":{port:04X}"
    for name in ("tcp", "tcp6"):
        try:
            with _open(f"/proc/self/net/{name}", encoding="ascii") as stream:
                for line in stream:
                    fields = line.split()
                    if fields[3] == _LISTENS and fields[1].endswith(wanted):
                        return True
        except OSError:
            continue
    return False
