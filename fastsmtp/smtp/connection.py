"""One client's socket: bytes between the transport and the session, and all that is about time and flow.

The only file that sees both a socket and a session's bytes.  It reads into the
worker's one buffer, writes the replies of a pipelined group at once, stops
reading while something is waited for, keeps the deadlines, and closes so that
the last reply arrives.  Who comes in and is greeted is the admission's
business, raising it to TLS is raising.py's, what is answered to a command the
conversation's and the policy's.

Rank 8.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from fastsmtp import reply
from fastsmtp._session import QUIT, STARTTLS, XCLIENT, Session
from fastsmtp.policy.decision import Decision, Token
from fastsmtp.policy.runner import Round
from fastsmtp.smtp import ends
from fastsmtp.smtp.admission import Admission
from fastsmtp.smtp.conversation import HANDLERS, Conversation
from fastsmtp.smtp.life import LINGER_BYTES, LINGER_S, NEVER, RATE_WINDOW_S, Life
from fastsmtp.smtp.pause import Coming, Pause
from fastsmtp.smtp.raising import Raising

if TYPE_CHECKING:
    from fastsmtp.smtp.listener import Listener

# An enumeration's members cost a look-up each time.
_TALKING, _LINGER, _CLOSED, _DECIDING = Life.TALKING, Life.LINGER, Life.CLOSED, Life.DECIDING


class Connection:
    """The protocol object of one connection, but for its class, which listener.py adds.

    profile          its settings; those of the client's rule once that is known
    session          None until the client is known; so is conversation
    raw              the socket's transport, under TLS too
    accepted_s       when it was accepted
    bytes_in         octets read so far
    life             where it is
    window           what the next read may fill
    since_s          when the wait that is on now began; as exact as the service's tick
    patience_s       how long this wait may last; NEVER when it is ours and not the client's
    ends_s           when the session must be over
    """

    __slots__ = (
        "__weakref__", "_admission", "_body_mark", "_buffer", "_coming", "_commands", "_counted", "_has_quit",
        "_is_busy", "_is_eof", "_is_in_body", "_is_reading", "_is_write_paused", "_pause", "_service", "_task",
        "_transport", "accepted_s", "bytes_in", "conversation", "ends_s", "life", "listener", "patience_s",
        "profile", "raw", "session", "session_id", "since_s", "window",
    )  # fmt: skip

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.profile = listener.profile
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self.raw: asyncio.Transport = None  # type: ignore[assignment]
        self.session: Session = None  # type: ignore[assignment]
        self.conversation: Conversation = None  # type: ignore[assignment]
        self.session_id = ""
        self._admission: Admission | None = None
        self._counted: bytes | None = None
        self._is_busy = False
        self._has_quit = False
        self._is_eof = False
        self._is_in_body = False
        self._is_reading = True
        self._is_write_paused = False
        self.bytes_in = 0
        self._body_mark = 0
        self._commands = 0
        self.accepted_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self._pause: Pause | None = None
        self._coming: Coming | None = None
        self._service = service = listener.service
        self._buffer = service.buffer
        self.window = service.command_window
        self.ends_s = NEVER
        self.patience_s = NEVER
        self.since_s = 0.0
        self.life = _DECIDING

    # --- the beginning ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = self.raw = transport  # type: ignore[assignment]
        service = self._service
        self.session_id = service.ids.next()
        self.accepted_s = self.since_s = now = service.now()
        self.ends_s = now + self.profile.settings.limits.session_s
        self.listener.opened(self)
        self._admission = admission = Admission(self)
        self.guarded(admission.begin)

    def count(self) -> None:
        """Count this connection for its client, or only in all for a relay client; fill in the facts."""
        if self._counted is not None:
            self.uncount()
        profile = self.profile
        counters = profile.counters
        facts = self.conversation.facts
        client = facts.client
        key = client.address.key
        if client.may_relay:
            counters.connect_uncounted()
            self._counted = b""
        else:
            client.connections = counters.connect(key, self.accepted_s)
            self._counted = key
            client.has_pass = counters.has_pass(key, self.accepted_s)
            if profile.counts_connections:
                profile.note_rate(client, Token.CONNECTIONS)
        facts.connections = counters.connections()

    def uncount(self) -> None:
        if self._counted:
            self.profile.counters.disconnect(self._counted)
        elif self._counted is not None:
            self.profile.counters.disconnect_uncounted()
        self._counted = None

    def talk(self) -> None:
        """The session has its greeting: from here on the client's commands are answered."""
        self._admission = None
        self.life = _TALKING
        self._await_command()
        self._pump()

    # --- bytes in --------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.window

    def buffer_updated(self, size: int) -> None:
        self.bytes_in += size
        if self.life is not _TALKING:
            self.guarded(self._other_input, size)
            return
        session = self.session
        session.feed(self._buffer, size)
        if self._is_busy or self._is_write_paused:
            # Not its turn: keep what came, and let the kernel hold back the rest.
            session.hold()
            self._pause_reading()
            return
        self._pump()
        session.hold()

    def _other_input(self, size: int) -> None:
        life = self.life
        if life is _LINGER:
            if self.bytes_in - self._body_mark > LINGER_BYTES:
                self._transport.abort()
        elif life is Life.PROXY:
            self._admission.read_proxy(size)  # type: ignore[union-attr]
        elif life is not _CLOSED:
            session = self.session
            session.feed(self._buffer, size)
            session.hold()
            self._pause_reading()
            if life is Life.DELAY:
                self._admission.spoke_early()  # type: ignore[union-attr]

    def eof_received(self) -> bool:
        """The client has shut down its side.  What it sent before is still answered."""
        self._is_eof = True
        if self.life is _TALKING and (self._is_busy or self._is_write_paused):
            # The loop closes for us unless told not to.  Under TLS it does so in any case, and complains.
            return self._transport is self.raw
        if self.life is _LINGER or self.raw is None:
            return False
        self.flush()
        return False

    # --- events and bytes out --------------------------------------------------------------------

    def _pump(self) -> None:
        """Pull events until there is no more input, or one has to be waited for; then write once."""
        session = self.session
        conversation = self.conversation
        try:
            while True:
                event = session.next_event()
                if event is None:
                    if not session.is_full:
                        break
                    self.flush()
                    if self._is_write_paused:
                        return
                    continue
                kind = event.kind
                if kind == STARTTLS:
                    wait = Raising(self, self._secured).on_command()
                elif kind == XCLIENT:
                    wait = Admission(self).again(event)
                else:
                    if kind == QUIT:
                        self._has_quit = True
                    wait = HANDLERS[kind](conversation, event)
                if wait is not None:
                    if type(wait) is Pause:
                        self._hold_back(wait)
                    elif type(wait) is Coming:
                        if self._take(wait):
                            continue
                    else:
                        self.spawn(wait)  # type: ignore[arg-type]
                    break
        except Exception as error:  # noqa: BLE001 - whatever it is, it is our defect: 451, logged, and the others live on
            conversation.failed(error)
        if self.life is not _TALKING:
            # A handshake has begun; what was to be said in clear is said.
            return
        output = session.take()
        if output:
            self._transport.write(output)
        if session.is_closing:
            self._finish()
        elif session.is_body is not self._is_in_body or self._is_busy or self.patience_s == NEVER:
            self._turn()
        elif session.commands != self._commands:
            # A wait is for a whole command line, not for a read.
            self._commands = session.commands
            self.since_s = self._service.tick_s

    def flush(self) -> None:
        if self.session is not None:
            output = self.session.take()
            if output:
                self._transport.write(output)

    def spawn(self, wait: Coroutine[Any, Any, Pause | None]) -> None:
        """Await something on this connection's behalf; nothing is pulled meanwhile."""
        self._is_busy = True
        self._task = self._service.loop.create_task(self._waited(wait))

    async def _waited(self, wait: Coroutine[Any, Any, Pause | None]) -> None:
        pause: Pause | None = None
        try:
            pause = await wait
        except asyncio.CancelledError as error:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
            # Not this wait was cancelled, but something that a sink waited for.
            self.conversation.failed(error)
        except Exception as error:  # noqa: BLE001 - as in _pump()
            self.conversation.failed(error)
        if self._task is not asyncio.current_task():
            # What came of this wait waits for something itself.
            return
        self._task = None
        if pause is not None and self.life is _TALKING:
            self._hold_back(pause)
            return
        self._is_busy = False
        self._go_on()

    async def decide_later(self, waiting: Round, then: Callable[[Decision], None]) -> None:
        """then() with policy's decision, when the questions are answered."""
        then(await self.profile.settle(waiting))

    def _take(self, coming: Coming) -> bool:
        """An answer that comes by itself; True: it has come."""
        promise = coming.promise
        if promise.value is not None:
            coming.then(promise.value)
            return True
        self._is_busy = True
        self._coming = coming
        promise.then(self._has_come)
        return False

    def _has_come(self, answer: reply.Reply | Exception) -> None:
        coming, self._coming = self._coming, None
        try:
            coming.then(answer)  # type: ignore[union-attr]
        except Exception as error:  # noqa: BLE001 - as in _pump()
            self.conversation.failed(error)
        self._is_busy = False
        self._go_on()

    def _hold_back(self, pause: Pause) -> None:
        """Let the pause pass; replies that are there already leave, and the tick ends it."""
        self._is_busy = True
        self._pause = pause
        self._commands = -1
        self.since_s = self._service.now()
        self.patience_s = pause.seconds

    @property
    def is_held_back(self) -> bool:
        return self._pause is not None

    def end_pause(self) -> None:
        """Say what was held back, and go on."""
        pause, self._pause = self._pause, None
        if pause is None or self.life is not _TALKING:
            return
        try:
            pause.then()
        except Exception as error:  # noqa: BLE001 - as in _pump()
            self.conversation.failed(error)
        self._is_busy = False
        self._go_on()

    def _go_on(self) -> None:
        """The wait is over: pull what came meanwhile, then read on."""
        if self.life is not _TALKING:
            return
        if self._is_write_paused:
            self.flush()
            return
        self._pump()
        if self.life is _TALKING and not self._is_busy and not self._is_write_paused:
            if self._is_eof:
                self._transport.close()
            else:
                self._resume_reading()

    def guarded(self, function: Callable[..., None], *arguments: object) -> None:
        """Run what is ours outside the pump; an exception is our defect, and nobody else's trouble."""
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001 - as in _pump()
            if self.conversation is None:
                self._service.log_failure("connection", error)
                self.raw.abort()
                return
            self.conversation.failed(error)
            self.flush()
            self._finish()

    def pause_writing(self) -> None:
        """The client doesn't read its replies: stop taking its commands."""
        self._is_write_paused = True
        self._pause_reading()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        if not self._is_busy:
            self._go_on()

    def _pause_reading(self) -> None:
        """Hold the client back.  Under TLS both: the raw transport, so that the kernel keeps what the client sends
        (the TLS layer alone would go on reading up to 256 kB), and the TLS one for records that were read before.
        """
        if self._is_reading and not self.raw.is_closing():
            self._is_reading = False
            self.raw.pause_reading()
            if self._transport is not self.raw:
                self._transport.pause_reading()

    def holds_back(self) -> bool:
        """Under TLS: something is waited for, so what has come is not even decrypted."""
        if self.life is not _TALKING or not (self._is_busy or self._is_write_paused):
            return False
        self._pause_reading()
        return True

    def _resume_reading(self) -> None:
        if not self._is_reading and not self.raw.is_closing():
            self._is_reading = True
            self.raw.resume_reading()
            if self._transport is not self.raw:
                self._transport.resume_reading()

    # --- TLS -------------------------------------------------------------------------------------

    def lend(self) -> None:
        """The transport is a handshake's from here on; what was to be said in clear is said."""
        self.flush()
        self.life = Life.HANDSHAKE
        self.patience_s = NEVER
        self._is_reading = False

    def take_back(self, transport: asyncio.Transport) -> None:
        """TLS stands, and this is it."""
        self._transport = transport
        self._is_reading = True

    def _secured(self) -> None:
        """After STARTTLS; the client's next command is EHLO."""
        self.life = _TALKING
        self._await_command()

    # --- time ------------------------------------------------------------------------------------

    def _await_command(self) -> None:
        self._commands = self.session.commands
        self._is_in_body = False
        self.window = self._service.command_window
        self.since_s = self._service.tick_s
        self.patience_s = self.profile.settings.limits.command_s

    def _turn(self) -> None:
        """A wait of another kind begins: for a command, for body bytes at a rate, or one of our own."""
        if self._pause is not None:
            # _hold_back() has said for how long.
            return
        if self._is_busy:
            # What we wait for has a deadline of its own.
            self.patience_s = NEVER
            self._commands = -1
        elif self.session.is_body:
            self._is_in_body = True
            self.window = self._service.window
            self._body_mark = self.bytes_in
            self.since_s = self._service.tick_s
            self.patience_s = RATE_WINDOW_S
        else:
            self._await_command()

    def expired(self, now: float) -> None:
        """Called by the tick when the client has used up our patience, or its session's or transaction's time."""
        life = self.life
        if life is _LINGER or life is _CLOSED:
            self.raw.abort()
        elif life is Life.PROXY:
            self._admission.refuse_proxy("no header in time")  # type: ignore[union-attr]
        elif life is not _TALKING:
            self.raw.abort()
        elif now >= self.ends_s:
            self._time_out(reply.SESSION_TOO_LONG, "limits.session_s")
        elif self.is_transaction_over(now):
            self._time_out(reply.TRANSACTION_TOO_LONG, "limits.transaction_s")
        elif self._pause is not None:
            self.end_pause()
        elif self._is_in_body:
            self._check_rate(now)
        else:
            self._time_out(reply.IDLE_TOO_LONG, "limits.command_s")

    def is_idle_since(self, now: float) -> float:
        """Seconds that this connection has waited for a command; 0.0 when it waits for something else."""
        if self.life is not _TALKING or self._is_busy or self._is_in_body:
            return 0.0
        return now - self.since_s

    def is_transaction_over(self, now: float) -> bool:
        conversation = self.conversation
        if conversation is None or conversation.is_committing or conversation.facts.envelope is None:
            return False
        return now >= conversation.began_s + self.profile.settings.limits.transaction_s

    def _check_rate(self, now: float) -> None:
        arrived = self.bytes_in - self._body_mark
        if arrived < self.profile.settings.limits.minimum_bytes_per_s * RATE_WINDOW_S:
            self._time_out(reply.TOO_SLOW, "limits.minimum_bytes_per_s")
            return
        self._body_mark = self.bytes_in
        self.since_s = now

    def _time_out(self, last: reply.Reply, limit: str) -> None:
        self.say_goodbye(ends.timed_out(self.profile, self.conversation, last, limit))

    # --- the end ---------------------------------------------------------------------------------

    def say_goodbye(self, last: reply.Reply) -> None:
        """Tell the client why, and close: the transaction is dropped, unless the sink has it already."""
        if self.life is Life.DELAY:
            self._admission.give_up()  # type: ignore[union-attr]
            self.life = _TALKING
        if self.life is not _TALKING:
            self.raw.abort()
            return
        self._pause = None
        self.conversation.give_up()
        self.session.close(last)
        self.flush()
        self._finish()

    def abort(self) -> None:
        """Close without a word."""
        self.raw.abort()

    @property
    def is_idle(self) -> bool:
        """Nothing is open: a draining server may send this client away."""
        if self.life is not _TALKING:
            return self.life is not _LINGER
        return not self._is_busy and not self._is_in_body and self.conversation.facts.envelope is None

    def is_fresh(self, since_s: float) -> bool:
        """Accepted after since_s, and no message yet."""
        conversation = self.conversation
        return self.accepted_s > since_s and (conversation is None or not conversation.facts.messages)

    def has_just_spoken(self, since_s: float) -> bool:
        """It sent a message, and its last command came after since_s: most likely its QUIT comes next."""
        conversation = self.conversation
        return conversation is not None and conversation.facts.messages > 0 and self.since_s > since_s

    def _finish(self) -> None:
        """The last reply is written.  Shut our side, drop what still comes, close: else a reset eats the reply."""
        if self.life >= _LINGER:
            return
        transport = self._transport
        self.life = _LINGER
        self.since_s = self._service.now()
        self.patience_s = LINGER_S
        if self._is_eof or transport.is_closing():
            transport.close()
        elif self._has_quit:
            # The client has said all it wanted, and waits for our close.
            transport.close()
        elif transport is not self.raw:
            # Under TLS closing sends close_notify and reads on until the client's; Upgrade bounds it.
            self._resume_reading()
            transport.close()
        else:
            self._body_mark = self.bytes_in
            self._resume_reading()
            transport.write_eof()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended()

    def ended(self) -> None:
        """The connection is gone.  May be called twice: a failed handshake ends it, and then perhaps the loop does."""
        if self.life is _CLOSED:
            return
        self.life = _CLOSED
        self._is_reading = False
        self._pause = None
        # The TLS layer keeps our bound methods: with this the two are no cycle, and go now, not with some
        # collection a thousand connections later.
        self._transport = self.raw
        self.listener.closed(self)
        self.uncount()
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.give_up()
        conversation = self.conversation
        if conversation is None:
            return
        if self._task is not None and not conversation.is_committing:
            self._task.cancel()
        ends.gone(self.profile, conversation, self.bytes_in)
