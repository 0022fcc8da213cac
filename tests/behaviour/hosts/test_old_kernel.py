"""On the oldest kernel that is supported everything works, by the older ways."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from helpers.crippled import COMMON, OLD_KERNEL
from helpers.hosts import lacks_tmpfs_attributes

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox")]
PREFIX = [sys.executable, "-c", COMMON + OLD_KERNEL]


@pytest.mark.parametrize("who", ["run", "run_as_nobody"])
def test_without_newer_calls(who: str, request: pytest.FixtureRequest) -> None:
    """What is read-only is so in every mount below, and stays nosuid and the like."""
    run: Run = request.getfixturevalue(who)
    run.tests("""
    def mounts():
        lines = [line.split() for line in open("/proc/self/mountinfo")]
        return {fields[4]: fields[5].split(",") for fields in lines}

    OUTSIDE = mounts()

    def test_cgroup_tree():
        below = [path for path in mounts() if path.startswith("/sys/fs/cgroup")]
        assert below == [path for path in OUTSIDE if path.startswith("/sys/fs/cgroup")]
        assert below
        for path in below:
            assert os.statvfs(path).f_flag & os.ST_RDONLY
            assert set(OUTSIDE[path]) - {"rw"} <= set(mounts()[path])

    @pytest.mark.parametrize("number", range(30))
    def test_more(number):
        pass
    """)
    run.isolated("--ns-jobs=2", prefix=PREFIX).expect(passed=31)


@pytest.mark.parametrize("fs", ["readonly", "overlay"])
@pytest.mark.parametrize("who", ["run", "run_as_nobody"])
def test_files_without_newer_calls(who: str, fs: str, request: pytest.FixtureRequest) -> None:
    """What is sealed and what is hidden is so by the older calls as well."""
    run: Run = request.getfixturevalue(who)
    (run.path / "secret").mkdir(mode=0o777)
    (run.path / "secret" / "file").touch()
    run.tests("""
    @pytest.mark.isolated(hide=["secret"])
    def test_it(pytestconfig):
        assert os.listdir("secret") == []
        try:
            (pytestconfig.rootpath / "new").touch()
        except OSError as error:
            assert error.errno == errno.EROFS

    def test_settings():
        with pytest.raises(OSError):
            open("/proc/sys/kernel/core_pattern", "w")
    """)
    result = run.isolated(f"--ns-fs={fs}", prefix=PREFIX)
    if fs == "overlay" and lacks_tmpfs_attributes():
        result.expect(error=1, passed=1)
        assert 'mend: Use fs="readonly" for tests with hide=, or Linux 6.6' in result.out
    else:
        result.expect(passed=2)
    assert not (run.path / "new").exists()
