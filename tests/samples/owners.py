"""Which owners files have, and can be given, inside."""

import grp
import os
import pwd
import subprocess
import tempfile

import pytest


@pytest.mark.isolated(user="root")
def test_chown(tmp_path):
    assert (os.getuid(), os.getgid()) == (0, 0)
    for number in (1, 33, 1000, 65534):
        path = tmp_path / str(number)
        path.write_text("x")
        os.chown(path, number, number)
        status = os.stat(path)
        assert (status.st_uid, status.st_gid) == (number, number)


@pytest.mark.isolated(user="root")
@pytest.mark.parametrize("number", [1, 33, 1000])
def test_become(number):
    # pytest's own directories are closed to others
    folder = tempfile.mkdtemp(dir="/tmp")
    os.chmod(folder, 0o777)
    os.setgroups([number, number + 1])
    os.setresgid(number, number, number)
    os.setresuid(number, number, number)
    assert os.getresuid() == (number,) * 3
    assert os.getgroups() == [number, number + 1]
    open(folder + "/mine", "x").close()
    assert os.stat(folder + "/mine").st_uid == number
    with pytest.raises(PermissionError):
        os.setuid(0)


@pytest.mark.isolated(user="root")
def test_children():
    done = subprocess.run(
        ["sh", "-c", "id -u; id -G"],
        user=42,
        group=43,
        extra_groups=[44],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "42\n43 44\n"


@pytest.mark.isolated(user="root")
def test_login_name(tmp_path):
    os.chown(tmp_path, pwd.getpwnam("daemon").pw_uid, grp.getgrnam("daemon").gr_gid)
    assert tmp_path.owner() == "daemon"
    done = subprocess.run(
        ["setpriv", "--reuid=daemon", "--regid=daemon", "--init-groups", "id", "-un"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "daemon\n"
