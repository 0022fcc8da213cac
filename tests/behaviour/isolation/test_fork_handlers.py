"""Libraries that do something around a fork (os.register_at_fork), such as starting a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

THREADS = """
    import threading

    stop = threading.Event()
    started = []

    def start():
        thread = threading.Thread(target=stop.wait, daemon=True)
        thread.start()
        started.append(os.getpid())

    start()
    # As libraries do that report statistics or traces from a thread of their own.
    os.register_at_fork(after_in_child=start, after_in_parent=start)
"""
SUITE = """
    @pytest.mark.parametrize("n", range(4))
    def test_thread(n):
        assert threading.active_count() == 2
        assert started[-1] == os.getpid()
        if os.environ["KIND"] == "sandbox":
            status = [open(f"/proc/self/task/{one}/status").read()
                      for one in os.listdir("/proc/self/task")]
            assert len({text.split("CapPrm:")[1].split()[0] for text in status}) == 1
            assert len({text.split("NoNewPrivs:")[1].split()[0] for text in status}) == 1
"""


@pytest.mark.parametrize("option", ["--ns-jobs=1", "--ns-jobs=2", "--ns-scope=module"])
def test_thread_started_in_each_fork(run_as_each: Run, option: str) -> None:
    """A thread that an after-fork handler starts is in the sandbox, with the test's rights."""
    run_as_each.tests(THREADS, SUITE)
    result = run_as_each.isolated(option, env={"KIND": "sandbox"}).expect(passed=4)
    assert "Exception ignored" not in result.err


def test_thread_without_namespaces(run: Run) -> None:
    """The same in forked processes without namespaces."""
    run.tests(THREADS, SUITE)
    run.isolated("--ns-missing=fork", env={"KIND": "fork"}).expect(passed=4)


def test_thread_in_a_snapshot(run_as_each: Run) -> None:
    """The process of a snapshot and the forks of it have the thread; fixtures may start more."""
    run_as_each.tests(
        THREADS,
        """
    import logging

    @pytest.fixture(scope="module")
    def lines():
        logging.getLogger("fixture").warning("set up")
        found = [started[-1]]
        yield found
        assert started[-1] == os.getpid()
        another = threading.Thread(target=time.sleep, args=(0,))
        another.start()
        another.join()

    @pytest.mark.parametrize("n", range(3))
    def test_thread(lines, n):
        logging.getLogger("test").warning("in the test")
        assert started[-1] == os.getpid()
        lines.append(n)
        assert len(lines) == 2
    """,
    )
    result = run_as_each.isolated("--ns-snapshot=module").expect(passed=3)
    assert "Exception ignored" not in result.err


def test_handlers_run_as_in_any_fork(run_as_each: Run) -> None:
    """In a test, every handler has run in the order that os.fork promises, and locks are free."""
    run_as_each.tests("""
    import logging, random, threading

    calls = []
    lock = threading.Lock()

    def before():
        calls.append("before")
        lock.acquire()

    def after_in_child():
        calls.append("child")
        lock.release()

    def after_in_parent():
        calls.append("parent")
        lock.release()

    os.register_at_fork(
        before=before, after_in_child=after_in_child, after_in_parent=after_in_parent
    )

    @pytest.mark.parametrize("n", range(3))
    def test_it(n):
        # One fork makes the template, one the test.
        assert calls[-4:] == ["before", "child"] * 2
        assert lock.acquire(timeout=5)
        lock.release()
        logging.getLogger().warning("logging has its lock")
        import json.tool  # and the import its own
        assert threading.main_thread() is threading.current_thread()
        assert threading.get_native_id() == os.getpid()
        assert subprocess.run(["true"]).returncode == 0
        pid = os.fork()
        if pid == 0:
            os._exit(len(calls) % 2)
        assert os.waitpid(pid, 0)[1] == 0
        assert calls[-2:] == ["before", "parent"]

    def test_in_the_runner():
        pass
    """)
    run_as_each.isolated().expect(passed=4)


def test_handler_that_fails(run_as_each: Run) -> None:
    """A handler that raises is shown, as for any fork, and the test runs."""
    run_as_each.tests("""
    def fail():
        raise LookupError("in the handler")

    os.register_at_fork(after_in_child=fail)

    def test_it():
        pass
    """)
    run_as_each.isolated("-p", "no:unraisableexception").expect(passed=1)


@pytest.mark.parametrize("option", ["--ns-jobs=2", "--ns-scope=module", "--ns-snapshot=module"])
def test_library_in_c_that_starts_threads(run_as_each: Run, option: str) -> None:
    """Where a handler of pthread_atfork(3) starts threads, as gRPC's does, tests run without it."""
    run_as_each.tests("""
    import threading

    libc = ctypes.CDLL(None)

    def start():
        # A thread that Python knows nothing of.
        libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, libc.pause, None)

    start()
    handler = ctypes.CFUNCTYPE(None)(start)
    libc.__register_atfork(None, None, handler, None)

    @pytest.fixture(scope="module")
    def value():
        return 1

    @pytest.mark.parametrize("n", range(3))
    def test_it(value, n):
        assert len(os.listdir("/proc/self/task")) == 1
        done = []
        thread = threading.Thread(target=done.append, args=(1,))
        thread.start()
        thread.join()
        assert done
        signal.signal(signal.SIGUSR1, lambda number, frame: done.append(number))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        assert done[1:] == [signal.SIGUSR1]
        assert subprocess.run(["true"]).returncode == 0
    """)
    run_as_each.isolated(option).expect(passed=3)
