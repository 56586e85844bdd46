"""One listener's settings with everything that its connections share, made ready once.

Frozen: a reload makes a new Profile, and a connection keeps the one that it got
at accept.  Rank 8.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastsmtp._session import Terms
from fastsmtp.config.environment import apply, relevant
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision, Verdict
from fastsmtp.policy.facts import CertificateFacts, Client, Facts, Phase, TlsFacts
from fastsmtp.policy.relay import asks_certificate
from fastsmtp.policy.rules import foreign_names, stages_of
from fastsmtp.policy.runner import Plan, Round
from fastsmtp.policy.stage import Stage
from fastsmtp.smtp import session_log
from fastsmtp.smtp.meters import ListenerMeter
from fastsmtp.smtp.received import ReceivedWriter
from fastsmtp.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

    from fastsmtp.smtp.inquiry import Inquiry
    from fastsmtp.smtp.service import Service
    from fastsmtp.tls import Handshake, ServerTls
    from fastsmtp.tls_asking import AskingContext

# Of one listener.  Rules say a few things, if to many clients; what comes beyond is made anew for each.
_DERIVED_MAX = 256


class Profile:
    """What the connections of one listener share.

    terms          what the session offers; xclient_terms for clients that may use XCLIENT
    tls            the TLS engine, or None when the listener has tls = "off"
    base           the profile of the listener itself, that a client's variables were laid over
    namer          asks for a client's name, where the rules of tcpserver have names; else None
    localiphost    what our own address in brackets stands for; b"" for nothing
    counts_*       whether a limit asks for this rate, so that nothing is looked up for nothing
    is_implicit    TLS comes before the greeting
    foreign        fields that are ours alone, in lower case, as HeaderFacts has names
    meter          what is counted of this listener
    refusal        asked at MAIL: why the sink takes no mail now; None: it always takes some
    """

    __slots__ = (
        "_derived", "base", "counters", "counts_connections", "counts_handshakes", "counts_messages",
        "counts_recipients", "foreign", "is_implicit", "localiphost", "log", "meter", "namer", "now", "plan",
        "received", "refusal", "service", "settings", "sink", "terms", "tls", "xclient_terms",
    )  # fmt: skip

    def __init__(
        self, service: Service, settings: Settings, tls: ServerTls | None, base: Profile | None = None
    ) -> None:
        self.base = base or self
        self._derived: dict[tuple[str | None, ...], Profile] = {}
        limits = settings.limits
        self.service = service
        self.settings = settings
        self.tls = tls
        self.is_implicit = tls is not None and settings.listen.tls == "implicit"
        self.sink = service.sink
        self.refusal = getattr(service.sink, "refusal", None)
        self.log = service.log
        self.counters = service.counters
        self.now = service.now
        meter = ListenerMeter(service.metrics, settings.listen.name) if base is None else base.meter
        self.meter: ListenerMeter = meter
        stages = stages_of(
            settings,
            [service.own_stages[rule] for rule in settings.policy.python if rule in service.own_stages],
            has_answers=service.resolver is not None,
        )
        self.plan = Plan(stages, settings, observer=service.observer, report=self, know=service.know)
        rules = settings.rules
        self.namer: Plan | None = None
        if rules is not None and rules.is_by_name and service.resolver is not None:
            from fastsmtp.policy.reverse_dns import know_name

            name = Stage("name", Phase.CLIENT, know_name, is_check=False, on_error="pass")
            self.namer = Plan([name], settings, report=self, know=service.know)
        self.localiphost = settings.localiphost.encode()
        self.foreign = foreign_names(settings)
        self.terms = session_terms(settings, has_tls=tls is not None, is_xclient_allowed=False)
        self.xclient_terms = session_terms(settings, has_tls=tls is not None, is_xclient_allowed=True)
        self.received = ReceivedWriter(settings.hostname, service.wall)
        self.counts_connections = limits.connections_per_client_per_min > 0
        self.counts_messages = limits.messages_per_client_per_min > 0
        self.counts_recipients = limits.recipients_per_client_per_min > 0
        self.counts_handshakes = limits.handshakes_per_client_per_min > 0

    def under(self, variables: Mapping[str, str]) -> Profile:
        """This listener's profile for a client with these variables; one for all whose variables say the same."""
        base = self.base
        key = relevant(variables)
        found = base._derived.get(key)
        if found is None:
            settings = apply(base.settings, variables)
            found = base if settings is base.settings else Profile(base.service, settings, base.tls, base)
            if len(base._derived) < _DERIVED_MAX:
                base._derived[key] = found
        return found

    def note_rate(self, client: Client, token: int) -> None:
        """Events of this client in the last minute become a fact."""
        rates = client.rates
        if type(rates) is not list:
            client.rates = rates = [0, 0, 0, 0]
        rates[token] = self.counters.rate(client.address.key, token, self.service.tick_s)

    def grant_pass(self, client: Client, seconds: float) -> None:
        self.counters.grant_pass(client.address.key, self.now() + seconds)

    def engine(self, tls: ServerTls, facts: Facts) -> ssl.SSLContext | AskingContext:
        """What makes this client's handshake: with a request for its certificate, or without."""
        if tls.asking is not None and asks_certificate(facts, self.settings):
            return tls.asking
        return tls.context

    def raised(self, facts: Facts, agreed: Handshake) -> None:
        """TLS stands: what was agreed on is a fact, counted, and in the log."""
        shown = agreed.certificate
        self.meter.handshake(agreed.protocol)
        facts.tls = TlsFacts(
            agreed.protocol,
            agreed.cipher,
            agreed.bits,
            agreed.server_name,
            is_resumed=agreed.is_resumed,
            is_asked=agreed.is_asked,
            certificate=None if shown is None else CertificateFacts(*shown),
        )
        session_log.tls(self.log, facts, agreed)

    def inquire(self, first: Round) -> Inquiry:
        """Ask the questions of a phase, all rounds of them."""
        from fastsmtp.smtp.inquiry import Inquiry

        return Inquiry(self.service, first)

    async def settle(self, waiting: Decision | Round) -> Decision:
        """Ask round after round until there is a decision."""
        if type(waiting) is Decision:
            return waiting
        return await self.inquire(waiting).wait()  # type: ignore[arg-type]

    # --- runner.Report ---------------------------------------------------------------------------

    def defect(self, facts: Facts, stage: Stage, error: Exception) -> None:
        self.meter.verdict(stage.name, 0, is_observed=False)
        session_log.defect(self.log, facts, error, stage.name)

    def judged(self, name: str, verdict: Verdict) -> None:
        self.meter.verdict(name, verdict, is_observed=False)

    def observed(self, facts: Facts, stage: Stage, decision: Decision) -> None:
        if decision.verdict is not Verdict.PASS:
            self.meter.verdict(decision.stage or stage.name, decision.verdict, is_observed=True)
        session_log.observed(self.log, facts, stage.name, decision)


def session_terms(settings: Settings, *, has_tls: bool, is_xclient_allowed: bool) -> Terms:
    """What a session of this listener offers and enforces."""
    limits = settings.limits
    mode = settings.listen.tls
    return Terms(
        hostname=settings.hostname,
        message_bytes=limits.message_bytes,
        recipients=limits.recipients,
        errors=limits.errors,
        commands=limits.commands,
        is_starttls_offered=has_tls and mode in ("starttls", "required"),
        is_tls_required=has_tls and mode == "required",
        is_normalizing=settings.listen.bare_newline == "normalize",
        is_xclient_allowed=is_xclient_allowed,
        is_compatible=settings.is_compatible,
    )
