"""Let tox find the Pythons that pyenv installed but did not put on PATH.

An inline plugin of tox, loaded by it from the directory of tox.ini. Where there is no pyenv it
does nothing; where ``TOX_DISCOVER`` is set already, that wins.
"""

from __future__ import annotations

import os
from pathlib import Path

_root = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
_found = sorted(str(path) for path in _root.glob("versions/3.1[0-9]*/bin/python"))
if _found:
    os.environ.setdefault("TOX_DISCOVER", ";".join(_found))
