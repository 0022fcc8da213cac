"""Start the keeper and the template of a session, the first time and after one was killed."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pytest_nsisolate.core.linux.syscalls import StageError
from pytest_nsisolate.files.needed_paths import hosts_files
from pytest_nsisolate.runner.memory_tuning import Spared
from pytest_nsisolate.runner.servers.template_client import Template
from pytest_nsisolate.sandbox.client import Keeper, KeeperGone
from pytest_nsisolate.sandbox.operations.mounts import BindFile
from pytest_nsisolate.testprocess import huge_pages, template

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_nsisolate.network.topology.per_test import Topologies
    from pytest_nsisolate.sandbox.keeper_start import KeeperProcess
    from pytest_nsisolate.sandbox.operations.plan import Plan
    from pytest_nsisolate.spec.spec import Spec
    from pytest_nsisolate.testprocess.body import PytestBody


class Starters:
    """See the module.

    Args:
        specs: of the isolated tests, by index of the item.
    """

    def __init__(self, specs: dict[int, Spec]) -> None:
        self._specs = specs
        self._subordinate = any(spec.user == "root" for spec in specs.values())
        self._keeper: Keeper | None = None  # until the event loop owns it
        self._plans: list[Plan] = []
        self._outer: list[int] = []
        self._topologies: Topologies | None = None
        self._spared: Spared | None = None

    # the keeper

    @property
    def keeper(self) -> Keeper | None:
        """The keeper, until the template is started."""
        return self._keeper

    def start_first_keeper(self, process: KeeperProcess | None) -> None:
        """Make a keeper of its process, if that could be started.

        Raises:
            StageError: it can't be made.
        """
        self._keeper = Keeper(process, subordinate=self._subordinate)

    def plan(self, plans: list[Plan], outer: list[int], topologies: Topologies | None) -> None:
        """Note what a keeper is to build.

        Args:
            outer: of the plans, those that the keeper builds itself.
        """
        self._plans, self._outer, self._topologies = plans, outer, topologies

    def start_keeper(self) -> Keeper | None:
        """Return a keeper that knows the plans; None for tests without namespaces.

        Raises:
            StageError: it can't be started.
        """
        if self._keeper is None and self._plans:
            # The one before was killed.
            self._keeper = Keeper(subordinate=self._subordinate)
        if self._keeper is not None:
            try:
                self._teach(self._keeper)
            except KeeperGone:
                raise StageError("start the keeper", errno.EPIPE) from None
        return self._keeper

    def _teach(self, keeper: Keeper) -> None:
        """Send a new keeper the plans to build sandboxes by."""
        files = hosts_files({spec.hostname for spec in self._specs.values()})
        if self._topologies is not None:
            files |= self._topologies.hosts_files(files)
        # Where they are kept, a suite may live: then no plan that has overlays binds them.
        bound = (one for plan in self._plans for one in (*plan.ground, *plan.operations))
        if any(isinstance(one, BindFile) for one in bound):
            keeper.store(files)
        for number in self._outer:
            keeper.add_plan(number, self._plans[number])

    # the template

    def spare_collections(self) -> None:
        """Collect garbage less often in the runner, until the next template is forked."""
        self._spared = Spared()

    def resume_collections(self) -> None:
        """Collect garbage as before."""
        if self._spared is not None:
            self._spared.resume()
            self._spared = None

    def start_template(
        self, keeper: Keeper | None, close: list[int], make_body: Callable[[], PytestBody]
    ) -> Template:
        """Fork the template.

        Args:
            close: the runner's descriptors, which no test may have.
            make_body: makes what test processes run.

        Raises:
            StageError: it can't be forked.
        """
        self.resume_collections()  # tests inherit how it is
        if keeper is not None:
            close = [*close, keeper.socket.fileno(), keeper.pidfd]
        body = make_body()
        huge_pages.gather(len(self._specs))
        pid, control = template.start(
            keeper.pidfd if keeper is not None else None,
            close,
            lambda: body.descriptors,
            body.prepare,
            collect=len(self._specs) >= huge_pages.WORTH_IT,
        )
        self._keeper = None  # the event loop owns it now
        return Template(pid, control)

    def close(self) -> None:
        """End a keeper that was not used."""
        self.resume_collections()
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
