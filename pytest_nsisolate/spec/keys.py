"""The keys of the marker: their names, each with a line of help.

Light, since every session that has the plugin loads it; how values are read is in `values`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class SpecError(Exception):
    """A key or its value is wrong; the text is for the user."""


class Layer:
    """Keys given in one place, nearest first when layers are merged."""

    __slots__ = ("source", "values")

    def __init__(self, source: str, values: Mapping[str, Any]) -> None:
        self.source = source
        self.values = values


KEYS: dict[str, str] = {
    "profile": (
        'a bundle of keys: "hermetic" is fs=overlay, net=loopback, env=clean, a private HOME, the '
        "host's sockets hidden, and fixed TZ, LANG, umask and host name; given keys win over it"
    ),
    "net": (
        'network: "loopback" (its own, lo up), "host", "veth" (its own, linked to the host), or a '
        'topology: "a b c", "cli -- r -- srv"'
    ),
    "pcap": '"failed": keep the packets of a test that fails',
    "nat": 'with net="veth": connections to beyond the host: true or false',
    "forward": "ports of the host's loopback that appear on the sandbox's: 5432,8080:80",
    "fs": (
        'files: the host\'s ("host"), read-only ("readonly"), or writable and every write vanishes '
        '("overlay")'
    ),
    "rootfs": "a directory to become / inside, with Python and the root directory bound into it",
    "writable": (
        "paths whose files are the host's, to be written, whatever fs and rootfs say: path:path"
    ),
    "hide": "paths to cover, a directory by an empty one and a file by an empty one: path:path",
    "propagation": 'mounts made on the host meanwhile: not seen ("private"), or seen ("slave")',
    "tmpfs": "size of the private /tmp, such as 256M",
    "timeout": "seconds for setup, call and teardown together",
    "user": 'uid inside: "same" as outside, or "root" (0)',
    "hostname": "host name inside",
    "share": "namespaces to share with the host: net, uts, ipc, cgroup",
    "env": 'environment: "inherit", "clean", or NAME=value ... added to it',
    "clock": "seconds by which CLOCK_MONOTONIC and CLOCK_BOOTTIME are moved (not the wall clock)",
    "memory": "memory limit, such as 256M; what the test adds to the session counts, /tmp included",
    "cpus": "CPU time limit, in CPUs: 0.5 is half of one",
    "pids": "limit of processes and threads at once",
    "cpuset": "CPUs to run on, such as 0-1,3",
    "io": "I/O rates for the device of the root file system: rbps=10M,wbps=5M,riops=100,wiops=100",
    "cpu_weight": "CPU priority against other sandboxes: 1 to 10000, 100 is even",
    "io_weight": "I/O priority against other sandboxes: 1 to 10000, 100 is even",
    "devices": "device nodes that may be opened, such as /dev/null,/dev/zero; all others are gone",
    "counters": (
        "count page faults, context switches, and instructions and cycles where the host "
        "allows it: true or false"
    ),
    "scope": "tests that share one sandbox and test process: function (none), class or module",
    "snapshot": (
        "fixtures set up once, each test being a fork from there: of a class, module or session"
    ),
}
