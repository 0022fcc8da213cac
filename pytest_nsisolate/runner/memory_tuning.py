"""Tune Python's cyclic garbage collector in the runner while all tests run elsewhere.

By then the runner makes reports and little else, which live to the end of the session, and in
cycles nothing. Looking through them again and again takes an eighth of the runner's time.
"""

from __future__ import annotations

import gc

#: So many objects more than were freed, and the young ones are looked through.
_THRESHOLD = 10_000


class Spared:
    """From here to `resume` what lives now is not looked at, and what comes more rarely."""

    def __init__(self) -> None:
        self._thresholds = gc.get_threshold()
        # Who has switched it off, or chosen a high number, has thought about it.
        self._changed = gc.isenabled() and 0 < self._thresholds[0] < _THRESHOLD
        if self._changed:
            gc.freeze()
            gc.set_threshold(_THRESHOLD, *self._thresholds[1:])

    def resume(self) -> None:
        """Restore the settings from before."""
        if self._changed:
            self._changed = False
            gc.set_threshold(*self._thresholds)
            gc.unfreeze()
