"""Define the profiles: bundles of keys, and the environment of a test that has one.

Nothing here looks at the host. A key that is given anywhere, on the command line, in a marker or
in the ini file, wins over the bundle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: Keys by profile.
BUNDLES: dict[str, dict[str, Any]] = {
    "hermetic": {"fs": "overlay", "net": "loopback", "env": "clean", "hostname": "isolated"},
}
#: Environment variables that ``env="clean"`` lets through, by name and by prefix.
_CLEAN_NAMES = frozenset(
    "PATH HOME USER LOGNAME SHELL TERM COLUMNS LINES LANG LANGUAGE TZ TMPDIR VIRTUAL_ENV".split()  # noqa: SIM905 -- reads as a list of words
)
_CLEAN_PREFIXES = ("LC_", "PYTHON", "PYTEST_", "COVERAGE_", "COV_")
#: The home directory of hermetic tests: private, and empty at the start of each.
HOME = "/tmp/home"  # noqa: S108 -- in the sandbox's own /tmp
#: Variables that have these values in hermetic tests, whatever they are on the host.
FIXED = {"HOME": HOME, "LANG": "C.UTF-8", "TZ": "UTC"}
UMASK = 0o022
#: Of the allow-list of ``env="clean"``, what would still differ from host to host.
_DROPPED = frozenset({"LANGUAGE", "TMPDIR"})


def clean(current: Mapping[str, str]) -> dict[str, str]:
    """Return the part of an environment that is on the allow-list."""
    return {
        name: value
        for name, value in current.items()
        if name in _CLEAN_NAMES or name.startswith(_CLEAN_PREFIXES)
    }


def fixed(current: Mapping[str, str]) -> dict[str, str]:
    """Make the environment of a hermetic test out of *current*."""
    kept = {
        name: value
        for name, value in clean(current).items()
        if name not in _DROPPED and not name.startswith("LC_")
    }
    return {**kept, **FIXED}


def is_noise(path: str) -> bool:
    """Return whether a path is one that Python, pytest or coverage write to in any test."""
    if path.startswith(("/dev/", "/proc/")) and not path.startswith("/dev/shm/"):  # noqa: S108 -- it is meant
        return True
    parts = path.split("/")
    return "__pycache__" in parts or ".pytest_cache" in parts or parts[-1][:9] == ".coverage"
