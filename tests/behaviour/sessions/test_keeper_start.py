"""The keeper's process starts while the session imports the rest; it ends if nobody needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.run import Run

CHILDREN = """
    import os, pathlib

    def keepers():
        tasks = pathlib.Path("/proc/self/task").glob("*/children")
        pids = [pid for task in tasks for pid in task.read_text().split()]
        commands = [pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
        return [command for command in commands if b"pytest_nsisolate.sandbox.keeper" in command]
"""


@pytest.mark.parametrize(
    ("mark", "started"),
    [("", ["False"]), ("@pytest.mark.isolated(False)", [])],
    ids=["isolated", "opted out"],
)
def test_it_starts_before_the_rest_is_imported(run: Run, mark: str, started: list[str]) -> None:
    """And not at all, where no test is isolated."""
    run.tests(f"{mark}\ndef test_it(): pass")
    (run.path / "started").touch()
    run.write(
        "conftest.py",
        """
        import sys
        from pytest_nsisolate.sandbox import keeper_start

        class Noting(keeper_start.KeeperProcess):
            def __init__(self):
                super().__init__()
                with open("started", "a") as file:
                    print("pytest_nsisolate.plugin.session" in sys.modules, file=file)

        keeper_start.KeeperProcess = Noting
        """,
    )
    run.isolated().expect(passed=1)
    assert (run.path / "started").read_text().split() == started


@pytest.mark.parametrize("mark", ["@pytest.mark.isolated(False)", "@pytest.mark.isolated"])
def test_it_is_there_as_long_as_a_test_is_isolated(run: Run, mark: str) -> None:
    """Where all opt out no process is left of it while the session runs."""
    run.write("children.py", CHILDREN)
    run.tests(f"""
        from children import keepers

        {mark}
        def test_it(): pass

        @pytest.mark.isolated(False)
        def test_children():
            assert len(keepers()) == {int("False" not in mark)}
    """)
    run.isolated().expect(passed=2)


def test_bad_input_ends_it(run: Run) -> None:
    run.write("children.py", CHILDREN)
    run.tests("""
        @pytest.mark.isolated(timeout=-1)
        def test_it(): pass
    """)
    run.write(
        "conftest.py",
        """
        import children

        def pytest_unconfigure():
            print("keepers:", len(children.keepers()))
        """,
    )
    result = run("-s")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "keepers: 0" in result.out, str(result)


def test_one_that_can_not_start_ahead_is_started_when_it_is_needed(run: Run) -> None:
    run.tests("def test_it(): pass")
    run.write(
        "conftest.py",
        """
        import errno
        from pytest_nsisolate.sandbox import keeper_start
        from pytest_nsisolate.core.errors import StageError

        class Late(keeper_start.KeeperProcess):
            def __init__(self):
                raise StageError("start the keeper", errno.EAGAIN)

        keeper_start.KeeperProcess, real = Late, keeper_start.KeeperProcess

        def pytest_plugin_registered(plugin):
            if type(plugin).__name__ == "Isolating":
                from pytest_nsisolate.sandbox import client

                client.KeeperProcess = real
        """,
    )
    run.isolated().expect(passed=1)
