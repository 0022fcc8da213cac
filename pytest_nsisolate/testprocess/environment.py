"""What a test process changes of itself before its test: environment, time zone, umask.

The locale of this interpreter stays what it was at the start of the session: changing
``LANG`` concerns the programs that the test starts.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.spec import profiles

if TYPE_CHECKING:
    from pytest_nsisolate.spec.spec import Spec


def forget_host_name() -> None:
    """Let `platform` ask for it again: whoever asked for the system's name has its node as well."""
    platform: Any = sys.modules.get("platform")
    if platform is not None:
        platform._uname_cache = None


def apply(spec: Spec) -> None:
    """Set them as *spec* says; with a profile ``/tmp`` is the test's own."""
    if spec.env != "inherit":
        before = {name: os.environ.get(name) for name in ("TZ", "TMPDIR")}
        environment = spec.environment(os.environ)
        os.environ.clear()
        os.environ.update(environment)
        if os.environ.get("TZ") != before["TZ"] and hasattr(time, "tzset"):
            time.tzset()
        tempfile: Any = sys.modules.get("tempfile")
        if tempfile is not None and os.environ.get("TMPDIR") != before["TMPDIR"]:
            tempfile.tempdir = None  # asked for before the session began, and kept
    if spec.profile is not None:
        os.umask(profiles.UMASK)
        if os.environ.get("HOME") == profiles.HOME:
            with contextlib.suppress(FileExistsError):
                os.mkdir(profiles.HOME, 0o700)
