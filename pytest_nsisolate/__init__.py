"""Run each marked test in Linux namespaces of its own.

The docstring of each folder says what lives there, in which process it runs and what it may
import; docs/architecture.md shows how the folders and processes fit together.
"""


def __getattr__(name: str) -> str:
    """Look up ``__version__`` of the installed package when it is read."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import metadata  # noqa: PLC0415 -- only where it is asked for

    try:
        return metadata.version("pytest-nsisolate")
    except metadata.PackageNotFoundError:
        return "unknown"  # imported out of a checkout that is not installed
