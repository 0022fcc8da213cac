"""A report told as what tells it from the one before it, of the same test.

Of a test that passes, three reports say the same but for the phase and its times. A brief one
is a third as long, and the runner makes it of the one that it has (`report.Replay`).
"""

from typing import Any

#: Marks a brief report.
LIKE = "$ns_like"
#: What may differ in one.
VARIES = frozenset({"when", "duration", "start", "stop", "sections", "user_properties"})
#: What is told always, unless it was empty and is: a test may hold it, and change it later.
_LISTS = ("sections", "user_properties")
#: What can be compared without running anybody's code; of other kinds nothing is told briefly.
_PLAIN = (str, int, float, bool, type(None), tuple, list, dict)

_Data = dict[str, Any]


def remembered(data: "_Data") -> "_Data":
    """What `briefly` is to compare the next report of the test with, whatever becomes of *data*."""
    return {
        key: value.copy() if type(value) in (list, dict) else value for key, value in data.items()
    }


def briefly(data: "_Data", before: "_Data") -> "_Data | None":
    """A report that passed, serialised, as a brief one; None if it has to be told as it is.

    Args:
        before: `remembered`, of the report before; empty if there was none.
    """
    if len(data) != len(before) or data.get("outcome") != "passed" or data.get("longrepr"):
        return None
    brief: _Data = {LIKE: True}
    for key, value in data.items():
        if key in _LISTS and (value or before.get(key)):
            brief[key] = value
        elif key not in before or type(value) not in _PLAIN:
            return None
        elif value != before[key]:
            if key not in VARIES:
                return None
            brief[key] = value
    return brief
