"""Refuse to do harm unless the running process has a pid namespace of its own."""

import os


def contained():
    inode = os.stat("/proc/self/ns/pid").st_ino
    assert os.getppid() == 0, "not the first process of a pid namespace"
    assert str(inode) != os.environ["NS_HOST_PIDNS"], "still in the pid namespace of the host"
