"""Start a process that runs one module of this package in a bare interpreter.

A bare interpreter reads neither the environment nor the site directories (``python -I -S``), so
it starts in milliseconds and sees no module that a suite installed. The module that it runs
imports little (`tests/project/test_layers.py` has the list) and defines a function ``main``.
"""

from __future__ import annotations

import os
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

#: The directory of this package.
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
#: Appended to the path, so that no module beside the package hides one of the standard library.
_BOOT = "import sys; sys.path.append({parent!r}); from {module} import main; main({args})"


def start(
    module: str,
    *arguments: int,
    words: Sequence[str] = (),
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Start a bare interpreter that calls the ``main`` of a module.

    Standard input and output are `os.devnull` unless *options* say otherwise.

    Args:
        module: the full name, which stands in the command line of the process.
        arguments: what ``main`` is called with.
        words: what the process finds in ``sys.argv[1:]``.
        options: of `subprocess.Popen`.

    Raises:
        OSError: the interpreter can't be started.
    """
    code = _BOOT.format(
        parent=os.path.dirname(PACKAGE),
        module=module,
        args=", ".join(map(str, arguments)),
    )
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **options}
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", code, *words], **options)


def start_program(words: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start another program, which is killed when the thread that calls this ends.

    Args:
        words: its path and its arguments.
        options: of `subprocess.Popen`.

    Raises:
        OSError: the interpreter can't be started.
    """
    return start("pytest_nsisolate.core.tied_program", os.getpid(), words=words, **options)
