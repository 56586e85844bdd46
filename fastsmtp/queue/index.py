"""The deferred index as a file: SQLite, a row a recipient that waits, no bodies.

    file = IndexFile(path, version=...)
    opened = file.open()
    with file.transaction():
        file.put(rows)

Everything here blocks, and one thread at a time may use it; deferred.py puts it
into a thread of its own, the command line uses it on a stopped server's state.
docs/queue.md, "The deferred index", has the format.  Rank 5.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from fastsmtp import errors
from fastsmtp.queue.disk import storage_error
from fastsmtp.queue.place import Place
from fastsmtp.queue.recovery import QUARANTINE
from fastsmtp.queue.row import TEXT_CHARACTERS, Counts, Filter, Key, Page, Row, Said, State
from fastsmtp.queue.store import sync_directory

NAME: Final = "deferred.sqlite"
# "FSQI" in the SQLite header, so that file(1) and we know whose it is.
APPLICATION_ID: Final = 0x46535149
# SQLite's page cache; one million rows take a quarter of a gigabyte on disk, and little of it is looked at.
CACHE_KIB: Final = 16_384
# Pages (4 KiB) that the write-ahead log may have before they go into the file: 16 MiB.
CHECKPOINT_PAGES: Final = 4_096
# Rows changed by one statement of hold, release and flush, so that no other job waits for long.
CHUNK: Final = 10_000

# From one format to the next; the first makes the empty file ours.  A format that was released is never edited.
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        """CREATE TABLE waiting (
            row INTEGER PRIMARY KEY,
            number INTEGER NOT NULL, epoch INTEGER NOT NULL, offset INTEGER NOT NULL, recipient INTEGER NOT NULL,
            size_bytes INTEGER NOT NULL,
            id TEXT NOT NULL, sender BLOB NOT NULL, sender_domain BLOB NOT NULL,
            address BLOB NOT NULL, domain BLOB NOT NULL,
            body_bytes INTEGER NOT NULL, accepted_ms INTEGER NOT NULL,
            site TEXT NOT NULL, source TEXT NOT NULL,
            state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 4), next_ms INTEGER NOT NULL, attempts INTEGER NOT NULL,
            last_ms INTEGER NOT NULL, waited_ms INTEGER NOT NULL, is_warned INTEGER NOT NULL,
            code INTEGER NOT NULL, enhanced TEXT NOT NULL, text TEXT NOT NULL, host TEXT NOT NULL)""",
        "CREATE UNIQUE INDEX key ON waiting (number, epoch, offset, recipient)",
        "CREATE INDEX due ON waiting (next_ms) WHERE state <> 2",
        "CREATE INDEX held ON waiting (state) WHERE state = 2",
        "CREATE INDEX id ON waiting (id)",
        "CREATE INDEX domain ON waiting (domain)",
        "CREATE INDEX sender_domain ON waiting (sender_domain)",
        "CREATE INDEX source ON waiting (source)",
    ),
)

_FIELDS: Final = (
    "number", "epoch", "offset", "recipient", "size_bytes", "id", "sender", "sender_domain", "address", "domain",
    "body_bytes", "accepted_ms", "site", "source", "state", "next_ms", "attempts", "last_ms", "waited_ms",
    "is_warned", "code", "enhanced", "text", "host",
)  # fmt: skip
_COLUMNS: Final = ", ".join(_FIELDS)
# What an attempt changes; a hold that came meanwhile stays.
_CHANGED: Final = ", ".join(
    f"{name} = excluded.{name}" for name in _FIELDS if name not in (*_FIELDS[:12], "state", "next_ms")
)
# What the operator wants ended is not put off.
_NEXT: Final = (
    "next_ms = CASE WHEN waiting.state > 2 THEN min(waiting.next_ms, excluded.next_ms) "
    "ELSE excluded.next_ms END"
)
_PUT: Final = (
    f"INSERT INTO waiting ({_COLUMNS}) VALUES ({', '.join('?' * len(_FIELDS))}) "
    "ON CONFLICT (number, epoch, offset, recipient) DO UPDATE "
    f"SET state = max(state, excluded.state), {_NEXT}, {_CHANGED}"
)
_PIN: Final = (
    f"INSERT INTO waiting ({_COLUMNS}) VALUES ({', '.join('?' * len(_FIELDS))}) "
    "ON CONFLICT (number, epoch, offset, recipient) DO UPDATE SET state = max(state, excluded.state)"
)
_SELECT: Final = f"SELECT {_COLUMNS}, row FROM waiting "
BRIEF: Final = (
    "id", "state", "sender", "address", "body_bytes", "accepted_ms", "next_ms", "attempts", "last_ms", "site",
    "source", "code", "enhanced", "text", "host", "number", "epoch", "offset", "recipient",
)  # fmt: skip
_BRIEF: Final = ", ".join(BRIEF)
_KEY: Final = "number = ? AND epoch = ? AND offset = ? AND recipient = ?"

_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class Opened(NamedTuple):
    """What open() found.

    quarantine   where a damaged file was put, "" when there was none
    reason       what was wrong with it
    salvaged     rows that could be read from it; the others are due now, by the journal and the done-log
    was_clean    the last owner closed it
    """

    quarantine: str = ""
    reason: str = ""
    salvaged: int = 0
    was_clean: bool = True


class Numbers(NamedTuple):
    """Rows for now, held, of those for now the due ones; when the oldest of the first rows was accepted."""

    deferred: int
    held: int
    due: int
    oldest_ms: int | None


class IndexFile:
    """The file.  Every method but open and close may raise what storage_error() makes of SQLite's errors.

    version     of the running program
    migrations  MIGRATIONS; in tests also those of an earlier or later release
    """

    def __init__(self, path: str, *, version: str, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> None:
        self.path = path
        self._version = version
        self._migrations = migrations
        self._connection: sqlite3.Connection | None = None

    # Opening and closing.

    def open(self) -> Opened:
        """Open it, made or brought to our format if need be; a damaged one is set aside, and what it has is kept.

        Raises errors.QueueTooNew, errors.StorageFull, errors.StorageFailed.
        """
        directory = os.path.dirname(self.path)
        was_clean = not _size(self.path + "-wal")
        try:
            self._open(was_clean=was_clean)
        except errors.QueueDamaged as error:
            self._drop()
            quarantine = self._set_aside(directory)
            self._open(was_clean=True)
            return Opened(quarantine, str(error), self._salvage(quarantine), was_clean)
        except BaseException:
            self._drop()
            raise
        return Opened(was_clean=was_clean)

    def open_read_only(self) -> None:
        """For who only looks, beside an owner or without one; raises as open(), and errors.QueueDamaged."""
        with _translated(self.path):
            self._connection = _connect(f"file:{_quoted(self.path)}?mode=ro")
            self._check_format()

    def refuse_later(self) -> int:
        """Before open(), in no time: how many bytes there are; raises errors.QueueTooNew.  All else is open()'s."""
        size_bytes = _size(self.path) + _size(self.path + "-wal")
        if size_bytes:
            try:
                self.open_read_only()
            except (errors.QueueDamaged, errors.TemporaryError):
                pass  # open() will meet it too, and has an answer
            finally:
                self._drop()
        return size_bytes

    def _open(self, *, was_clean: bool) -> None:
        is_new = not _size(self.path)
        with _translated(self.path):
            # Made by us, for its mode: SQLite would make it readable for all that the umask lets.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            self._connection = db = _connect(f"file:{_quoted(self.path)}?mode=rw")
            for pragma in (
                "journal_mode = WAL",
                "synchronous = FULL",
                f"cache_size = -{CACHE_KIB}",
                f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
                "temp_store = MEMORY",
                "trusted_schema = OFF",
                "cell_size_check = ON",
            ):
                db.execute(f"PRAGMA {pragma}").fetchone()
            format = self._check_format()
            if not was_clean or os.path.exists(self.path + ".damaged"):
                # Half a second for a million rows; what a crash leaves is whole unless the disk lied.
                found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
                if found != "ok":
                    raise errors.QueueDamaged(f"{self.path}: {found}")
            if format < len(self._migrations):
                self._migrate(format)
            if is_new:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                sync_directory(os, os.path.dirname(self.path))

    def _check_format(self) -> int:
        """The file's format, 0 of an empty one; raises errors.QueueTooNew, errors.QueueDamaged."""
        db = self._db
        format = int(db.execute("PRAGMA user_version").fetchone()[0])
        application = int(db.execute("PRAGMA application_id").fetchone()[0])
        tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if not tables and not format:
            return 0
        if application != APPLICATION_ID:
            raise errors.QueueDamaged(f"{self.path}: a database, but no deferred index")
        if format > len(self._migrations):
            writer = db.execute("SELECT value FROM about WHERE name = 'writer'").fetchone()
            raise errors.QueueTooNew(
                f"{self.path}: written by fastsmtp {writer[0] if writer else '?'} in format {format}; "
                f"this is fastsmtp {self._version}, which reads formats up to {len(self._migrations)}"
            )
        return format

    def _migrate(self, format: int) -> None:
        """All steps in one transaction: the file has the old format or the new one."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        for step in self._migrations[format:]:
            for statement in step:
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(self._migrations)}")
        db.execute("REPLACE INTO about VALUES ('writer', ?)", (self._version,))
        db.execute("COMMIT")

    def _set_aside(self, directory: str) -> str:
        """Move the file, its log included, to quarantine/; the copy's path.  Nothing is thrown away."""
        with _translated(self.path):
            folder = f"{directory}/{QUARANTINE}"
            os.makedirs(folder, 0o700, exist_ok=True)
            count = 1
            while os.path.lexists(copy := f"{folder}/{os.path.basename(self.path)}-{count}"):
                count += 1
            # The log first: beside a new database an old log would be taken for its own.
            for suffix in ("-wal", "-shm", ".damaged", ""):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self.path + suffix, copy + suffix)
            sync_directory(os, folder)
            sync_directory(os, directory)
            return copy

    def _salvage(self, path: str) -> int:
        """Rows that can still be read from a damaged file, from both ends; how many.  start-up checks each of them."""
        count = 0
        try:
            old = _connect(f"file:{_quoted(path)}?mode=rw")
        except sqlite3.Error:
            return 0
        with contextlib.closing(old), self.transaction():
            for order in ("ASC", "DESC"):
                try:
                    for found in old.execute(f"{_SELECT} ORDER BY row {order}"):
                        try:
                            self.put([_row(found)])
                        except (TypeError, ValueError, AttributeError):
                            continue
                        count += 1
                except sqlite3.Error:
                    # As far as it goes from this end.
                    continue
                break
        return count

    def close(self) -> None:
        """What is in the log goes into the file."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def mark_damaged(self) -> None:
        """So that the next open() looks at every page."""
        with contextlib.suppress(OSError):
            os.close(os.open(self.path + ".damaged", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise errors.StorageFailed(f"{self.path}: is closed")
        return self._connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing; when this ends it is synced."""
        with _translated(self.path):
            db = self._db
            db.execute("BEGIN IMMEDIATE")
            try:
                yield
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    # Writing: inside a transaction.

    def put(self, rows: Iterable[Row]) -> None:
        """Insert them, or say what changed; a row that is held stays held."""
        self._db.executemany(_PUT, map(_values, rows))

    def pin(self, rows: Sequence[Row]) -> list[Key]:
        """Insert them; of what is there already only the state changes, to the greater one.  Which were not there."""
        there = {row.key for row in self.get([row.key for row in rows])}
        self._db.executemany(_PIN, map(_values, rows))
        return [row.key for row in rows if row.key not in there]

    def remove(self, keys: Iterable[Key]) -> int:
        """How many there were."""
        found = self._db.executemany(
            f"DELETE FROM waiting WHERE {_KEY}",
            ((key.number, _signed(key.epoch), key.offset, key.recipient) for key in keys),
        )
        return max(found.rowcount, 0)

    def remove_segment(self, number: int, epoch: int) -> int:
        found = self._db.execute(
            "DELETE FROM waiting WHERE number = ? AND epoch = ?", (number, _signed(epoch))
        )
        return found.rowcount

    def copy(self, old: Place, new: Place) -> int:
        """The record was copied to another segment: rows for the copy, which say the same.  How many."""
        rest = ", ".join(_FIELDS[3:4] + _FIELDS[5:])
        found = self._db.execute(
            f"INSERT INTO waiting (number, epoch, offset, size_bytes, {rest}) SELECT ?, ?, ?, ?, {rest} "
            "FROM waiting WHERE number = ? AND epoch = ? AND offset = ?",
            (
                new.number, _signed(new.epoch), new.offset, new.size_bytes, old.number, _signed(old.epoch),
                old.offset,
            ),
        )  # fmt: skip
        return found.rowcount

    def remove_record(self, place: Place) -> int:
        """All rows of a record."""
        found = self._db.execute(
            "DELETE FROM waiting WHERE number = ? AND epoch = ? AND offset = ?",
            (place.number, _signed(place.epoch), place.offset),
        )
        return found.rowcount

    def hold(self, filter: Filter, after: int = 0) -> tuple[int, int]:
        """Some of the rows found: (how many were changed, where to go on, 0 when that was all)."""
        return self._change(filter, after, "state = 2", "+state = 1")

    def release(self, filter: Filter, now_ms: int, after: int = 0) -> tuple[int, int]:
        """Held ones are due at once; as hold()."""
        return self._change(filter._replace(state=State.HELD), after, f"state = 1, next_ms = {now_ms:d}", "1")

    def flush(self, filter: Filter, now_ms: int, after: int = 0) -> tuple[int, int]:
        """Those that are not held are due at once; as hold()."""
        return self._change(filter, after, f"next_ms = min(next_ms, {now_ms:d})", "+state = 1")

    def condemn(self, filter: Filter, state: State, now_ms: int, after: int = 0) -> tuple[int, int]:
        """BOUNCE or DELETE, at once, held ones too; as hold()."""
        return self._change(
            filter,
            after,
            f"state = {int(state)}, next_ms = min(next_ms, {now_ms:d})",
            f"+state < {int(state)}",
        )

    def _change(self, filter: Filter, after: int, change: str, condition: str) -> tuple[int, int]:
        where, values = _where(filter)
        where = f"{where} AND {condition}"
        count, last = self._db.execute(
            f"SELECT count(*), max(row) FROM (SELECT row FROM waiting WHERE {where} AND row > ? "
            f"ORDER BY row LIMIT {CHUNK})",
            (*values, after),
        ).fetchone()
        if count:
            self._db.execute(
                f"UPDATE waiting SET {change} WHERE {where} AND row > ? AND row <= ?", (*values, after, last)
            )
        return count, last if count == CHUNK else 0

    def pull_in(self, latest_ms: int) -> int:
        """No attempt is later than this: the wall clock was set back.  Up to CHUNK of them; how many were."""
        found = self._db.execute(
            "UPDATE waiting SET next_ms = ? WHERE row IN "
            f"(SELECT row FROM waiting WHERE state <> 2 AND next_ms > ? LIMIT {CHUNK})",
            (latest_ms, latest_ms),
        )
        return found.rowcount

    # Reading.

    def due(self, now_ms: int, after: tuple[int, int], limit: int) -> list[tuple[Row, int]]:
        """Rows that are not held and whose time has come, behind (next_ms, row number), in that order."""
        found = self._db.execute(
            f"{_SELECT} WHERE state <> 2 AND next_ms <= ? AND (next_ms, row) > (?, ?) "
            "ORDER BY next_ms, row LIMIT ?",
            (now_ms, *after, limit),
        )
        return [(_row(values), values[-1]) for values in found]

    def next_due(self, after: tuple[int, int]) -> int | None:
        """next_ms of the first row behind `after`."""
        found = self._db.execute(
            "SELECT next_ms FROM waiting WHERE state <> 2 AND (next_ms, row) > (?, ?) "
            "ORDER BY next_ms, row LIMIT 1",
            after,
        ).fetchone()
        return None if found is None else found[0]

    def due_before(self, last: tuple[int, int], limit: int) -> list[Key]:
        """Rows up to (next_ms, row number): all of them must have been handed out."""
        found = self._db.execute(
            "SELECT number, epoch, offset, recipient FROM waiting WHERE state <> 2 AND (next_ms, row) <= (?, ?) "
            "ORDER BY next_ms, row LIMIT ?",
            (*last, limit),
        )
        return [Key(number, _unsigned(epoch), offset, to) for number, epoch, offset, to in found]

    def find(self, filter: Filter, after: int = 0, limit: int = 1_000) -> Page:
        """In the order in which they were deferred first."""
        where, values = _where(filter)
        found = self._db.execute(
            f"{_SELECT} WHERE {where} AND row > ? ORDER BY row LIMIT ?", (*values, after, limit)
        ).fetchall()
        return Page([_row(row) for row in found], found[-1][-1] if len(found) == limit else 0)

    def brief(self, filter: Filter, after: int, limit: int) -> tuple[list[tuple[Any, ...]], int]:
        """As find(), for lists: BRIEF of each row as it stands in the file, and where to go on."""
        where, values = _where(filter)
        found = self._db.execute(
            f"SELECT {_BRIEF}, row FROM waiting WHERE {where} AND row > ? ORDER BY row LIMIT ?",
            (*values, after, limit),
        ).fetchall()
        return found, found[-1][-1] if len(found) == limit else 0

    def get(self, keys: Iterable[Key]) -> list[Row]:
        """Those that are there."""
        rows = []
        for key in keys:
            found = self._db.execute(
                f"{_SELECT} WHERE {_KEY}", (key.number, _signed(key.epoch), key.offset, key.recipient)
            ).fetchone()
            if found is not None:
                rows.append(_row(found))
        return rows

    def has_other(self, row: Row) -> bool:
        """Whether the same recipient of the same message is in a row of another record."""
        place = row.place
        found = self._db.execute(
            "SELECT 1 FROM waiting WHERE id = ? AND recipient = ? "
            "AND NOT (number = ? AND epoch = ? AND offset = ?) LIMIT 1",
            (row.id, row.recipient, place.number, _signed(place.epoch), place.offset),
        ).fetchone()
        return found is not None

    def counts(self) -> Counts:
        """50 ms for a million rows, and 100 for the messages."""
        due, held, messages = self._db.execute(
            "SELECT (SELECT count(*) FROM waiting WHERE state <> 2), (SELECT count(*) FROM waiting WHERE state = 2),"
            "(SELECT count(*) FROM (SELECT DISTINCT number, epoch, offset FROM waiting))"
        ).fetchone()
        return Counts(due, held, messages)

    def numbers(self, now_ms: int) -> Numbers:
        """For the metrics: 50 ms for a million rows."""
        deferred, held, due, oldest_ms = self._db.execute(
            "SELECT (SELECT count(*) FROM waiting WHERE state <> 2), (SELECT count(*) FROM waiting WHERE state = 2),"
            "(SELECT count(*) FROM waiting WHERE state <> 2 AND next_ms <= ?),"
            # Rows keep their number for as long as their message stays where it is.
            "(SELECT min(accepted_ms) FROM (SELECT accepted_ms FROM waiting ORDER BY row LIMIT 1000))",
            (now_ms,),
        ).fetchone()
        return Numbers(deferred, held, due, oldest_ms)

    def segments(self) -> dict[tuple[int, int], int]:
        """(number, epoch) of the segments that rows are in -> how many."""
        found = self._db.execute("SELECT number, epoch, count(*) FROM waiting GROUP BY number, epoch")
        return {(number, _unsigned(epoch)): count for number, epoch, count in found}

    def places_in(self, number: int, epoch: int) -> list[tuple[Place, list[int]]]:
        """Each record in a segment that rows are of, with their recipients."""
        found: dict[Place, list[int]] = {}
        for offset, size_bytes, recipient in self._db.execute(
            "SELECT offset, size_bytes, recipient FROM waiting WHERE number = ? AND epoch = ?",
            (number, _signed(epoch)),
        ):
            found.setdefault(Place(number, epoch, offset, size_bytes), []).append(recipient)
        return list(found.items())

    def keys_of(self, number: int, epoch: int) -> Iterator[tuple[int, int]]:
        """(offset, recipient) of every row in a segment."""
        return self._db.execute(
            "SELECT offset, recipient FROM waiting WHERE number = ? AND epoch = ? ORDER BY offset, recipient",
            (number, _signed(epoch)),
        )


