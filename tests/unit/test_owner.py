"""Who owns a run, and when it is certain that an owner is gone."""

from __future__ import annotations

import errno
import gc
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from graphkeep import Owner, Ownership
from graphkeep import owner as owners
from graphkeep.owner import is_gone, new_owner

on_linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='needs /proc')


class Holder:
    """Whatever holds runs."""


def altered(owner: Owner, **changes: Any) -> Owner:
    """Return the owner as another process or host has recorded it."""
    fields: dict[str, Any] = {
        name: getattr(owner, name) for name in ('id', 'host', 'pid', 'domain', 'started')
    }
    return Owner(**{**fields, **changes})


def test_owner_here():
    """An owner in this process lives as long as its holder, whoever else has a copy of it."""
    holder = Holder()
    owner = new_owner(holder)
    recorded = altered(owner)
    assert not is_gone(owner)
    assert not is_gone(recorded)
    del holder
    gc.collect()
    assert is_gone(owner) == is_gone(recorded) == bool(owner.domain)


@on_linux
def test_reused_pid():
    """A living process that has the pid, and started at another moment, is not the owner."""
    holder = Holder()
    owner = new_owner(holder)
    assert is_gone(altered(owner, started='1'))
    assert not is_gone(altered(owner, pid=1, started=cast('Any', owners)._started(1)))
    assert is_gone(altered(owner, pid=1, started=owner.started))


@on_linux
def test_foreign_host():
    """Of a process on another host, of another boot or in another container the lease decides."""
    owner = new_owner(Holder())
    foreign = altered(owner, host='elsewhere', domain='another boot/pid:[1]', pid=2**22 + 1, started='1')
    assert not is_gone(foreign)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert not Ownership(1, foreign, now + timedelta(seconds=1)).is_free(now)
    assert Ownership(1, foreign, now).is_free(now)


def test_platform_without_proc(monkeypatch: pytest.MonkeyPatch):
    """Where the platform tells nothing of processes an owner is judged by its lease alone."""
    domain = cast('Any', owners)._domain
    monkeypatch.setattr(sys, 'platform', 'darwin')
    domain.cache_clear()
    try:
        owner = new_owner(Holder())
        assert owner.domain == ''
        assert not is_gone(owner)
        assert not is_gone(altered(owner, pid=2**22 + 1))
    finally:
        monkeypatch.undo()
        domain.cache_clear()


def test_proc_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch):
    """Where /proc is not mounted an owner is judged by its lease alone."""
    domain = cast('Any', owners)._domain

    def refuse(*_: object) -> str:
        raise OSError(13, 'Permission denied')

    monkeypatch.setattr(sys, 'platform', 'linux')
    monkeypatch.setattr(Path, 'read_text', refuse)
    monkeypatch.setattr(Path, 'read_bytes', refuse)
    domain.cache_clear()
    try:
        assert new_owner(Holder()).domain == ''
    finally:
        monkeypatch.undo()
        domain.cache_clear()


@on_linux
@pytest.mark.parametrize('number', [errno.EMFILE, errno.EACCES])
def test_process_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch, number: int):
    """An owner whose process cannot be looked at is not gone for that: its lease decides."""
    owner = new_owner(Holder())
    reused = altered(owner, pid=os.getppid(), started='1')
    assert is_gone(reused)

    def refuse(*_: object) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, 'read_bytes', refuse)
    assert not is_gone(reused)
    assert not is_gone(altered(owner, pid=os.getppid()))


@on_linux
@pytest.mark.parametrize('exc, gone', [(PermissionError, False), (ProcessLookupError, True)])
def test_what_the_system_says_of_a_process(monkeypatch: pytest.MonkeyPatch, exc: type[OSError], gone: bool):
    """A process that this one may not signal exists; one that the system does not know is gone."""
    pid = os.getppid()
    owner = altered(new_owner(Holder()), pid=pid, started=cast('Any', owners)._started(pid))
    assert not is_gone(owner)

    def refuse(*_: object) -> None:
        raise exc

    monkeypatch.setattr(os, 'kill', refuse)
    assert is_gone(owner) == gone


def test_owner_names_itself():
    """An owner is shown by its process and its host."""
    assert str(Owner('id', 'host.example', 42)) == 'process 42 on host.example'


@on_linux
@pytest.mark.parametrize('name', [b'\xe5\xa4\x84\xe7', b'a) Z 1 (', b'\xff\xfe'])
def test_name_of_a_process(name: bytes):
    """A process may be called anything; Linux cuts its name at 15 bytes, within a character too."""
    command = Path('/proc/self/comm')
    before, holder = command.read_bytes(), Holder()
    owner = new_owner(holder)
    command.write_bytes(name)
    try:
        assert cast('Any', owners)._started(os.getpid()) == owner.started
        assert new_owner(Holder()).started == owner.started
        assert not is_gone(owner)
    finally:
        command.write_bytes(before)
