"""fastsmtp queue list|show|flush|hold|release|delete|bounce: mail in the queue of a running or a stopped server."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from fastsmtp.cli.flags import Formatter

if TYPE_CHECKING:
    from fastsmtp.admin.client import Client
    from fastsmtp.admin.protocol import Entry
    from fastsmtp.admin.stopped import StoppedQueue
    from fastsmtp.queue.row import Filter

    Queue = Client | StoppedQueue

COMMANDS: Final = {
    "list": "what is in the queue, as mailq shows it",
    "show": "all about one message; with --message the message itself",
    "flush": "try it now",
    "hold": "don't try it until it is released",
    "release": "end a hold; it is tried now",
    "delete": "take it out of the queue; nobody is told",
    "bounce": "give it up; its sender is told",
}
STATES: Final = ("active", "waiting", "deferred", "held", "bouncing", "deleting")

_DESCRIPTION: Final = """\
Mail that waits for delivery. It asks the running server over its admin socket, and looks into the state directory
itself when there is no server. Only root and the account of the queue may.
"""
_EPILOG: Final = """\
commands:
{commands}

Several conditions have to hold together; several ids are any of these. A change is on disk when the command ends.
exit status: 0 done; 1 nothing found, no permission, no queue, or no answer; 2 a wrong command line."""


def run(arguments: Sequence[str]) -> int:
    parser = _parser()
    # Intermixed: ids may stand behind flags, as in `list --json ID`.
    given = parser.parse_intermixed_args(arguments)
    if given.command == "show" and len(given.id) != 1:
        parser.error("show: one id")
    if (given.as_message or given.state_of) and given.command not in ("show", "list"):
        parser.error(f"{given.command}: --message is for show, --in for list")
    if given.limit is not None and given.limit < 1:
        parser.error("--limit: at least 1")
    from fastsmtp.queue.row import Filter

    filter = _filter(parser, given)
    if given.command not in ("list", "show") and filter == Filter():
        if not given.all:
            parser.error(
                f"{given.command}: say what (an id, --sender, --recipient, --domain, --source), or --all"
            )
    elif given.all and filter != Filter():
        parser.error("--all, and a condition: which?")
    queue = _opened(_state_directory(given))
    try:
        if given.command == "list":
            return _list(queue, filter, given)
        if given.command == "show":
            return _show(queue, filter, given)
        count = queue.act(given.command, filter)
    finally:
        queue.close()
    if given.json:
        _print_json({"command": given.command, "recipients": count})
    else:
        print(f"{given.command}: {_number(count, 'recipient')}")
    return 0 if count or given.all else 1


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())

    class Raw(Formatter, argparse.RawDescriptionHelpFormatter):
        """The epilog as it stands."""

    parser = argparse.ArgumentParser(
        prog="fastsmtp queue",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(commands=commands),
        allow_abbrev=False,
        formatter_class=Raw,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    parser.add_argument(
        "id",
        nargs="*",
        default=[],
        metavar="ID",
        help="as the client heard it; without its .N: all of that session",
    )
    add = parser.add_argument_group("which").add_argument
    add("--sender", metavar="ADDRESS", help='or @DOMAIN; "" is the null sender')
    add("--recipient", metavar="ADDRESS", help="or @DOMAIN")
    add("--domain", metavar="DOMAIN", help="of the recipient")
    add("--source", metavar="NAME", help="of the [[source]] that it was last sent from")
    add(
        "--in",
        dest="state_of",
        choices=STATES,
        default="",
        metavar="STATE",
        help=f"list: {', '.join(STATES)}",
    )
    add("--all", action="store_true", help="everything in the queue")
    add = parser.add_argument_group("how").add_argument
    add("--json", action="store_true", help="one JSON object a line: for list, a recipient each")
    add("--message", dest="as_message", action="store_true", help="show: the message itself, on stdout")
    add("--limit", type=int, metavar="N", help="list: so many recipients at most")
    add("--state", metavar="DIR", help="of the server; else the configuration's, else the default")
    add("--config", metavar="FILE", help="else /etc/fastsmtp/fastsmtp.toml when it exists")
    return parser


def _filter(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Filter:
    from fastsmtp.queue.row import Filter

    def octets(text: str | None) -> bytes | None:
        return None if text is None else os.fsencode(text.removeprefix("<").removesuffix(">"))

    if given.recipient == "":
        parser.error("--recipient: there is no empty one")
    return Filter(
        ids=tuple(given.id),
        sender=octets(given.sender),
        recipient=octets(given.recipient),
        domain=None if given.domain is None else os.fsencode(given.domain.lower()),
        source=given.source,
    )


def _state_directory(given: argparse.Namespace) -> str:
    if given.state:
        return os.path.abspath(str(given.state))
    from fastsmtp.config.flags import Flags
    from fastsmtp.config.load import state_of
    from fastsmtp.errors import ConfigError

    try:
        return state_of(Flags(config=given.config))
    except ConfigError as error:
        raise ConfigError(*error.faults, "where the queue is can be said with --state DIR") from None


def _opened(state: str) -> Queue:
    """The running server, else its state directory."""
    from fastsmtp.admin.client import Client, NotRunning

    try:
        return Client(f"{state}/queue")
    except NotRunning:
        pass
    from fastsmtp.admin.stopped import StoppedQueue
    from fastsmtp.cli.version import version

    queue = StoppedQueue(state, version=version())
    for fault in queue.faults:
        what = "damaged" if fault.is_damage else "torn by a crash, and never acknowledged"
        where = f"; a copy is {fault.quarantine}" if fault.quarantine else ""
        print(
            f"warning: {fault.file}: {fault.size_bytes} bytes at {fault.offset} are {what}{where}",
            file=sys.stderr,
        )
    for row in queue.lost:
        print(f"warning: {row.id}: the message was in what is damaged", file=sys.stderr)
    return queue


def _list(queue: Queue, filter: Filter, given: argparse.Namespace) -> int:
    listing = _Listing() if not given.json else None
    left = given.limit or 0
    write = sys.stdout.write
    for found in queue.entries(filter, given.state_of):
        entries = found[:left] if given.limit else found
        left -= len(entries)
        if listing is None:
            write(_json_lines(entries))
        else:
            write(listing.lines(entries))
        if given.limit and left <= 0:
            break
    if listing is not None:
        write(listing.end())
    return 0


class _Listing:
    """mailq's columns, a block a message, an answer above the recipients that it was for; page by page."""

    def __init__(self) -> None:
        self._id = self._said = ""
        self._second = -1
        self._date = ""
        self._messages = 0
        self._bytes = 0
        self._recipients = 0

    def lines(self, entries: Iterable[Entry]) -> str:
        out: list[str] = []
        for entry in entries:
            if entry.id != self._id:
                out.append(
                    "\n"
                    if self._id
                    else "-Queue ID-----  --Size-- ----Arrival Time---- -Sender/Recipient-------\n"
                )
                self._id, self._said = entry.id, ""
                self._messages += 1
                self._bytes += entry.size_bytes
                sender = printable(entry.sender) or "MAILER-DAEMON"
                # The mark takes a blank of the size's column.
                name = f"{entry.id + MARKS.get(entry.state, ''):14}"
                out.append(
                    f"{name}{entry.size_bytes:>{24 - len(name)}} {self._arrival(entry.accepted_ms)}  {sender}\n"
                )
            self._recipients += 1
            said = words(entry)
            if said != self._said:
                out.append(f"                ({said or 'no answer yet'})\n")
                self._said = said
            out.append(f"                                              {printable(entry.recipient)}\n")
        return "".join(out)

    def _arrival(self, ms: int) -> str:
        second = ms // 1000
        if second != self._second:
            from time import localtime, strftime

            self._second = second
            self._date = strftime("%a %b %d %H:%M:%S", localtime(second))
        return self._date

    def end(self) -> str:
        if not self._messages:
            return "The queue is empty, or nothing in it fits.\n"
        size = (
            f"{self._bytes / 1024:.0f} kB"
            if self._bytes < 10_240_000
            else f"{self._bytes / 1_048_576:.0f} MB"
        )
        messages = _number(self._messages, "message")
        return f"\n-- {size} in {messages} for {_number(self._recipients, 'recipient')}.\n"


