"""Command line options and ini settings: declare them, read them and check their values."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import pytest

from pytest_nsisolate.spec.keys import KEYS, Layer, SpecError, not_allowed, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsisolate.network.uplink.addresses import Ranges

#: The values of --ns-missing and --ns-keep, the defaults first.
MISSING = ("error", "skip", "fork", "run")
KEEP = ("none", "failed", "all")
#: How long kept sandboxes live, in seconds, and how long at most.
KEEP_LIMIT, _LONGEST = 3600.0, 30 * 86400.0
REPORTS = (".json", ".html")
#: The number of jobs that stands for ``auto``.
AUTO = 0


def add(parser: pytest.Parser) -> None:
    """Declare all options and ini settings."""
    group = parser.getgroup("nsisolate", "isolated tests (pytest-nsisolate)")
    group.addoption(
        "--ns-isolate", action="store_true", dest="ns_isolate", help="isolate every test"
    )
    group.addoption(
        "--ns-jobs",
        dest="ns_jobs",
        metavar="N",
        help="test processes at once: a number, or auto (as many as there is room for); default 1",
    )
    group.addoption(
        "--ns-missing",
        dest="ns_missing",
        metavar="{error,skip,fork,run}",
        help="what to do with a test whose isolation this host can't give (default error); "
        "fork: a forked process without namespaces; a key that fork or run can't hold is an error",
    )
    group.addoption(
        "--ns-doctor",
        action="store_true",
        dest="ns_doctor",
        help="print what this host can do, and for what fails its cause and the fix; then exit",
    )
    group.addoption(
        "--ns-debug", action="store_true", dest="ns_debug", help="print the plan of each sandbox"
    )
    group.addoption(
        "--ns-keep",
        dest="ns_keep",
        metavar="{none,failed,all}",
        help="whose sandboxes live on after the session, to be looked into (nsisolate enter); "
        "default none",
    )
    group.addoption(
        "--ns-usage",
        dest="ns_usage",
        metavar="N",
        help="at the end, list the N isolated tests that used most memory, and most CPU",
    )
    group.addoption(
        "--ns-report",
        action="append",
        dest="ns_report",
        metavar="FILE",
        help="write every test's outcome, phases, limits and usage to FILE.json (see "
        "docs/report-schema.md) or FILE.html (one page to look at); may be given twice",
    )
    group.addoption(
        "--ns-trace",
        dest="ns_trace",
        metavar="FILE.json",
        help="write a timeline of isolated tests in the Chrome trace event format (for Perfetto)",
    )
    group.addoption(
        "--ns-properties",
        action="store_true",
        dest="ns_properties",
        help="add each isolated test's outcome and figures to its user properties (ns_outcome, "
        "ns_wall, ns_cpu, ns_peak_memory), which junit files and other reports show",
    )
    for key in KEYS.values():
        group.addoption(
            f"--ns-{key.dashed}",
            dest=f"ns_key_{key.name}",
            metavar=key.name.upper(),
            help=f"{key.help}; over all markers",
        )
        parser.addini(
            f"nsisolate_{key.name}", f"default of the marker's key {key.name}: {key.help}"
        )
    parser.addini(
        "nsisolate_artifacts",
        "patterns of files that are brought out of every isolated test which made or changed "
        "them, such as *.log /tmp/core.* build/**/*.html; relative to the working directory",
        type="args",
    )
    parser.addini(
        "nsisolate_artifacts_dir",
        "where they go, and what sandbox.export() copies: relative to the root directory; by "
        "default nsisolate-artifacts in pytest's base temporary directory",
    )
    parser.addini(
        "nsisolate_keep_limit",
        "how long sandboxes live on that --ns-keep keeps: seconds, or 90s, 30m, 2h, 1d; default 1h",
    )
    parser.addini("nsisolate_missing", "default of --ns-missing")
    parser.addini("nsisolate_jobs", "default of --ns-jobs")
    parser.addini(
        "nsisolate_subnet",
        'addresses of links, for net="veth": an IPv4 and an IPv6 network, such as 10.99.0.0/16',
    )
    parser.addini("nsisolate_isolate", "isolate every test", type="bool", default=False)
    parser.addini("nsisolate_properties", "default of --ns-properties", type="bool", default=False)


class Options(NamedTuple):
    """What the user chose for the whole session."""

    isolate: bool
    jobs: int
    missing: str
    debug: bool
    outer: Layer
    inner: Layer
    usage: int
    reports: tuple[str, ...]
    trace: str | None
    artifacts: tuple[str, ...]
    artifacts_dir: str
    ranges: Ranges | None = None
    keep: str = "none"
    keep_limit: float = KEEP_LIMIT
    properties: bool = False

    @property
    def records(self) -> bool:
        """Whether any report is to say what tests used."""
        return bool(self.usage or self.reports or self.trace)

    @property
    def chosen(self) -> dict[str, Any]:
        """The options that reports name; those of keys under "keys"."""
        return {
            "isolate": self.isolate,
            "jobs": self.jobs or "auto",
            "missing": self.missing,
            "keys": {**self.inner.values, **self.outer.values},
        }

    @classmethod
    def read(cls, config: pytest.Config) -> Options:
        """Read and check all options and settings.

        Raises:
            SpecError: a value is not allowed.
        """
        outer, inner = {}, {}
        for name, key in KEYS.items():
            value = config.getoption(f"ns_key_{name}")
            if value is not None:
                outer[name] = _value(name, value, f"option --ns-{key.dashed}")
            text = config.getini(f"nsisolate_{name}")
            if text:
                inner[name] = _value(name, text, f"ini nsisolate_{name}")
        return cls(
            isolate=_flag(config, "isolate"),
            jobs=_jobs(*_chosen(config, "jobs")),
            missing=_choice("missing", *_chosen(config, "missing"), MISSING),
            debug=bool(config.getoption("ns_debug")),
            outer=Layer("the command line", outer),
            inner=Layer("the ini file", inner),
            usage=_usage(config.getoption("ns_usage")),
            reports=_reports(config.getoption("ns_report") or []),
            trace=_trace(config.getoption("ns_trace")),
            artifacts=_artifacts(config.getini("nsisolate_artifacts")),
            artifacts_dir=_artifacts_dir(config),
            ranges=_ranges(config.getini("nsisolate_subnet")),
            keep=_choice("keep", config.getoption("ns_keep"), "option --ns-keep", KEEP),
            keep_limit=_keep_limit(config.getini("nsisolate_keep_limit")),
            properties=_flag(config, "properties"),
        )


def _value(name: str, value: object, source: str) -> Any:
    from pytest_nsisolate.spec.parsing import parse_value  # noqa: PLC0415 -- only where a key is given

    return parse_value(name, value, source)


def _ranges(text: str | None) -> Ranges | None:
    if not text:
        return None
    from pytest_nsisolate.network.uplink.addresses import Ranges  # noqa: PLC0415 -- only where somebody sets it

    return Ranges.parse(text, "ini nsisolate_subnet")


def _flag(config: pytest.Config, name: str) -> bool:
    """Return whether the option or the ini setting of that name is on."""
    try:
        return bool(config.getini(f"nsisolate_{name}")) or bool(config.getoption(f"ns_{name}"))
    except (ValueError, pytest.UsageError) as error:  # the latter since pytest 9.2
        raise SpecError(
            f"ini nsisolate_{name}: {error}; allowed: true or false (1, 0, yes, no, on, off)"
        ) from None


def _chosen(config: pytest.Config, name: str) -> tuple[Any, str]:
    value = config.getoption(f"ns_{name}")
    if value is not None:
        return value, f"option --ns-{name}"
    return config.getini(f"nsisolate_{name}") or None, f"ini nsisolate_{name}"


def _jobs(value: str | None, source: str) -> int:
    if value is None:
        return 1
    return AUTO if value == "auto" else _count("jobs", value, source, ", or auto")


def _usage(value: str | None) -> int:
    return 0 if value is None else _count("usage", value, "option --ns-usage")


def _count(name: str, value: str, source: str, also: str = "") -> int:
    """Read a number from 1 up."""
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise refusal(source, name, value, f"a number from 1 up{also}")
    return int(value)


def _choice(name: str, value: str | None, source: str, allowed: tuple[str, ...]) -> str:
    """Check that a value is one of the allowed ones, of which the first is the default."""
    if value is None:
        return allowed[0]
    if value not in allowed:
        raise refusal(source, name, value, ", ".join(allowed))
    return value


def _reports(values: list[str]) -> tuple[str, ...]:
    for value in values:
        _check_suffix("report", value, REPORTS)
    return tuple(dict.fromkeys(values))


def _trace(value: str | None) -> str | None:
    if value is not None:
        _check_suffix("trace", value, (".json",))
    return value


def _check_suffix(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if os.path.splitext(value)[1].lower() not in allowed:
        ends = f"a file that ends in {' or '.join(allowed)}"
        raise refusal(f"option --ns-{name}", name, value, ends)


def _keep_limit(text: str | None) -> float:
    if not text:
        return KEEP_LIMIT
    from pytest_nsisolate.spec.units import LONG_TIMES, quantity  # noqa: PLC0415 -- only where somebody sets it

    try:
        seconds = quantity(text, LONG_TIMES)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST:
        allowed = (
            "a time above 0 and up to 30d: seconds, or a number with s, m, h or d, such as 90s, "
            "30m, 2h"
        )
        raise SpecError(f"ini nsisolate_keep_limit: {not_allowed(repr(text), allowed)}")
    return seconds


def _artifacts(patterns: list[str]) -> tuple[str, ...]:
    for pattern in patterns:
        if not pattern.strip("/") or ".." in pattern.split("/"):
            allowed = "patterns of files, such as *.log or build/**/*.html, without .."
            text = not_allowed(f"pattern {pattern!r}", allowed)
            raise SpecError(f"ini nsisolate_artifacts: {text}")
    return tuple(dict.fromkeys(patterns))


def _artifacts_dir(config: pytest.Config) -> str:
    folder = config.getini("nsisolate_artifacts_dir")
    return os.path.join(config.rootpath, folder) if folder else ""
