"""Ctrl-C at any line of a write or of a read: the instance goes on with what the file says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from linecache import getline
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from graphkeep import Owner, StepRecord
from graphkeep.codec import Body
from graphkeep.commit import Commit, Row, StatusChange, Tail, Writer
from graphkeep.runfile import RunFile
from graphkeep.status import CLAIM, RECOVER, RELEASE, START, SUCCEED

BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
OURS = ('runfile.py', 'inhand.py', 'backend.py')
ME, OTHER = Owner('me', 'elsewhere', 1), Owner('other', 'elsewhere', 2)


def row(snapshot_id: str) -> Row:
    """Return a new row."""
    return Row(StepRecord(snapshot_id, 'A'), Body(b'{}', b'{"node_id":"A"}'))


COMMITS = [
    Commit(rows=[row('A:1')]),
    Commit([StatusChange('A:1', CLAIM)], writer=Writer(None, ME, 30)),
    Commit([StatusChange('A:1', START, BEGUN)], writer=Writer(1, ME, 30)),
    Commit([StatusChange('A:1', SUCCEED)], [row('A:2')], writer=Writer(1, give_up=True)),
    Commit([StatusChange('A:2', CLAIM)], writer=Writer(None, ME, 30)),
    Commit(rows=[row('A:3')], writer=Writer(2)),
    Commit([StatusChange('A:2', RELEASE)], writer=Writer(2, give_up=True)),
]


class Interruption:
    """Raises at one line of the modules that keep a run in a file."""

    def __init__(self, at: int):
        self.left = at
        self.where = ''

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        """Watch the lines of a function."""
        return self._lines() if frame.f_code.co_filename.endswith(OURS) else None

    def _lines(self) -> Callable[[FrameType, str, Any], Any]:
        last = 0

        def watch(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal last
            if event == 'line':
                # not back at a `with`, nor at a `try`: there signals are not handled
                code = getline(frame.f_code.co_filename, frame.f_lineno).strip()
                self.left -= frame.f_lineno > last and code != 'try:'
                last = frame.f_lineno
                if self.left == 0:
                    self.left, self.where = -1, f'{frame.f_code.co_name}, line {frame.f_lineno}'
                    raise KeyboardInterrupt
            return watch

        return watch


@contextmanager
def interrupted(at: int) -> Generator[Interruption]:
    """Raise at this line of what is done within."""
    interruption, before = Interruption(at), sys.gettrace()
    sys.settrace(interruption)
    try:
        with suppress(KeyboardInterrupt):
            yield interruption
    finally:
        sys.settrace(before)


class Scene:
    """A run with so many of the commits made, by one instance whose reads and writes are interrupted."""

    def __init__(self, path: Path, made: int):
        self.path = path
        self.now = BEGUN
        self.file = self.opened()
        for commit in COMMITS[:made]:
            self.file.commit(commit)

    def opened(self) -> RunFile:
        """Return another instance."""
        return RunFile(self.path, 'run', lambda: self.now, durable=False)

    def check(self, when: str) -> None:
        """Check that the instance knows what is stored, now and after it was used some more."""
        assert seen(self.file) == seen(self.opened()), when
        self.now += timedelta(hours=1)  # nobody has the run any more
        self.file.commit(Commit(rows=[row('A:last')]))
        assert seen(self.file) == seen(self.opened()), f'{when}; then added to'
        changes = [StatusChange(one.record.id, RECOVER) for one in self.file.tail().open]
        changes.append(StatusChange('A:last', CLAIM))
        self.file.commit(Commit(changes, writer=Writer(None, OTHER, 30)))
        assert seen(self.file) == seen(self.opened()), f'{when}; then added to and claimed'


def seen(file: RunFile) -> tuple[list[Row], Tail]:
    """Return what an instance says is stored."""
    return file.rows(), file.tail()


def write(scene: Scene, made: int) -> Callable[[], Any]:
    """Make the next commit."""
    return lambda: scene.file.commit(COMMITS[made])


def read(scene: Scene, made: int) -> Callable[[], Any]:
    """Read after somebody else has made the next commit."""
    scene.opened().commit(COMMITS[made])
    return scene.file.rows


def delete(scene: Scene, made: int) -> Callable[[], Any]:
    """Delete the run."""
    scene.now += timedelta(hours=1)
    return scene.file.delete


def read_deleted(scene: Scene, made: int) -> Callable[[], Any]:
    """Read after somebody has deleted the run."""
    scene.path.unlink(missing_ok=True)
    return scene.file.rows


@pytest.mark.parametrize(
    'action,made',
    [
        *((action, made) for action in (write, read) for made in range(len(COMMITS))),
        *((action, made) for action in (delete, read_deleted) for made in (0, 2, 5)),
    ],
)
def test_interrupted(tmp_path: Path, action: Callable[[Scene, int], Callable[[], Any]], made: int):
    """Wherever it is interrupted, an instance knows afterwards what is stored, and goes on from that."""
    for at in range(1, 1000):
        scene = Scene(tmp_path / f'{at}.json', made)
        act = action(scene, made)
        with interrupted(at) as interruption:
            act()
        scene.check(f'interrupted at {interruption.where}')
        if interruption.left > 0:
            return
    pytest.fail('it has more lines than that')
