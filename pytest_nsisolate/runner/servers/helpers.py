"""Start the keeper and the template of a session, and start both again when one was killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_nsisolate.core.linux.syscalls import StageError

from .fork_server import ForkServer
from .sandbox_pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_nsisolate.runner.timeline import Watch
    from pytest_nsisolate.sandbox.client import Keeper

    from .template_client import Template

#: How often keeper and template are started again.
_RESTARTS = 3


class Lost(Exception):
    """The session can't go on: keeper or template ended and could not be replaced, say.

    Attributes:
        error: what failed, of every test that is still to run.
    """

    def __init__(self, error: StageError) -> None:
        super().__init__(error)
        self.error = error


class Helpers:
    """See the module.

    Args:
        start_keeper: gives a keeper that knows the plans; None for tests without namespaces.
        start_template: forks the template, given the keeper and the runner's descriptors that
            are to be closed there.
        first: plans by which sandboxes are built while the template is forked.

    Attributes:
        keeper: the one that runs.
    """

    def __init__(
        self,
        start_keeper: Callable[[], Keeper | None],
        start_template: Callable[[Keeper | None, list[int]], Template],
        first: Sequence[int] = (),
    ) -> None:
        self._start_keeper = start_keeper
        self._start_template = start_template
        self._first = first
        self._restarts = 0
        self.keeper: Keeper | None = None

    def start(self, numbers: Iterator[int], watch: Watch | None, own: list[int]) -> ForkServer:
        """Start both.

        Args:
            numbers: of sandboxes.
            watch: records what is asked for and made.
            own: the runner's own descriptors, which no test may have.

        Raises:
            StageError: one of them can't be started.
        """
        self.keeper = self._start_keeper()
        pool = None
        if self.keeper is not None:
            pool = Pool(self.keeper, numbers, watch)
            pool.want(dict.fromkeys(self._first, 1))
        return ForkServer(self.keeper, self._start_template(self.keeper, own), pool)

    def proved(self) -> None:
        """Build no sandboxes ahead when they are started again: it is known that it works."""
        self._first = ()

    def count_restart(self, stage: str, number: int) -> None:
        """Count that both are started again.

        Args:
            stage: what makes it necessary.
            number: the error that went with it.

        Raises:
            Lost: it was too often.
        """
        self._restarts += 1
        if self._restarts > _RESTARTS:
            raise Lost(StageError(f"{stage}, the {self._restarts}th of this session", number))

    def close_keeper(self) -> None:
        """End the keeper, and with it every sandbox."""
        if self.keeper is not None:
            self.keeper.close()
            self.keeper = None

    def give_keeper_away(self) -> None:
        """Stop owning the keeper, whose new owner ends it."""
        self.keeper = None
