"""Every stage there is, in the order that decides between equal refusals.

Rank 4: pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastsmtp.config.denymail import DNSCHECK
from fastsmtp.config.settings import Settings
from fastsmtp.policy import greeting, limits, message, relay, score
from fastsmtp.policy.facts import Phase
from fastsmtp.policy.runner import HELD
from fastsmtp.policy.stage import Mode, Stage
from fastsmtp.typed import cast

# What holds whatever the configuration says of rules.
STAGES: tuple[Stage, ...] = (
    Stage("client", Phase.CLIENT, relay.know_client, is_check=False),
    Stage("connections", Phase.CONNECT, limits.count_connections, is_check=False),
    Stage("early_talker", Phase.GREETING, greeting.refuse_early_talker),
    Stage("certificate", Phase.HELO, relay.know_certificate, is_check=False),
    Stage("handshakes", Phase.STARTTLS, limits.count_handshakes, is_check=False),
    Stage("size", Phase.MAIL, message.check_declared_size, is_check=False),
    Stage("messages", Phase.MAIL, limits.count_messages, is_check=False),
    Stage("recipient", Phase.RCPT, relay.find_recipient, is_check=False),
    Stage("recipients", Phase.RCPT, limits.count_recipients, is_check=False),
    Stage("loop", Phase.END, message.stop_loop, is_check=False),
    Stage("pass", Phase.END, greeting.grant_pass, is_check=False),
)


def stages_of(
    settings: Settings, own: Iterable[Stage] = (), *, has_answers: bool = True
) -> tuple[Stage, ...]:
    """The stages that these settings ask for: what must be, the rules, the operator's own.

    has_answers  False where nobody answers questions: stages of ours that need some are left out
    """
    own = tuple(own)
    rules = [*_rules(settings), *own]
    if not has_answers:
        rules = [stage for stage in rules if not stage.asks]
    rules = [stage for stage in rules if stage.mode != "off"]
    speaks_at = Phase[settings.policy.reject_at.upper()]
    said: list[Stage] = []
    if any(stage.phase < speaks_at for stage in rules):
        said.append(Stage(HELD, speaks_at, score.speak_held))
    if has_scores(settings) or own:
        phases = [phase for phase in (Phase.HELO, Phase.MAIL, Phase.RCPT) if phase >= speaks_at]
        if own:
            phases.append(Phase.END)
        for phase in phases:
            said.append(Stage("score", phase, score.check_score))
            if is_observing(settings, own):
                said.append(Stage("score", phase, score.check_observed_score, mode="observe"))
    if foreign_names(settings):
        said.append(Stage("header", Phase.END, score.refuse_long_header))
    if settings.accept.asks:
        from fastsmtp.policy import callout

        said.append(Stage("callout", Phase.RCPT, callout.ask_next_hop, is_check=False))
    return (*STAGES, *said, *rules)


def _rules(settings: Settings) -> Iterable[Stage]:
    """Those that are on; a rule's module is imported with it, since `fastsmtp smtpd` starts for each connection."""
    policy = settings.policy
    if settings.deny:
        from fastsmtp.policy import clients

        yield Stage(score.DENY, Phase.CONNECT, clients.deny_client)
    if settings.rblsmtpd:
        from fastsmtp.policy import rblsmtpd

        yield Stage("rblsmtpd", Phase.CONNECT, rblsmtpd.refuse_client)
    if settings.lists:
        from fastsmtp.policy import dnsbl

        yield Stage("dnsbl", Phase.CONNECT, dnsbl.ask_lists, asks=True)
    mode = cast(Mode, policy.reverse_dns.mode)
    if mode != "off":
        from fastsmtp.policy import reverse_dns

        yield Stage("reverse_dns", Phase.CONNECT, reverse_dns.check_reverse_name, mode=mode, asks=True)
    if settings.rhsbl.get("ptr"):
        from fastsmtp.policy import rhsbl

        yield Stage("rhsbl", Phase.CONNECT, rhsbl.ask_of_reverse_name, asks=True)
    if policy.p0f.socket:
        from fastsmtp.policy import p0f

        mode = cast(Mode, policy.p0f.mode)
        yield Stage("p0f", Phase.CONNECT, p0f.ask_about_client, mode=mode, on_error="pass")
        if any(rule.delay_s for rule in policy.p0f.match):
            yield Stage("p0f", Phase.RCPT, p0f.slow_recipient, mode=mode, on_error="pass")
        if policy.p0f.header:
            # What it tells is no judgement: told while rules only observe, too.
            yield Stage("p0f", Phase.END, p0f.add_fields, is_check=False, on_error="pass")
    mode = cast(Mode, policy.helo.mode)
    if mode != "off":
        from fastsmtp.policy import helo

        yield Stage("helo", Phase.HELO, helo.check_name, mode=mode)
        yield Stage("helo", Phase.HELO, helo.check_existence, mode=mode, asks=True)
    if settings.rhsbl.get("helo"):
        from fastsmtp.policy import rhsbl

        yield Stage("rhsbl", Phase.HELO, rhsbl.ask_of_helo, asks=True)
    if any(settings.require_tls.values()):
        from fastsmtp.policy import require_tls

        if settings.require_tls.get("enforce"):
            yield Stage("require_tls", Phase.MAIL, require_tls.check_tls, is_prompt=True)
        if settings.require_tls.get("observe"):
            yield Stage("require_tls", Phase.MAIL, require_tls.observe_tls, mode="observe")
    yield from _sender_rules(settings)
    if settings.badrcptto:
        from fastsmtp.policy import badrcptto

        mode = cast(Mode, policy.badrcptto_mode)
        yield Stage("badrcptto", Phase.RCPT, badrcptto.refuse_recipient, mode=mode, is_classic=True)
    if policy.tarpit.after_recipients:
        from fastsmtp.policy import tarpit

        yield Stage("tarpit", Phase.RCPT, tarpit.slow_recipient, mode=cast(Mode, policy.tarpit.mode))
    if settings.signatures is not None:
        from fastsmtp.policy import signatures

        mode = cast(Mode, policy.signatures.mode)
        yield Stage("signatures", Phase.END, signatures.check_signatures, mode=mode)


