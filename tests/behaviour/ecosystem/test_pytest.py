"""What pytest itself brings, isolated and not: which tests run again, unittest, faulthandler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers.run import normalised, same

if TYPE_CHECKING:
    from helpers.run import Result, Run

pytestmark = pytest.mark.needs("sandbox")

JOBS = (1, 2)
BOTH = pytest.mark.parametrize("jobs", JOBS)

FAILING = """
    @pytest.mark.parametrize("n", range(8))
    def test_it(n):
        assert n not in (3, 6)

    def test_setup(broken):
        pass

    @pytest.fixture
    def broken():
        raise LookupError
"""


def in_turn(run: Run, *options: tuple[str, ...], more: tuple[str, ...] = ()) -> list[Result]:
    """Runs one after another, from an empty cache."""
    run(*more, "--cache-clear", "--collect-only")
    return [run(*more, *one) for one in options]


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        ((), ("--lf",), ("--lf", "-k", "not 3"), ("--ff",)),
        (("-x",), ("--sw",), ("--sw", "--sw-skip"), ("--sw",)),
        (("--maxfail=2",), ("--nf",), ("--lf", "-x")),
    ],
    ids=["lf-ff", "sw", "maxfail-nf"],
)
def test_choice_by_the_last_run(run: Run, jobs: int, options: tuple[tuple[str, ...], ...]) -> None:
    """--lf, --ff, --nf and --sw go on from what failed, and print what they print plainly."""
    run.tests(FAILING)
    plain = in_turn(run, *options)
    isolated = in_turn(run, *options, more=("--ns-isolate", f"--ns-jobs={jobs}"))
    for one, other in zip(isolated, plain, strict=True):
        assert list(one.verdicts.items()) == list(other.verdicts.items()), str(one)
        assert normalised(one.out) == normalised(other.out)
        assert one.ret == other.ret


@BOTH
def test_failures_isolated_are_found_plainly(run: Run, jobs: int) -> None:
    """The cache is the same one: what failed in an isolated run is what --lf runs without."""
    run.tests(FAILING)
    run.isolated(f"--ns-jobs={jobs}")
    again = run("--lf")
    assert again.verdicts == {"test_it[3]": "failed", "test_it[6]": "failed", "test_setup": "error"}


@BOTH
def test_unittest(run: Run, jobs: int) -> None:
    """Classes with all of their set-up, clean-up, skips and coroutines."""
    run.tests("""
    import unittest

    def setUpModule():
        os.environ["OF_MODULE"] = "set"

    def tearDownModule():
        print("module down")

    class TestAll(unittest.TestCase):
        @classmethod
        def setUpClass(cls):
            cls.value = [1]
            cls.addClassCleanup(print, "class cleaned")

        @classmethod
        def tearDownClass(cls):
            print("class down")

        def setUp(self):
            self.own = list(self.value)
            self.addCleanup(print, "cleaned")

        def tearDown(self):
            print("down", self.own)

        def test_values(self):
            self.assertEqual(os.environ["OF_MODULE"], "set")
            self.own.append(2)

        def test_logs(self):
            with self.assertLogs("a") as caught:
                import logging
                logging.getLogger("a").warning("x")
            self.assertEqual(caught.output, ["WARNING:a:x"])

        def test_fails(self):
            self.assertCountEqual([1, 2], [2, 2])

        def test_skips(self):
            self.skipTest("within")

        @unittest.expectedFailure
        def test_unexpected(self):
            pass

        def test_exits(self):
            with self.assertRaises(SystemExit):
                sys.exit(1)

    class TestCoroutines(unittest.IsolatedAsyncioTestCase):
        async def asyncSetUp(self):
            import asyncio
            self.queue = asyncio.Queue()

        async def test_queue(self):
            await self.queue.put(1)
            self.assertEqual(await self.queue.get(), 1)

        async def test_fails(self):
            self.assertEqual(self.queue.qsize(), 1)

    class TestBroken(unittest.TestCase):
        def setUp(self):
            raise LookupError("in setUp")

        def test_it(self):
            pass

    @unittest.skip("all of it")
    class TestSkipped(unittest.TestCase):
        def test_it(self):
            pass
    """)
    # Where a class has several tests, what belongs to the class is there once for each.
    plain, isolated = run(), run.isolated(f"--ns-jobs={jobs}")
    assert isolated.verdicts == plain.verdicts, str(isolated)
    assert isolated.ret == plain.ret
    texts = [[phase.text for phase in one.phases] for one in (isolated, plain)]
    assert texts[0] == texts[1]


def test_faulthandler_timeout(run: Run) -> None:
    """Past faulthandler_timeout the stacks of that test are on standard error, and it goes on."""
    run.tests("""
    def test_before():
        pass

    def test_slow():
        where_it_waits()

    def where_it_waits():
        deadline = time.monotonic() + 50
        while "most recent call first" not in shown() and time.monotonic() < deadline:
            time.sleep(0.05)

    def shown():
        with open("err-1.txt") as stream:
            return stream.read()
    """)
    result = run.isolated("-o", "faulthandler_timeout=0.3")
    result.expect(passed=2)
    assert "Timeout (0:00:00.300000)!" in result.err, str(result)
    assert "in where_it_waits" in result.err


def test_warnings_and_live_logs_as_usual(run: Run) -> None:
    """Several of pytest's own options at once, as a project's ini has them."""
    run.write(
        "pytest.ini",
        """
        [pytest]
        addopts = -ra --strict-markers --durations=2 --durations-min=30 --showlocals -v
        log_cli = true
        log_cli_level = INFO
        log_file = log.txt
        log_format = %(levelname)s %(message)s
        xfail_strict = true
        filterwarnings =
            error
            ignore:harmless
        """,
    )
    run.tests("""
    import logging

    def test_logs(caplog):
        logging.info("said live")
        assert caplog.messages == ["said live"]

    def test_harmless():
        warnings.warn("harmless indeed", stacklevel=1)

    def test_harmful():
        local = "shown"
        warnings.warn("harmful", stacklevel=1)

    @pytest.mark.xfail(reason="strict")
    def test_passes_all_the_same():
        logging.error("before")
    """)
    same(run, jobs=JOBS)
    assert "ERROR before" in (run.path / "log.txt").read_text()
