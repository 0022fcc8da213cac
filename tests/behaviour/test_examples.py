"""The shipped examples do what the README says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support import Run

pytestmark = pytest.mark.needs("sandbox")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("jobs", [1, 2])
def test_quickstart(run_as_each: Run, jobs: int) -> None:
    """Green but for the crash, which is expected."""
    for path in (EXAMPLES / "quickstart").glob("*.py"):
        shutil.copy(path, run_as_each.path)
    result = run_as_each(f"--ns-jobs={jobs}")
    verdicts = result.verdicts
    assert result.ret == 0, str(result)
    assert sorted(set(verdicts.values())) == ["passed", "xfailed"], str(result)
    assert len(verdicts) == 10, str(result)


@pytest.mark.parametrize("jobs", [1, 2])
def test_cluster(run_as_each: Run, jobs: int) -> None:
    """Partitions, a slow link, a pulled cable, programs: all green, and again and again."""
    for path in (EXAMPLES / "cluster").glob("*.py"):
        shutil.copy(path, run_as_each.path)
    result = run_as_each(f"--ns-jobs={jobs}")
    assert result.ret == 0, str(result)
    assert list(result.verdicts.values()) == ["passed"] * 6, str(result)
