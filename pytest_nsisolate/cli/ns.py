"""``nsisolate ns``: show the namespaces of a process as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_nsisolate.core.linux.namespace_files import Namespaces

#: How many of the processes that share a namespace are named.
_NAMED = 3


def as_text(view: Namespaces) -> list[str]:
    """Format the view as lines of text."""
    lines = [f"process {view.pid}: {view.command}"]
    if len(view.pids_inside) > 1:
        inside = ", then ".join(map(str, view.pids_inside[1:]))
        lines.append(f"its pid further inside: {inside}")
    lines += ["", f"{'namespace':<10}{'inode':>12}  {'you':<8}shared with"]
    for one in view.shared:
        named = ", ".join(map(str, one.processes[:_NAMED]))
        more = len(one.processes) - _NAMED
        who = f"{named} and {more} more" if more > 0 else named or "nobody you may see"
        if one.for_children is not None:
            who += f"; its next child will be in {one.for_children}"
        lines.append(f"{one.kind:<10}{one.inode:>12}  {'in it' if one.mine else 'outside':<8}{who}")
    for title, levels in (("user namespaces", view.users), ("pid namespaces", view.pids)):
        lines += ["", f"{title}, from the outermost that you may see:"]
        for depth, level in enumerate(levels):
            text = f"{'  ' * depth}  {level.inode}"
            if level.owner is not None:
                text += f", made by uid {level.owner}"
            if level.userns is not None:
                text += f", belongs to user namespace {level.userns}"
            lines.append(text)
    return lines
