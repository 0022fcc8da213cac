"""The network of a sandbox: the loopback device and the settings that need no rights later."""

from typing import NamedTuple

from .steps import Step, write_setting
from .syscalls import link_up


class LoopbackUp(NamedTuple):
    """Bring ``lo`` up; the kernel then gives it 127.0.0.1 and ::1."""

    def describe(self) -> str:
        return "bring lo up"

    def steps(self) -> "list[Step]":
        return [Step(link_up, (b"lo",))]


class Sysctl(NamedTuple):
    """Write one setting below /proc/sys; one that this kernel lacks is left out."""

    name: str
    value: str

    def describe(self) -> str:
        return f"set {self.name} = {self.value}"

    def steps(self) -> "list[Step]":
        path = "/proc/sys/" + self.name.replace(".", "/")
        return [Step(write_setting, (path.encode(), self.value.encode()))]
