"""A run as JSON: pydantic-graph 1.x's array of snapshots, and what it has no field for under our own key.

pydantic-graph 1.x ignores that key when it reads and drops it when it writes. The states and nodes of a file
are carried over as the bytes they are, never parsed and written anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast, get_args

from pydantic_core import PydanticSerializationError, to_json

from .codec import Body
from .commit import (
    NAMELESS,
    UNOWNED,
    About,
    Attempt,
    Kind,
    Outcome,
    Owner,
    Ownership,
    Row,
    StepError,
    StepRecord,
)
from .errors import CorruptSnapshotError
from .jsonmembers import (
    MANY,
    WRONG,
    as_count,
    as_list,
    as_moment,
    as_name,
    as_object,
    as_seconds,
    as_text,
    member,
    number,
    one_of,
)
from .names import check_run_id, check_tags
from .status import SnapshotStatus, TaskStatus

__all__ = (
    'Element',
    'Run',
    'dump_attempts',
    'dump_members',
    'dump_owner',
    'dump_run',
    'is_plain',
    'load_attempts',
    'load_owner',
    'parse_body',
    'parse_run',
    'read_ownership',
    'read_step',
    'render',
)

_OURS: Final = 'graphkeep'
_KNOWN: Final = frozenset(
    {'state', 'node', 'result', 'start_ts', 'ts', 'duration', 'status', 'kind', 'id', _OURS}
)
_OWNER_FIELDS: Final = tuple(field.name for field in fields(Owner))
_STATUSES: Final[frozenset[TaskStatus]] = frozenset((*get_args(SnapshotStatus), 'cancelled'))
_KINDS: Final = frozenset(get_args(Kind))
_OUTCOMES: Final[frozenset[Outcome]] = frozenset(get_args(Outcome))
_WHITESPACE: Final = re.compile(r'[ \t\n\r]*')
# integers as floats: ours are small, and those of the states, however long, are not looked at
_DECODER: Final = json.JSONDecoder(parse_int=float)


class Element(NamedTuple):
    """One snapshot of a stored run."""

    row: Row
    text: bytes
    """The JSON object that it was read from."""
    ownership: Ownership
    """The ownership on record with it."""


class Run(NamedTuple):
    """A stored run."""

    elements: list[Element]
    about: About = NAMELESS
    """What is known of it besides its snapshots."""

    @property
    def rows(self) -> list[Row]:
        """The rows, oldest first."""
        return [element.row for element in self.elements]

    @property
    def owned_at(self) -> int | None:
        """The position of the snapshot that the run's ownership is on record with."""
        owned = [i for i, e in enumerate(self.elements) if e.ownership is not UNOWNED]
        return max(owned, key=lambda i: self.elements[i].ownership.fence, default=None)


# -------------------------------------------------------------------------------------------------- writing


def render(
    record: StepRecord,
    body: Body,
    ownership: Ownership = UNOWNED,
    others: bytes = b'',
    about: About | None = None,
) -> bytes:
    """Return the JSON object of one snapshot, on one line.

    Args:
        record: What is known of the snapshot.
        body: Its state and its node or result.
        ownership: Who has the run, if that is to be on record here.
        others: More members, commas first.
        about: What is known of the run, for its first snapshot.
    """
    content = b',"result":' if record.kind == 'end' else b',"node":'
    members = dump_members(record, ownership, about)[1:-1]
    # a part that left the state as it was holds none
    state = (b'{"state":', body.state) if body.state else (b'{', content[1:])
    return b''.join((*state, *((content,) if body.state else ()), body.node, b',', members, others, b'}'))


def dump_members(record: StepRecord, ownership: Ownership = UNOWNED, about: About | None = None) -> bytes:
    """Return the JSON object of a snapshot without its state and its node or result."""
    members: dict[str, Any]
    if record.kind == 'end':
        members = {'ts': _stamp(record.start_ts)}
    else:
        members = {'start_ts': _stamp(record.start_ts), 'duration': record.duration, 'status': record.status}
    members['kind'] = record.kind
    members['id'] = record.id
    ours = _extras(record, ownership)
    if about is not None:
        ours |= _about_to_json(about, record.seq)
    if ours:
        members[_OURS] = ours
    return _json(members)


