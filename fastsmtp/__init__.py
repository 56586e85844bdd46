"""fastsmtp: an SMTP front end, and the engine of it for programs.

    import fastsmtp

    async def keep(message):
        print(message.envelope.sender, len(await message.content()))

    async with fastsmtp.Server(sink=keep, listen=("127.0.0.1", 0)) as server:
        ...

What `__all__` names is the API; everything else may change between releases.
Nothing is imported before it is asked for, so that a command that needs no
event loop doesn't pay for one.
"""

from __future__ import annotations

from importlib import import_module

# typing costs 8 ms, as much as Python itself: too much for fastsmtp preline.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastsmtp._session import Event, Session, Terms
    from fastsmtp.callable_sink import Message
    from fastsmtp.errors import ConfigError, FastsmtpError, ProtocolError, TemporaryError
    from fastsmtp.message import Envelope, Recipient
    from fastsmtp.reply import Reply
    from fastsmtp.smtp.server import Server

__all__ = [
    "ConfigError",
    "Envelope",
    "Event",
    "FastsmtpError",
    "Message",
    "ProtocolError",
    "Recipient",
    "Reply",
    "Server",
    "Session",
    "TemporaryError",
    "Terms",
]

_HOMES = {
    "ConfigError": "fastsmtp.errors",
    "Envelope": "fastsmtp.message",
    "Event": "fastsmtp._session",
    "FastsmtpError": "fastsmtp.errors",
    "Message": "fastsmtp.callable_sink",
    "ProtocolError": "fastsmtp.errors",
    "Recipient": "fastsmtp.message",
    "Reply": "fastsmtp.reply",
    "Server": "fastsmtp.smtp.server",
    "Session": "fastsmtp._session",
    "TemporaryError": "fastsmtp.errors",
    "Terms": "fastsmtp._session",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
