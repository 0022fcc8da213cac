"""Isolated test execution: every marked test runs in Linux namespaces of its own.

Imports point downward only: ``plugin`` and ``cli`` on top, then ``report`` and
``doctor``, then ``runner`` and ``template``, then what runs inside a sandbox
(``child``, ``init``, ``keeper``), then one module per Linux mechanism, and the
values (``spec``, ``wire``, ``syscalls``) at the bottom.
"""


def __getattr__(name: str) -> str:
    """``__version__`` of what is installed, looked up when somebody asks for it."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import metadata  # noqa: PLC0415 -- only where it is asked for

    try:
        return metadata.version("pytest-nsisolate")
    except metadata.PackageNotFoundError:
        return "unknown"  # imported out of a checkout that is not installed