def dump_run(rows: Iterable[Row], about: About | None = None, *, indent: int | None = None) -> bytes:
    """Return the JSON array of a whole run, of which one snapshot at a time is taken apart to indent it."""
    texts: list[bytes] = []
    for row in rows:
        text = render(row.record, row.body, about=about)
        texts.append(text if indent is None else _indented(text, indent))
        about = None
    if not texts:
        return b'[]'
    # not around what is joined: all of it would be copied, and every other thread waits for that
    texts[0] = b'[' + texts[0]
    texts[-1] += b']' if indent is None else b'\n]'
    return b','.join(texts)


def _indented(text: bytes, indent: int) -> bytes:
    """Return a JSON object as it is indented within an array, line break first."""
    array = json.dumps([json.loads(text)], indent=indent, ensure_ascii=False)
    # a lone surrogate is written as JSON escapes it
    return array[1:-2].encode(errors='backslashreplace')


def _extras(record: StepRecord, ownership: Ownership) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if record.kind != 'end' and record.attempt != int(record.start_ts is not None):  # what is read without it
        extras['attempt'] = record.attempt
    if record.attempts and not is_plain(record):
        extras['attempts'] = [_attempt_to_json(attempt) for attempt in record.attempts]
    elif record.attempts:
        extras['owner'] = record.attempts[-1].owner
    if record.owner:
        extras['owner'] = record.owner
    if ownership.fence:
        extras['fence'] = ownership.fence
    if ownership.owner is not None:
        extras['held_by'] = _owner_to_json(ownership.owner)
        extras['expires'] = _stamp(ownership.expires)
    if ownership.since is not None:
        extras['since'] = _stamp(ownership.since)
    return extras


def _about_to_json(about: About, first: int) -> dict[str, Any]:
    known: dict[str, Any] = {}
    if about.graph is not None:
        known['graph'] = about.graph
    if about.tags:
        known['tags'] = about.tags
    if about.created is not None:
        known['created'] = _stamp(about.created)
    if about.parent is not None:
        known['parent'] = about.parent
    if first != 1:  # those before it were pruned
        known['seq'] = first
    return known


def dump_attempts(attempts: Iterable[Attempt]) -> str:
    """Return the JSON array of attempts."""
    return _json([_attempt_to_json(attempt) for attempt in attempts]).decode()


def load_attempts(text: str) -> tuple[Attempt, ...]:
    """Return the attempts that a JSON array tells; errors are those of a wrong type or value."""
    return _attempts(json.loads(text))


@lru_cache(maxsize=1024)
def dump_owner(owner: Owner) -> str:
    """Return the JSON object of an owner."""
    return _json(_owner_to_json(owner)).decode()


@lru_cache(maxsize=1024)
def load_owner(text: str) -> Owner:
    """Return the owner that a JSON object tells; errors are those of a wrong type or value."""
    return _read_owner(json.loads(text))


def _owner_to_json(owner: Owner) -> dict[str, Any]:
    return {name: getattr(owner, name) for name in _OWNER_FIELDS}


def is_plain(record: StepRecord) -> bool:
    """Whether the snapshot's own fields say all there is to say of its attempts, but for who ran it."""
    return record.attempt == 1 and record.status == 'success' and len(record.attempts) == 1


def _attempt_to_json(attempt: Attempt) -> dict[str, Any]:
    error = None if attempt.error is None else asdict(attempt.error)
    return {**attempt._asdict(), 'start_ts': _stamp(attempt.start_ts), 'error': error}


