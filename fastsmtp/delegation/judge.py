"""A request of Postfix's judged by our stages, and the action that comes of it (access(5)).

The attributes become Facts, and the phases up to the one that Postfix is in are run: what a session of ours
would have asked by then.  Left out are relay control and the limits of connections and sizes, which are
Postfix's own, and what looks at the message.

Rank 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from fastsmtp import reply
from fastsmtp._parser import Path, parse_mailbox, parse_path
from fastsmtp.address import Address
from fastsmtp.policy import header
from fastsmtp.policy.decision import (
    Decision,
    Effect,
    Grant,
    Held,
    ListFailed,
    Name,
    Tag,
    TakeToken,
    Token,
    Verdict,
)
from fastsmtp.policy.facts import Client, Facts, Phase, TlsFacts
from fastsmtp.policy.rules import stages_of
from fastsmtp.policy.runner import Plan
from fastsmtp.smtp import session_log

if TYPE_CHECKING:
    from fastsmtp.smtp.profile import Profile
    from fastsmtp.smtp.service import Service

DUNNO: Final = "DUNNO"

# Which phases a protocol state asks for; in any other (VRFY, ETRN, what a later Postfix has) we have no opinion.
_DEPTHS: Final = {
    "CONNECT": Phase.CONNECT,
    "EHLO": Phase.HELO,
    "HELO": Phase.HELO,
    "MAIL": Phase.MAIL,
    "RCPT": Phase.RCPT,
    "DATA": Phase.RCPT,
    "END-OF-MESSAGE": Phase.RCPT,
}
_PHASES: Final = (Phase.CLIENT, Phase.CONNECT, Phase.HELO, Phase.MAIL)

# Postfix's own business, or about what it doesn't tell us.
_LEFT_OUT: Final = frozenset({
    "connections", "early_talker", "handshakes", "size", "recipient", "callout", "loop", "pass", "header", "tarpit",
    "signatures", "p0f",
})  # fmt: skip
# What is said where there is no one recipient to judge: refusals that have waited, and the score.
_OVERALL: Final = frozenset({"held", "score"})
# A refusal of these is spoken even if Postfix would refuse later in its list: with a code of ours.
_LIMITS: Final = frozenset({"messages", "recipients"})
# Of the text; a reply line has 512 octets (RFC 5321 section 4.5.3.1.5), and Postfix puts words of its own before it.
_TEXT_MOST: Final = 300


class Trouble(Exception):
    """We can't judge: a defect of ours.  There is no answer; Postfix has a default for that."""


class Memory:
    """What one connection keeps of the message that it was last asked about.

    key        Postfix's instance with the client, HELO and sender that it stood for
    done       the last phase that was run
    refusal    of a phase before RCPT: it is every later answer too
    is_marked  our header field was given once
    """

    __slots__ = ("done", "facts", "is_marked", "key", "refusal")

    def __init__(self) -> None:
        self.key: tuple[str, ...] = ()
        self.facts: Facts | None = None
        self.done = -1
        self.refusal: Decision | None = None
        self.is_marked = False


