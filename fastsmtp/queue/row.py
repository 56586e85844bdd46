"""One recipient that waits: a row of the deferred index, how rows are chosen, and what is counted.  Rank 5: pure."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from fastsmtp.queue.model import QueuedMessage
from fastsmtp.queue.place import Place

# Of a next hop's reply; a row is read a million times over, and a person needs the beginning.
TEXT_CHARACTERS = 400


class State(IntEnum):
    """The numbers stand in the file; the greater one wins over what an attempt that is under way will say.

    DUE     tried again when its time comes
    HELD    not tried until it is released
    BOUNCE  the operator said so: reported to the sender as failed, without another attempt
    DELETE  the operator said so: finished, and nobody is told
    """

    DUE = 1
    HELD = 2
    BOUNCE = 3
    DELETE = 4


class Key(NamedTuple):
    """Which recipient of which record."""

    number: int
    epoch: int
    offset: int
    recipient: int


class Said(NamedTuple):
    """The last answer.  host: who gave it, "" where there was nobody; code 0: there was no answer."""

    code: int = 0
    enhanced: str = ""
    text: str = ""
    host: str = ""


class Row(NamedTuple):
    """One recipient that waits.  Times are milliseconds since 1970.

    place        of the message's record
    recipient    its place in the envelope, from 0
    id           as the client heard it
    site, source   where it goes, and by which [[source]]; "" when not known
    next_ms      the next attempt is not before; means nothing while the row is held
    attempts     how many there were
    accepted_ms  when the message was accepted
    last_ms      when it was deferred last
    waited_ms    its age for queue.lifetime_h, as schedule.py counts it
    is_warned    its sender was told of the delay
    """

    place: Place
    recipient: int
    id: str
    sender: bytes
    sender_domain: bytes
    address: bytes
    domain: bytes
    body_bytes: int
    accepted_ms: int
    site: str = ""
    source: str = ""
    state: State = State.DUE
    next_ms: int = 0
    attempts: int = 0
    last_ms: int = 0
    waited_ms: int = 0
    is_warned: bool = False
    said: Said = Said()

    @property
    def key(self) -> Key:
        place = self.place
        return Key(place.number, place.epoch, place.offset, self.recipient)


def site_of(deliver: str, domain: str) -> str:
    """What limits are kept for: the domain of mail that goes to the world, else the place itself."""
    return f"mx:{domain}" if deliver == "mx" else deliver


def row_of(place: Place, message: QueuedMessage, recipient: int, *, next_ms: int) -> Row:
    """The first row of a recipient: nothing was tried yet."""
    envelope = message.envelope
    to = envelope.recipients[recipient]
    return Row(
        place, recipient, message.id, envelope.sender, envelope.sender_domain, to.address, to.domain,
        message.body_bytes, message.accepted_ms, site_of(to.deliver, to.domain.decode("utf-8", "replace")),
        next_ms=next_ms, last_ms=message.accepted_ms,
    )  # fmt: skip


class Filter(NamedTuple):
    """Which rows: all given conditions hold.  None: any; no condition at all: every row.

    ids                one of these messages; an id without the number behind the dot is all messages of that session
    sender, recipient  an address (upper and lower case are one), or b"@domain" for all of a domain; b"" is <>
    domain             of the recipient, lower-case
    source             name of a [[source]]
    """

    ids: tuple[str, ...] = ()
    sender: bytes | None = None
    recipient: bytes | None = None
    domain: bytes | None = None
    source: str | None = None
    state: State | None = None


def matches(filter: Filter, row: Row) -> bool:
    """Whether a row that is not in the index would be found."""
    if filter.ids and row.id not in filter.ids and row.id.partition(".")[0] not in filter.ids:
        return False
    for given, address, domain in (
        (filter.sender, row.sender, row.sender_domain),
        (filter.recipient, row.address, row.domain),
    ):
        if given is None:
            continue
        local, at, name = given.rpartition(b"@")
        if domain != (name.lower() if at else b""):
            return False
        if (local or not at) and address.lower() != given.lower():
            return False
    if filter.domain is not None and row.domain != filter.domain:
        return False
    if filter.source is not None and row.source != filter.source:
        return False
    return filter.state is None or row.state is filter.state


class Page(NamedTuple):
    """Some of the rows found; after: what find() takes for the next ones, 0 when there are none."""

    rows: list[Row]
    after: int


class Counts(NamedTuple):
    """Of rows (recipients), and of the messages that they belong to.  due: all that are not held."""

    due: int
    held: int
    messages: int

    @property
    def rows(self) -> int:
        return self.due + self.held