def _connect(uri: str) -> sqlite3.Connection:
    # No implicit transactions; used by one thread at a time, which isn't the one that made it.
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5.0)


def _quoted(path: str) -> str:
    return quote(path)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    """Errors of SQLite and of the file system as ours."""
    try:
        yield
    except OSError as error:
        raise storage_error(error) from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        text = f"{path}: {error}"
        if not code:
            # Not of the file but of how it is called: ours.
            raise
        if code in _CORRUPT:
            raise errors.QueueDamaged(text) from error
        if code == sqlite3.SQLITE_FULL:
            raise errors.StorageFull(text) from error
        raise errors.StorageFailed(text) from error


def _signed(epoch: int) -> int:
    """SQLite's integers have a sign, an epoch has none."""
    return epoch - (1 << 64) if epoch >> 63 else epoch


def _unsigned(epoch: int) -> int:
    return epoch & 0xFFFF_FFFF_FFFF_FFFF


def _values(row: Row) -> tuple[Any, ...]:
    place, said = row.place, row.said
    return (
        place.number, _signed(place.epoch), place.offset, row.recipient, place.size_bytes, row.id, row.sender,
        row.sender_domain, row.address, row.domain, row.body_bytes, row.accepted_ms, row.site, row.source,
        int(row.state), row.next_ms, row.attempts, row.last_ms, row.waited_ms, row.is_warned, said.code,
        said.enhanced, said.text[:TEXT_CHARACTERS], said.host,
    )  # fmt: skip


