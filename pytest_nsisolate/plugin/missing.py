"""Track the tests that can't be isolated on this host, and apply --ns-missing to them."""

from __future__ import annotations

import collections
import functools
import os
from typing import TYPE_CHECKING

from pytest_nsisolate.core.linux.syscalls import LINUX, StageError
from pytest_nsisolate.core.outcome import Outcome
from pytest_nsisolate.spec.holds import Facts, Mode, judge
from pytest_nsisolate.spec.keys import KEYS

from . import markers

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

    from pytest_nsisolate.cgroups.budget import Budgets
    from pytest_nsisolate.spec.holds import Refusal
    from pytest_nsisolate.spec.spec import Spec

    from .options import Options

#: The values of --ns-missing that run a test without a sandbox.
_MODES = {"fork": Mode.FORK, "run": Mode.RUN}
#: What the header says of the tests.
_DONE = {
    "skip": "are skipped",
    "fork": "run as forked processes WITHOUT NAMESPACES",
    "run": "run in the runner, NOT ISOLATED",
}


class Missing:
    """See the module.

    Args:
        items: of the session.
        specs: of the isolated tests, by index of the item.
    """

    def __init__(self, items: list[pytest.Item], options: Options, specs: dict[int, Spec]) -> None:
        self._items = items
        self._options = options
        self._specs = specs
        self._budgets: Budgets | None = None
        self._errors: dict[int, StageError] = {}
        self._refusals: dict[int, list[Refusal]] = {}
        self._named: set[int] = set()  # of the errors, those that lines have named

    def add(self, items: Iterable[int], error: StageError) -> None:
        """Note why these can't be isolated, unless that is known already."""
        for item in items:
            self._errors.setdefault(item, error)

    def add_each(self, errors: dict[int, StageError]) -> None:
        """Add each item with its own error."""
        for item, error in errors.items():
            self.add([item], error)

    def limit_by(self, budgets: Budgets | None) -> None:
        """Note what holds tests to their limits, also those that run without a sandbox."""
        self._budgets = budgets

    def error(self, item: int) -> StageError | None:
        """Return why a test can't be isolated, None if it can."""
        return self._errors.get(item)

    def take_runnable(self) -> list[int]:
        """Return the tests that can run without a sandbox, and forget their errors."""
        items = [item for item in self._errors if not self._refused(item)]
        for item in items:
            del self._errors[item]
        return items

    def outcome(self, item: int, error: StageError) -> Outcome:
        """Return the outcome of a test that can't be isolated because of *error*."""
        outcome = Outcome.failed(error)
        refused = self._refused(item)
        if refused:
            from pytest_nsisolate.explain.explain import explain_refusal  # noqa: PLC0415 -- only where something fails

            source = functools.partial(markers.source_of, self._items[item], self._options)
            placed = [(one, source(one.key)) for one in refused]
            outcome.refusal = explain_refusal(error, placed, _MODES[self._options.missing])
        return outcome

    def lines(self) -> list[str]:
        """Return a line for each reason why tests can't be isolated, for tests not yet named."""
        items = [item for item in self._errors if item not in self._named]
        self._named.update(items)
        if self._options.missing == "error" or not items:
            return []
        from pytest_nsisolate.explain.explain import one_line  # noqa: PLC0415 -- only where something fails

        counts: collections.Counter[tuple[str, bool]] = collections.Counter()
        keys: dict[tuple[str, bool], set[str]] = {}
        for item in items:
            refused = self._refused(item)
            group = one_line(self._errors[item]), bool(refused)
            counts[group] += 1
            keys.setdefault(group, set()).update(one.key for one in refused)
        lines = []
        option = f"--ns-missing={self._options.missing}"
        for group, count in counts.items():
            what = f"they {_DONE[self._options.missing]} ({option})"
            if group[1]:
                names = ", ".join(key for key in KEYS if key in keys[group])
                what = f"they fail: {option} can't hold {names}"
            lines.append(
                f"nsisolate: {count} of {len(self._specs)} isolated tests can't be isolated here "
                f"({group[0]}); {what}"
            )
        return lines

    def _refused(self, item: int) -> list[Refusal]:
        """Return the keys of *item* that can't be held in the mode that ``--ns-missing`` sets."""
        if self._options.missing not in _MODES:
            return []
        if item not in self._refusals:
            spec, budgets = self._specs[item], self._budgets
            facts = Facts(
                linux=LINUX,
                root=hasattr(os, "geteuid") and os.geteuid() == 0,
                group=budgets is not None and budgets.holds(item),
                counts=budgets is not None and budgets.counts,
                cpus=frozenset(os.sched_getaffinity(0)) if LINUX else frozenset(),
            )
            found = judge(spec.asked, _MODES[self._options.missing], facts)
            if any(one.key == "profile" for one in found):
                # The keys of its bundle were not asked for one by one.
                source = functools.partial(markers.source_of, self._items[item], self._options)
                found = [one for one in found if source(one.key)]
            self._refusals[item] = found
        return self._refusals[item]
