"""The payload of a message: its strings put together, and what the dispatcher must know of it read without the rest.

Offsets, sizes and lengths are bytes.
"""

def put_together(fixed: bytes, strings: tuple[bytes | str, ...], recipients: list[tuple[bytes | str, ...]]) -> bytes:
    """The fixed part, then the lengths (2 bytes each) and contents of the strings, then the same for each recipient.

    A str is written as UTF-8.  Raises ValueError for one of 64 KiB or more.
    """

def destinations_of(payload: bytes) -> tuple[int | None, tuple[tuple[str, str], ...]]:
    """(number of the body file or None, destinations) of one message; raises ValueError for what is none.

    Destinations are (deliver, domain) of each recipient, in the envelope's order.
    """

def glance(
    data: bytes, *, base: int, epoch: int, start: int, at_batch: bool = True
) -> tuple[bytes, int, list[tuple[int, int, int | None, tuple[tuple[str, str], ...]]], list[bytes], list[tuple[int, int]], int, bool, int]:
    """Read records one behind the other, as _record.scan does; checksums included.

    Gives (entries, discarded, messages, seals, odd, offset, at_batch, wanted):

    entries    of the done-log: all recipients of messages that go nowhere but to `discard`, as delivered
    discarded  how many such messages there were
    messages   the others: (offset, length of the payload, number of the body file or None, destinations)
    seals      payloads of seals
    odd        (offset, length) of records that are whole, and no message in a layout that is known
    offset, at_batch, wanted   as scan gives them
    """