def _row(found: Sequence[Any]) -> Row:
    (
        number, epoch, offset, recipient, size_bytes, id, sender, sender_domain, address, domain, body_bytes,
        accepted_ms, site, source, state, next_ms, attempts, last_ms, waited_ms, is_warned, code, enhanced, text,
        host, _,
    ) = found  # fmt: skip
    return Row(
        Place(number, epoch & 0xFFFF_FFFF_FFFF_FFFF, offset, size_bytes), recipient, id, sender, sender_domain,
        address, domain, body_bytes, accepted_ms, site, source, _STATES[state], next_ms, attempts, last_ms,
        waited_ms, bool(is_warned), Said(code, enhanced, text, host),
    )  # fmt: skip


_STATES: Final = {int(state): state for state in State}


def _where(filter: Filter) -> tuple[str, list[Any]]:
    """The condition and its values; a domain that is given first narrows by its index, then the address is compared."""
    parts: list[str] = []
    values: list[Any] = []
    if filter.ids:
        sessions = [id for id in filter.ids if "." not in id]
        # "/" is what follows "." in ASCII: the index on id serves a range, too.
        named = [f"id IN ({', '.join('?' * len(filter.ids))})", *["id > ? AND id < ?"] * len(sessions)]
        parts.append(f"({' OR '.join(named)})")
        values += filter.ids
        values += [end for id in sessions for end in (f"{id}.", f"{id}/")]
    for address, domain, given in (
        ("sender", "sender_domain", filter.sender),
        ("address", "domain", filter.recipient),
    ):
        if given is None:
            continue
        local, at, name = given.rpartition(b"@")
        parts.append(f"{domain} = ?")
        values.append(name.lower() if at else b"")
        if local or not at:
            parts.append(f"lower(CAST({address} AS TEXT)) = ?")
            values.append(given.lower().decode("utf-8", "replace"))
    if filter.domain is not None:
        parts.append("domain = ?")
        values.append(filter.domain)
    if filter.source is not None:
        parts.append("source = ?")
        values.append(filter.source)
    if filter.state is State.HELD:
        parts.append("state = 2")
    elif filter.state is not None:
        # The plus: by row number, not by the index of times, whose order would need a sort.
        parts.append(f"+state = {int(filter.state)}")
    return " AND ".join(parts) or "1", values
