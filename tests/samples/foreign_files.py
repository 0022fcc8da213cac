"""Ways to change files of several owners."""

import errno
import os
import shutil

import pytest


def code(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def append(path):
    with open(path, "a") as stream:
        stream.write("more")


def replace(path):
    with open(path + ".new", "w") as stream:
        stream.write("other")
    os.replace(path + ".new", path)


def recreate(path):
    os.unlink(path)
    with open(path, "x") as stream:
        stream.write("again")


def make(path):
    with open(path + "/new", "x"):
        pass
    os.mkdir(path + "/folder")
    os.rename(path + "/new", path + "/folder/renamed")


WAYS = {
    **{
        f"append {p}": (append, p)
        for p in (
            "all",
            "mine",
            "read",
            "closed",
            "open/all",
            "open/read",
            "open/mine",
            "shut/all",
            "shut/mine",
            "shut/deep/mine",
            "group",
        )
    },
    **{f"make {p}": (make, p) for p in (".", "open", "open/deep", "shut", "shut/deep", "own")},
    **{f"replace {p}": (replace, p) for p in ("open/read", "open/all", "open/mine", "shut/all")},
    **{f"recreate {p}": (recreate, p) for p in ("open/read", "open/deep/read", "shut/all")},
    **{
        f"rename {p}": (os.rename, p, "open/moved")
        for p in ("open/read", "open/all", "open/deep/read", "open/link", "open/mine")
    },
    "chmod all": (os.chmod, "all", 0o600),
    "chmod shut/all": (os.chmod, "shut/all", 0o600),
    "touch all": (os.utime, "all"),
    "touch read": (os.utime, "read"),
    "truncate all": (os.truncate, "all", 0),
    "rmtree open": (shutil.rmtree, "open"),
}


@pytest.mark.parametrize("name", WAYS)
def test_way(name, record_property):
    if "NS_PLAIN" in os.environ:  # nothing undoes what is done there
        os.chdir(f"{os.environ['NS_PLAIN']}/{list(WAYS).index(name)}")
    function, *arguments = WAYS[name]
    record_property("result", code(function, *arguments))


def test_read(record_property):
    if "NS_PLAIN" in os.environ:
        os.chdir(f"{os.environ['NS_PLAIN']}/{len(WAYS)}")
    stamps = {}
    for path in ("all", "read", "open/all", "open/read"):
        status = os.stat(path)
        with open(path) as stream:
            stamps[path] = [stream.read(), status.st_mtime_ns, status.st_mode & 0o077]
    record_property("result", stamps)