def _stamp(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _json(value: Any) -> bytes:
    try:
        return to_json(value)
    except PydanticSerializationError:  # a lone surrogate, in an id or in what an exception says
        return json.dumps(value, separators=(',', ':')).encode()


# -------------------------------------------------------------------------------------------------- reading


def parse_run(data: str | bytes | bytearray, *, place: str) -> Run:
    """Read the JSON array of a run.

    Raises:
        CorruptSnapshotError: if it is not UTF-8, not JSON, not an array, or not one of snapshots; it names
            the place.
    """
    try:
        text = data if isinstance(data, str) else bytes(data).decode()
        if not text.strip():
            raise ValueError('it is empty')
        about: list[About] = []
        elements = list(_elements(text, place, about))
        if elements and all(element.row.record.is_part for element in elements):
            raise CorruptSnapshotError(
                place, f'has only parts of a run of a builder graph, and not the run itself. {_ADVICE}'
            )
        return Run(elements, about[0] if about else NAMELESS)
    except json.JSONDecodeError as exc:
        raise CorruptSnapshotError(
            f'{place}, line {exc.lineno}, column {exc.colno}',
            f'is not the JSON of a run: {exc.msg}. {_ADVICE}',
        ) from exc
    except (ValueError, RecursionError) as exc:
        if isinstance(exc, CorruptSnapshotError):
            raise
        raise CorruptSnapshotError(place, f'is not the JSON of a run: {exc}. {_ADVICE}') from exc


_ADVICE: Final = 'It is left as it is: restore it from a copy, or use another place for a new run.'


def parse_body(text: bytes) -> tuple[Body, bytes]:
    """Return the body that the JSON object of a snapshot holds, and the members unknown here."""
    decoded = text.decode()
    spans = {key: decoded[start:end].encode() for key, _, start, end in _members(decoded, 0)}
    others = b''.join(b',' + _json(key) + b':' + value for key, value in spans.items() if key not in _KNOWN)
    return Body(spans.get('state', b''), spans['node'] if 'node' in spans else spans['result']), others


def _elements(text: str, place: str, about: list[About]) -> Iterator[Element]:
    at = _skip(text, 0)
    if text[at] != '[':
        raise ValueError('an array of snapshots was expected')
    at = _skip(text, at + 1)
    seq = 0
    while text[at : at + 1] != ']':
        seq += 1
        if text[at : at + 1] != '{':
            raise json.JSONDecodeError('a snapshot was expected', text, at)
        start, values, spans = at, dict[str, Any](), dict[str, bytes]()
        for key, value, begin, end in _members(text, at):
            values[key] = value
            if key in ('state', 'node', 'result'):
                spans[key] = text[begin:end].encode()
            at = end
        at = text.index('}', at) + 1
        if not about:
            seq = _read_about(values, about, f'{place}, snapshot number {seq}')
        record, ownership = _read(values, seq, f'{place}, snapshot number {seq}')
        body = Body(spans.get('state', b''), spans['result' if record.kind == 'end' else 'node'])
        yield Element(Row(record, body), text[start:at].encode(), ownership)
        at = _skip(text, at)
        at = _separated(text, at, ']', 'a snapshot')
    if (rest := _skip(text, at + 1)) != len(text):
        raise json.JSONDecodeError('something follows the end of the array', text, rest)


def _members(text: str, at: int) -> Iterator[tuple[str, Any, int, int]]:
    """Yield key, value and the value's place for each member of the JSON object that begins at `at`."""
    at = _skip(text, at + 1)
    while text[at : at + 1] != '}':
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError('a name in quotes was expected', text, at)
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ':':
            raise json.JSONDecodeError("':' was expected", text, at)
        begin = _skip(text, at + 1)
        value, at = _DECODER.raw_decode(text, begin)
        yield cast(str, key), value, begin, at
        at = _skip(text, at)
        at = _separated(text, at, '}', 'a name in quotes')


def _separated(text: str, at: int, end: str, element: str) -> int:
    """Return the place behind the comma at `at`, or `at` itself if the end is there."""
    if text[at : at + 1] == end:
        return at
    if text[at : at + 1] != ',':
        raise json.JSONDecodeError(f"',' or {end!r} was expected", text, at)
    at = _skip(text, at + 1)
    if text[at : at + 1] == end:
        raise json.JSONDecodeError(f'{element} was expected', text, at)
    return at


def _skip(text: str, at: int) -> int:
    match = _WHITESPACE.match(text, at)
    return match.end() if match else at


def _read_about(values: Mapping[str, Any], about: list[About], place: str) -> int:
    """Add what the first snapshot tells of the run, and return that snapshot's number."""
    try:
        ours = _ours(values)
        known = About(
            graph=member(ours, 'graph', as_text),
            tags=check_tags(member(ours, 'tags', as_list) or ()),
            created=member(ours, 'created', as_moment),
            parent=member(ours, 'parent', _parent),
        )
        about.append(known)
        return member(ours, 'seq', _first) or 1
    except WRONG as exc:
        raise CorruptSnapshotError(place, f'has a member that cannot be read: {exc!r}. {_ADVICE}') from exc


def _read(values: Mapping[str, Any], seq: int, place: str) -> tuple[StepRecord, Ownership]:
    """Return what the members of a snapshot say of it."""
    kind, snapshot_id = values.get('kind'), values.get('id')
    if not isinstance(kind, str) or kind not in _KINDS or not isinstance(snapshot_id, str):
        raise CorruptSnapshotError(place, f'is not a snapshot: it has no valid `kind` and `id`. {_ADVICE}')
    content = 'result' if kind == 'end' else 'node'
    stateless = kind not in ('node', 'end')
    if ('state' not in values and not stateless) or not isinstance(values.get(content), dict):
        raise CorruptSnapshotError(
            place, f'has no `state` or no `{content}` object. {_ADVICE}', snapshot_id=snapshot_id
        )
    try:
        if kind == 'end':
            return _read_end(values, snapshot_id, seq)
        record = read_step(values, as_text(values['node'].get('node_id')), seq)
        return record, read_ownership(values)
    except WRONG as exc:
        raise CorruptSnapshotError(
            place, f'has a member that cannot be read: {exc!r}. {_ADVICE}', snapshot_id=snapshot_id
        ) from exc


def _read_end(values: Mapping[str, Any], snapshot_id: str, seq: int) -> tuple[StepRecord, Ownership]:
    ended = None if values['ts'] is None else as_moment(values['ts'])
    record = StepRecord(id=snapshot_id, kind='end', node_id='End', status='success', seq=seq, start_ts=ended)
    return record, read_ownership(values)


def read_step(values: Mapping[str, Any], node_id: str, seq: int) -> StepRecord:
    """Return what the members of a node's snapshot say of it; errors are those of a wrong type or value."""
    ours = _ours(values)
    started = member(values, 'start_ts', as_moment)
    attempt = member(ours, 'attempt', as_count)
    owner = member(ours, 'owner', as_name)
    record = StepRecord(
        id=values['id'],
        node_id=node_id,
        kind=values['kind'],
        status=one_of(_STATUSES, values.get('status', 'created')),
        seq=seq,
        start_ts=started,
        duration=member(values, 'duration', as_seconds),
        attempt=int(started is not None) if attempt is None else attempt,
        attempts=member(ours, 'attempts', _attempts) or (),
    )
    if record.status in ('pending', 'running'):
        return record._replace(owner=owner)
    if record.status in ('success', 'error'):
        outcome = 'success' if record.status == 'success' else 'error'
        if not record.attempts or is_plain(record):
            return record._replace(attempts=(Attempt(started, record.duration, outcome, owner=owner),))
        if record.attempts[-1].outcome != outcome:
            raise ValueError(f'status {outcome!r} of what ended as {record.attempts[-1].outcome!r}')
    return record


def _read_attempt(values: Mapping[str, Any]) -> Attempt:
    attempt = Attempt(
        member(values, 'start_ts', as_moment),
        member(values, 'duration', as_seconds),
        one_of(_OUTCOMES, values['outcome']),
        member(values, 'reason', as_text),
        member(values, 'error', _error),
        member(values, 'owner', as_name),
    )
    if attempt.error is not None and attempt.outcome != 'error':
        raise ValueError(f'an error of what ended as {attempt.outcome!r}')
    return attempt


def read_ownership(values: Mapping[str, Any]) -> Ownership:
    """Return the ownership that is on record with a snapshot."""
    ours = _ours(values)
    fence = member(ours, 'fence', as_count)
    if fence is None:
        return UNOWNED
    return Ownership(
        fence,
        member(ours, 'held_by', _read_owner),
        member(ours, 'expires', as_moment),
        member(ours, 'since', as_moment),
    )


def _ours(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return member(values, _OURS, as_object) or {}


def _parent(value: Any) -> tuple[str, int]:
    run_id, seq = as_list(value)
    return check_run_id(run_id), number(seq, 1)


def _first(value: Any) -> int:
    return number(value, 1, MANY // 2)  # so that those after it can be told, too


def _attempts(value: Any) -> tuple[Attempt, ...]:
    return tuple(_read_attempt(as_object(attempt)) for attempt in as_list(value))


def _error(value: Any) -> StepError:
    return StepError(**{name: as_text(text) for name, text in as_object(value).items()})


def _read_owner(value: Any) -> Owner:
    values = as_object(value)
    id_, host, domain, started = (as_name(values[name]) for name in ('id', 'host', 'domain', 'started'))
    return Owner(id_, host, number(values['pid'], 1, 2**31), domain, started)
