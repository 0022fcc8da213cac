"""The command line: ``nsisolate`` and ``python -m pytest_nsisolate``."""

from __future__ import annotations

import argparse
import os
import sys

from pytest_nsisolate.core.linux.syscalls import LINUX
from pytest_nsisolate.spec.keys import KEYS, SpecError, not_allowed

_RUN = """\
Run one command in a Linux sandbox of its own, held to limits by the kernel, and print
what it used. No root is needed for the sandbox.

In the sandbox the command sees its own processes only, a network with nothing but its
own loopback, and an empty private /tmp, /var/tmp and /dev/shm (the working directory and
the place where the command is installed stay visible). Other files are the host's.
When the command ends, everything that it left running is ended as well."""

_EXAMPLES = """\
examples:
  nsisolate run -- make test
  nsisolate run --memory 512M --cpus 0.5 --timeout 60 -- python build.py
  nsisolate run --net host --env clean --env MODE=ci -- ./script.sh

exit status:
  the command's own; 128+N if signal N ended it; 124 if its time was over; 125 if the
  sandbox could not be built or a limit could not be held (`nsisolate doctor` says why);
  126 if the command can't be executed; 127 if there is none; 137 if it ran out of memory
  (OUT OF MEMORY is then said on standard error); 2 for a mistake in the options."""

