"""Add a hint to a failure that a sandbox may have caused.

A hint is a section of the report. It is shown if the text of a failure names something that is
different in a sandbox (docs/differences.md). That may not be the cause.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pytest_nsisolate.cgroups import always_on

#: Title of the section.
TITLE = "Different in a sandbox"
#: A failure that names the parent of the test process.
_PARENT = re.compile(r"\bgetppid\b|\bppid\b|\bpsutil\b.*\bparents?\(\)", re.DOTALL)


#: How pytest begins the line that failed, and those of the error.
_TELLING = (">", "E ")


class Facts(NamedTuple):
    """What hints depend on besides the text.

    Attributes:
        sandbox: whether the test has a pid namespace of its own.
        pids: the key of its spec.
    """

    sandbox: bool
    pids: int | None


def hints(text: str, facts: Facts) -> str:
    """Write the text of the section, "" for none.

    Args:
        text: of the failure, as pytest shows it. Only the error and the line that raised it
            count, not the code around.
    """
    found = []
    text = "\n".join(line for line in text.splitlines() if line.startswith(_TELLING))
    if facts.pids is None and always_on.speaks_of_forks(text):
        found.append(
            f"A sandbox holds {always_on.processes()} processes and threads. If the test needs "
            "more, allow them with @pytest.mark.isolated(pids=NUMBER)."
        )
    if facts.sandbox and _PARENT.search(text):
        found.append(
            "os.getppid() is 0: the parent of the test process is outside the sandbox's pid "
            "namespace. Processes that the test starts have a parent as usual. If the test needs "
            "its own, opt out with @pytest.mark.isolated(False)."
        )
    return "\n".join(found)
