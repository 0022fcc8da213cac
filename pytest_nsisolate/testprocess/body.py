"""The pytest side of a test process: one item's protocol, told in frames.

`PytestBody.prepare` runs once, in the template: it takes the hooks that speak
for the session (reports, warnings, terminal) away from the plugins of the
runner, and gives them to `_Teller`. `run` then calls pytest's own protocol
hook, wrappers of other plugins and all.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import functools
import gc
import os
import random
import signal
import socket
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.junitxml import xml_key
from _pytest.runner import runtestprotocol

from pytest_nsisolate.cgroups import always_on
from pytest_nsisolate.cgroups.rlimits import limit_process
from pytest_nsisolate.core import wire
from pytest_nsisolate.core.descriptors import is_open, move_up, open_descriptors
from pytest_nsisolate.core.messages import GO, SET_UP, Order
from pytest_nsisolate.core.outcome import (
    LEFT_TITLE,
    TRIED_TITLE,
    left_text,
)
from pytest_nsisolate.core.proc import left_running, line_of
from pytest_nsisolate.core.syscalls import LINUX, StageError
from pytest_nsisolate.core.traceback_text import last_stacks, trim_trace
from pytest_nsisolate.core.usage import Usage, of_this_process
from pytest_nsisolate.reports import coverage as coverage_data
from pytest_nsisolate.reports import other_plugins
from pytest_nsisolate.reports.brief import BRIEF, briefly, may_be_brief
from pytest_nsisolate.reports.serialise import serialised

from . import debugger, environment, hints, huge_pages, pytest_private, template
from .frame_stream import AT_ONCE, Stream, TerminalFile
from .output_files import Outputs, has_descriptor
from .sandbox_info import SandboxInfo, inside
from .warmup import rehearse

if TYPE_CHECKING:
    import warnings
    from collections.abc import Callable, Iterator, Sequence

    from pytest_nsisolate.cgroups.budget import Budgets
    from pytest_nsisolate.files.artifact_policy import Retention
    from pytest_nsisolate.files.write_audit import Witness
    from pytest_nsisolate.network.topology.per_test import Topologies
    from pytest_nsisolate.network.uplink.addresses import Link
    from pytest_nsisolate.network.uplink.session import Network
    from pytest_nsisolate.spec.spec import Spec

    from .snapshot_fixtures import Setting

#: Sent by the runner when a test's time is over: dumps every thread's stack
#: (in C, so also when Python code can't run), then raises in the main thread.
#: A real-time signal that neither glibc nor common test code uses.
TIMEOUT_SIGNAL = (signal.SIGRTMAX - 3) if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2
#: Sent by the runner when much of a test's memory is used: the same dump, and nothing else.
STACK_SIGNAL = (signal.SIGRTMAX - 4) if hasattr(signal, "SIGRTMAX") else signal.SIGUSR1

# Bound now: a test may patch these names in their modules, and its reports are
# sent while the patch is on.
_fstat, _pread = os.fstat, os.pread
_getppid, _kill, _clock, _sleep = os.getppid, os.kill, time.perf_counter, time.sleep
_collect, _get_count = gc.collect, gc.get_count

#: What programs print where an overlay can't copy a file (`foreign`).
_OVERFLOW = os.strerror(errno.EOVERFLOW)

#: How often to look whether the runner has heard, while a debugger is on, in seconds.
_GLANCE = 0.005

#: How much of a failure's text is searched for what a hint is about, in characters.
_HINT_LIMIT = 1 << 16

#: Kinds of frames that are cut where they are too large.
_CUT = frozenset({"report", "warning"})

#: Python 3.14 collects in increments, and has no middle generation.
_GENERATIONS = sys.version_info < (3, 14)


class _Teller:
    """Hook implementations of a test process."""

    def __init__(self, body: PytestBody) -> None:
        self._body = body

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        runtestprotocol(item, nextitem=nextitem)
        return True

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._body.tell_report(report)

    @pytest.hookimpl
    def pytest_warning_recorded(
        self,
        warning_message: warnings.WarningMessage,
        when: str,
        nodeid: str,
        location: tuple[str, int, str] | None,
    ) -> None:
        self._body.tell_warning(warning_message, when, nodeid, location)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        if self._body.goes_on and self._body.stops:
            # No test follows in this process after all.
            item.session._setupstate.teardown_exact(None)
        elif self._body.rehearsing or self._body.goes_on:
            return
        # What this test leaves to the collector is destroyed while its errors
        # can still be shown. The objects of before the fork are frozen.
        # What was made since is in the young generations, unless these were
        # collected meanwhile (counted in the third number).
        _collect(1 if _GENERATIONS and _get_count()[2] == 0 else 2)
        pytest_private.show_unraisable(item.config)


def _tell_owners(report: pytest.TestReport) -> None:
    """Say what it means if a write failed since an overlay can't copy a file's owner."""
    texts = [report.longreprtext, *(text for _, text in report.sections)]
    found = [text for text in texts if _OVERFLOW in text]
    if found:
        from pytest_nsisolate.explain.files import OWNERS_TITLE, owners_text  # noqa: PLC0415 -- a rare failure

        report.sections.append((OWNERS_TITLE, owners_text(found[0])))


class PytestBody:
    """`child.Body` for pytest items."""

    def __init__(
        self,
        session: pytest.Session,
        specs: dict[int, Spec],
        budgets: Budgets | None = None,
        network: Network | None = None,
        topologies: Topologies | None = None,
        *,
        direct: bool,
        at_start: frozenset[int],
        snapshots: Sequence[Setting] = (),
        retention: Retention | None = None,
        witness: Witness | None = None,
    ) -> None:
        self._session = session
        self._config = session.config
        self._specs = specs
        self._budgets = budgets
        self._network = network
        self._channel = network.channel if network is not None else -1
        self._link: Link | None = None
        self._topologies = topologies
        self._direct = direct
        self._at_start = at_start
        self._retention = retention
        self._witness = witness
        self._settings = snapshots
        self._base: pytest.Collector | None = None  # what the snapshot holds, in its tests
        self._files: list[Any] = []  # that its fixtures left open
        self._gc = gc.isenabled()
        self._outputs: Outputs
        self._stream: Stream | None = None
        self._trace = -1
        self._item: pytest.Item
        self._index = -1
        self._order: Order
        self._next: pytest.Item | None = None
        self._turns = 0  # that are over
        self._used: Usage | None = None
        self._apart = False  # whether the runner is to combine this process's coverage
        self._timed_out = False
        self._failed = self._failed_before = False
        self._stacks_shown = False
        self.rehearsing = False
        self._briefly = may_be_brief(session.config)
        self._keywords: dict[str, Any] | None = None  # that were told briefly, of the same test
        self._gate = -1
        self._debugging = False
        self.descriptors: set[int] = set()
        # Python seeds it anew in each fork, the template's included; a frozen
        # start includes its state.
        self._random = random.getstate()
        self._way = always_on.way() if LINUX else None

    def prepare(self) -> PytestBody:
        """Make the template: called once in it, before any test process is forked."""
        config = self._config
        self._outputs = Outputs(config)
        # Capture is suspended between tests: these lie below it.
        self._out, self._err = sys.stdout, sys.stderr
        self._xml = config.stash.get(xml_key, None)
        self._suite_properties = len(self._xml.global_properties) if self._xml is not None else 0
        factory: Any = getattr(config, "_tmp_path_factory", None)
        # Always private, and to be written to.
        self._private = "/tmp" if factory is None else str(factory.getbasetemp())  # noqa: S108 -- as said
        self._entered = bool(config.hook.pytest_nsisolate_enter.get_hookimpls())
        other_plugins.take_benchmarks(config)  # those of the runner are not to be told again
        # Kept at one number from here on, so that faulthandler is set up once.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._trace = move_up(null)
        faulthandler.enable(self._trace)
        with contextlib.suppress(RuntimeError, ValueError, OSError):
            signal.signal(TIMEOUT_SIGNAL, self._time_is_over)
            if hasattr(faulthandler, "register"):
                faulthandler.register(TIMEOUT_SIGNAL, self._trace, all_threads=True, chain=True)
                if any(spec.memory is not None for spec in self._specs.values()):
                    faulthandler.register(STACK_SIGNAL, self._trace, all_threads=True)
        self.descriptors = {
            self._trace,
            *self._outputs.descriptors,
            *pytest_private.open_files(config, self._at_start),
        }
        if self._channel >= 0:
            self.descriptors.add(self._channel)

        environment.forget_host_name()
        pytest_private.keep_files_real()
        teller = _Teller(self)
        manager = config.pluginmanager
        manager.unregister(name="nsisolate-session")  # the runner's side of the hooks
        manager.register(teller, "nsisolate-teller")
        # The session counts failures, for subtests under --exitfirst.
        leave_only = pytest_private.leave_only
        leave_only(config.hook.pytest_runtest_logreport, _is_of(teller, self._session))
        leave_only(config.hook.pytest_warning_recorded, _is_of(teller))
        # The protocol's wrappers stay: warnings, assertion rewriting, timeouts
        # and the like work in here as they would in the runner.
        leave_only(
            config.hook.pytest_runtest_protocol,
            lambda one: one.wrapper or one.hookwrapper or one.plugin is teller,
        )

        terminal: Any = manager.getplugin("terminalreporter")
        self._terminal = None
        # What is written to memory, where pytest is run in a test, would be lost with the fork.
        if terminal is not None and not (self._direct and has_descriptor(terminal._tw._file)):
            self._writer, self._screen = terminal._tw, terminal._tw._file
            self._terminal = self._writer._file = TerminalFile(self._send, self._screen)
        debugger.announce(self._ask_for_terminal)
        debugger.share_input(config)
        if self._settings:
            from . import snapshot_fixtures  # noqa: PLC0415 -- only where a test wants one

            self._snapshot = snapshot_fixtures
        self._rehearse()
        # What the runner gathered, as far as this process has written to it since.
        huge_pages.gather(len(self._specs))
        return self

    def _rehearse(self) -> None:
        """See `rehearsal`; its frames go to /dev/null."""
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._stream = Stream(null)
        self._item = self._session.items[0]
        self.rehearsing = True
        rehearse(self._session)
        self.rehearsing = False
        self._stream = None
        self._stacks_shown = self._failed = False
        os.close(null)

    # `child.Body`

    def furnish(self, order: Order) -> None:
        if self._way is always_on.Way.NPROC:
            always_on.limit_children(self._specs[order.item].pids)
        if self._network is not None:
            self._link = self._network.furnish(order.item, order.number)
        if self._topologies is not None:
            item = self._session.items[order.item]
            inside.network = self._topologies.furnish(order.item, item.nodeid)

    def rights(self, order: Order) -> int:
        return self._topologies.rights(order.item) if self._topologies is not None else 0

    def adopt(self, order: Order) -> None:
        if self._channel >= 0:
            os.close(self._channel)
            self._channel = -1
        if self._stream is not None:
            os.close(self._stream.fd)  # the snapshot's
        if self._files:
            self._snapshot.reopen(self._files)
        os.dup2(order.trace, self._trace, inheritable=False)
        os.close(order.trace)
        self._stream = Stream(order.stream)
        self._outputs.adopt(order.out, order.err, self._send_output)
        if order.init >= 0:
            os.close(order.init)

    def release(self) -> None:
        os.close(self._trace)

    def run(self, order: Order, word: tuple[int, int, int]) -> None:
        self._session.testsfailed, index, following = word
        self._order = order
        if following == SET_UP:
            self._be_snapshot(order, self._settings[index])
            return
        # Where this process writes to the terminal itself, what is printed next must not
        # overtake the runner's word on a report.
        if self._direct or following >= 0:
            self._gate = move_up(order.gate)
        else:
            os.close(order.gate)
        spec = self._specs[index]
        if self._base is None:
            self._settle(spec)
        else:
            self._snapshot.keep(self._base)
        if order.init < 0 and not order.groups:
            limit_process(spec)
        self._session_state = (self._session.shouldfail, self._session.shouldstop)
        random.setstate(self._random)
        if self._gc:
            gc.enable()
        self._since = _clock()
        while True:
            self._next = self._session.items[following] if following >= 0 else None
            end, goes_on = self._run_one(order, index)
            if not goes_on:
                break
            self._over(end)
            data = os.read(self._gate, GO.size)
            if len(data) < GO.size:
                return  # the runner wants no more of this
            _, index, following = GO.unpack(data)
        self._conclude(spec)
        self._send("end", {**end, **self._ending()})
        for out in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                out.flush()

    def _conclude(self, spec: Spec) -> None:
        """What is written at the end of the process."""
        self._save_coverage(sealed=spec.sealed and self._order.init >= 0)
        if self._topologies is not None:
            self._topologies.stop(failed=self._failed or self._failed_before)

    def _be_snapshot(self, order: Order, setting: Setting) -> None:
        """Set fixtures up, be the template of their tests, and tear down."""
        control = socket.socket(fileno=move_up(order.gate))
        outer = self._base
        if outer is None:
            self._settle(setting.spec)
        self._item = setting.items[0]
        self._begin = self._since = _clock()
        inside.enter(self._item, SandboxInfo(order.number, setting.spec))
        random.setstate(self._random)
        if self._gc:
            gc.enable()
        assert self._stream is not None
        with _stage("set up the snapshot"):
            keep = {fd for fd in open_descriptors() if is_open(fd)}
            self._snapshot.set_up(setting, keep)
            self._timed_out = False
            self._base = setting.node
            self._random = random.getstate()
            self._files = self._snapshot.open_files(keep - {file.fd for file in self._files})
            self._flush()
            self._snapshot.flush()
            self._leave_terminal()
        self._send("ready", None)
        with _stage("serve as the snapshot"):
            index = template.serve(control, self)
        self._base, self._item = outer, self._session.items[index]
        self._begin = self._since = _clock()
        with _stage("tear down the snapshot"):
            report = self._snapshot.tear_down(setting, self._item, outer)
        self._flush()
        self._send("finalised", serialised(self._config, report))
        self._save_coverage(sealed=False)
        self._send("end", {"failed": report.failed})

    def _run_one(self, order: Order, index: int) -> tuple[dict[str, Any], bool]:
        """Run a test; what there is to say of its end, and whether the next one may follow."""
        item, spec = self._session.items[index], self._specs[index]
        self._item, self._index = item, index
        self._keywords = None
        self._begin = _clock()
        group = None
        if order.groups and self._budgets is not None:
            group = functools.partial(self._budgets.inside, index)
        info = SandboxInfo(order.number, spec, group=group, export=self._export, link=self._link)
        inside.enter(item, info)
        retention = self._retention
        if retention is not None and order.init >= 0 and index in retention.numbers:
            pytest_private.number_tmp_path(self._config, *retention.numbers[index])
        end: dict[str, Any] = {}
        try:
            hook = self._config.hook
            if self._entered:
                hook.pytest_nsisolate_enter(item=item, sandbox=inside.sandbox)
            hook.pytest_runtest_protocol(item=item, nextitem=self._next or self._base)
        except pytest.exit.Exception as error:
            end["exit"] = [str(error.msg), error.returncode]
        except KeyboardInterrupt:
            end["interrupt"] = _where(sys.exc_info()[2])
        except BaseException:  # noqa: BLE001 -- the process ends here, with a report
            # pytest's own code failed, or a plugin's: an internal error there
            # as well, but of this test alone.
            end["internal"] = traceback.format_exc()
        stops = bool(end) or self.stops
        if stops and "internal" not in end and (end or self._next is not None):
            self._tear_down()
        self._flush()
        return end, self._next is not None and not stops

    @property
    def goes_on(self) -> bool:
        """Whether another test is to follow in this process."""
        return self._next is not None

    @property
    def stops(self) -> bool:
        """Whether no test may follow in this process, even if one should."""
        return bool(self._timed_out or self._session.shouldfail or self._session.shouldstop)

    def _over(self, end: dict[str, Any]) -> None:
        """Say that a test is over, and make ready for the next one of this process."""
        end.update(self._ending())
        self._turns += 1
        self._failed_before = self._failed_before or self._failed
        self._failed = self._stacks_shown = False
        if self._witness is not None:
            self._witness.told()  # what a test tried that passed is nobody's business
        if self._topologies is not None:
            self._topologies.next_test()
        if self._xml is not None:
            self._suite_properties = len(self._xml.global_properties)
        self._session_state = (self._session.shouldfail, self._session.shouldstop)
        self._outputs.forget()
        self._leave_terminal()
        # The runner's clock for the next one starts when it has read this.
        self._since = _clock()
        self._send("turn", end)
        assert self._stream is not None
        self._stream.encoder.forget()

    def _tear_down(self) -> None:
        """What the end of the session would do for a test that aborts it."""
        with contextlib.suppress(Exception):
            self._session._setupstate.teardown_exact(None)

    def _settle(self, spec: Spec) -> None:
        """What the spec asks of the process itself, beyond its sandbox; once for all its tests."""
        if self._topologies is not None:
            self._topologies.start()
        sandboxed = self._order.init >= 0
        if spec.env != "inherit" or spec.profile is not None:
            environment.apply(spec)
        if spec.profile is not None and self._witness is not None:
            self._witness.install()
        if "coverage" in sys.modules:
            self._apart = coverage_data.separate(
                self._private if sandboxed and spec.sealed else None
            )

    def _export(self, path: str | os.PathLike[str]) -> None:
        # Only where it is asked for.
        from pytest_nsisolate.files.artifact_policy import directory_name  # noqa: PLC0415
        from pytest_nsisolate.files.export import stage  # noqa: PLC0415

        if self._retention is None or self._stream is None or not self._stream.mine:
            raise RuntimeError("only the test process itself can export files")
        if self._order.init >= 0:
            staging = self._retention.staging(self._index)
        else:  # nothing is to be brought out of anywhere
            name = directory_name(self._item.nodeid)
            staging = os.path.join(self._retention.folder, name)
        stage(path, staging)
        self._send("exported", None)

    # what is told

    def _send(self, kind: str, payload: object, *, more: bool = False) -> None:
        assert self._stream is not None
        if kind not in _CUT:
            self._stream.send(kind, payload, more=more)
            return
        try:
            self._stream.send(kind, payload, more=more, most=wire.MAX_REPORTS)
        except wire.FrameTooLong:
            self._send_cut(kind, payload)

    def _send_cut(self, kind: str, payload: object) -> None:
        """Send as much of it as fits."""
        from pytest_nsisolate.reports import trimming  # noqa: PLC0415 -- only for what is too large

        assert self._stream is not None
        *larger, last = trimming.LIMITS
        for limit in larger:
            try:
                self._stream.send(kind, trimming.cut(payload, limit), most=wire.MAX_REPORTS)
            except wire.FrameTooLong:
                continue
            return
        self._stream.send(kind, trimming.cut(payload, last))

    def _send_output(self, name: str, text: str) -> None:
        if self._stream is not None and self._stream.mine:
            for at in range(0, len(text), AT_ONCE):
                self._send("output", [name, text[at : at + AT_ONCE]])

    def _flush(self) -> None:
        """Before a report: what was written before it is seen before it."""
        for stream in (self._out, self._err):
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):
                continue
        if self._terminal is not None:
            self._terminal.flush()

    def _ask_for_terminal(self, method: str) -> None:
        """A debugger begins: wait until the terminal is free, and write to it directly."""
        if self._stream is None or not self._stream.mine:
            return
        pytest_private.disarm_timers(self._item)
        self._flush()
        self._send_and_wait("debugger", method)
        self._debugging = True
        if self._terminal is not None:
            self._writer._file = self._screen

    def _leave_terminal(self) -> None:
        if self._debugging and self._terminal is not None:
            self._flush()
            self._writer._file = self._terminal
        self._debugging = False

    def _send_and_wait(self, kind: str, payload: object) -> None:
        """Send a frame, and wait until the runner has taken notice of it (`Flight.heard`)."""
        before = _fstat(self._trace)
        self._send(kind, payload)
        now = before
        with contextlib.suppress(OSError):  # the test has closed it
            while now.st_mode == before.st_mode and now.st_ino == before.st_ino:
                _sleep(_GLANCE)
                now = _fstat(self._trace)

    def tell_report(self, report: pytest.TestReport) -> None:
        """Send a report, a subtest's too."""
        self._flush()
        plain_report = type(report) is pytest.TestReport
        self._failed = self._failed or report.failed
        if plain_report:
            self._complete(report)
        if self._witness is not None and report.failed:
            tried = self._witness.told()
            if tried:
                report.sections.append((TRIED_TITLE, tried))
        try:
            data = self._serialise(report, plain_report=plain_report)
            # What follows the teardown's report follows at once: the ending.
            last = plain_report and report.when == "teardown"
            if last:
                measured = other_plugins.take_benchmarks(self._config)
                if measured:
                    self._send("benchmarks", measured, more=True)
            waits = (self._direct or self._debugging) and (self._next is not None or not last)
            if self._debugging:
                self._send_and_wait("report", data)
            else:
                self._send("report", data, more=last and not waits)
            if waits and self._direct:
                with contextlib.suppress(OSError):
                    os.read(self._gate, 1)
        except wire.FrameTooLong as error:
            self._send("too long", [report.when, str(error)])

    def _serialise(self, report: pytest.TestReport, *, plain_report: bool) -> dict[str, Any]:
        if plain_report and self._briefly and not other_plugins.noted(report):
            brief = briefly(report, self._item, self._keywords)
            if brief is not None:
                if brief[BRIEF] is not None:
                    self._keywords = dict(report.keywords)
                return brief
        data = serialised(self._config, report)
        if isinstance(data["longrepr"], str) and hasattr(report.longrepr, "toterminal"):
            data["$ns_terminal"] = True
        other_plugins.add_to_report(report, data)
        return data

    def _complete(self, report: pytest.TestReport) -> None:
        """What belongs to the report of a phase, and is known in here alone."""
        if report.when == "teardown":
            self._tell_xml()
            if self._next is None:
                left = [line_of(*one) for one in self._left_running()]
                if left:
                    report.sections.append((LEFT_TITLE, left_text(left)))
        if report.when == "call":
            failed = other_plugins.failed_subtests(self._item)
            if failed:
                self._send("failed subtests", failed)
        if report.failed and self._specs[self._index].fs == "overlay":
            _tell_owners(report)
        if self._topologies is not None and report.failed:
            self._topologies.show(report.sections)
        if report.failed and self._index >= 0:
            self._hint(report)
        if self._timed_out and report.failed and not self._stacks_shown:
            self._stacks_shown = True
            report.sections.append(("stacks at the timeout", _stacks(self._trace)))
        if self._timed_out and report.when == "call" and report.passed:
            # The exception was swallowed by the test.
            report.outcome = "failed"
            report.longrepr = self._timeout_text()
            report.sections.append(("stacks at the timeout", _stacks(self._trace)))

    def _hint(self, report: pytest.TestReport) -> None:
        """Add what the failure may come from, if it is about what differs in a sandbox."""
        facts = hints.Facts(sandbox=self._order.init >= 0, pids=self._specs[self._index].pids)
        text = hints.hints(report.longreprtext[:_HINT_LIMIT], facts)
        if text:
            report.sections.append((hints.TITLE, text))

    def _left_running(self) -> list[tuple[int, str]]:
        # Without a pid namespace of its own, what runs besides the test is not known here.
        if not LINUX or _getppid() != 0:
            return []
        try:
            _kill(-1, 0)
        except ProcessLookupError:
            return []  # nobody but PID 1 and this process
        except OSError:
            pass
        return left_running()

    def _tell_xml(self) -> None:
        if self._xml is None:
            return
        for reporter in self._xml.node_reporters.values():
            if reporter.attrs:
                self._send("xml attributes", reporter.attrs)
                reporter.attrs = {}

    def tell_warning(
        self,
        message: warnings.WarningMessage,
        when: str,
        nodeid: str,
        location: tuple[str, int, str] | None,
    ) -> None:
        """Send a warning as what it takes to build it again."""
        if self._stream is None:
            return  # recorded before the template was made: pluggy tells each new plugin
        warning = message.message
        category = message.category
        data = {
            "text": str(warning),
            "args": list(warning.args) if isinstance(warning, Warning) else None,
            "class": [type(warning).__module__, type(warning).__qualname__],
            "category": [category.__module__, category.__qualname__],
            "filename": message.filename,
            "lineno": message.lineno,
            "line": message.line,
            "source": None if message.source is None else wire.safe_repr(message.source),
            "when": when,
            "nodeid": str(nodeid),
            "location": location,
        }
        self._send("warning", data)

    def _ending(self) -> dict[str, Any]:
        used = of_this_process()
        before, self._used = self._used, used
        if before is not None:
            used = used.since(before)
        end: dict[str, Any] = {
            "failed": self._failed,
            "wall": _clock() - self._begin,
            "usage": used.to_wire(),
        }
        xml = self._xml
        if xml is not None and len(xml.global_properties) > self._suite_properties:
            end["suite properties"] = xml.global_properties[self._suite_properties :]
        session = self._session
        state = (session.shouldfail, session.shouldstop)
        if state != self._session_state:
            end["session"] = state
        reruns = other_plugins.reruns_state(self._item)
        if reruns:
            end["reruns"] = reruns
        return end

    def _save_coverage(self, *, sealed: bool) -> None:
        current = coverage_data.current()
        if current is None:
            return
        current.stop()
        current.save()
        if sealed or self._apart:
            data = coverage_data.take(current) if sealed else coverage_data.name(current)
            if data is not None:
                with contextlib.suppress(wire.FrameTooLong):
                    self._send("coverage", data, more=True)

    # time

    def _timeout_text(self) -> str:
        timeout = inside.sandbox.spec.timeout if inside.sandbox is not None else None
        return (
            f"TIMED OUT after {timeout:g} s\n"
            "The time for setup, call and teardown together was over. Look at the stacks "
            "below for what it waited for; give it more with "
            "@pytest.mark.isolated(timeout=SECONDS)."
        )

    def _time_is_over(self, signum: int, frame: object) -> None:
        timeout = inside.sandbox.spec.timeout if inside.sandbox is not None else None
        if self._turns and timeout is not None and _clock() - self._since < timeout:
            return  # meant for the test before, which has ended just in time
        self._timed_out = True
        if self._stream is not None and self._stream.sending:
            return  # of a report that is sent by halves nothing is left; it has run out of time
        pytest.fail(self._timeout_text(), pytrace=False)


@contextlib.contextmanager
def _stage(name: str) -> Iterator[None]:
    """What the system refuses in here comes up at this stage, for all tests of the snapshot."""
    try:
        yield
    except OSError as error:
        raise StageError.of(name, error) from None


def _stacks(fd: int) -> str:
    trace = _pread(fd, _fstat(fd).st_size, 0).decode("utf-8", "replace")
    return trim_trace(last_stacks(trace))


def _where(traceback: Any) -> list[str | int]:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return []
    return [traceback.tb_frame.f_code.co_filename, traceback.tb_lineno]


def _is_of(*plugins: object) -> Callable[[Any], bool]:
    """Tell whether one of *plugins* has an implementation of a hook."""
    return lambda one: any(one.plugin is plugin for plugin in plugins)
