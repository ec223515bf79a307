"""Random writes by several processes to one file, killed at any call into the system; and a plain model."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from graphkeep import GraphkeepError, Owner, OwnershipLostError, StepError, StepRecord
from graphkeep.backend import LoggedRun, RunLog, apply
from graphkeep.codec import Body
from graphkeep.commit import Commit, Receipt, Row, StatusChange, Tail, Writer
from graphkeep.runfile import RunFile
from graphkeep.status import CLAIM, FAIL, RECOVER, RELEASE, RETRY, START, SUCCEED, SnapshotStatus
from tests.backends.faults import Call, FaultyOs, put_os
from tests.counts import count

LEASE = 30.0
KINDS = (
    *('append', 'append', 'start', 'claim', 'claim two', 'end', 'end', 'end and append', 'fail', 'release'),
    *('recover', 'recover and claim', 'retry', 'renew', 'trim'),
)


class KilledError(BaseException):
    """What stands for the end of a process, or for Ctrl-C."""


@dataclass
class System:
    """Lets calls into the system pass, up to the one at which the process dies."""

    random: Random
    left: int | None = None
    """How many calls pass, `None` for all of them."""
    dies: bool = False
    """Whether no more calls are made then, not even those that would clean up; else it is Ctrl-C."""
    dead: bool = False

    def arm(self) -> None:
        """Let the process die some time, or not."""
        self.left = self.random.randrange(30) if self.random.random() < 0.15 else None
        self.dies, self.dead = self.random.random() < 0.5, False

    def disarm(self) -> None:
        """Let everything pass."""
        self.left, self.dead = None, False

    def __call__(self, call: Call) -> Any:
        """Make the call, or die before it, or within it."""
        if not self.dead:
            if self.left is None:
                return call()
            if self.left > 0:
                self.left -= 1
                return call()
            if call.name == 'write' and self.random.random() < 0.5:
                fd, data = call.args
                os.write(fd, bytes(data)[: self.random.randrange(len(data) + 1)])
        self.left, self.dead = None, self.dies
        if call.name == 'close':
            call()  # as the system does for who has died
        raise KilledError(call.name)


class Model(LoggedRun):
    """What the run is: a list of rows."""

    def __init__(self, clock: Callable[[], datetime]):
        self.run_id = 'run'
        self.clock = clock
        self.log = RunLog('run')
        self.bodies: list[Body] = []

    def commit(self, commit: Commit) -> Receipt:
        """Apply the commit."""
        applied = apply(self.log, commit, self.clock())
        self.log.accept(applied)
        self.bodies += [row.body for row in applied.appended]
        return applied.receipt

    def trim(self, before: datetime) -> int:
        """Delete the oldest rows."""
        passed = self.log.passed(before)
        self.put_back(self._rows()[passed:], self._tail())
        return passed

    def put_back(self, rows: Sequence[Row], tail: Tail) -> None:
        """Be as it was when it had these rows."""
        self.log.load([row.record for row in rows], tail.ownership)
        self.bodies = [row.body for row in rows]

    def tail(self) -> Tail:
        """Return the end of the run."""
        return self._tail()

    def rows(self) -> list[Row]:
        """Return every row."""
        return self._rows()

    def body(self, index: int) -> Body:
        """Return the body of the row at this position."""
        return self.bodies[index]


@dataclass
class Process:
    """One that uses the file, with what it has read of it at hand."""

    owner: Owner
    file: RunFile
    fence: int | None = None


@dataclass
class Plan:
    """What a process is going to do."""

    changes: list[StatusChange] = field(default_factory=list[StatusChange])
    rows: list[Row] = field(default_factory=list[Row])
    takes: bool = False
    trims: bool = False


class Play:
    """Three processes, the file that they write and the model of it."""

    def __init__(self, path: Path, system: System, *, recurring: bool):
        self.path = path
        self.system = system
        self.random = system.random
        self.recurring = recurring
        self.now = datetime(2025, 1, 1, tzinfo=UTC)
        self.model = Model(self.clock)
        self.processes = [Process(Owner(f'o{n}', 'elsewhere', n + 1), self.opened()) for n in range(3)]
        self.rows = 0
        self.told: list[str] = []

    def clock(self) -> datetime:
        """Be everybody's clock."""
        return self.now

    def opened(self) -> RunFile:
        """Return what has nothing of the file at hand."""
        return RunFile(self.path, 'run', self.clock, durable=False)

    def act(self) -> None:
        """Let one process do one thing, and check what came of it for everybody."""
        seconds = self.random.choice([0.5, 1, 1, 3, 40]) if self.random.random() < 0.3 else 0.5
        self.now += timedelta(seconds=seconds)
        process = self.random.choice(self.processes)
        kind = self.random.choice(KINDS)
        plan = self._plan(kind)
        if plan.trims:
            self._do(process, kind, lambda run: run.trim(self.now))
        elif plan.changes or plan.rows or (plan.takes and process.fence is not None):
            self._commit(process, kind, plan)

    # ------------------------------------------------------------------------------------- what is done

    def _plan(self, kind: str) -> Plan:
        change, plan = self._change, Plan(takes=kind in ('start', 'claim', 'claim two', 'renew'))
        if kind in ('append', 'end and append'):
            plan.rows = [self._row()]
        if kind == 'start':
            plan.changes = change(('created', 'pending'), lambda r: StatusChange(r.id, START, self.now))
        elif kind in ('claim', 'claim two'):
            plan.changes = change(('created',), lambda r: StatusChange(r.id, CLAIM))
            if kind == 'claim two':
                more = change(('created',), lambda r: StatusChange(r.id, CLAIM))
                plan.changes += [one for one in more if one not in plan.changes]
        elif kind in ('end', 'end and append'):
            plan.changes = change(('running',), lambda r: StatusChange(r.id, SUCCEED, duration=0.5))
        elif kind == 'fail':
            plan.changes = change(
                ('running',), lambda r: StatusChange(r.id, FAIL, duration=0.5, error=self._error())
            )
        elif kind == 'release':
            plan.changes = change(('running', 'pending'), lambda r: StatusChange(r.id, RELEASE, reason='x'))
        elif kind == 'retry':
            plan.changes = change(('error',), lambda r: StatusChange(r.id, RETRY))
        elif kind in ('recover', 'recover and claim'):
            held = [row.record.id for row in self.model.tail().open]
            plan.changes = [StatusChange(snapshot_id, RECOVER, reason='gone') for snapshot_id in held]
            plan.takes = True
            if held and kind == 'recover and claim':
                plan.changes.append(StatusChange(held[0], CLAIM))
        plan.trims = kind == 'trim'
        return plan

    def _change(
        self, statuses: Sequence[SnapshotStatus], make: Callable[[StepRecord], StatusChange]
    ) -> list[StatusChange]:
        log = self.model.log
        found = [r for r in log.records if r.status in statuses and log.find(r.id) is r]
        return [make(self.random.choice(found))] if found else []

    def _row(self) -> Row:
        self.rows += 1
        snapshot_id = f'A:{self.rows}'
        if self.recurring and self.model.log.records and self.random.random() < 0.15:
            snapshot_id = self.random.choice(self.model.log.records).id
        body = Body(b'{"state":%d}' % self.rows, b'{"number":%d,"node_id":"A"}' % self.rows)
        return Row(StepRecord(snapshot_id, 'A'), body)

    def _error(self) -> StepError:
        # two or three of the long ones have no room in a slot of the lock file
        return StepError('Error', 'x' * self.random.choice([3, 3, 1500, 3000]), 'traceback')

    def _commit(self, process: Process, kind: str, plan: Plan) -> None:
        held = {row.record.seq for row in self.model.tail().open}
        for change in plan.changes:
            if (record := self.model.log.find(change.snapshot_id)) is not None:
                (held.add if change.transition in (CLAIM, START) else held.discard)(record.seq)
        owner, fence = process.owner, process.fence
        give_up = not held and (plan.takes or fence is not None)
        writer = Writer(fence, owner if plan.takes else None, LEASE, give_up, owner.id)
        outcome = self._do(
            process, kind, lambda run: run.commit(Commit(plan.changes, plan.rows, writer=writer))
        )
        if isinstance(outcome, Receipt):
            if give_up:
                process.fence = None
            elif plan.takes or fence is not None:
                process.fence = outcome.fence
        elif outcome in (OwnershipLostError, KilledError):
            process.fence = None

    # ------------------------------------------------------------------------------------- what came of it

    def _do(self, process: Process, kind: str, do: Callable[[Model | RunFile], Any]) -> Any:
        """Do it to the model and to the file; return the same outcome of both, or that it was cut short."""
        before = self.model.rows(), self.model.tail()
        expected = _outcome(partial(do, self.model))
        self.system.arm()
        found = _outcome(partial(do, process.file))
        died = self.system.dead
        self.system.disarm()
        self.told.append(f'{process.owner.id} {kind}: expected {expected}, found {found}')
        if found is KilledError:
            if died:
                process.file = self.opened()
            if _seen(self.opened()) == before:
                self.model.put_back(*before)
        else:
            assert found == expected, self.story()
        now = _seen(self.model)
        for file in (self.opened(), self.random.choice(self.processes).file):
            assert _seen(file) == now, self.story()
        return found

    def story(self) -> str:
        """Tell what happened last."""
        return '\n'.join(['after this the file is not what it should be:', *self.told[-8:]])


def _outcome(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except (GraphkeepError, KilledError) as exc:
        return type(exc)


def _seen(run: Model | RunFile) -> tuple[list[Row], Tail]:
    return run.rows(), run.tail()


@pytest.fixture
def directory(tmp_path: Path) -> Generator[Path]:
    """Be a directory in memory, where there is one: what a disk makes of it is tried elsewhere."""
    memory = Path('/dev/shm')  # noqa: S108 -- the directory in it has a name of its own
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as made:
        yield Path(made)


def test_model(directory: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever is killed, and wherever: a write is there whole or not at all, and all see the same run."""
    for seed in range(count(1000)):
        system = System(Random(seed))  # noqa: S311 -- the same ones again
        put_os(monkeypatch, FaultyOs(system))
        play = Play(directory / f'{seed}.json', system, recurring=seed % 2 == 1)
        for _ in range(60):
            try:
                play.act()
            except Exception as exc:
                exc.add_note(f'seed {seed}')
                raise
