"""What somebody has in hand of a run in a file; kept beside that file, in two slots of its lock file.

That a node is claimed or running, by whom and until when, matters only while it lasts; how it ended goes into
the run's own file. So it is kept here, where it costs some hundred bytes written in place, and not the
replacement of a whole file.

An entry says what the run's file says of the snapshots that it is about, and which is the newest, and counts
only as long as the file says the same. So a write of the file ends it, and a file that somebody else has
written or put in the place of the other is never taken for the one that the entry is about. An empty entry
follows, for that one may be put back.

What has no room in a slot, and what was in hand when a snapshot was added, is in the run's file instead.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from pydantic_core import to_json

from .commit import UNOWNED, Ownership, StepRecord
from .jsonrun import dump_members, read_ownership, read_step

__all__ = ('AT', 'LENGTH', 'Entry', 'InHand', 'read_entry')

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


class Entry(NamedTuple):
    """An entry as it is in a slot, of whatever file it is about."""

    number: int = 0
    """See `InHand`; 0 if there is none."""
    last: int = 0
    """See `InHand`."""
    ownership: Ownership = UNOWNED
    """Who has the run."""
    rows: Sequence[tuple[list[Any], StepRecord]] = ()
    """Of each snapshot in hand the status and the attempt that the file has of it, and what is true of it."""

    def in_hand(self, filed: Sequence[StepRecord], fence: int) -> InHand | None:
        """Return what is in hand of the run in a file, `None` if the entry is not about the file as it is.

        Args:
            filed: What the file says of every snapshot.
            fence: How often the run was taken, as far as the file knows.
        """
        if not filed or self.last != filed[-1].seq or self.ownership.fence <= fence:
            return None
        held: dict[int, tuple[StepRecord, StepRecord]] = {}
        for was, record in self.rows:
            position = record.seq - filed[0].seq
            if not 0 <= position < len(filed):
                return None
            of = filed[position]
            if [of.id, of.status, of.attempt] != [record.id, *was]:
                return None
            held[of.seq] = of, record._replace(node_id=of.node_id)
        return InHand(self.number, self.last, self.ownership, held)


def read_entry(slots: bytes) -> Entry:
    """Return the newest entry that was written whole.

    Raises:
        AttributeError: or another error of this kind, if an entry is whole but is not one of ours.
    """
    return max(_entries(slots), default=Entry(), key=lambda entry: entry.number)


def _entries(slots: bytes) -> list[Entry]:
    found: list[Entry] = []
    for at in range(0, len(slots), _SLOT):
        checksum, _, text = slots[at : at + _SLOT].partition(b'\n')[0].partition(b' ')
        if text and checksum == b'%08x' % zlib.crc32(text):
            values = json.loads(text)
            rows = values['rows']
            found.append(
                Entry(
                    int(values['number']),
                    int(values['last']),
                    read_ownership(rows[-1]) if rows else UNOWNED,
                    [(list(row['was']), read_step(row, '', int(row['seq']))) for row in rows],
                )
            )
    return found
