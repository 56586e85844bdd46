"""What `fastsmtp queue` and a running server say to each other over the admin socket; docs/queue-command.md.

    server   hello                                     {"server": "fastsmtp 0.1.0", "protocol": 1}
    client   request                                   {"protocol": 1, "command": "list", "filter": {...}, ...}
    server   any number of pieces                      {"entries": [[...], ...]}   {"data": "base64"}
    server   one end                                   {"end": {...}}              {"refused": "why"}

Each is a frame: its length (4 bytes, big-endian), then JSON in UTF-8.  A client
may go on with the next request.  The protocol's number changes when an old
client or server would misunderstand; fields may be added.

Rank 9: pure.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from fastsmtp import errors
from fastsmtp.queue.model import QueuedMessage
from fastsmtp.queue.row import Filter, Key, Row, State

PROTOCOL: Final = 1
SOCKET: Final = "admin"
"""The socket's name, in the queue's own directory: nobody else than its owner and root comes in there."""

REQUEST_BYTES: Final = 65_536
ANSWER_BYTES: Final = 4_194_304
ENTRIES: Final = 500
"""In one piece."""

ACTIONS: Final = ("flush", "hold", "release", "delete", "bounce")
STATES: Final = ("active", "waiting", "deferred", "held", "bouncing", "deleting")
"""active: an attempt is under way; waiting: in memory, for its first attempt or a free connection."""

# bind() and connect() take 107 bytes; state directories can be longer.
_PATH_BYTES: Final = 100
_LENGTH: Final = struct.Struct(">I")
_NAMES: Final = {
    State.DUE: "deferred", State.HELD: "held", State.BOUNCE: "bouncing", State.DELETE: "deleting",
}  # fmt: skip

_NUMBERED: Final = {int(state): name for state, name in _NAMES.items()}


class Entry(NamedTuple):
    """One recipient in the queue, as it goes over the wire: a list in this order.  Times: ms since 1970, 0: none."""

    id: str
    state: str
    sender: str
    recipient: str
    size_bytes: int
    accepted_ms: int
    next_ms: int
    attempts: int
    last_ms: int
    site: str
    source: str
    code: int
    enhanced: str
    text: str
    host: str


def entry_of(row: Row, state: str = "") -> Entry:
    said = row.said
    return Entry(
        row.id, state or _NAMES[row.state], row.sender.decode("utf-8", "replace"),
        row.address.decode("utf-8", "replace"), row.body_bytes, row.accepted_ms, row.next_ms, row.attempts,
        row.last_ms if row.attempts else 0, row.site, row.source, said.code, said.enhanced, said.text, said.host,
    )  # fmt: skip


def brief_entries(rows: Iterable[Sequence[Any]], hand: Mapping[Key, bool] | None = None) -> list[Entry]:
    """Of IndexFile.brief().  hand: the keys that are in the dispatcher's hands, and whether they are under way."""
    entries = []
    for row in rows:
        id, state, sender, address, size, accepted, next, attempts, last, *said = row[:15]
        name = _NUMBERED[state]
        if hand and state == State.DUE:
            number, epoch, offset, recipient = row[15:19]
            under_way = hand.get(Key(number, epoch & 0xFFFF_FFFF_FFFF_FFFF, offset, recipient))
            if under_way is not None:
                name = "active" if under_way else "waiting"
        entries.append(
            Entry(
                id, name, sender.decode("utf-8", "replace"), address.decode("utf-8", "replace"), size, accepted,
                next, attempts, last if attempts else 0, *said,
            )
        )  # fmt: skip
    return entries


def description(message: QueuedMessage) -> dict[str, Any]:
    """What `queue show` says of a message beside its recipients."""
    envelope, origins, tls = message.envelope, message.origins, message.origins.tls
    return {
        "id": message.id,
        "accepted_ms": message.accepted_ms,
        "sender": envelope.sender.decode("utf-8", "replace"),
        "recipients": len(envelope.recipients),
        "size_bytes": message.body_bytes,
        "body": envelope.body.decode("ascii", "replace"),
        "smtputf8": envelope.is_smtputf8,
        "ret": envelope.ret.decode("ascii", "replace"),
        "envid": envelope.envid.decode("ascii", "replace"),
        "client": origins.address,
        "client_name": origins.name,
        "helo": origins.helo.decode("utf-8", "replace"),
        "listener": origins.listener,
        "tls": tls.protocol if tls is not None else "",
    }


def filter_words(filter: Filter) -> dict[str, Any]:
    """For a request: only what is asked for."""
    return {
        name: value.decode("utf-8", "replace") if isinstance(value, bytes) else list(value)
        if isinstance(value, tuple) else value
        for name, value in filter._asdict().items()
        if value is not None and value != () and name != "state"
    }  # fmt: skip


def parse_filter(words: object) -> Filter:
    """Raises ValueError for what is no filter: an older server must not take a condition for none."""
    if not isinstance(words, dict):
        raise ValueError("filter: must be an object")
    found: dict[str, Any] = {}
    for name, value in words.items():
        if name == "ids" and isinstance(value, list) and all(isinstance(id, str) for id in value):
            found[name] = tuple(value)
        elif name in ("sender", "recipient") and isinstance(value, str):
            found[name] = value.encode()
        elif name == "domain" and isinstance(value, str):
            found[name] = value.lower().encode()
        elif name == "source" and isinstance(value, str):
            found[name] = value
        else:
            raise ValueError(f"filter: {name} isn't known, or has a wrong value")
    return Filter(**found)


def frame(contents: object) -> bytes:
    """Raises ValueError for more than an answer may be."""
    import msgspec

    data = msgspec.json.encode(contents)
    if len(data) > ANSWER_BYTES:
        raise ValueError("the answer is too long for a frame")
    return _LENGTH.pack(len(data)) + data


def frame_length(head: bytes, most: int) -> int:
    """Of the four bytes before a frame; raises errors.ProtocolError for more than may be."""
    length: int = _LENGTH.unpack(head)[0]
    if length > most:
        raise errors.ProtocolError(f"a frame of {length} bytes")
    return length


def parse_frame(data: bytes) -> dict[str, Any]:
    """Raises errors.ProtocolError for what is no JSON object."""
    import msgspec

    try:
        found: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.ProtocolError(f"not our protocol: {error}") from None
    return found


def parse_entries(values: object) -> list[Entry]:
    """Fields that a later server added are left out; raises errors.ProtocolError for fewer than ours."""
    width = len(Entry._fields)
    if not isinstance(values, list) or not all(isinstance(one, list) and len(one) >= width for one in values):
        raise errors.ProtocolError("entries that we can't read")
    return [Entry._make(one[:width]) for one in values]


def reachable(directory: str, folder: int) -> str:
    """The socket's path; when it is too long, by way of an open descriptor of its directory."""
    path = f"{directory}/{SOCKET}"
    return path if len(os.fsencode(path)) <= _PATH_BYTES else f"/proc/self/fd/{folder}/{SOCKET}"
