"""The hooks of pytest, each a few lines that delegate."""

from __future__ import annotations

import faulthandler
from contextlib import ExitStack

import pytest

from pytest_nsisolate.spec.keys import KEYS, SpecError
from pytest_nsisolate.testprocess.sandbox_info import inside

from . import hookspecs, pytest_private, xdist
from .fixtures import sandbox
from .options import Options, add

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_nsisolate.runner.timeline import Watch

    from .session import Isolation

__all__ = ["sandbox"]

_options_key = pytest.StashKey[Options]()
_isolation_key: pytest.StashKey[Isolation] = pytest.StashKey()
_watch_key: pytest.StashKey[Watch] = pytest.StashKey()


def _isolation(config: pytest.Config) -> Isolation | None:
    return config.stash.get(_isolation_key, None)


def pytest_addoption(parser: pytest.Parser) -> None:
    add(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "isolated(**keys): run the test in Linux namespaces of its own; isolated(False) opts out "
        f"of --ns-isolate. Keys: {', '.join(KEYS)}.",
    )
    pytest_private.recall_modules()
    pytest_private.refuse_rivals(config)
    try:
        options = config.stash[_options_key] = Options.read(config)
    except SpecError as error:
        raise pytest.UsageError(str(error)) from None
    if options.records:
        from pytest_nsisolate.reports import recorder
        from pytest_nsisolate.runner.timeline import Watch

        wanted = recorder.Wanted(options.reports, options.trace, options.usage, options.chosen)
        recorder.install(config, wanted)
        config.stash[_watch_key] = Watch()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if config.getoption("ns_doctor"):
        from pytest_nsisolate.cli.doctor import print_report

        return print_report()
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    options = session.config.stash.get(_options_key, None)
    # Whoever only collects may do so without pytest_configure.
    if options is None or not pytest_private.wants_isolation(
        session.items, isolate=options.isolate
    ):
        return
    from pytest_nsisolate.sandbox.keeper_start import start_ahead

    runs = not session.config.option.collectonly
    with ExitStack() as stack:
        # On another core, while what follows is imported.
        process = start_ahead(stack) if runs else None
        from .session import Isolation

        try:
            watch = session.config.stash.get(_watch_key, None)
            isolation = Isolation.of(session, options, watch)
        except pytest.UsageError as error:
            xdist.send_usage_error(session.config, str(error))
            raise
        if isolation is not None and runs:
            session.config.stash[_isolation_key] = isolation
            session.config.pluginmanager.register(Isolating(isolation), "nsisolate-session")
            isolation.start_keeper(process)
            stack.pop_all()


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    isolation = _isolation(config)
    return isolation.header if isolation is not None else []


def pytest_sessionfinish(session: pytest.Session) -> None:
    isolation = _isolation(session.config)
    if isolation is not None:
        isolation.close()  # of a session whose loop was never entered


class Isolating:
    """The hooks of a session that has isolated tests; other sessions don't run them."""

    def __init__(self, isolation: Isolation) -> None:
        from pytest_nsisolate.reports.other_plugins import reruns_handles

        self._isolation = isolation
        self._reruns_handles = reruns_handles

    def _runs_apart(self, item: pytest.Item | None) -> bool:
        """Return whether *item* will have a process of its own; False inside of that process."""
        return item is not None and inside.sandbox is None and self._isolation.isolates(item)

    # Innermost: what other plugins set up around the loop (logging does) is there
    # when the template is forked.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        isolation = self._isolation
        try:
            isolation.start()
            if isolation.options.debug:
                for line in isolation.describe():
                    pytest_private.write_line(session.config, line)
            pytest_private.adopt_reruns(
                lambda item, nextitem, log: isolation.rerun(item, nextitem, log=log)
            )
            return (yield)
        finally:
            isolation.close()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        if not self._runs_apart(item):
            return None
        # pytest arms ``faulthandler_timeout`` around the runner's wait as well as inside.
        faulthandler.cancel_dump_traceback_later()
        if self._reruns_handles(item):
            return None  # runs each attempt through `Isolation.run`
        ihook = item.ihook
        try:
            ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            self._isolation.run(item, nextitem)
            ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        finally:
            self._isolation.hand_on_warnings()
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:
            # What the next test shares with this one stays set up; but an isolated
            # test shares nothing, so the next one in the runner is what counts.
            if self._runs_apart(nextitem):
                item.session._setupstate.teardown_exact(self._isolation.next_in_runner(item))

    @pytest.hookimpl(tryfirst=True, optionalhook=True)
    def pytest_timeout_set_timer(self, item: pytest.Item) -> bool | None:
        """Let the timer of pytest-timeout run in the test process, not around the runner's wait."""
        return True if self._runs_apart(item) else None


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Take the last lines of an ended worker of pytest-xdist; raise its usage error, if any."""
    xdist.take_last_lines(node)
    xdist.raise_usage_error(node)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash.get(xdist.last_lines_key, ()):
        terminalreporter.write_line(line)