_ENTER = """\
Run a shell, or a command, in all the namespaces of a sandbox that is alive: one that a
session kept (pytest --ns-keep), or one that runs. It has your terminal, the rights of
the test, and, in a kept one, the directory and the environment that the test started
with. It is not held to the test's limits. What it leaves running stays in the sandbox.

exit status:
  the command's own; 128+N if signal N ended it; 125 if it could not be started; 126 if
  the command can't be executed; 127 if there is none."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; give its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    parser, runner = _parsers()
    # What follows the first -- is the command's, whatever it looks like.
    cut = words.index("--") if "--" in words else len(words)
    chosen, unknown = parser.parse_known_args(words[:cut])
    if unknown:
        known = (
            "`nsisolate run --help` lists what is allowed"
            if chosen.command == "run"
            else "see --help"
        )
        (runner if chosen.command == "run" else parser).error(
            f"not known here: {' '.join(unknown)}; {known}"
        )
    rest = words[cut:] if getattr(chosen, "words", None) else words[cut + 1 :]
    if chosen.command in ("run", "enter") and not LINUX:
        sys.stderr.write("nsisolate: namespaces are a feature of Linux: it can't run here\n")
        return 125
    if chosen.command == "enter":
        return _enter(chosen.id, (*chosen.words, *rest))
    if chosen.command == "run":
        from . import run as run_command
        from . import run_request

        try:
            asked = run_request.request_of(vars(chosen), [*chosen.words, *rest])
        except SpecError as error:
            runner.error(str(error))
        return run_command.run(asked)
    if cut < len(words):
        parser.error("-- is for `nsisolate run` and `nsisolate enter`")
    if chosen.command == "ps":
        return _ps()
    if chosen.command == "gc":
        if chosen.all and chosen.ids:
            parser.error("gc: --all and an ID exclude each other")
        return _gc(chosen.ids, everything=chosen.all)
    if chosen.command == "ns":
        return _ns(chosen.pid)
    from .doctor import print_report

    return print_report()


def _parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        prog="nsisolate", description="Linux sandboxes for tests: what stands around pytest."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("doctor", help="print what this host can do, why not, and the mend")
    runner = commands.add_parser(
        "run",
        help="run one command in a sandbox, with limits, and print what it used",
        usage="nsisolate run [OPTION...] -- COMMAND [ARGUMENT...]",
        description=_RUN,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    limits = runner.add_argument_group("limits (held by the kernel, or the command does not start)")
    _add(limits, limits=True)
    sandbox = runner.add_argument_group("sandbox")
    _add(sandbox, limits=False)
    sandbox.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="ENV",
        help="inherit: your environment (default); clean: what programs need of it; NAME=VALUE: "
        "add this. May be given several times",
    )
    output = runner.add_mutually_exclusive_group()
    output.add_argument("--quiet", action="store_true", help="don't print what it used")
    output.add_argument(
        "--json", action="store_true", help="print what it used as one line of JSON"
    )
    runner.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    viewer = commands.add_parser(
        "ns",
        help="show the namespaces of a process, and who shares them",
        description="Show which namespaces a process is in, which of them you are in as well, who "
        "else is, and in which user and pid namespaces they lie. Root sees all; another user sees "
        "processes of its own.",
    )
    viewer.add_argument("pid", metavar="PID", help="the process, as you see it; self is this one")
    commands.add_parser(
        "ps",
        help="list the sandboxes that are alive, kept and running",
        description="List the sandboxes that are alive: those that a session kept (--ns-keep), "
        "with the time that is left to them, and those that run, by the pid of their PID 1. "
        "Root sees all, another user its own.",
    )
    visitor = commands.add_parser(
        "enter",
        help="run a shell or a command in a sandbox that is alive",
        usage="nsisolate enter ID [COMMAND [ARGUMENT...]]",
        description=_ENTER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    visitor.add_argument("id", metavar="ID", help="as `nsisolate ps` lists it")
    visitor.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    collector = commands.add_parser(
        "gc",
        help="remove what killed sessions left behind, and end kept sandboxes",
        description="Remove the cgroups, links and nftables that sessions of yours left when "
        "they were killed. All else ends with its session by itself. Sessions that still run are "
        "left alone, and so are kept sandboxes, unless they are named.",
    )
    collector.add_argument("--all", action="store_true", help="end your kept sandboxes as well")
    collector.add_argument(
        "ids", nargs="*", metavar="ID", help="end this kept sandbox, and sweep nothing"
    )
    return parser, runner


def _add(group: argparse._ArgumentGroup, *, limits: bool) -> None:
    """Add the options of `nsisolate run` that are keys, either the limits or the others."""
    for key in KEYS.values():
        if key.run is not None and bool(key.controller) is limits:
            metavar, text = key.run
            group.add_argument(f"--{key.dashed}", dest=key.name, metavar=metavar, help=text)


def _ns(word: str) -> int:
    if not LINUX:
        sys.stderr.write("nsisolate: namespaces are a feature of Linux: there are none here\n")
        return 1
    from pytest_nsisolate.core.linux import namespace_files

    from . import ns

    text = str(os.getpid()) if word == "self" else word
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 31):
        sys.stderr.write(f"nsisolate ns: {not_allowed(repr(word), 'a pid, or self')}\n")
        return 2
    try:
        lines = ns.as_text(namespace_files.look(int(text)))
    except ProcessLookupError:
        sys.stderr.write(f"nsisolate ns: there is no process {text} here (`ps -e` lists them)\n")
        return 1
    except PermissionError:
        why = (
            "it is another user's, or has more rights; root sees them: sudo nsisolate ns PID"
            if os.geteuid()
            else "it belongs to a user namespace around this one; look from there"
        )
        sys.stderr.write(
            f"nsisolate ns: the namespaces of process {text} are not shown to you: {why}\n"
        )
        return 1
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _enter(word: str, command: tuple[str, ...]) -> int:
    from pytest_nsisolate.runner.kept import live

    from . import enter

    found = live.find(word)
    if found is None:
        sys.stderr.write(
            f"nsisolate enter: there is no sandbox {word} that you may enter "
            "(`nsisolate ps` lists them)\n"
        )
        return enter.FAILED
    return enter.enter(found, command)


def _ps() -> int:
    if not LINUX:
        sys.stderr.write("nsisolate: namespaces are a feature of Linux: there are none here\n")
        return 1
    from . import ps

    sys.stdout.write("\n".join(ps.as_text()) + "\n")
    return 0


def _gc(ids: list[str], *, everything: bool) -> int:
    if not LINUX:
        sys.stdout.write("nothing to sweep\n")
        return 0
    from pytest_nsisolate.cgroups import session as cgroup_session
    from pytest_nsisolate.network.uplink import veth

    from . import ps

    lines, failed = ps.end(None if everything else ids) if everything or ids else ([], [])
    if not ids:
        removed, left = cgroup_session.sweep_all()
        links, lasting = veth.sweep_all()
        lines += [f"removed {path}" for path in removed + links]
        failed += [f"could not be removed: {path}" for path in left + lasting]
    sys.stdout.write("\n".join([*lines, *failed] or ["nothing to sweep"]) + "\n")
    return 1 if failed else 0
