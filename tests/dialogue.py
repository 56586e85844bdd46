"""The reader and the player of tests/dialogues/*.smtp: one wire dialogue a file.

    # why this dialogue is here
    terms: is_normalizing=true message_bytes=100     arguments of Terms (hostname is mx.example.org)
    greet: 554 5.7.1 Go away                         the greeting, when it is another
    C: EHLO client.example.org                       a client's line; CR LF is added
    C> text\\r\\nwithout an end                        octets as they are
    C*3: NOOP                                        three times
    E: MAIL path=a@example.org size_bytes=5          an event, and those of its fields that matter here
    R: 550 5.7.1 Not you                             the answer to the event above, when it is no plain yes
    S: 250 2.1.0                                     a reply line that begins so
    S* 250                                           a whole reply of this code, of any number of lines
    S*3: 250                                         three such lines
    --                                               the client waits: what follows is sent after all before
    restart tls                                      the same, and the session starts over inside TLS
    closing                                          the session is over

Escapes in C, C> and E are Python's (\\r \\n \\t \\0 \\xHH \\\\); other characters go as UTF-8.
`R: restart 220 mx` calls restart() before it answers (XCLIENT).

The order of C against E and S is for the reader; the player checks each of them in its own order.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from fastsmtp import reply as replies
from fastsmtp._session import (
    BODY,
    DATA,
    END,
    EVENT_NAMES,
    HELO,
    MAIL,
    RCPT,
    STARTTLS,
    XCLIENT,
    Event,
    Session,
    Terms,
)
from fastsmtp.reply import Reply

FOLDER = pathlib.Path(__file__).parent / "dialogues"
HOSTNAME = "mx.example.org"
ID = b"7F3A9C2E"

YES = {
    HELO: replies.OK,
    MAIL: replies.SENDER_OK,
    RCPT: replies.RECIPIENT_OK,
    DATA: replies.START_DATA,
    END: replies.accepted("1"),
    STARTTLS: replies.START_TLS,
    XCLIENT: replies.banner(HOSTNAME),
}

# What a whole event says, for comparing one cut with another.
FIELDS = (
    "name",
    "is_extended",
    "path",
    "size_bytes",
    "body",
    "is_smtputf8",
    "ret",
    "envid",
    "notify",
    "orcpt",
    "is_chunked",
    "chunk",
    "replies",
    "attributes",
    "violation",
    "reply",
    "is_fatal",
)

Snapshot = tuple[str, dict[str, object]]


@dataclass
class Segment:
    """What the client sends before it waits."""

    data: bytes = b""
    starts: str = ""  # "", "--" or "restart tls": what comes before it


@dataclass
class Dialogue:
    name: str
    why: str = ""
    terms: dict[str, object] = field(default_factory=dict)
    greeting: Reply = field(default_factory=lambda: replies.banner(HOSTNAME))
    segments: list[Segment] = field(default_factory=lambda: [Segment()])
    events: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    answers: dict[int, str] = field(default_factory=dict)  # by the event's index
    lines: list[str] = field(default_factory=list)  # "250 2.1.0", or "* 250"
    is_closing: bool = False


@dataclass
class Played:
    events: list[Snapshot]
    output: bytes
    is_closing: bool


def unescape(text: str) -> bytes:
    return text.encode("utf-8").decode("unicode_escape", "strict").encode("latin-1")


def show(value: object) -> str:
    """A field as E lines have it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace").encode("unicode_escape").decode()
    if isinstance(value, tuple):
        return ",".join(f"{show(v[0])}={show(v[1])}" if isinstance(v, tuple) else show(v) for v in value)
    if isinstance(value, str):
        return value
    address = getattr(value, "address", None)
    return str(value) if address is None else show(address)


def _value(text: str) -> object:
    if text in {"true", "false"}:
        return text == "true"
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _reply(text: str) -> Reply:
    code, _, rest = text.partition(" ")
    enhanced, _, words = rest.partition(" ")
    if not re.fullmatch(r"\d\.\d{1,3}\.\d{1,3}", enhanced):
        enhanced, words = "", rest
    return Reply(int(code), enhanced, words)


def read(path: pathlib.Path) -> Dialogue:
    """Raises ValueError, with the line, for what is no dialogue."""
    dialogue = Dialogue(path.stem)
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            _read_line(dialogue, line)
        except ValueError as fault:
            raise ValueError(f"{path.name}:{number}: {fault}") from fault
    if not dialogue.why:
        raise ValueError(f"{path.name}: does not say why it is here")
    return dialogue


