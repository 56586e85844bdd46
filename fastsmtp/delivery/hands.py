"""What the dispatcher has in its hands, for whoever looks at the queue from outside: the admin socket.  Rank 6."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastsmtp import errors
from fastsmtp.delivery.afterwards import Afterwards
from fastsmtp.delivery.desk import Desk
from fastsmtp.delivery.dispatcher import Dispatcher
from fastsmtp.delivery.stored import Reader, StoredMessage
from fastsmtp.queue.place import Place
from fastsmtp.queue.row import Key


class InHand(NamedTuple):
    """A recipient that the dispatcher has in memory.

    is_under_way   a shard has it; else it waits for its turn
    """

    place: Place
    recipient: int
    site: str
    is_under_way: bool

    @property
    def key(self) -> Key:
        place = self.place
        return Key(place.number, place.epoch, place.offset, self.recipient)


class DispatcherHands:
    """admin.desk.Hands.  reader: used on the loop, by nobody else: what waits was just read, or is about to be."""

    def __init__(self, dispatcher: Dispatcher, afterwards: Afterwards, desk: Desk, reader: Reader) -> None:
        self._dispatcher = dispatcher
        self._desk = desk
        self._afterwards = afterwards
        self._reader = reader

    def ready(self) -> None:
        if not self._desk.is_open:
            raise errors.QueueUnread(
                "the server has just started and is still reading its queue; it takes mail, and knows of none yet"
            )

    def in_hand(self) -> Iterator[InHand]:
        """A snapshot."""
        return iter([InHand(*one) for one in self._dispatcher.waiting()])

    async def settled(self) -> None:
        """Until whatever the dispatcher has let go of by now is delivered, reported or deferred, durably."""
        await self._afterwards.settled()

    def read(self, place: Place) -> StoredMessage:
        """Raises errors.QueueDamaged, errors.StorageFailed."""
        return self._reader.read(place)

    def wake(self, *, is_flush: bool) -> None:
        """Rows have become due; after a flush, sites that pause are tried all the same."""
        if is_flush:
            self._desk.wake_shards()
        self._afterwards.wake()
