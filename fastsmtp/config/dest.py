"""DEST: where mail is delivered, as written in `deliver` and --deliver.

discard · print · refuse · mx · maildir:PATH · smtp://HOST[:PORT] · lmtp://HOST[:PORT]
lmtp+unix:PATH · qmail-queue[:PATH] · pipe:COMMAND
"""

from __future__ import annotations

from fastsmtp import patterns
from fastsmtp.config.endpoint import parse_host_port
from fastsmtp.records import dataclass
from fastsmtp.typed import Final

PORTS: Final = {"smtp": 25, "lmtp": 24}
"""Default ports: RFC 5321 section 4.5.4.2; lmtp is 24 at IANA, and never 25 (RFC 2033 section 5)."""

SHAPES: Final = {
    "discard": "discard",
    "print": "print",
    "maildir": "maildir:PATH",
    "smtp": "smtp://HOST[:PORT]",
    "lmtp": "lmtp://HOST[:PORT]",
    "lmtp+unix": "lmtp+unix:PATH",
    "qmail-queue": "qmail-queue[:PATH]",
    "pipe": "pipe:COMMAND",
    "mx": "mx",
    "refuse": "refuse",
}
NEXT_HOPS: Final = frozenset({"smtp", "lmtp", "lmtp+unix"})
"""Kinds that are servers: they can be asked about a recipient, and told who the client was."""
OWNED: Final = frozenset({"maildir", "pipe"})
"""Kinds that can be delivered to as another account: what is written, or run, is somebody's."""

_BARE: Final = ("discard", "print", "refuse", "mx")
_PLACEHOLDER: Final = patterns.compile(r"\{([^{}]*)\}|[{}]")


@dataclass(frozen=True, slots=True)
class Dest:
    """One destination.

    kind  discard | print | refuse | maildir | smtp | lmtp | lmtp+unix | qmail-queue | pipe | mx
    host  smtp, lmtp: a name or an address (IPv6 without brackets); else ""
    port  smtp, lmtp: TCP port; else 0
    path  maildir: absolute, with {domain} and {local} still in it; lmtp+unix: the socket;
          qmail-queue: the program, relative to the qmail home ("": the home's own); pipe: the command; else ""
    """

    kind: str
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.kind in PORTS:
            host = f"[{self.host}]" if ":" in self.host else self.host
            return f"{self.kind}://{host}:{self.port}"
        return f"{self.kind}:{self.path}" if self.path else self.kind


def parse_dest(text: str) -> Dest:
    """A Dest; ValueError with one clause when text is none."""
    kind, colon, rest = text.partition(":")
    if kind in _BARE and not colon:
        return Dest(kind)
    if kind in PORTS and rest.startswith("//"):
        host, port = parse_host_port(rest[2:].removesuffix("/"), default_port=PORTS[kind])
        return Dest(kind, host, port)
    if kind == "maildir" and colon:
        return Dest(kind, path=_maildir(rest))
    if kind == "lmtp+unix" and colon:
        return Dest(kind, path=_absolute(rest))
    if kind == "qmail-queue":
        return Dest(kind, path=_program(rest) if colon else "")
    if kind == "pipe" and rest:
        return Dest(kind, path=_command(rest))
    raise ValueError(f"{text!r} is no destination: {known_shapes()}")


def is_next_hop(text: str) -> bool:
    """Whether a DEST, however good or bad, is of NEXT_HOPS."""
    return text.partition(":")[0] in NEXT_HOPS


def runs_program(text: str) -> bool:
    """Whether mail to a DEST, however good or bad, is given to a program of somebody else's."""
    return text.partition(":")[0] in ("qmail-queue", "pipe")


def known_shapes(quote: str = "") -> str:
    """The destinations, for people: "discard, print ... or refuse"."""
    shapes = [f"{quote}{shape}{quote}" for shape in SHAPES.values()]
    return f"{', '.join(shapes[:-1])} or {shapes[-1]}"


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"path {path!r} must begin with /")
    if "\0" in path:
        raise ValueError("a path has no NUL")
    return path


def _program(path: str) -> str:
    """From the qmail home when it is relative, as $QMAILQUEUE is."""
    if not path or "\0" in path:
        raise ValueError("qmail-queue: needs the path of a program")
    return path


def _command(text: str) -> str:
    """Split without a shell: quotes and backslashes as there, and nothing else of it."""
    import shlex

    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"pipe: {error}") from None
    if not words or not words[0].startswith("/"):
        raise ValueError("pipe: needs the path of a program that begins with /, and its arguments")
    if "\0" in text:
        raise ValueError("a command has no NUL")
    return text


def _maildir(path: str) -> str:
    for found in _PLACEHOLDER.finditer(path):
        if found[1] not in ("domain", "local"):
            raise ValueError(f"{found[0]!r} in a Maildir's path: only {{domain}} and {{local}} are known")
    return _absolute(path)