def _read_line(dialogue: Dialogue, line: str) -> None:
    if not line.strip():
        return
    times = re.match(r"([CS])\*(\d+): ?", line)
    count = int(times[2]) if times else 1
    if line.startswith("#"):
        dialogue.why += line[1:].strip() + " "
    elif times or line.startswith(("C:", "S:")):
        text = line[times.end() :] if times else line[3:]
        if line.startswith("C"):
            dialogue.segments[-1].data += (unescape(text) + b"\r\n") * count
        else:
            dialogue.lines += [text] * count
    elif line.startswith("C> "):
        dialogue.segments[-1].data += unescape(line[3:])
    elif line.startswith("S* "):
        dialogue.lines.append(f"* {line[3:]}")
    elif line.startswith("E: "):
        kind, _, rest = line[3:].partition(" ")
        if kind not in EVENT_NAMES:
            raise ValueError(f"no event: {kind}")
        if kind == "BODY":
            dialogue.events.append((kind, {"chunk": show(unescape(rest))}))
        else:
            dialogue.events.append((kind, dict(pair.split("=", 1) for pair in rest.split())))
    elif line.startswith("R: "):
        dialogue.answers[len(dialogue.events) - 1] = line[3:]
    elif line.startswith("terms:"):
        dialogue.terms.update((k, _value(v)) for k, v in (w.split("=", 1) for w in line[6:].split()))
    elif line.startswith("greet:"):
        dialogue.greeting = _reply(line[6:].strip())
    elif line in {"--", "restart tls"}:
        dialogue.segments.append(Segment(starts=line))
    elif line == "closing":
        dialogue.is_closing = True
    else:
        raise ValueError(f"unknown line: {line!r}")


def files() -> list[pathlib.Path]:
    return sorted(FOLDER.glob("*.smtp"))


def snapshot(event: Event) -> Snapshot:
    return EVENT_NAMES[event.kind], {name: getattr(event, name) for name in FIELDS}


def play(
    dialogue: Dialogue,
    cut: Callable[[bytes], Iterable[bytes]],
    *,
    session_type: Callable[[Terms, bytes], Session] = Session,
) -> Played:
    """One session over the dialogue's input, each segment in the pieces that cut gives.

    The session reads from one buffer that is overwritten after hold(), as the connection's is.
    """
    arguments: dict[str, object] = {"hostname": HOSTNAME, **dialogue.terms}
    session = session_type(Terms(**arguments), ID)  # type: ignore[arg-type]
    session.greet(dialogue.greeting)
    played = Played([], b"", False)
    count = 0
    for segment in dialogue.segments:
        if segment.starts == "restart tls":
            session.restart(is_tls=True)
        for piece in cut(segment.data):
            buffer = bytearray(piece)
            session.feed(buffer)
            while True:
                event = session.next_event()
                if event is None:
                    if not session.is_full:
                        break
                    played.output += session.take()
                    continue
                if event.kind == BODY and played.events and played.events[-1][0] == "BODY":
                    played.events[-1][1]["chunk"] += event.chunk  # type: ignore[operator]
                    continue
                played.events.append(snapshot(event))
                if session.is_open:
                    _answer(session, event, dialogue.answers.get(count))
                count += 1
            session.hold()
            buffer[:] = b"\xff" * len(buffer)
        played.output += session.take()
    played.is_closing = session.is_closing
    return played


def _answer(session: Session, event: Event, answer: str | None) -> None:
    if answer is None:
        session.reply(YES[event.kind])
        return
    if answer.startswith("restart "):
        session.restart()
        answer = answer.removeprefix("restart ")
    session.reply(_reply(answer))


def faults(dialogue: Dialogue, played: Played) -> list[str]:
    """Where what happened is not what the file says; empty when all is right."""
    wrong = []
    got_events = [(kind, {k: show(v) for k, v in fields.items()}) for kind, fields in played.events]
    for index in range(max(len(got_events), len(dialogue.events))):
        got = got_events[index] if index < len(got_events) else None
        wanted = dialogue.events[index] if index < len(dialogue.events) else None
        if got is None or wanted is None:
            wrong.append(f"event {index + 1}: wanted {wanted}, got {got}")
        elif got[0] != wanted[0] or any(got[1].get(key) != value for key, value in wanted[1].items()):
            wrong.append(
                f"event {index + 1}: wanted {wanted}, got {got[0], {k: got[1].get(k) for k in wanted[1]}}"
            )
    wrong += _wrong_lines(dialogue.lines, played.output.decode("utf-8").split("\r\n")[:-1])
    if played.is_closing != dialogue.is_closing:
        wrong.append(f"is_closing is {played.is_closing}")
    return wrong


def _wrong_lines(wanted: Sequence[str], got: list[str]) -> list[str]:
    at = 0
    for text in wanted:
        line = text
        if text.startswith("* "):
            while at < len(got) and got[at].startswith(f"{text[2:]}-"):
                at += 1
            line = f"{text[2:]} "
        if at == len(got):
            return [f"line {at + 1}: wanted {line!r}, got nothing"]
        if not got[at].startswith(line):
            return [f"line {at + 1}: wanted {line!r}, got {got[at]!r}"]
        at += 1
    return [f"line {at + 1}: not wanted: {got[at]!r}"] if at < len(got) else []