MARKS: Final = {"active": "*", "waiting": "*", "deferred": "", "held": "!", "bouncing": "#", "deleting": "#"}
"""Behind the id: * on its way now, ! held, # about to be taken out."""


def _show(queue: Queue, filter: Filter, given: argparse.Namespace) -> int:
    (id,) = given.id
    entries = [entry for piece in queue.entries(filter, "") for entry in piece]
    ids = list(dict.fromkeys(entry.id for entry in entries))
    if len(ids) > 1:
        print(f"fastsmtp: {id}: which of {', '.join(ids)}?", file=sys.stderr)
        return 1
    id = ids[0] if ids else id
    if given.as_message:
        return _print_message(queue, id)
    about = queue.describe(id)
    if about is None or not entries:
        print(f"fastsmtp: {id}: not in the queue", file=sys.stderr)
        return 1
    if given.json:
        _print_json({**about, "waiting": [_named(entry) for entry in entries]})
        return 0
    for name, value in about.items():
        if name.endswith("_ms"):
            print(f"{name.removesuffix('_ms'):13} {_time(value)}")
        elif value not in ("", False, None) or name == "sender":
            print(f"{name:13} {printable(str(value)) or '<>'}")
    for entry in entries:
        print(f"\nrecipient     {printable(entry.recipient)}")
        print(f"  state       {entry.state}")
        print(
            f"  attempts    {entry.attempts}"
            + (f", the last {_time(entry.last_ms)}" if entry.last_ms else "")
        )
        if entry.state == "deferred":
            print(f"  next        {_time(entry.next_ms)}")
        for name, text in (("site", entry.site), ("source", entry.source), ("said", words(entry))):
            if text:
                print(f"  {name:11} {printable(text)}")
    return 0


def _print_message(queue: Queue, id: str) -> int:
    count = 0
    for piece in queue.message(id):
        sys.stdout.buffer.write(piece)
        count += len(piece)
    sys.stdout.flush()
    if not count:
        print(f"fastsmtp: {id}: not in the queue", file=sys.stderr)
    return 0 if count else 1


def words(entry: Entry) -> str:
    """The last answer, in a line."""
    code, enhanced, text, host = entry[11:15]
    if code:
        said = f"{code} {enhanced} {text}" if enhanced else f"{code} {text}"
        text = f"{host} said: {said}" if host else said
    elif host and text:
        text = f"{host}: {text}"
    return text if text.isprintable() else printable(text)


def printable(text: str) -> str:
    """What others chose, for a terminal: no control characters."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _time(ms: int) -> str:
    from time import localtime, strftime

    return strftime("%Y-%m-%d %H:%M:%S %z", localtime(ms / 1000))


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _named(entry: Entry) -> dict[str, Any]:
    return entry._asdict()


def _json_lines(entries: Iterable[Entry]) -> str:
    from msgspec.json import Encoder

    return Encoder().encode_lines([entry._asdict() for entry in entries]).decode()


def _print_json(value: object) -> None:
    from msgspec.json import encode

    print(encode(value).decode())
