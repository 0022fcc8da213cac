"""The pytest side of a test process: run the tests of an order and report them in frames.

`PytestBody.prepare` runs once, in the template. It takes the hooks that speak for the
session (reports, warnings, terminal) away from the plugins of the runner and gives
them to `_Teller`. `run` then calls pytest's own protocol hook, with the wrappers of
other plugins.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import random
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.runner import runtestprotocol

from pytest_nsisolate.cgroups import always_on
from pytest_nsisolate.cgroups.rlimits import limit_process
from pytest_nsisolate.core import wire
from pytest_nsisolate.core.linux.descriptors import move_up
from pytest_nsisolate.core.linux.syscalls import LINUX, StageError
from pytest_nsisolate.core.messages import GO, SET_UP, Order
from pytest_nsisolate.reports import coverage as coverage_data
from pytest_nsisolate.reports import other_plugins
from pytest_nsisolate.reports.serialise import serialised
from pytest_nsisolate.spec.spec import Spec

from . import huge_pages, pytest_private, snapshot_fixtures, template, terminal
from .forked import apply_environment, forget_host_name
from .frame_stream import Sender
from .output_files import Outputs
from .reporter import Ending, Reporter, RunningTest
from .sandbox_info import SandboxInfo, inside
from .snapshot_fixtures import HeldFixtures
from .terminal import Terminal
from .timeout import Timeout
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

    from .snapshot_fixtures import Setting

# Bound now: a test may patch these names in their module, and they are called while
# the patch is on.
_collect, _get_count = gc.collect, gc.get_count

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
        self._body.reporter.tell_report(report)

    @pytest.hookimpl
    def pytest_warning_recorded(
        self,
        warning_message: warnings.WarningMessage,
        when: str,
        nodeid: str,
        location: tuple[str, int, str] | None,
    ) -> None:
        self._body.reporter.tell_warning(warning_message, when, nodeid, location)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        if self._body.goes_on and self._body.stops:
            # The session stops, so no test follows in this process.
            item.session._setupstate.teardown_exact(None)
        elif self._body.rehearsing or self._body.goes_on:
            return
        # Collect this test's garbage while its errors can still be reported. Objects
        # from before the fork are frozen. Objects made since are in the young
        # generations, unless these were collected meanwhile (the third number counts it).
        _collect(1 if _GENERATIONS and _get_count()[2] == 0 else 2)
        pytest_private.show_unraisable(item.config)


class PytestBody:
    """`forked.Body` for pytest items."""

    _outputs: Outputs
    _terminal: Terminal
    _timeout: Timeout
    _ending: Ending
    #: What `prepare` makes; hooks send their reports by it.
    reporter: Reporter
    _order: Order
    _test: RunningTest

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
        self._held = HeldFixtures()
        self._gc = gc.isenabled()
        self._sender = Sender()
        self._trace = -1
        self._gate = -1
        self._apart = False  # whether the runner is to combine this process's coverage
        self._failed_before = False
        self.rehearsing = False
        self.descriptors: set[int] = set()
        # Python seeds the generator again in each fork, also in the template. Each
        # test process restores this state.
        self._random = random.getstate()
        self._way = always_on.way() if LINUX else None

    def prepare(self) -> PytestBody:
        """Prepare the template. It calls this once, before it forks any test process."""
        config = self._config
        self._outputs = Outputs(config)
        self._ending = Ending(self._session)
        factory: Any = getattr(config, "_tmp_path_factory", None)
        # In a sandbox it is always private and writable.
        self._private = "/tmp" if factory is None else str(factory.getbasetemp())  # noqa: S108 -- as said
        self._entered = bool(config.hook.pytest_nsisolate_enter.get_hookimpls())
        other_plugins.take_benchmarks(config)  # a test process must not send the runner's own
        # The number stays the same from here on, so that faulthandler is set up once.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._trace = move_up(null)
        self._timeout = Timeout(self._sender, self._trace)
        self._timeout.install(memory=any(spec.memory is not None for spec in self._specs.values()))
        self.descriptors = {
            self._trace,
            *self._outputs.descriptors,
            *pytest_private.open_files(config, self._at_start),
        }
        if self._channel >= 0:
            self.descriptors.add(self._channel)

        forget_host_name()
        pytest_private.keep_files_real()
        self._terminal = Terminal(config, self._sender, self._trace, direct=self._direct)
        self.reporter = Reporter(
            config,
            self._sender,
            self._terminal,
            self._timeout,
            direct=self._direct,
            topologies=self._topologies,
            witness=self._witness,
        )
        self._take_hooks()
        terminal.announce(self._lend_terminal)
        terminal.share_input(config)
        self._rehearse()
        # The runner has done so too; this process has written to some of that since.
        huge_pages.gather(len(self._specs))
        return self

    def _take_hooks(self) -> None:
        """Take the hooks that speak for the session away from the plugins of the runner."""
        config, teller = self._config, _Teller(self)
        manager = config.pluginmanager
        manager.unregister(name="nsisolate-session")  # the runner's side of the hooks
        manager.register(teller, "nsisolate-teller")
        leave_only = pytest_private.leave_only
        # The session counts failures, for subtests under --exitfirst.
        leave_only(config.hook.pytest_runtest_logreport, _is_of(teller, self._session))
        leave_only(config.hook.pytest_warning_recorded, _is_of(teller))
        # The protocol's wrappers stay: warnings, assertion rewriting and timeouts
        # work here as they would in the runner.
        leave_only(
            config.hook.pytest_runtest_protocol,
            lambda one: one.wrapper or one.hookwrapper or one.plugin is teller,
        )

    def _rehearse(self) -> None:
        """Warm up, see `warmup`; the frames go to /dev/null."""
        self._sender.open(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
        self._start(RunningTest(self._session.items[0], -1, Spec(), None, sandboxed=False))
        self.rehearsing = True
        rehearse(self._session)
        self.rehearsing = False
        self._sender.close()

    # `forked.Body`

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
        self._sender.close()  # the snapshot's
        self._held.reopen_files()
        os.dup2(order.trace, self._trace, inheritable=False)
        os.close(order.trace)
        self._sender.open(order.stream)
        self._outputs.adopt(order.out, order.err, self._sender.send_output)
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
        # A process that writes to the terminal itself waits for the runner after each report:
        # else its next output would overtake what the runner prints.
        if self._direct or following >= 0:
            self._gate = self.reporter.gate = move_up(order.gate)
        else:
            os.close(order.gate)
        spec = self._specs[index]
        if self._held.node is None:
            self._settle(spec)
        else:
            self._held.keep()
        if order.init < 0 and not order.groups:
            limit_process(spec)
        self._ending.start_process()
        self._thaw()
        self._timeout.start()
        while True:
            end, goes_on = self._run_one(index, following)
            if not goes_on:
                break
            self._over(end)
            data = os.read(self._gate, GO.size)
            if len(data) < GO.size:
                return  # the runner lets no further test run here
            _, index, following = GO.unpack(data)
        self._save_coverage(sealed=spec.sealed and order.init >= 0)
        if self._topologies is not None:
            self._topologies.stop(failed=self.reporter.failed or self._failed_before)
        self._sender.send("end", {**end, **self._figures()})
        for out in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                out.flush()

    def _thaw(self) -> None:
        """Restore the random state and the garbage collector of before the template's fork."""
        random.setstate(self._random)
        if self._gc:
            gc.enable()

    def _be_snapshot(self, order: Order, setting: Setting) -> None:
        """Set fixtures up, be the template of their tests, and tear down."""
        control = socket.socket(fileno=move_up(order.gate))
        if self._held.node is None:
            self._settle(setting.spec)
        sandboxed = order.init >= 0
        test = RunningTest(setting.items[0], -1, setting.spec, None, sandboxed)
        self._start(test)
        self._timeout.start()
        inside.sandbox = SandboxInfo(order.number, setting.spec)
        self._thaw()
        with _stage("set up the snapshot"):
            self._held.set_up(setting)
            self._timeout.reached = False
            self._random = random.getstate()
            self._terminal.flush()
            snapshot_fixtures.flush()
            self._terminal.take_back()
        self._sender.send("ready", None)
        with _stage("serve as the snapshot"):
            index = template.serve(control, self)
        item = self._session.items[index]
        self._start(test._replace(item=item))
        self._timeout.start()
        with _stage("tear down the snapshot"):
            report = self._held.tear_down(setting, item)
        self._terminal.flush()
        self._sender.send("finalised", serialised(self._config, report))
        self._save_coverage(sealed=False)
        self._sender.send("end", {"failed": report.failed})

    def _start(self, test: RunningTest) -> None:
        self._test = test
        self.reporter.start_test(test)
        self._ending.start_test()

    def _run_one(self, index: int, following: int) -> tuple[dict[str, Any], bool]:
        """Run a test; return fields of the frame that ends it, and whether the next may follow."""
        order, items = self._order, self._session.items
        item, spec = items[index], self._specs[index]
        following_item = items[following] if following >= 0 else None
        self._start(RunningTest(item, index, spec, following_item, order.init >= 0))
        group = None
        if order.groups and self._budgets is not None:
            group = functools.partial(self._budgets.inside, index)
        info = SandboxInfo(order.number, spec, group=group, export=self._export, link=self._link)
        inside.sandbox = info
        retention = self._retention
        if retention is not None and order.init >= 0 and index in retention.numbers:
            pytest_private.number_tmp_path(self._config, *retention.numbers[index])
        end: dict[str, Any] = {}
        try:
            hook = self._config.hook
            if self._entered:
                hook.pytest_nsisolate_enter(item=item, sandbox=info)
            hook.pytest_runtest_protocol(item=item, nextitem=following_item or self._held.node)
        except pytest.exit.Exception as error:
            end["exit"] = [str(error.msg), error.returncode]
        except KeyboardInterrupt:
            end["interrupt"] = _where(sys.exc_info()[2])
        except BaseException:  # noqa: BLE001 -- the process ends here, with a report
            # The code of pytest or of a plugin failed. In plain pytest that ends the
            # session; here it fails this test alone.
            end["internal"] = traceback.format_exc()
        stops = bool(end) or self.stops
        if stops and "internal" not in end and (end or self.goes_on):
            self._tear_down()
        self._terminal.flush()
        return end, self.goes_on and not stops

    @property
    def goes_on(self) -> bool:
        """Whether another test follows in this process."""
        return self._test.following is not None

    @property
    def stops(self) -> bool:
        """Whether no test may follow in this process, even if one should."""
        session = self._session
        return bool(self._timeout.reached or session.shouldfail or session.shouldstop)

    def _figures(self) -> dict[str, Any]:
        return self._ending.fields(self._test.item, failed=self.reporter.failed)

    def _over(self, end: dict[str, Any]) -> None:
        """Send the end of a test, and prepare for the next one of this process."""
        end.update(self._figures())
        self._failed_before = self._failed_before or self.reporter.failed
        self._timeout.end_test()
        self.reporter.end_test()
        if self._topologies is not None:
            self._topologies.next_test()
        self._ending.end_test()
        self._outputs.forget()
        self._terminal.take_back()
        # The runner starts its clock for the next test when it has read this.
        self._timeout.start()
        self._sender.send("turn", end)
        self._sender.end_test()

    def _tear_down(self) -> None:
        """Tear all fixtures down, as the end of the session does after a test that aborts it."""
        with contextlib.suppress(Exception):
            self._session._setupstate.teardown_exact(None)

    def _settle(self, spec: Spec) -> None:
        """Set this process up as *spec* asks, beyond its sandbox; once for all its tests."""
        if self._topologies is not None:
            self._topologies.start()
        sandboxed = self._order.init >= 0
        if spec.env != "inherit" or spec.profile is not None:
            apply_environment(spec)
        if spec.profile is not None and self._witness is not None:
            self._witness.install()
        if "coverage" in sys.modules:
            self._apart = coverage_data.separate(
                self._private if sandboxed and spec.sealed else None
            )

    def _export(self, path: str | os.PathLike[str]) -> None:
        # Only where a test calls it.
        from pytest_nsisolate.files.artifact_policy import directory_name  # noqa: PLC0415
        from pytest_nsisolate.files.export import stage  # noqa: PLC0415

        if self._retention is None or not self._sender.mine:
            raise RuntimeError("only the test process itself can export files")
        if self._order.init >= 0:
            staging = self._retention.staging(self._test.number)
        else:  # no sandbox to bring files out of
            name = directory_name(self._test.item.nodeid)
            staging = os.path.join(self._retention.folder, name)
        stage(path, staging)
        self._sender.send("exported", None)

    def _lend_terminal(self, method: str) -> None:
        """Wait until a debugger that starts has the terminal."""
        if self._sender.mine:
            pytest_private.disarm_timers(self._test.item)
            self._terminal.lend(method)

    def _save_coverage(self, *, sealed: bool) -> None:
        data = coverage_data.save(sealed=sealed, apart=self._apart)
        if data is not None:
            with contextlib.suppress(wire.FrameTooLong):
                self._sender.send("coverage", data, more=True)


@contextlib.contextmanager
def _stage(name: str) -> Iterator[None]:
    """Report an OSError of the block as a failure at this stage, for all tests of the snapshot."""
    try:
        yield
    except OSError as error:
        raise StageError.of(name, error) from None


def _where(traceback: Any) -> list[str | int]:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return []
    return [traceback.tb_frame.f_code.co_filename, traceback.tb_lineno]


def _is_of(*plugins: object) -> Callable[[Any], bool]:
    """Return whether one of *plugins* has an implementation of a hook."""
    return lambda one: any(one.plugin is plugin for plugin in plugins)
