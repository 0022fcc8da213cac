"""Connect a session's sandboxes to the host: veth links, NAT and forwarded ports.

`Network` belongs to the session and knows which tests want what; a `Connection` belongs to one
attempt. Imported only where a test has ``net="veth"`` or ``forward``.

Guarantees: what can't be had is in `Network.errors`, by item; closing leaves nothing of the
session on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_nsisolate.core.errors import StageError

from . import nft_nat, user_nat
from .inside import GATEWAY, Outside, furnish
from .resolv_conf import for_nat

if TYPE_CHECKING:
    from pytest_nsisolate.sandbox.client import Sandbox
    from pytest_nsisolate.spec.spec import Spec

    from .addresses import Link, Ranges
    from .port_forward import Relay
    from .user_nat import UserNat
    from .veth import Attached, Links

#: Sandboxes that a session has besides those whose tests run: one forked, one being ended.
_BESIDES = 2


class Network:
    """See the module.

    Args:
        specs: what tests ask for, by index of the item.
        ranges: where addresses are taken from.
        jobs: how many tests run in parallel.
    """

    def __init__(self, specs: dict[int, Spec], ranges: Ranges, jobs: int) -> None:
        self.errors: dict[int, StageError] = {}
        self._specs = specs
        self._links: Links | None = None
        self._relay: Relay | None = None
        self._nat = False
        self._user: str | None = None  # the program that is the way out instead
        linked = [item for item, spec in specs.items() if spec.linked]
        try:
            if linked:
                self._link(linked, ranges, jobs + _BESIDES)
            if any(spec.forward for spec in specs.values()):
                self._start_relay()
        except BaseException:
            self.close()
            raise
        self._outside = self._facts()

    def _link(self, items: list[int], ranges: Ranges, wanted: int) -> None:
        from .veth import Links  # noqa: PLC0415 -- for tests with a link alone

        refused: StageError | None = None
        try:
            self._links = Links(ranges, wanted)
        except StageError as error:
            refused = error
            plain = [item for item in items if not self._specs[item].nat]
            self.errors.update(dict.fromkeys(plain, error))
        outward = [item for item in items if self._specs[item].nat]
        if outward:
            refused = refused or self._set_up_nat()
            if refused is not None:
                self._use_program(outward, refused)

    def _set_up_nat(self) -> StageError | None:
        """Set up NAT by the host itself; return the error if it can't."""
        assert self._links is not None
        try:
            refused = nft_nat.missing()
            if refused is None:
                nft_nat.set_up(self._links.slot, self._links.block)
                self._nat = True
        except StageError as error:
            refused = error
        return refused

    def _use_program(self, items: list[int], refused: StageError) -> None:
        """Choose a program without rights for NAT; *refused* is the error if there is none."""
        error = user_nat.missing()
        if error is None:
            self._user = user_nat.program()
        else:
            self.errors.update(
                dict.fromkeys(items, error if user_nat.program() is not None else refused)
            )

    def _start_relay(self) -> None:
        from .port_forward import Relay  # noqa: PLC0415 -- for tests with ports alone

        try:
            self._relay = Relay()
        except StageError as error:
            items = [item for item, spec in self._specs.items() if spec.forward]
            self.errors.update(dict.fromkeys(items, error))

    def _facts(self) -> Outside:
        links = self._links
        return Outside(
            block=links.block if links is not None else None,
            ipv6=links is not None and links.ipv6,
            forwards6=nft_nat.has_ipv6(),
            user=self._user is not None,
            user6=self._user is not None and user_nat.expects_ipv6(self._user),
            resolver=self._resolver(),
            channel=self._relay.channel.fileno() if self._relay is not None else -1,
        )

    def _resolver(self) -> str | None:
        if self._user is not None and self._user.endswith("slirp4netns"):
            return user_nat.SLIRP_RESOLVER
        return for_nat() if self._nat or self._user is not None else None

    @property
    def channel(self) -> int:
        """What every test process has of it, to be closed there; -1 for nothing."""
        return self._outside.channel

    def descriptors(self) -> list[int]:
        """Return the runner's own descriptors, which no test may have."""
        found = self._links.descriptors() if self._links is not None else []
        return found + (self._relay.descriptors() if self._relay is not None else [])

    def describe(self, item: int) -> list[str]:
        """Describe what is done for *item*, one line per step."""
        spec, links, lines = self._specs[item], self._links, []
        if spec.nat and self._user is not None:
            lines.append(f"make eth0 and a way out by {self._user}")
        elif spec.linked and links is not None:
            link = links.block.link(0)
            by6 = f" and {link.gateway6}/64" if links.ipv6 else ""
            to6 = f" and {link.address6}/64" if links.ipv6 else ""
            ends = f"{links.block.name(1)} ({link.gateway}/30{by6}) on the host to eth0"
            lines.append(
                f"link {ends} ({link.address}/30{to6}), and so on out of {links.block.ipv4}"
            )
            lines.append(f"name the ends {spec.hostname} and {GATEWAY}, route all to the latter")
            if spec.nat:
                lines.append(f"hand on what comes from there: nft table inet {links.slot.name}")
            else:
                lines.append(f"hand on nothing that comes from {links.block.prefix}*")
        if spec.nat and self._outside.resolver is not None:
            lines.append("bind a resolv.conf with the servers: " + self._servers())
        if spec.forward and self._relay is not None:
            lines += [
                f"relay port {inside} of its loopback to port {outside} of the host's"
                for outside, inside in spec.forward
            ]
        return lines

    def _servers(self) -> str:
        lines = (self._outside.resolver or "").splitlines()
        return " ".join(line.split()[1] for line in lines if line.startswith("nameserver ")) or "-"

    def connect(self, item: int, number: int, sandbox: Sandbox) -> Connection | None:
        """Connect the sandbox of one attempt of *item*; return None if it wants nothing.

        Args:
            number: of the attempt.

        Raises:
            StageError: it can't be.
        """
        spec = self._specs[item]
        if not spec.outward:
            return None
        if spec.forward and self._relay is not None:
            self._relay.start()
        made = Connection(self._relay if spec.forward else None, number)
        pid = sandbox.init_pid() if spec.linked else None
        # One that has ended is told of by whoever enters it.
        if pid is not None and spec.nat and self._user is not None:
            made.program = user_nat.UserNat(self._user, pid)
        elif pid is not None and self._links is not None:
            made.links, made.link = self._links, self._links.attach(pid, forwarded=spec.nat)
        return made

    def furnish(self, item: int, number: int) -> Link | None:
        """Set up the inside, in a test process that has joined its sandbox."""
        spec = self._specs[item]
        return furnish(self._outside, spec, number) if spec.outward else None

    def close(self) -> None:
        """Remove the relay and the links, after the sandboxes have ended."""
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        if self._links is not None:
            self._links.close()
            self._links = None


class Connection:
    """What one attempt's sandbox has of the outside."""

    def __init__(self, relay: Relay | None, number: int) -> None:
        self._relay = relay
        self._number = number
        self.links: Links | None = None
        self.link: Attached | None = None
        self.program: UserNat | None = None

    def end(self) -> None:
        """Release the link, the program and the ports of a sandbox that has ended."""
        if self.links is not None and self.link is not None:
            self.links.release(self.link)
        if self.program is not None:
            self.program.end()
        if self._relay is not None:
            self._relay.end(self._number)
