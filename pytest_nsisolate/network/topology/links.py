"""Links that a test holds, to pull and to shape, and changes that undo themselves."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from pytest_nsisolate.core.errors import StageError

from . import blueprint, rtnetlink, shaping
from .hosts import Host, NetworkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_nsisolate.spec.topology import Port, Switch

    from .switchboard import Place, Switchboard


class Wiring:
    """The switchboard of a network, for one thread at a time."""

    def __init__(self, board: Switchboard) -> None:
        self.board = board
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def changing(self) -> Iterator[Switchboard]:
        """Lock the links around a change; raise a failure as a `NetworkError`."""
        with self._lock:
            try:
                yield self.board
            except StageError as error:
                raise NetworkError(error) from None


class Change:
    """What was changed; as a context manager it is undone at the end of the block."""

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo = undo

    def __enter__(self) -> Change:  # noqa: PYI034 -- typing.Self is newer than 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self._undo()


class Cut(Change):
    """A partition. See `Network.cut`."""

    def heal(self) -> None:
        """End this one; others stay."""
        self._undo()


class Link:
    """What lies between two hosts on a switch or cable, or between a host and its switch.

    Where two hosts have a cable, `down` pulls it: both lose their carrier. Between two
    hosts on a switch it is as with a switch that drops what one sends to the other.
    """

    def __init__(
        self, wiring: Wiring, switch: Switch, ports: tuple[Port, ...], hosts: Sequence[Host]
    ) -> None:
        self._wiring = wiring
        self._switch = switch
        self._ports = ports
        self._hosts = hosts
        # A cable of two, or one host's own, is real; a pair on a switch is made when needed.
        self._real = switch.is_cable or len(ports) == 1

    def __repr__(self) -> str:
        names = [host.name for host in self._hosts]
        names += [self._switch.name] if len(names) == 1 and self._switch.name else []
        return f"<link {' -- '.join(names)}>"

    def down(self) -> Change:
        """Let nothing through; within a ``with`` block, or until `up`."""
        self._set(up=False)
        return Change(self.up)

    def up(self) -> None:
        """Let packets through again."""
        self._set(up=True)

    def shape(
        self,
        *,
        delay: float | str = 0,
        jitter: float | str = 0,
        loss: float = 0,
        rate: int | str | None = None,
        reorder: float = 0,
        duplicate: float = 0,
    ) -> Change:
        """Shape what passes, in each direction; what is not given is reset.

        All but a rate alone need the kernel's module sch_netem. With jitter alone, packets
        overtake each other. Within a ``with`` block, or until the next call.

        Args:
            delay, jitter: such as "50ms"; a number is seconds.
            loss, reorder, duplicate: percent.
            rate: such as "10mbit"; a number is bits a second.

        Raises:
            ValueError: a value is not allowed.
            NetworkError: this kernel can't.
        """
        shape = shaping.read(
            delay=delay, jitter=jitter, loss=loss, rate=rate, reorder=reorder, duplicate=duplicate
        )
        self._shape(shape)
        return Change(lambda: self._shape(shaping.Shape()))

    @property
    def _place(self) -> Place:
        return self._switch.number, frozenset(port.host for port in self._ports)

    @property
    def _ends(self) -> list[tuple[int, str]]:
        return [(blueprint.port_index(port), blueprint.port_name(port)) for port in self._ports]

    def _set(self, *, up: bool) -> None:
        with self._wiring.changing() as board:
            if self._real:
                board.set_ports(self._switch.number, self._ends, up=up)
            else:
                board.set_pair(self._place, up=up)

    def _shape(self, shape: shaping.Shape) -> None:
        with self._wiring.changing() as board:
            if not self._real:
                board.shape_pair(self._place, shape)
                return
            # An end in the fabric shapes what goes to its host, a host's own what it sends.
            board.shape_ends(self._ends, shape)
            if len(self._ports) == 1:
                self._shape_inside(shape)

    def _shape_inside(self, shape: shaping.Shape) -> None:
        (port,), (host,) = self._ports, self._hosts
        with host:
            inside = rtnetlink.Netlink()
        try:
            inside.do(shaping.shaper(blueprint.eth_index(port), port.name, shape))
        finally:
            inside.close()
