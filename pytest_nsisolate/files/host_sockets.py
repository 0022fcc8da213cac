"""Find the sockets of the host's services, which a hermetic test may not see.

Usable without pytest.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

from .needed_paths import home_of, is_private

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Directories that hold little but sockets and what belongs to them: of users'
#: sessions (D-Bus, Wayland, agents, sound), of D-Bus, of container engines, of names.
_DIRECTORIES = (
    "/run/user",
    "/run/dbus",
    "/run/docker",
    "/run/containerd",
    "/run/podman",
    "/run/crio",
    "/run/libvirt",
    "/run/nscd",
    "/run/avahi-daemon",
    "/run/cups",
    "/run/pcscd",
)
#: Sockets that may be there without anybody who listens yet.
_FILES = (
    "/run/docker.sock",
    "/run/snapd.socket",
    "/run/snapd-snap.socket",
    "/run/systemd/journal/dev-log",
    "/run/systemd/journal/socket",
    "/run/systemd/journal/stdout",
    "/run/systemd/notify",
    "/run/systemd/private",
    "/dev/log",
)
#: Variables that name a socket, or hold addresses with ``path=`` or ``unix://``.
_VARIABLES = (
    "SSH_AUTH_SOCK",
    "DBUS_SESSION_BUS_ADDRESS",
    "DBUS_SYSTEM_BUS_ADDRESS",
    "DOCKER_HOST",
    "CONTAINER_HOST",
    "GPG_AGENT_INFO",
    "PULSE_SERVER",
    "WAYLAND_DISPLAY",
)


def find(environment: Mapping[str, str], needed: Iterable[str]) -> tuple[str, ...]:
    """Find the paths to hide: those that exist, resolved.

    Args:
        needed: directories whose sockets belong to the tests.
    """
    wanted = [*_DIRECTORIES, *_FILES, *_named(environment), *_listening()]
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if runtime and os.path.dirname(runtime) == "/run/user":
        wanted.append(runtime)
    own = [os.path.realpath(path) for path in needed if path]
    shown = [os.path.realpath(path) for path in home_of(environment)]
    found = set()
    for path in wanted:
        real = os.path.realpath(path)
        unseen = is_private(real) and not any(_below(real, one) for one in shown)
        if unseen or any(_below(real, one) for one in own):
            continue
        try:
            mode = os.stat(real).st_mode
        except OSError:
            continue  # not there, or closed to this user
        if stat.S_ISSOCK(mode) or (path in _DIRECTORIES and stat.S_ISDIR(mode)):
            found.add(real)
    tops = [path for path in _DIRECTORIES if path in found]
    return tuple(
        sorted(path for path in found if not any(_below(path, top) and path != top for top in tops))
    )


def without_directories(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Return the *paths* that overlays can hide: on older kernels without the directories.

    Before Linux 6.6 a directory can't be hidden in an overlay (`explain`). The sockets
    below it don't answer in one in any case.
    """
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if version is None or (int(version[1]), int(version[2])) >= (6, 6):
        return paths
    return tuple(path for path in paths if not os.path.isdir(path))


def _below(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")


def _named(environment: Mapping[str, str]) -> list[str]:
    paths = []
    for name in _VARIABLES:
        # unix:path=/run/x,guid=1;unix:path=/run/y  unix:///run/x  /run/x:1:2  /run/x
        for address in environment.get(name, "").replace(";", ",").split(","):
            start = address.find("/")
            if start >= 0:
                paths.append("/" + address[start:].lstrip("/"))
                paths.append(paths[-1].partition(":")[0])
    return paths


def _listening() -> list[str]:
    """List every bound path of this network namespace."""
    try:
        with open("/proc/net/unix", "rb") as stream:
            lines = stream.read().splitlines()[1:]
    except OSError:
        return []
    fields = [line.split(None, 7) for line in lines]
    return [os.fsdecode(one[7]) for one in fields if len(one) == 8 and one[7].startswith(b"/")]
