"""The dialogue as one would tell it: a generator that reads a line, answers, reads on.

Sans-IO and pulled, as the compiled session is (docs/decisions/0001), with the same methods; but where that one is
a table and modes over a borrowed buffer, this one is straight code over one growing byte string, written from the
RFCs: 5321, 1870 (SIZE), 2034, 2920 (PIPELINING), 3030 (CHUNKING), 3207 (STARTTLS), 3461 (DSN), 6152, 6531, 9422,
and Postfix's XCLIENT page.  The texts of the replies are reply.py's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from fastsmtp import reply as replies
from fastsmtp.reply import Reply
from tests.reference import data, parser
from tests.reference.parser import ESMTP_KEYWORD, ESMTP_VALUE, Fault


class Terms(NamedTuple):
    """What is offered and enforced; the names and defaults of fastsmtp._session.Terms."""

    hostname: str
    message_bytes: int = 52_428_800
    recipients: int = 1_000
    errors: int = 20
    command_bytes: int = 512
    local_bytes: int = 64
    domain_bytes: int = 255
    path_bytes: int = 256
    is_starttls_offered: bool = False
    is_tls_required: bool = False
    is_normalizing: bool = False
    is_xclient_allowed: bool = False
    is_chunking: bool = True
    is_smtputf8: bool = True
    is_dsn: bool = True
    is_compatible: bool = False

    def capabilities(self, is_tls: bool) -> bytes:
        words = [
            (True, self.hostname),
            (True, "PIPELINING"),
            (True, f"SIZE {self.message_bytes}"),
            (True, "8BITMIME"),
            (self.is_chunking, "CHUNKING"),
            (self.is_smtputf8, "SMTPUTF8"),
            (True, "ENHANCEDSTATUSCODES"),
            (self.is_dsn, "DSN"),
            (self.is_starttls_offered and not is_tls, "STARTTLS"),
            (self.recipients > 0, f"LIMITS RCPTMAX={self.recipients}"),
            (self.is_xclient_allowed, "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"),
            (True, "HELP"),
        ]
        lines = [word for is_offered, word in words if is_offered]
        return "".join(f"250{' ' if line is lines[-1] else '-'}{line}\r\n" for line in lines).encode()


class Event(NamedTuple):
    kind: str
    fields: dict[str, Any]


# Octets that an extension adds to the longest command line (RFC 1870, 6152, 6531, 3461), and Postfix for XCLIENT.
LONGER = {b"MAIL": 26 + 17 + 10 + 118, b"RCPT": 500, b"XCLIENT": 512}
HELO_NAME = re.compile(rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.:\[\]-]+")
OTHER_PROTOCOLS = {
    b"GET",
    b"PUT",
    b"POST",
    b"HEAD",
    b"PRI",
    b"CONNECT",
    b"OPTIONS",
    b"DELETE",
    b"PATCH",
    b"TRACE",
}
XCLIENT_NAMES = {b"NAME", b"ADDR", b"PORT", b"PROTO", b"HELO", b"LOGIN", b"DESTADDR", b"DESTPORT"}
CHUNK_MOST = 1 << 40
ASKS = {"HELO", "MAIL", "RCPT", "DATA", "END", "STARTTLS", "XCLIENT"}


class Session:
    def __init__(self, terms: Terms, id: bytes) -> None:
        self.terms = terms
        self.id = id
        self.state = "new"
        self.is_closing = False
        self.is_tls = False
        self.errors = 0
        self.commands = 0
        self._input = bytearray()
        self._output = bytearray()
        self._open: Event | None = None
        self._answer_was: Reply = replies.OK
        self._last_words: list[Event] = []
        self._is_extended = False
        self._begin()

    def _begin(self) -> None:
        self._is_smtputf8 = False
        self._refused = 0
        self._steps = self._dialogue()

    # --- the caller's side --------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._open is not None

    def greet(self, reply: Reply) -> None:
        self._write(reply)
        if reply.code == 421:
            self._stop()
        else:
            self.state = "fresh" if reply.code < 400 else "refused"

    def feed(self, octets: bytes) -> None:
        if self.state != "tls" and not self.is_closing:
            self._input += octets

    def hold(self) -> None:
        pass

    def next_event(self) -> Event | None:
        if self._open or self.state in {"new", "tls"}:
            return None
        event = next(self._steps, None)
        if event and event.kind in ASKS:
            self._open = event
        return event

    def reply(self, reply: Reply) -> None:
        if self.is_closing:
            return
        event, self._open = self._open, None
        assert event is not None
        self._answer_was = reply
        code = reply.code
        if code == 421:
            self._write(reply)
            self.errors += 1
            self._stop()
        elif code >= 400:
            if event.kind == "XCLIENT" and self.state == "new":
                self.state = "refused"
            if event.kind == "END":
                self._end_transaction()
            # A refused BDAT is answered behind its octets, which come whatever we say.
            if not (event.kind == "DATA" and event.fields["is_chunked"]):
                self._error(reply)
        elif event.kind == "HELO":
            self._is_extended = event.fields["is_extended"]
            self.state = "ready"
            if self._is_extended:
                self._output += self.terms.capabilities(self.is_tls)
            else:
                self._output += b"250 %s\r\n" % self.terms.hostname.encode()
        elif event.kind == "DATA":
            self.state = "chunks" if event.fields["is_chunked"] else "data"
            if not event.fields["is_chunked"]:
                self._write(reply if code == 354 else replies.START_DATA)
        else:
            self._write(reply)
            if event.kind == "MAIL":
                self.state = "mail"
            elif event.kind == "RCPT":
                self.state = "rcpt"
            elif event.kind == "END":
                self._end_transaction()
            elif event.kind == "XCLIENT":
                self.state = "fresh"
            elif event.kind == "STARTTLS" and code == 220:
                self._input.clear()
                self.state = "tls"

    def close(self, reply: Reply | None = None) -> None:
        if not self.is_closing:
            if reply is not None:
                self._write(self._told(reply))
            self._stop()

    def take(self) -> bytes:
        output = bytes(self._output)
        self._output.clear()
        return output

    def restart(self, *, is_tls: bool = False) -> None:
        if self.is_closing:
            return
        self._input.clear()
        self._is_extended = False
        self.is_tls |= is_tls
        if self._open and self._open.kind == "XCLIENT":
            self.state = "new"
        else:
            self._open = None
            self.state = "fresh"
        self._begin()

    # --- answers ------------------------------------------------------------------------------------------

    def _write(self, reply: Reply) -> None:
        self._output += reply.head + (b" (id %s)\r\n" % self.id if reply.code >= 400 else b"\r\n")

    def _told(self, reply: Reply) -> Reply:
        """qmail-smtpd's code for it, where the terms want that."""
        return replies.QMAIL_DIALOGUE.get(reply, reply) if self.terms.is_compatible else reply

    def _error(self, reply: Reply) -> None:
        """4xx and 5xx are counted; the last one allowed ends the session."""
        self._write(self._told(reply))
        self.errors += 1
        if self.terms.errors and self.errors >= self.terms.errors:
            self._write(replies.TOO_MANY_ERRORS)
            self._stop()
            self._last_words.append(_violation("too_many_errors", replies.TOO_MANY_ERRORS, is_fatal=True))

    def _fatal(self, violation: str, reply: Reply) -> Event:
        reply = self._told(reply)
        self._write(reply)
        self.errors += 1
        self._stop()
        return _violation(violation, reply, is_fatal=True)

    def _abort(self, violation: str, reply: Reply) -> Iterator[Event]:
        """The message is not taken, but what comes behind it can be told from it."""
        self._end_transaction()
        self._error(reply)
        yield _violation(violation, self._told(reply), is_fatal=False)
        yield Event("RESET", {})

    def _stop(self) -> None:
        self.is_closing = True
        self.state = "closed"
        self._open = None
        self._input.clear()

    def _end_transaction(self) -> None:
        self.state = "ready"
        self._refused = 0
        self._is_smtputf8 = False

    # --- reading ------------------------------------------------------------------------------------------

    def _dialogue(self) -> Iterator[Event | None]:
        is_first = True
        while not self.is_closing:
            while not self._input:
                yield None
            if is_first and re.match(rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\xff]", self._input):
                yield self._fatal("not_smtp", replies.NOT_SMTP)
                break
            is_first = False
            yield from self._one_command()
        while self._last_words:
            yield self._last_words.pop(0)

    def _one_command(self) -> Iterator[Event | None]:
        while (end := self._input.find(b"\n") + 1) == 0 and len(self._input) < self._line_bytes():
            yield None
        self.commands += 1
        if end == 0 or end > self._line_bytes():
            self._error(replies.LINE_TOO_LONG)
            yield _violation("line_too_long", self._told(replies.LINE_TOO_LONG), is_fatal=False)
            # What is left of the line, when the session is not over with it.
            while not self.is_closing and (end := self._input.find(b"\n") + 1) == 0:
                yield None
            if not self.is_closing:
                is_right = self._input[:end].endswith(b"\r\n") or self.terms.is_normalizing
                del self._input[:end]
                if not is_right:
                    yield self._fatal("bare_newline", replies.BARE_NEWLINE)
            return
        line = bytes(self._input[:end])
        del self._input[:end]
        text = line.removesuffix(b"\n").removesuffix(b"\r")
        if not (line.endswith(b"\r\n") or self.terms.is_normalizing):
            yield self._fatal("bare_newline", replies.BARE_NEWLINE)
        elif b"\0" in text:
            yield self._fatal("nul", replies.NUL_RECEIVED)
        elif b"\r" in text:
            yield self._fatal("bare_newline", replies.BARE_NEWLINE)
        else:
            found = re.match(rb"([A-Za-z]*)(?: +|\Z)", text := text.rstrip(b" \t"))
            verb = found[1].upper() if found else b""
            yield from self._obey(verb, text[found.end() :] if found else text)

    def _line_bytes(self) -> int:
        longer = [more for verb, more in LONGER.items() if self._input.upper().startswith(verb)]
        return self.terms.command_bytes + sum(longer)

    def _obey(self, verb: bytes, argument: bytes) -> Iterator[Event | None]:
        if verb in OTHER_PROTOCOLS:
            yield self._fatal("not_smtp", replies.NOT_SMTP)
        elif verb == b"BDAT":
            yield from self._bdat(argument)
        elif verb == b"QUIT" and not argument:
            self._write(replies.BYE)
            self._stop()
            yield Event("QUIT", {})
        elif verb == b"QUIT":
            self._error(replies.SYNTAX_ERROR)
        elif refusal := self._is_out_of_order(verb):
            self._error(refusal)
        elif verb in {b"RSET", b"DATA", b"STARTTLS"} and argument:
            self._error(replies.SYNTAX_ERROR)
        elif verb == b"NOOP":
            self._write(replies.OK)
        elif verb == b"HELP":
            self._write(replies.HELP)
        elif verb == b"VRFY":
            if argument:
                self._write(replies.CANNOT_VERIFY)
            else:
                self._error(replies.SYNTAX_ERROR)
        elif verb == b"RSET":
            self._write(replies.OK)
            if self.state not in {"fresh", "ready"}:
                self._end_transaction()
                yield Event("RESET", {})
        elif verb in {b"HELO", b"EHLO"}:
            yield from self._helo(argument, verb == b"EHLO")
        elif verb == b"MAIL":
            yield from self._mail(argument)
        elif verb == b"RCPT":
            yield from self._rcpt(argument)
        elif verb == b"DATA":
            yield from self._data()
        elif verb == b"STARTTLS":
            if self.is_tls:
                self._error(replies.TLS_ACTIVE)
            elif not self.terms.is_starttls_offered:
                self._error(replies.NOT_OFFERED)
            else:
                yield Event("STARTTLS", {})
        elif verb == b"XCLIENT":
            yield from self._xclient(argument)
        else:
            self._error(replies.UNKNOWN_COMMAND)

    def _is_out_of_order(self, verb: bytes) -> Reply | None:
        """RFC 5321 section 4.1.4, the order of commands: the reply when this is not the place for verb."""
        if self.state == "refused":
            return replies.BAD_SEQUENCE
        if verb in {b"EXPN", b"AUTH"}:
            return replies.NOT_OFFERED
        if verb not in {b"MAIL", b"RCPT", b"DATA", b"BDAT", b"STARTTLS", b"XCLIENT"}:
            return None
        if self.state == "fresh":
            return None if verb == b"XCLIENT" else replies.SEND_HELO_FIRST
        if verb in {b"STARTTLS", b"XCLIENT"}:
            return None if self.state == "ready" else replies.BAD_SEQUENCE
        if verb == b"MAIL":
            return None if self.state == "ready" or self.terms.is_compatible else replies.NESTED_MAIL
        if self.state == "ready":
            return replies.NEED_MAIL
        if verb == b"RCPT":
            return replies.BAD_SEQUENCE if self.state == "chunks" else None
        if self.state == "mail":
            return replies.NO_VALID_RECIPIENTS if self._refused else replies.NEED_RCPT
        return replies.BAD_SEQUENCE if (verb, self.state) == (b"DATA", "chunks") else None

    # --- commands -----------------------------------------------------------------------------------------

    def _helo(self, name: bytes, is_extended: bool) -> Iterator[Event]:
        if self.terms.is_compatible:
            octets = [bytes([octet]) for octet in name[: self.terms.domain_bytes]]
            name = b"".join(octet if HELO_NAME.fullmatch(octet) else b"?" for octet in octets) or b"?"
        elif not HELO_NAME.fullmatch(name) or len(name) > self.terms.domain_bytes:
            self._error(replies.SYNTAX_ERROR)
            return
        if self.state not in {"fresh", "ready"}:
            self._end_transaction()
            yield Event("RESET", {})
        yield Event("HELO", {"name": name.lower(), "is_extended": is_extended})

    def _mail(self, argument: bytes) -> Iterator[Event]:
        if self.terms.is_tls_required and not self.is_tls:
            return self._error(replies.NEED_TLS)
        if argument[:5].upper() != b"FROM:":
            return self._error(replies.SYNTAX_ERROR)
        read = self._path(argument[5:], is_reverse=True, is_utf8_allowed=self.terms.is_smtputf8)
        if isinstance(read, Reply):
            return self._error(read)
        path, rest = read
        fields: dict[str, Any] = {
            "path": path, "size_bytes": 0, "body": b"", "is_smtputf8": False, "ret": b"", "envid": b"",
        }  # fmt: skip
        for parameter in self._parameters(rest, is_utf8_allowed=False):
            if isinstance(parameter, Reply):
                return self._error(parameter)
            keyword, value = parameter
            word = (value or b"").upper()
            if keyword == b"SIZE":
                is_right = re.fullmatch(rb"[0-9]{1,20}", word) is not None
                fields["size_bytes"] = int(word) if is_right else 0
            elif keyword == b"BODY":
                is_right = word in {b"7BIT", b"8BITMIME"}
                fields["body"] = word
            elif keyword == b"SMTPUTF8" and self.terms.is_smtputf8:
                is_right = value is None
                fields["is_smtputf8"] = True
            elif keyword == b"RET" and self.terms.is_dsn:
                is_right = word in {b"FULL", b"HDRS"}
                fields["ret"] = word
            elif keyword == b"ENVID" and self.terms.is_dsn:
                is_right = value is not None and len(value) <= 100 and _is_xtext(value)
                fields["envid"] = value
            else:
                return self._error(replies.UNKNOWN_PARAMETER)
            if not is_right:
                return self._error(replies.BAD_PARAMETER)
        if path.is_utf8 and not fields["is_smtputf8"]:
            return self._error(replies.NEED_SMTPUTF8)
        if 0 < self.terms.message_bytes < fields["size_bytes"]:
            return self._error(replies.TOO_BIG)
        if self.state != "ready":
            self._end_transaction()
            yield Event("RESET", {})
        self._is_smtputf8 = fields["is_smtputf8"]
        yield Event("MAIL", fields)

    def _rcpt(self, argument: bytes) -> Iterator[Event]:
        outcome = self._recipient(argument)
        if isinstance(outcome, Reply):
            self._refused += 1
            self._error(outcome)
            return
        yield Event("RCPT", outcome)
        if self._answer_was.code >= 400:
            self._refused += 1

    def _recipient(self, argument: bytes) -> dict[str, Any] | Reply:
        if argument[:3].upper() != b"TO:":
            return replies.SYNTAX_ERROR
        read = self._path(argument[3:], is_reverse=False, is_utf8_allowed=self._is_smtputf8)
        if isinstance(read, Reply):
            return read
        fields: dict[str, Any] = {"path": read[0], "notify": (), "orcpt": b""}
        for parameter in self._parameters(read[1], is_utf8_allowed=self._is_smtputf8):
            if isinstance(parameter, Reply):
                return parameter
            keyword, value = parameter
            if keyword == b"NOTIFY" and self.terms.is_dsn:
                words = (value or b"").upper().split(b",")
                is_right = words == [b"NEVER"] or {*words} <= {b"SUCCESS", b"FAILURE", b"DELAY"}
                fields["notify"] = tuple(dict.fromkeys(words))
            elif keyword == b"ORCPT" and self.terms.is_dsn:
                kind, semicolon, address = (value or b"").partition(b";")
                is_right = (
                    semicolon == b";"
                    and value is not None
                    and len(value) <= 500
                    and re.fullmatch(rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+", kind) is not None
                    and _is_xtext(re.sub(rb"[\x80-\xff]+", b"u", address))
                )
                fields["orcpt"] = value
            else:
                return replies.UNKNOWN_PARAMETER
            if not is_right:
                return replies.BAD_PARAMETER
        return fields

    def _path(
        self, text: bytes, *, is_reverse: bool, is_utf8_allowed: bool
    ) -> tuple[parser.Path, bytes] | Reply:
        outcome = parser.parse_path(
            text.lstrip(b" "),
            is_reverse=is_reverse,
            is_utf8_allowed=is_utf8_allowed,
            local_bytes=self.terms.local_bytes,
            domain_bytes=self.terms.domain_bytes,
            path_bytes=self.terms.path_bytes,
        )
        if not isinstance(outcome, frozenset):
            return outcome
        if outcome == {Fault.NEEDS_UTF8}:
            return replies.NEED_SMTPUTF8
        return replies.BAD_SENDER_SYNTAX if is_reverse else replies.BAD_RECIPIENT_SYNTAX

    def _parameters(
        self, text: bytes, *, is_utf8_allowed: bool
    ) -> Iterator[tuple[bytes, bytes | None] | Reply]:
        """Each parameter in its turn, and where one is wrong the reply to that."""
        seen = set()
        while text:
            found = re.match(rb" +(%s)(?:=(%s))?(?= |\Z)" % (ESMTP_KEYWORD, ESMTP_VALUE), text)
            if not found or not _is_utf8(found[2] or b"", is_utf8_allowed):
                yield replies.BAD_PARAMETER
                return
            if not self._is_extended:
                yield replies.NO_PARAMETERS_AFTER_HELO
                return
            keyword = found[1].upper()
            if keyword in seen:
                yield replies.BAD_PARAMETER
            seen.add(keyword)
            yield keyword, found[2]
            text = text[found.end() :]

    def _xclient(self, argument: bytes) -> Iterator[Event]:
        if not self.terms.is_xclient_allowed:
            return self._error(replies.XCLIENT_DENIED)
        parameters = parser.parse_parameters(b" " + argument) if argument else ()
        if isinstance(parameters, frozenset) or not parameters:
            return self._error(replies.SYNTAX_ERROR)
        attributes = []
        for name, value in parameters:
            decoded = parser.decode_xtext(value) if value is not None else parser.SYNTAX
            if isinstance(decoded, frozenset) or name not in XCLIENT_NAMES:
                return self._error(replies.SYNTAX_ERROR)
            attributes.append((name, decoded))
        yield Event("XCLIENT", {"attributes": tuple(attributes)})

    # --- text ---------------------------------------------------------------------------------------------

    def _data(self) -> Iterator[Event | None]:
        """DATA: the whole text is looked at again with every octet that comes."""
        yield Event("DATA", {"is_chunked": False})
        if self._answer_was.code >= 400:
            return
        given = 0
        while True:
            decoded = data.decode(bytes(self._input), is_normalizing=self.terms.is_normalizing)
            if bad := self._is_bad(decoded.found):
                yield self._fatal(*bad)
                return
            chunk = self._within_limit(decoded.text)[given:]
            given += len(chunk)
            if chunk:
                yield Event("BODY", {"chunk": chunk})
            if decoded.is_done:
                break
            yield None
        del self._input[: decoded.consumed]
        yield from self._end(len(decoded.text))

    def _end(self, size_bytes: int) -> Iterator[Event]:
        if 0 < self.terms.message_bytes < size_bytes:
            yield from self._abort("too_big", replies.TOO_BIG)
            return
        yield Event("END", {"size_bytes": size_bytes, "replies": 1})

    def _within_limit(self, text: bytes) -> bytes:
        return text[: self.terms.message_bytes] if self.terms.message_bytes else text

    def _is_bad(self, found: tuple[str, ...]) -> tuple[str, Reply] | None:
        """What came first of that which the terms don't bear."""
        for name in found:
            if name == data.FOUND_NUL:
                return "nul", replies.NUL_RECEIVED
            if not self.terms.is_normalizing:
                return "bare_newline", replies.BARE_NEWLINE
        return None

    def _bdat(self, argument: bytes) -> Iterator[Event | None]:
        """RFC 3030: so many octets, whatever they are, and whatever we think of them."""
        found = re.fullmatch(rb"([0-9]+)( +LAST)?", argument, re.I)
        if not found or int(found[1]) > CHUNK_MOST:
            yield self._fatal("bad_chunk", replies.BAD_CHUNK)
            return
        size_bytes, is_last = int(found[1]), found[2] is not None
        refusal = self._is_out_of_order(b"BDAT") if self.terms.is_chunking else replies.NOT_OFFERED
        if refusal is None and self.state != "chunks":
            self._text = b""
            yield Event("DATA", {"is_chunked": True})
            if self.is_closing:
                return
            if self._answer_was.code >= 400:
                yield from self._octets(size_bytes)
                self._error(self._answer_was)
                if not self.is_closing:
                    self._end_transaction()
                    yield Event("RESET", {})
                return
        octets = yield from self._octets(size_bytes)
        if refusal is not None:
            self._error(refusal)
            return
        before = len(self._decoded(is_last=False).text)
        self._text += octets
        decoded = self._decoded(is_last=is_last)
        if bad := self._is_bad(decoded.found):
            yield from self._abort(*bad)
            return
        if chunk := self._within_limit(decoded.text)[before:]:
            yield Event("BODY", {"chunk": chunk})
        if 0 < self.terms.message_bytes < len(decoded.text):
            yield from self._abort("too_big", replies.TOO_BIG)
        elif is_last:
            yield from self._end(len(decoded.text))
        else:
            self._write(replies.chunk_received(size_bytes))

    def _decoded(self, *, is_last: bool) -> data.Decoded:
        return data.decode_chunks(self._text, is_normalizing=self.terms.is_normalizing, is_last=is_last)

    def _octets(self, size_bytes: int) -> Any:
        while len(self._input) < size_bytes:
            yield None
        octets = bytes(self._input[:size_bytes])
        del self._input[:size_bytes]
        return octets


def _violation(violation: str, reply: Reply, *, is_fatal: bool) -> Event:
    return Event("VIOLATION", {"violation": violation, "reply": reply, "is_fatal": is_fatal})


def _is_xtext(value: bytes) -> bool:
    return value != b"" and not isinstance(parser.decode_xtext(value), frozenset)


def _is_utf8(value: bytes, is_allowed: bool) -> bool:
    if value.isascii():
        return True
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return is_allowed
