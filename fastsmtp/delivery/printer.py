"""Delivery to standard output, for trials: envelope and message, as Python's debugging servers print them.

Rank 6: may import ranks 0 to 5.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from fastsmtp.delivery.dot import LfDecoder
from fastsmtp.delivery.program import Content
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue.disk import Disk

# A message must not reach the terminal as commands: control characters but TAB and LF are shown escaped.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Printer:
    """Prints one message at a time.

    write   what takes the text; it blocks, and is called in a job of the disk
    """

    __slots__ = ("_disk", "_lock", "_write")

    def __init__(self, disk: Disk, write: Callable[[str], object] | None = None) -> None:
        self._disk = disk
        self._write = write or _to_stdout
        self._lock = threading.Lock()

    def store(
        self, recipients: list[Recipient], envelope: Envelope, prefix: bytes, body: Content
    ) -> Awaitable[None] | None:
        """Print the message.  Raises, or the awaitable does, errors.StorageFailed when nobody reads it."""
        return self._disk.run(self._print, recipients, envelope, prefix, body)

    def _print(
        self, system: Any, recipients: list[Recipient], envelope: Envelope, prefix: bytes, body: Content
    ) -> None:
        decoder = LfDecoder()
        content = b"".join(decoder.feed(piece) for piece in (prefix, *body.blocking_pieces(system)))
        content += decoder.finish()
        lines = ["---------- MESSAGE FOLLOWS ----------", f"MAIL FROM:<{_shown(envelope.sender)}>"]
        lines += [f"RCPT TO:<{_shown(recipient.address)}>" for recipient in recipients]
        lines += ["", _shown(content).removesuffix("\n"), "------------ END MESSAGE ------------", ""]
        with self._lock:
            self._write("\n".join(lines))


def _shown(data: bytes) -> str:
    text = data.decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
