"""What a host may lack, by the names that ``@pytest.mark.needs`` and NSISOLATE_MUST_WORK take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faults.supervisor import lacks_supervisor

from . import hosts
from .browser import lacks_browser
from .debian import lacks_debian
from .networks import lacks_nft, lacks_program, lacks_veth
from .run import lacking
from .subids import lacks_subids

if TYPE_CHECKING:
    from collections.abc import Callable

CAPABILITIES: dict[str, Callable[[], str | None]] = {
    **hosts.CAPABILITIES,
    "browser": lacks_browser,
    "faults": lacks_supervisor,
    "veth": lacks_veth,
    "nft": lacks_nft,
    "pasta": lambda: lacks_program("pasta"),
    "slirp4netns": lambda: lacks_program("slirp4netns"),
    "subids": lacks_subids,
    "debian": lacks_debian,
}


def require(name: str) -> None:
    """Skip or fail the running test unless the capability ``name`` works on this host."""
    reason = CAPABILITIES[name]()
    if reason is not None:
        lacking(name, reason)
