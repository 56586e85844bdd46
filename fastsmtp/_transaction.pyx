"""One message's transaction with a next hop, sans-IO: what to say, and what each reply makes of the recipients.

_transaction.pyi says how it is used.  Compiled, since four replies a message come through here.  Rank 6: pure.
"""

cimport cython

from enum import IntEnum

from fastsmtp._nexthop cimport NextHopReply

from fastsmtp import reply
from fastsmtp.delivery.dialogue import shown
from fastsmtp.delivery.outcome import Delivered, Failed, Retry
from fastsmtp.errors import NextHopDown, NextHopGarbled, NextHopOutOfStep


class Step(IntEnum):
    """What a reply asks for; see _transaction.pyi."""

    WAIT = 0
    SAY = 1
    TEXT = 2
    DONE = 3


WAIT, SAY, TEXT, DONE = Step

cdef object _WAIT = WAIT
cdef object _SAY = SAY
cdef object _TEXT = TEXT
cdef object _DONE = DONE


@cython.final
cdef class Transaction:
    """See _transaction.pyi."""

    cdef readonly list outcomes
    cdef readonly list again
    cdef readonly list accepted
    cdef readonly object mail_refusal
    cdef readonly bint needs_reset
    cdef readonly bint is_empty
    cdef readonly bint may_have_arrived
    cdef readonly Py_ssize_t heard
    cdef readonly bint is_dismissed
    cdef public bint is_ahead
    cdef list _commands
    cdef Py_ssize_t _at             # of the command whose reply comes next
    cdef Py_ssize_t _before         # commands before MAIL
    cdef object _hop
    cdef str _remote
    cdef bytes _text                # of BDAT, which goes along; b"": there will be DATA
    cdef Py_ssize_t _answers        # to the text, of LMTP
    cdef bint _in_text
    cdef bint _is_lmtp
    cdef bint _is_pipelined
    cdef bint _has_dsn

    def __init__(
        self, dialogue, envelope, recipients, *, size_bytes, hop, str remote="", bytes body=b"", forwarded=(),
        bint resets=False,
    ):
        cdef list commands = [b"RSET\r\n"] if resets else []
        cdef dict extensions = dialogue.extensions
        commands += forwarded
        self._before = len(commands)
        commands.append(dialogue.mail(envelope, size_bytes, body))
        for recipient in recipients:
            commands.append(dialogue.rcpt(recipient))
        self._commands = commands
        self._hop = hop
        self._remote = remote or str(hop)
        self._is_lmtp = dialogue.is_lmtp
        self._has_dsn = b"DSN" in extensions
        self._is_pipelined = dialogue.has_pipelining
        self._text = b""
        self.outcomes = [None] * len(recipients)
        self.again = []
        self.accepted = []

    def opening(self, bytes text=None, *, bint in_chunks=False):
        cdef list commands = self._commands
        if in_chunks:
            pass
        elif text is None:
            commands.append(b"DATA\r\n")
        elif self._is_pipelined:
            # The chunk is no command of its own: its octets follow in the same write.
            self._text = text
            self.may_have_arrived = True
            commands.append(b"BDAT %d LAST\r\n" % len(text))
            commands.append(text)
            data = b"".join(commands)
            commands.pop()
            return data
        else:
            self._text = text
            commands.append(b"BDAT %d LAST\r\n%b" % (len(text), text))
        return b"".join(commands) if self._is_pipelined else commands[0]

    @property
    def replies(self):
        return len(self._commands)

    def next_command(self):
        if self._at >= len(self._commands):
            raise AssertionError("nothing is left to say")
        if self._at == len(self._commands) - 1 and self._text:
            self.may_have_arrived = True
        return self._commands[self._at]

    def sent(self):
        self.may_have_arrived = not self.is_empty

    def take(self, NextHopReply answer not None):
        cdef int code = answer.code
        cdef Py_ssize_t place
        cdef Py_ssize_t count = len(self.outcomes)
        self.heard += 1
        if self._in_text:
            return self.text_answered(answer)
        if code == 421:
            self.may_have_arrived = False  # it hangs up, and says so: what follows it hasn't read
            self.is_dismissed = self._at <= self._before
            raise NextHopDown(f"said {shown(answer)}")
        place = self._at - self._before - 1
        self._at += 1
        if place >= count:
            return self.data_answered(answer)
        if self.is_ahead and place < 0:
            if code >= 400:
                # There are servers that throw away what has come with the dot: the first thing they read of the
                # group may be half a command, and their answer to it is nothing that MAIL was told.
                raise NextHopOutOfStep(f"said {shown(answer)}")
            self.is_ahead = place < -1
        if code >= 400:
            self.refused(place, answer)
        elif code >= 300:
            raise NextHopGarbled(f"answered MAIL or RCPT with {shown(answer)}")
        elif place >= 0 and self.mail_refusal is None:
            self.accepted.append(place)
        is_last = self._at == len(self._commands)
        if self._is_pipelined and not is_last:
            return _WAIT
        if self.mail_refusal is not None:
            return _DONE
        if not self.accepted and place == count - 1:
            self.needs_reset = True
            return _DONE
        if is_last:
            self._in_text = True
            return _TEXT
        return _SAY

    @property
    def awaits_last(self):
        cdef Py_ssize_t at = self._at
        return at < len(self._commands) and at > self._before + len(self.outcomes) and not self._in_text

    @property
    def has_text(self):
        return bool(self._text)

    @property
    def is_doubtful(self):
        is_known = self._at > self._before + len(self.outcomes)
        return self.may_have_arrived and self.mail_refusal is None and (bool(self.accepted) or not is_known)

    def fail(self, NextHopReply answer not None):
        if self._is_lmtp:
            # The first of its answers, one a recipient: of the others it has said nothing.
            self.decide(self.accepted[:1], answer)
        else:
            self.decide(self.accepted, answer)

    cdef int refused(self, Py_ssize_t place, NextHopReply answer) except -1:
        if place < -1:
            return 0  # XFORWARD is for its own log; a refused RSET shows at MAIL
        refusal = as_outcome(answer, self._remote, self._hop)
        if place == -1:
            self.mail_refusal = refusal.reply
            self.outcomes[:] = [refusal] * len(self.outcomes)
        elif self.mail_refusal is None:
            if self.accepted and is_full(answer):
                self.again.append(place)
            else:
                self.outcomes[place] = refusal
        return 0

    cdef object data_answered(self, NextHopReply answer):
        if answer.code == 354 and not self._text:
            self.is_empty = self.mail_refusal is not None or not self.accepted
            self._in_text = True
            return _TEXT
        if self._text:
            # The answer to BDAT is the message's.
            self._in_text = True
            self.needs_reset = (
                answer.code >= 400 and self.mail_refusal is None and not (self._is_lmtp and self.accepted)
            )
            return self.text_answered(answer)
        if answer.code < 400:
            raise NextHopGarbled(f"answered DATA with {shown(answer)}")
        self.needs_reset = self.mail_refusal is None
        self.decide(self.accepted, answer)
        return _DONE

    cdef object text_answered(self, NextHopReply answer):
        if 300 <= answer.code < 400:
            raise NextHopGarbled(f"answered a message with {shown(answer)}")
        if self.is_empty:
            if answer.code == 421:
                raise NextHopDown(f"said {shown(answer)}")
            return _DONE
        if not self._is_lmtp or not self.accepted:
            self.may_have_arrived = False
            self.decide(self.accepted, answer)
        else:
            self.decide(self.accepted[self._answers:self._answers + 1], answer)
            self._answers += 1
            if self._answers < len(self.accepted) and answer.code != 421:
                return _WAIT
            self.may_have_arrived = False
        if answer.code == 421:
            raise NextHopDown(f"said {shown(answer)}")
        return _DONE

    cdef int decide(self, list places, NextHopReply answer) except -1:
        cdef Py_ssize_t place
        if answer.code < 300:
            result = Delivered(
                text_of(answer), self._remote, self._hop.source, answer.enhanced, self._hop, self._has_dsn
            )
        else:
            result = as_outcome(answer, self._remote, self._hop)
        for place in places:
            self.outcomes[place] = result
        return 0


cdef object as_outcome(NextHopReply answer, str remote, object hop):
    """A refusal, as the recipient's outcome."""
    refusal = reply.passed_on(answer.code, answer.enhanced, answer.lines)
    if answer.code >= 500:
        return Failed(refusal, shown(answer), remote, hop.source, hop)
    return Retry(refusal, shown(answer), False, remote, hop.source, hop)


cdef bint is_full(NextHopReply answer):
    """It takes no more recipients in this transaction (RFC 5321 section 4.5.3.1.10, with the old 552)."""
    if answer.code == 452:
        return answer.enhanced in ("", "4.5.3")
    return answer.code == 552 and answer.enhanced in ("", "5.5.3")


cdef str text_of(NextHopReply answer):
    return (<bytes>answer.lines[0] if len(answer.lines) == 1 else b" ".join(answer.lines)).decode("utf-8", "replace")