def _sender_rules(settings: Settings) -> Iterable[Stage]:
    """What qmail's patches ask of the sender, in their order."""
    policy = settings.policy
    if settings.badmailfrom:
        from fastsmtp.policy import badmailfrom

        mode = cast(Mode, policy.badmailfrom_mode)
        yield Stage("badmailfrom", Phase.MAIL, badmailfrom.refuse_sender, mode=mode, is_classic=True)
    if policy.denymail:
        from fastsmtp.policy import denymail

        mode = cast(Mode, policy.denymail_mode)
        yield Stage("denymail", Phase.MAIL, denymail.refuse_sender, mode=mode, is_classic=True)
        if DNSCHECK in policy.denymail:
            yield Stage(
                "denymail", Phase.MAIL, denymail.ask_about_sender, mode=mode, asks=True, is_classic=True
            )
    mode = cast(Mode, policy.mfcheck.mode)
    # DNSCHECK says all that mfcheck can say, and before it.
    is_said = DNSCHECK in policy.denymail and policy.denymail_mode == "enforce"
    if mode != "off" and not is_said:
        from fastsmtp.policy import mfcheck

        yield Stage("mfcheck", Phase.MAIL, mfcheck.check_sender, mode=mode, asks=True, is_classic=True)
    if settings.rhsbl.get("mail"):
        from fastsmtp.policy import rhsbl

        yield Stage("rhsbl", Phase.MAIL, rhsbl.ask_of_sender, asks=True, is_classic=True)


def foreign_names(settings: Settings) -> tuple[bytes, ...]:
    """The fields, in lower case, in which we speak to the next hop, and nobody else may."""
    policy = settings.policy
    names: tuple[str, ...] = (policy.header,)
    if policy.p0f.header:
        from fastsmtp.policy import p0f

        names = (policy.header, p0f.OS_FIELD, p0f.LINK_FIELD)
    return tuple(name.lower().encode() for name in names if name)


def has_scores(settings: Settings) -> bool:
    """True when some rule of ours may give a score."""
    policy = settings.policy
    has_lists = bool(settings.lists) or any(settings.rhsbl.values())
    has_systems = bool(policy.p0f.socket) and any(rule.score for rule in policy.p0f.match)
    return has_lists or has_systems or bool(policy.helo.score) or bool(policy.reverse_dns.score)


def is_observing(settings: Settings, own: Iterable[Stage]) -> bool:
    """True when a rule that only observes may give a score."""
    policy = settings.policy
    zones = (*settings.lists, *(zone for zones in settings.rhsbl.values() for zone in zones))
    return (
        policy.mode == "observe"
        or any(zone.is_observed for zone in zones)
        or any(stage.mode == "observe" for stage in own)
        or any(rule.score and rule.mode == "observe" for rule in (policy.helo, policy.reverse_dns))
        or any(rule.score and rule.mode == "observe" for rule in policy.p0f.match)
        or policy.p0f.mode == "observe"
    )
