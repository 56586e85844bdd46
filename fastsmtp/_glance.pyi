"""What the dispatcher must know of each message, read without making objects of the rest.

Offsets, sizes and lengths are bytes.
"""

Destinations = tuple[tuple[str, str], ...]
"""(deliver, domain) of each recipient, in the envelope's order."""

def destinations_of(payload: bytes) -> tuple[int | None, Destinations]:
    """(number of the body file or None, where the recipients go) of one message; raises ValueError for what is none."""

def glance(
    data: bytes, *, base: int, epoch: int, start: int, at_batch: bool = True
) -> tuple[bytes, int, list[tuple[int, int, int | None, Destinations]], list[bytes], list[tuple[int, int]], int, bool, int]:
    """Read records one behind the other, as _record.scan does; checksums included.

    Gives (entries, discarded, messages, seals, odd, offset, at_batch, wanted):

    entries    of the done-log: all recipients of messages that go nowhere but to `discard`, as delivered
    discarded  how many such messages there were
    messages   the others: (offset, length of the payload, number of the body file or None, destinations)
    seals      payloads of seals
    odd        (offset, length) of records that are whole, and no message in a layout that is known
    offset, at_batch, wanted   as scan gives them
    """
