"""The topologies of a session: worked out in the runner, built in each test process.

`Topologies` is made before the template is forked, and imports what building takes. In a
test process `furnish` builds the network of that test, while the process still has all
rights over its sandbox, and opens the taps of ``pcap="failed"``; `start` and `stop` are
around the test.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.spec import topology

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_nsisolate.spec.spec import Spec

    from .blueprint import Blueprint
    from .network import Network
    from .pcap import Capture, Tap

#: Longest part of a node id in the name of a directory.
_NAME = 80
#: How many files a report names.
_SHOWN = 10


class Topologies:
    """See the module.

    Attributes:
        errors: by item, why its network can't be built; known without trying.
    """

    def __init__(self, specs: Mapping[int, Spec], basetemp: str | None) -> None:
        self.errors: dict[int, StageError] = {}
        self._specs = specs
        self._basetemp = basetemp
        self._blueprints: dict[str, Blueprint] = {}
        self._taps: list[Tap] = []
        self._capture: Capture | None = None
        self._directory = ""
        self._shown = False
        try:
            self._prepare()
        except StageError as error:
            self.errors = {item: error for item, spec in specs.items() if spec.topology}

    def _prepare(self) -> None:
        texts = dict.fromkeys(spec.topology for spec in self._specs.values() if spec.topology)
        if texts:
            # Slow to import; the words for what fails in a sandbox are looked for there.
            from pytest_nsisolate.explain import explain  # noqa: F401, PLC0415 -- as said

            from . import blueprint, link_messages, network  # noqa: F401, PLC0415 -- as said

            link_messages.prepare()
            ipv6 = blueprint.has_ipv6()
            for text in texts:
                self._blueprints[text] = blueprint.blueprint(topology.parse(text), ipv6=ipv6)
        if any(spec.pcap for spec in self._specs.values()):
            from . import pcap  # noqa: F401, PLC0415 -- only where it is asked for

    # in the runner

    def describe(self, item: int) -> list[str]:
        """Describe the plan of the network of *item*, one line per step."""
        plan = self._blueprints.get(self._specs[item].topology)
        return plan.describe() if plan is not None else []

    def hosts_name(self, item: int) -> str | None:
        """Return the name of *item*'s hosts file in the keeper's store; None for the usual one."""
        spec = self._specs[item]
        if spec.topology not in self._blueprints:
            return None
        return f"hosts-{spec.hostname}.{list(self._blueprints).index(spec.topology)}"

    def hosts_files(self, usual: Mapping[str, str]) -> dict[str, str]:
        """Return the files for `Keeper.store`, made from *usual* (`needed_paths.hosts_files`)."""
        files = {}
        for item, spec in self._specs.items():
            name, base = self.hosts_name(item), usual.get(f"hosts-{spec.hostname}")
            if name is not None and base is not None and name not in files:
                plan = self._blueprints[spec.topology]
                files[name] = base + plan.topology.names(ipv6=plan.ipv6)
        return files

    # in the test process

    def rights(self, item: int) -> int:
        """Return the capabilities that the test needs even if its uid is not 0, as bits."""
        if not self._specs[item].topology:
            return 0
        from .hosts import RIGHTS  # noqa: PLC0415 -- imported before the fork

        return RIGHTS

    def furnish(self, item: int, nodeid: str) -> Network | None:
        """Build the network of *item*, and capture the packets of its hosts from here on.

        Returns:
            The network, None if the test has no topology.

        Raises:
            StageError: what could not be done.
        """
        spec = self._specs[item]
        network = None
        if spec.topology:
            from .hosts import NetworkError  # noqa: PLC0415 -- imported before the fork
            from .network import Network  # noqa: PLC0415 -- as above

            try:
                network = Network(self._blueprints[spec.topology])
            except NetworkError as error:
                raise error.error from None
        if spec.pcap and "net" not in spec.shared:
            self._open_taps(nodeid, network)
        return network

    def _open_taps(self, nodeid: str, network: Network | None) -> None:
        from .pcap import Tap, blocks_of  # noqa: PLC0415 -- imported before the fork

        if self._basetemp is None:
            return
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", nodeid)[-_NAME:]
        self._directory = os.path.join(self._basetemp, f"packets-{name}")
        os.makedirs(self._directory, 0o700, exist_ok=True)
        if network is None:
            self._taps = [Tap(os.path.join(self._directory, "sandbox.pcap"))]
            return
        blocks = blocks_of(len(network))
        for host in network:
            with host:
                path = os.path.join(self._directory, f"{host.name}.pcap")
                self._taps.append(Tap(path, blocks=blocks))

    def start(self) -> None:
        """Begin to write packets, if they are wanted; after all changes of rights."""
        if self._taps:
            from .pcap import Capture  # noqa: PLC0415 -- imported before the fork

            self._capture = Capture(self._taps)

    def next_test(self) -> None:
        """Prepare for another test, which begins in the same network."""
        self._shown = False

    def stop(self, *, failed: bool) -> None:
        """Stop capturing packets, because the test is over.

        The packets lie where ``tmp_path`` lies: `collect.bring_out` brings them out if the test
        failed, and else they go with the sandbox.
        """
        if self._capture is not None:
            self._capture.stop(flush=failed)
            self._capture = None

    def show(self, sections: list[tuple[str, str]]) -> None:
        """Say in the first report of a failure where its packets are."""
        if self._taps and not self._shown:
            self._shown = True
            names = [os.path.basename(tap.path) for tap in self._taps]
            listed = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            sections.append(("packets", f"in {self._directory}: {listed}\n"))
