"""What somebody has in hand of a run in a file; kept beside that file, in two slots of its lock file.

That a node is claimed or running, by whom and until when, matters only while it lasts; how it ended goes into
the run's own file. So it is kept here, where it costs some hundred bytes written in place, and not the
replacement of a whole file.

An entry says what the run's file says of the snapshots that it is about, and counts only as long as the
file says the same. So a write of the file ends it, with nothing to erase, and a file that somebody else has
written or put in the place of the other is never taken for the one that the entry is about.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from pydantic_core import to_json

from .commit import UNOWNED, Ownership, StepRecord
from .jsonrun import dump_members, read_ownership, read_step

__all__ = ('AT', 'LENGTH', 'InHand', 'read_in_hand')

_SLOT: Final = 4096  # bytes: within one page, so that no signal comes between two parts of one
AT: Final = _SLOT
"""Where in the lock file the slots begin; the lock itself may be on what is before."""
LENGTH: Final = 2 * _SLOT
"""How many bytes they take."""


class InHand(NamedTuple):
    """What is in hand of a run."""

    number: int
    """Counts the entries, so that the newer of two is known. They take turns: one that a process did not
    finish writing, because it was killed, leaves the one before as it is."""
    last: int
    """The number of the newest snapshot in the file."""
    ownership: Ownership
    """Who has the run."""
    held: Mapping[int, tuple[StepRecord, StepRecord]]
    """The snapshots in hand, by number: what the file says of each, and what is true of it."""

    def write(self, slots: bytes) -> tuple[int, bytes, bytes] | None:
        """Return where to write which bytes, and what the slots hold then; `None` if it takes too many."""
        rows: list[bytes] = []
        for filed, record in self.held.values():
            was = to_json({'seq': filed.seq, 'was': [filed.status, filed.attempt]})
            rows.append(was[:-1] + b',' + dump_members(record, self.ownership)[1:])
        entry = b'{"number":%d,"last":%d,"rows":[%b]}' % (self.number, self.last, b','.join(rows))
        line = b'%08x %b\n' % (zlib.crc32(entry), entry)
        if len(line) > _SLOT:
            return None
        at = self.number % 2 * _SLOT
        return AT + at, line, slots.ljust(at, b'\0')[:at] + line + slots[at + len(line) :]


def read_in_hand(slots: bytes, filed: Sequence[StepRecord], fence: int) -> tuple[int, InHand | None]:
    """Return the number of the newest entry, 0 if there is none, and what is in hand.

    Args:
        slots: What the slots hold.
        filed: What the run's file says of every snapshot.
        fence: How often the run was taken, as far as the file knows.

    Raises:
        AttributeError: or another error of this kind, if an entry is whole but is not one of ours.
    """
    entry = max(_entries(slots), key=lambda entry: entry['number'], default=None)
    if entry is None:
        return 0, None
    nothing = entry['number'], None
    held: dict[int, tuple[StepRecord, StepRecord]] = {}
    ownership = UNOWNED
    if not filed or entry['last'] != filed[-1].seq:
        return nothing
    for row in entry['rows']:
        position = row['seq'] - filed[0].seq
        if not 0 <= position < len(filed):
            return nothing
        was = filed[position]
        if [was.id, was.status, was.attempt] != [row['id'], *row['was']]:
            return nothing
        held[was.seq] = was, read_step(row, was.node_id, was.seq)
        ownership = read_ownership(row)
    if ownership.fence <= fence:
        return nothing
    return entry['number'], InHand(entry['number'], entry['last'], ownership, held)


def _entries(slots: bytes) -> list[dict[str, Any]]:
    """Return the entries that were written whole."""
    found: list[dict[str, Any]] = []
    for at in range(0, len(slots), _SLOT):
        checksum, _, entry = slots[at : at + _SLOT].partition(b'\n')[0].partition(b' ')
        if entry and checksum == b'%08x' % zlib.crc32(entry):
            found.append(json.loads(entry))
    return found
