"""One SQLite file: who writes when, and how long it is open.

A commit that finds the file free is made where it is asked for. Where many runs of an event loop go on side
by side, what they commit in one round of it is gathered, and made there in one transaction at its end. What
would have to wait, for a lock, for the disk or for a checkpoint, is queued, and a thread makes all that waits
together in one transaction.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from .backend import LockBusy, TryAgain, Turn
from .commit import Receipt
from .errors import GraphkeepError, LockTimeoutError, StorageError, another
from .offload import once
from .promise import Promise
from .sqldisk import Disk
from .sqlfork import remaining, watch
from .sqlopen import ours, translated
from .sqlreaders import Readers, roll_back
from .sqlwriter import BRIEFLY, Writer
from .sqlwrites import Stageable, Ticket, Told, Write, enter, tell
from .turns import Turns

__all__ = ('Database',)

T = TypeVar('T')

_WAIT: Final = 0.0005, 0.02  # seconds between two tries for the lock: the first and the longest wait


def _nothing() -> None:
    pass


class Database:
    """The file, for every thread and event loop of this process."""

    ready: bool
    """Whether it is open to stay, so that a commit may be tried on an event loop's own thread."""

    def __init__(self, path: Path, *, durable: bool, busy_timeout: float):
        self.path = path
        self.durable = durable
        self.busy_timeout = busy_timeout
        self._begin_anew()
        watch(self)

    def __del__(self) -> None:
        # nothing is lost with a store that nobody has closed, so Python need not warn of its connections
        with suppress(Exception):
            self.readers.close(0.0)
            self._writer.close()

    def _begin_anew(self) -> None:
        self.ready = False
        self._shut = False  # unless something was stored since; it is open only for as long as it takes
        self._paused = False  # whether nobody may write because of a fork
        self._queue: deque[Ticket] = deque()
        self._queue_mutex = threading.Lock()
        self._draining = False  # whether a thread makes what waits
        self._idle = threading.Event()  # set unless that is so
        self._idle.set()
        self._threads = ThreadPoolExecutor(4, thread_name_prefix='graphkeep-sqlite')
        self.readers = Readers(self.path, durable=self.durable)
        self._writer = Writer(self.path, durable=self.durable)
        self._disk = Disk(self.path, self._threads.submit)
        self._closing = 0  # how many wait until there is nothing more to do
        self._syncing = 0  # how many are about to wait for the disk besides those

    # ------------------------------------------------------------------------------------------ one commit

    def write_now(self, run: Stageable, turn: Turn) -> Receipt | Promise[Receipt]:
        """Make one commit of a run here and now.

        Returns:
            What it did; as a promise, if it is made but has to wait for the disk.

        Raises:
            LockBusy: if anything would have to be waited for. Nothing was done.
        """
        writer = self._writer
        if not self.ready or self._draining or not writer.mutex.acquire(blocking=False):
            raise LockBusy
        try:
            db = writer.db
            if writer.must_wait(self._back) or db is None or not turn.mutex.acquire(blocking=False):
                raise LockBusy
            try:
                return self._write_alone(db, run, turn)
            finally:
                turn.mutex.release()
        finally:
            writer.mutex.release()

    def _write_alone(self, db: sqlite3.Connection, run: Stageable, turn: Turn) -> Receipt | Promise[Receipt]:
        try:
            try:
                receipt = run.make(db, turn)
                if db.in_transaction:  # else it was one statement, and that a transaction by itself
                    db.execute('COMMIT')
            except sqlite3.Error as exc:
                raise ours(exc, self.path, 'write') from exc
            run.accept()
            turn.settle(receipt)
        except BaseException as exc:
            roll_back(db)
            if isinstance(exc, Exception) and not isinstance(exc, LockBusy):
                turn.fail(exc)
            raise
        return self._disk.lasting(receipt) if self.durable and run.settles(turn.commit) else receipt

    def _start(self, func: Callable[[], None]) -> None:
        """Have one of this file's own threads call it, so that it waits for no other work of the process."""
        func = once(func)
        try:
            self._threads.submit(func)
        except RuntimeError:  # no thread is to be had
            func()

    def _back(self) -> None:
        """Have a thread write the log back."""
        self._start(self._write_back)

    def _write_back(self) -> None:
        self._writer.write_back(self.readers)

    # --------------------------------------------------------------------------- what is made, together

    def gather(self, run: Stageable, turn: Turn, turns: Turns) -> Promise[Receipt]:
        """Have one commit of a run made at the end of this round, in one transaction with others.

        What comes of it is `LockBusy` if anything would have to be waited for, and then nothing was done.
        """
        write = Write(run, turn)
        turns.gather(self, write)
        return write

    def make_gathered(
        self, gathered: Sequence[Write], in_loop: Callable[[Callable[[], object]], object]
    ) -> None:
        """Make these commits here and now, in one transaction."""
        told: Told = deque((write, LockBusy()) for write in gathered)
        interrupt: BaseException | None = None
        mutex = self._writer.mutex
        try:
            if self.ready and not self._draining and mutex.acquire(blocking=False):
                try:
                    interrupt = self._write_here(gathered, told, in_loop)
                finally:
                    mutex.release()
        finally:
            tell(told)
        if interrupt is not None:
            raise interrupt

    def _write_here(
        self,
        writes: Sequence[Write],
        told: Told,
        in_loop: Callable[[Callable[[], object]], object],
    ) -> BaseException | None:
        """Make these commits, and then have it told what became of each; if none was made, do nothing.

        What has to wait for the disk is told in the event loop later. Return what has interrupted it.
        """
        db = self._writer.db
        if self._writer.must_wait(self._back, len(writes)) or db is None:
            return None
        entered: list[Write] = []
        others: list[Write] = []
        try:
            enter(writes, entered, others)
            with translated(self.path, 'write'):
                db.execute('BEGIN IMMEDIATE')
            outcomes, interrupt = self._commit(db, entered)
        except Exception:  # whatever it is, a thread that makes them one by one will know whose it is
            return None
        finally:
            roll_back(db)  # if it was not made
            for write in entered:
                write.turn.mutex.release()
        told.clear()
        lasting: list[tuple[Write, Receipt]] = []
        for write, outcome in zip(entered, outcomes, strict=True):
            if self.durable and isinstance(outcome, Receipt) and write.settles:
                lasting.append((write, outcome))
            else:
                told.append((write, outcome))
        told.extend((write, LockBusy()) for write in others)
        if lasting:
            made = [write for write, _ in lasting]

            def lasts(outcomes: Sequence[Receipt | BaseException]) -> None:
                # those who have waited together go on together
                in_loop(partial(tell, deque(zip(made, outcomes, strict=True))))

            # with the mutex in hand, so that the log is not closed before
            self._disk.await_disk([receipt for _, receipt in lasting], lasts)
        return interrupt

    def _commit(
        self, db: sqlite3.Connection, writes: Sequence[Write]
    ) -> tuple[Sequence[Receipt | Exception], BaseException | None]:
        """Make these commits in the transaction that has begun, or raise, and none is made.

        Return what became of each, and what has interrupted it when it was made.
        """
        outcomes: list[Receipt | GraphkeepError] = []
        interrupt: BaseException | None = None
        try:
            with translated(self.path, 'write'):
                outcomes += [write.run(db) for write in writes]
                db.execute('COMMIT')
        except BaseException as exc:
            if isinstance(exc, Exception) or db.in_transaction or len(outcomes) < len(writes):
                roll_back(db)
                raise
            interrupt = exc
        settled = [
            write.made(outcome) if isinstance(outcome, Receipt) else outcome
            for write, outcome in zip(writes, outcomes, strict=True)
        ]
        return settled, interrupt

    # ------------------------------------------------------------------------------- what waits, together

    def queue(self, run: Stageable, turn: Turn) -> Promise[Receipt]:
        """Have one commit of a run made by a thread, together with others that wait."""
        ticket = Ticket(run, turn, self._until())
        with self._queue_mutex:
            self._queue.append(ticket)
            if self._draining:
                return ticket
            self._draining = True
            self._idle.clear()
        self._start(self._drain)
        return ticket

    def _drain(self) -> None:
        while True:
            batch, made = self._waiting(), True
            outcomes: Sequence[tuple[Ticket, Receipt | BaseException | None]]
            try:
                outcomes = self._write_together(batch)
            except GraphkeepError as exc:  # not even begun
                outcomes, made = [(ticket, another(exc)) for ticket in batch], False
            except BaseException as exc:  # whatever it is, nobody may wait for ever
                outcomes = [(ticket, another(exc)) for ticket in batch]
            # what came meanwhile did not wait for a lock, and is made as well where it comes from; unless
            # somebody waits for all there is to do
            again = [ticket for ticket, outcome in outcomes if outcome is None]
            came = self._waiting() if made and not self._closing else []
            with self._queue_mutex:
                self._queue.extendleft(reversed(again))
                self._syncing += 1
                if over := not self._queue:
                    self._draining = False
                    self._idle.set()
            for ticket in came:
                ticket.resolve(TryAgain())
            self._resolve([(ticket, outcome) for ticket, outcome in outcomes if outcome is not None])
            if over:
                break
        if self._shut:
            with suppress(GraphkeepError):
                self._close_if_idle()

    def _waiting(self) -> list[Ticket]:
        """Take what waits out of the queue."""
        with self._queue_mutex:
            waiting = list(self._queue)
            self._queue.clear()
            return waiting

    def _resolve(self, outcomes: Sequence[tuple[Ticket, Receipt | BaseException]]) -> None:
        """Tell whoever waits, once what was committed lasts."""
        synced = self._disk.synced([outcome for _, outcome in outcomes])
        with self._queue_mutex:
            self._syncing -= 1
        for (ticket, _), outcome in zip(outcomes, synced, strict=True):
            ticket.resolve(outcome)

    def _write_together(self, batch: list[Ticket]) -> list[tuple[Ticket, Receipt | BaseException | None]]:
        """Make these commits, and all that comes until they can be begun with.

        Return what became of each; `None` is to be tried again, for it was not its turn, such as that of the
        second one of the same holder.
        """
        until = self._until()
        with self._writing(until) as db:
            self._begin(db, until)
            batch += self._waiting()
            entered: list[Ticket] = []
            others: list[Ticket] = []
            try:
                enter(batch, entered, others)
                outcomes = self._commit_each(db, entered)
                if any(ticket.stores for ticket in entered):
                    self._stay_open()
            except BaseException:
                roll_back(db)
                raise
            finally:
                for ticket in entered:
                    ticket.turn.mutex.release()
        now = time.monotonic()
        error = LockTimeoutError(str(self.path), self.busy_timeout)
        waiting = [(ticket, another(error) if ticket.until <= now else None) for ticket in others]
        if not entered and any(outcome is None for _, outcome in waiting):
            time.sleep(_WAIT[1])  # somebody else is at it, who is not waited for with the lock in hand
        return [*zip(entered, outcomes, strict=True), *waiting]

    def _commit_each(self, db: sqlite3.Connection, tickets: Sequence[Ticket]) -> list[Receipt | Exception]:
        """Make these commits in the transaction that has begun; if it fails, each in one of its own."""
        try:
            return [*self._commit(db, tickets)[0]]
        except Exception as exc:
            if len(tickets) > 1:
                return [outcome for ticket in tickets for outcome in self._commit_alone(db, ticket)]
            for ticket in tickets:
                ticket.turn.fail(exc)
            return [exc for _ in tickets]

    def _commit_alone(self, db: sqlite3.Connection, ticket: Ticket) -> list[Receipt | Exception]:
        try:
            self._begin(db, self._until())
        except GraphkeepError as exc:
            return [exc]
        return self._commit_each(db, [ticket])

    # ------------------------------------------------------------------------------------ anything at all

    def write(self, func: Callable[[sqlite3.Connection], T], made: Callable[[], None] = _nothing) -> T:
        """Call `func` in a transaction of its own; all it writes is made, or nothing.

        Once that is so, and before anybody else writes, `made` is called.

        Raises:
            LockTimeoutError: if somebody else held the lock for too long.
        """
        until = self._until()
        with self._writing(until) as db, translated(self.path, 'write'):
            self._stay_open()
            self._begin(db, until)
            before = db.total_changes
            try:
                value = func(db)
                db.execute('COMMIT')
            except BaseException:
                roll_back(db)
                raise
            made()
            wrote = db.total_changes != before
            with self._queue_mutex:
                self._syncing += 1
        try:
            if wrote:
                self._disk.sync()
            else:
                self._disk.check()
        except OSError as exc:
            raise StorageError(str(self.path), 'make durable', exc, receipt=Receipt()) from exc
        finally:
            with self._queue_mutex:
                self._syncing -= 1
        return value

    def close_soon(self) -> None:
        """Make all that waits from now on here, for `close` is called next."""
        with self._queue_mutex:
            self._closing += 1

    def close(self) -> None:
        """Make what waits, and close every connection.

        What is asked for later opens the file again; to stay, if it stores something.
        """
        try:
            while True:
                self._idle.wait()
                self._writer.backed.wait()
                if self._close_if_idle():
                    return
                time.sleep(_WAIT[0])
        finally:
            with self._queue_mutex:
                self._closing -= 1

    def _close_if_idle(self) -> bool:
        """Close every connection, unless something is under way."""
        writer = self._writer
        with writer.mutex, translated(self.path, 'close'):
            if self._syncing or self._disk.busy or not (self._idle.is_set() and writer.backed.is_set()):
                return False
            self._shut, gone = True, writer.log_is_gone
            self.readers.close()
            self._disk.rest()
            self._close_writer()
        if gone:
            raise writer.without_log()
        return True

    def _close_writer(self) -> None:
        self.ready, self._disk.log = False, None
        self._writer.close()

    # ---------------------------------------------------------------------------------------------- a fork

    def pause(self, until: float) -> bool:
        """Close every connection, and keep everybody from opening one, until `resume`.

        What was made before lasts as it was told to.
        """
        # those that read first, for they may take a while; with them the one that writes the log back
        if not self.readers.pause(until):
            return False
        try:
            if self._writer.mutex.acquire(timeout=remaining(until)):
                self._paused = True
                if not self._writer.log_is_gone:
                    self._disk.sync()  # for whoever waits for that
                    with translated(self.path, 'close'):
                        self._close_writer()
                    return True
        except (OSError, GraphkeepError, LockBusy):
            pass
        except BaseException:
            self.resume()
            raise
        self.resume()
        return False

    def resume(self) -> None:
        """Let connections be opened again."""
        self.readers.resume()
        if self._paused:
            self._paused = False
            self._writer.mutex.release()

    def forked(self, *, closed: bool) -> None:
        """Begin anew in a child; what is open is the parent's."""
        if not closed:
            _parents.extend([self._writer.db, *self.readers.connections()])
        shut = self._shut
        self._begin_anew()
        self._shut = shut

    @contextmanager
    def _writing(self, until: float) -> Generator[sqlite3.Connection]:
        """Give the connection that writes, alone, once the log is not too long."""
        writer = self._writer
        writer.wait()  # here, where it delays no event loop
        patience = max(BRIEFLY, min(self.busy_timeout, threading.TIMEOUT_MAX))
        while not writer.mutex.acquire(timeout=patience):
            if not self._paused:  # else it is not for long
                raise LockTimeoutError(str(self.path), self.busy_timeout)
        try:
            db = writer.db or self._opened(until)
            writer.go_on(self._back)
            yield db
        finally:
            writer.mutex.release()

    def _opened(self, until: float) -> sqlite3.Connection:
        db = self._patiently(self._writer.open, until)
        self.ready = not self._shut
        if self.durable:
            self._disk.log = self._writer.log
        return db

    def _stay_open(self) -> None:
        self.ready, self._shut = True, False

    def _until(self) -> float:
        """Return until when to wait for all there is to wait for, from now on."""
        return time.monotonic() + self.busy_timeout

    def _begin(self, db: sqlite3.Connection, until: float) -> None:
        self._patiently(lambda: db.execute('BEGIN IMMEDIATE'), until)

    def _patiently(self, func: Callable[[], T], until: float) -> T:
        """Call it again while somebody else holds the lock, for as long as we were told to wait."""
        wait = _WAIT[0]
        while True:
            try:
                with translated(self.path, 'write'):
                    return func()
            except LockBusy:
                if time.monotonic() >= until:
                    raise LockTimeoutError(str(self.path), self.busy_timeout) from None
            time.sleep(wait)
            wait = min(wait * 1.5, _WAIT[1])


_parents: Final[list[object]] = []  # a parent's connections, which are not to be closed here
