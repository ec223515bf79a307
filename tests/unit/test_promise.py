"""A promise tells once what came of it, whoever is first."""

from __future__ import annotations

import threading
from concurrent.futures import InvalidStateError

import anyio
import pytest

from graphkeep.offload import finished
from graphkeep.promise import Promise

pytestmark = pytest.mark.anyio


def test_outcome():
    """It is what it was resolved with, or raises it."""
    kept, broken = Promise[str](), Promise[str]()
    assert not kept.done()
    with pytest.raises(InvalidStateError):
        kept.result()
    kept.resolve('done')
    assert (kept.done(), kept.result(), kept.exception()) == (True, 'done', None)
    broken.resolve(ValueError('no'))
    assert broken.done()
    assert isinstance(broken.exception(), ValueError)
    with pytest.raises(ValueError, match='no'):
        broken.result()


@pytest.mark.parametrize('early', [True, False])
def test_callbacks(early: bool):
    """Each function is called once, with the promise, whether it is added before or after the end."""
    promise, called = Promise[None](), list[object]()
    if not early:
        promise.resolve(None)
    promise.add_done_callback(called.append)
    promise.add_done_callback(called.append)
    if early:
        assert not called
        promise.resolve(None)
    assert called == [promise, promise]


def test_failing_callback(caplog: pytest.LogCaptureFixture):
    """What a function raises is logged, and keeps nobody else from being told."""
    promise, called = Promise[None](), list[object]()
    promise.add_done_callback(lambda _: 1 / 0)
    promise.add_done_callback(called.append)
    promise.resolve(None)
    assert called == [promise]
    assert 'ZeroDivisionError' in caplog.text


def test_race():
    """Where one thread adds a function while another one resolves, it is called once all the same."""
    for _ in range(500):
        promise, called, start = Promise[None](), list[object](), threading.Barrier(2)

        def resolve(promise: Promise[None] = promise, start: threading.Barrier = start) -> None:
            start.wait()
            promise.resolve(None)

        thread = threading.Thread(target=resolve)
        thread.start()
        start.wait()
        promise.add_done_callback(called.append)
        thread.join()
        assert called == [promise]


@pytest.mark.both_backends
async def test_awaited():
    """An event loop waits for it as for any other work, and for one that another thread keeps."""
    promise = Promise[int]()
    threading.Timer(0.01, promise.resolve, (7,)).start()
    with anyio.fail_after(5):
        assert await finished(promise) is None
    assert promise.result() == 7
