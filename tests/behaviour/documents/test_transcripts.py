"""What the documents show is what the commands print: ``python tools/transcripts.py`` writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from transcripts import DOCUMENTS, Transcript, difference, transcripts

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.needs("sandbox"),
    pytest.mark.skipif(
        pytest.version_tuple < (9,), reason="the documents show what pytest 9 prints"
    ),
]
ALL = [one for document in DOCUMENTS for one in transcripts(document)]


@pytest.mark.parametrize("transcript", ALL, ids=lambda one: one.name)
def test_is_what_is_printed(
    transcript: Transcript, require_capability: Callable[[str], None]
) -> None:
    for name in transcript.needs:
        require_capability(name)
    assert not difference(transcript, transcript.run())