class Judge:
    """Judges requests by one listener's settings."""

    def __init__(self, service: Service, profile: Profile) -> None:
        self._service = service
        self._profile = profile
        settings = profile.settings
        own = [service.own_stages[rule] for rule in settings.policy.python if rule in service.own_stages]
        stages = [
            stage
            for stage in stages_of(settings, own, has_answers=service.resolver is not None)
            if stage.name not in _LEFT_OUT and stage.phase <= Phase.RCPT
        ]
        self._plan = Plan(stages, settings, observer=service.observer, report=profile, know=service.know)
        overall = [stage for stage in stages if stage.name in _OVERALL]
        self._overall = Plan(overall, settings, observer=service.observer, report=profile, know=service.know)

    async def answer(self, attributes: Mapping[str, str], memory: Memory) -> str:
        """The action.  Raises Trouble."""
        state = attributes.get("protocol_state", "").upper()
        depth = _DEPTHS.get(state)
        if depth is None:
            return DUNNO
        facts = self._facts(attributes, memory)
        if facts is None:
            return DUNNO
        decision = memory.refusal or await self._earlier(facts, memory, depth)
        if decision is None and depth is Phase.RCPT:
            decision = await self._recipient(facts, attributes.get("recipient", ""))
        if decision is not None and decision.reply is not None:
            return self._refused(facts, decision)
        if depth is Phase.RCPT and state != "END-OF-MESSAGE" and not memory.is_marked:
            return self._marked(facts, memory)
        return DUNNO

    def _facts(self, attributes: Mapping[str, str], memory: Memory) -> Facts | None:
        """Those of the message that was asked about before, or new ones; None where there is no client."""
        instance = attributes.get("instance", "")
        names = (
            "client_address",
            "client_name",
            "helo_name",
            "sender",
            "sasl_username",
            "encryption_protocol",
        )
        key = (instance, *(attributes.get(name, "") for name in names))
        if instance and key == memory.key:
            return memory.facts
        memory.key = key
        memory.facts = facts_of(attributes)
        memory.done = -1
        memory.refusal = None
        memory.is_marked = False
        if memory.facts is not None:
            memory.facts.bad_lists = self._service.lists.bad
        return memory.facts

    async def _earlier(self, facts: Facts, memory: Memory, depth: Phase) -> Decision | None:
        """Run the phases before RCPT that were not run yet; the refusal, if one refuses."""
        for phase in _PHASES:
            if phase > depth or phase <= memory.done:
                continue
            memory.done = phase
            if phase is Phase.MAIL:
                if facts.sender is None:
                    # An address that isn't one: Postfix has an opinion of its own on those.
                    continue
                if self._profile.counts_messages:
                    self._profile.note_rate(facts.client, Token.MESSAGES)
            decision = await self._run(self._plan, phase, facts)
            if decision.reply is not None:
                memory.refusal = decision
                return decision
        return None

    async def _recipient(self, facts: Facts, recipient: str) -> Decision | None:
        facts.recipient = path_of(recipient) if recipient else None
        if facts.recipient is None:
            return await self._run(self._overall, Phase.RCPT, facts)
        if self._profile.counts_recipients:
            self._profile.note_rate(facts.client, Token.RECIPIENTS)
        facts.forget(Phase.RCPT)
        return await self._run(self._plan, Phase.RCPT, facts)

    async def _run(self, plan: Plan, phase: Phase, facts: Facts) -> Decision:
        asked = plan.run(phase, facts)
        if type(asked) is not Decision:
            asked = await self._profile.inquire(asked).wait()  # type: ignore[arg-type]
        self._apply(asked.effects, phase, facts)
        if asked.reply is reply.OUR_DEFECT:
            raise Trouble(f"the stage {asked.stage or '?'} failed")
        return asked

    def _apply(self, effects: tuple[Effect, ...], phase: Phase, facts: Facts) -> None:
        """What of the effects has a meaning here."""
        profile, service = self._profile, self._service
        for effect in effects:
            if isinstance(effect, TakeToken):
                profile.counters.take(facts.client.address.key, effect.token, service.tick_s)
            elif isinstance(effect, Grant):
                facts.client.may_relay = facts.client.may_relay or effect.may_relay
                facts.client.skips_checks = facts.client.skips_checks or effect.skips_checks
            elif isinstance(effect, Tag | Held):
                facts.note(phase, effect)
                if isinstance(effect, Tag) and effect.zone:
                    service.lists.hit(effect.zone)
            elif isinstance(effect, Name):
                facts.client.name = effect.name
            elif isinstance(effect, ListFailed):
                service.lists.failed(effect.zone)

    def _refused(self, facts: Facts, decision: Decision) -> str:
        refusal = decision.reply
        assert refusal is not None
        session_log.refusal(self._profile.log, facts, refusal, decision.stage)
        return action_of(decision)

    def _marked(self, facts: Facts, memory: Memory) -> str:
        """PREPEND with what was found, once a message."""
        name = self._profile.settings.policy.header
        field = header.write(name, facts) if name else b""
        if not field:
            return DUNNO
        memory.is_marked = True
        return f"PREPEND {_one_line(field.decode())}"


def action_of(decision: Decision) -> str:
    """The action that says what a refusal says.

    5xx, and what drops the connection, with code and enhanced code.  4xx of a limit too; any other 4xx is
    DEFER_IF_PERMIT: it failed to find out, so what refuses for good behind it in Postfix's list may do that.
    """
    refusal = decision.reply
    assert refusal is not None
    text = _one_line(" ".join([refusal.enhanced, *refusal.lines]).strip())[:_TEXT_MOST]
    if refusal.is_permanent or decision.verdict is Verdict.DROP or decision.stage in _LIMITS:
        return f"{refusal.code} {text}"
    return f"DEFER_IF_PERMIT {text}"


def facts_of(attributes: Mapping[str, str]) -> Facts | None:
    """What a session of ours would know; None without a client's address (mail of this host's own)."""
    try:
        address = Address(attributes.get("client_address", ""))
    except ValueError:
        return None
    port = attributes.get("client_port", "")
    client = Client(address, int(port) if port.isascii() and port.isdigit() else 0)
    name = attributes.get("client_name", "")
    client.name = "" if name == "unknown" else name
    if attributes.get("sasl_username"):
        client.may_relay = client.skips_checks = True
    id = attributes.get("queue_id") or attributes.get("instance") or "-"
    facts = Facts(id, "policy", attributes.get("server_address", ""), client)
    facts.connections = client.connections = 1
    facts.helo = attributes.get("helo_name", "").lower().encode("utf-8", "surrogateescape")
    facts.is_extended = attributes.get("protocol_name", "").upper() == "ESMTP"
    protocol = attributes.get("encryption_protocol", "")
    if protocol:
        bits = attributes.get("encryption_keysize", "")
        facts.tls = TlsFacts(
            protocol,
            attributes.get("encryption_cipher", ""),
            int(bits) if bits.isascii() and bits.isdigit() else 0,
        )
    facts.sender = path_of(attributes.get("sender", ""))
    size = attributes.get("size", "")
    facts.declared_bytes = int(size) if size.isascii() and size.isdigit() else 0
    return facts


def path_of(address: str) -> Path | None:
    """An address as Postfix has it, without the quoting of its local part; "" is the null path; None: it is none."""
    text = address.encode("utf-8", "surrogateescape")
    if not text:
        null = parse_path(b"<>", is_reverse=True)
        assert isinstance(null, tuple)
        return null[0]
    found = parse_mailbox(text, is_utf8_allowed=True)
    if isinstance(found, int):
        local, at, domain = text.rpartition(b"@")
        if not at:
            return None
        quoted = local.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        found = parse_mailbox(b'"%b"@%b' % (quoted, domain), is_utf8_allowed=True)
    return None if isinstance(found, int) else found


def _one_line(text: str) -> str:
    """As a value may be: no control characters, nothing but ASCII."""
    words = " ".join(text.split())
    return "".join(c if " " <= c <= "~" else "?" for c in words)
