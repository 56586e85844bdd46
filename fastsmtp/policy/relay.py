"""Relay control: who may send anywhere, which recipients are ours, and where they go.

Never switched off by policy.mode: a server that observes is no open relay.

Rank 4: pure.
"""

from __future__ import annotations

from functools import lru_cache

from fastsmtp import reply
from fastsmtp.config.settings import Accept, Settings
from fastsmtp.policy.decision import Decision, Grant, Route, passed, reject
from fastsmtp.policy.facts import CertificateFacts, Facts, Origin

_RELAY_CLIENT = passed(Grant(may_relay=True, skips_checks=True))
_QMAIL_RELAY_CLIENT = passed(Grant(may_relay=True, skips_checks=False))
_EXEMPT_CLIENT = passed(Grant(may_relay=False, skips_checks=True))
_NO_RELAYING = reject(reply.NO_RELAYING)
_UNKNOWN = reject(reply.UNKNOWN_RECIPIENT)


def know_client(facts: Facts, settings: Settings) -> Decision | None:
    """CLIENT: relay networks may send anywhere and skip all checks; exempt clients skip the checks.

    In compatible mode relay clients meet them, as those with RELAYCLIENT do in the patches: but for badrcptto,
    tarpit and the lists of domains, which look at may_relay themselves.

    A loopback address that a proxy or XCLIENT claims gives nothing: whoever may speak for
    other clients must not be able to turn any of them into ourselves.

    RELAYCLIENT does the same; where qmail's ways are kept it exempts from what the stages say it does, and from
    no other check.
    """
    client = facts.client
    if client.origin is not Origin.SOCKET and client.address.is_loopback:
        return None
    is_exempt = bool(settings.exempt) and client.address in settings.exempt
    if settings.relay_suffix is not None or (settings.relay and client.address in settings.relay):
        return _QMAIL_RELAY_CLIENT if settings.is_compatible and not is_exempt else _RELAY_CLIENT
    return _EXEMPT_CLIENT if is_exempt else None


def asks_certificate(facts: Facts, settings: Settings) -> bool:
    """Before a handshake: is this client to be asked for a certificate?

    Not who may relay anyway: some programs are confused by the question.  And not who came by XCLIENT: the
    handshake is the front's, and its certificate would speak for all its clients.
    """
    client = facts.client
    return (
        bool(settings.certificates)
        and not client.may_relay
        and client.origin is not Origin.XCLIENT
        and client.address in settings.certificates_from
    )


def know_certificate(facts: Facts, settings: Settings) -> Decision | None:
    """HELO: a certificate that holds, and is one of relay.certificates, gives what relay.networks give.

    In HELO, since it has come since CONNECT, and MAIL must find the client known.  Whom the operator denies by
    address is not let in by a certificate.
    """
    tls = facts.tls
    if tls is None or tls.certificate is None or not settings.certificates:
        return None
    client = facts.client
    if client.may_relay or client.origin is Origin.XCLIENT or client.address in settings.deny:
        return None
    granted = _granted(tls.certificate, settings)
    if not granted:
        return None
    skips_checks = client.skips_checks or not settings.is_compatible
    return passed(Grant(may_relay=True, skips_checks=skips_checks, certificate=granted))


def _granted(certificate: CertificateFacts, settings: Settings) -> str:
    """What of a certificate is in relay.certificates; "" when nothing is, or the certificate doesn't hold."""
    if certificate.reason:
        return ""
    for address in certificate.addresses:
        if address in settings.certificates:
            return address.decode()
    fingerprint = certificate.fingerprint
    return fingerprint if fingerprint.encode() in settings.certificates else ""


def find_recipient(facts: Facts, settings: Settings) -> Decision | None:
    """RCPT: ours and known, or a relay client's; anything else is refused.

    postmaster is accepted without a domain and at every domain of ours (RFC 5321 section 4.5.1).
    RELAYCLIENT's value becomes the end of the address, and rcpthosts is not asked (qmail-smtpd).
    """
    path = facts.recipient
    if path is None:
        raise ValueError("RCPT without a recipient")
    domain = path.domain
    suffix = settings.relay_suffix
    if suffix and facts.client.may_relay:
        ending = (domain + suffix).rpartition(b"@")[2].lower()
        return _sent_on(facts, settings, ending, None, suffix)
    if not domain:
        # <postmaster>: goes where our own postmaster's mail goes.
        domain = settings.postmaster.rpartition(b"@")[2]
        return _sent_on(facts, settings, domain, settings.accept.find(domain))
    accept = settings.accept.find(domain)
    if accept is not None:
        known = accept.recipients
        if known is None or path.key in known or path.mailbox.lower() == b"postmaster":
            return _sent_on(facts, settings, domain, accept)
        return _UNKNOWN
    if facts.client.may_relay:
        return _sent_on(facts, settings, domain, None)
    return _denied(facts)


def _denied(facts: Facts) -> Decision:
    """No relaying; who was asked for a certificate is told what it lacks."""
    tls = facts.tls
    if tls is None or not tls.is_asked:
        return _NO_RELAYING
    certificate = tls.certificate
    if certificate is None:
        return _denied_because("you have shown no certificate")
    return _denied_because(f"your certificate {certificate.reason or 'gives no right to it'}")


@lru_cache(maxsize=64)
def _denied_because(reason: str) -> Decision:
    """The reasons are few: tls_asking.REASONS, and an error number of OpenSSL's."""
    return reject(reply.no_relaying(reason))


def _sent_on(
    facts: Facts, settings: Settings, domain: bytes, accept: Accept | None, suffix: bytes = b""
) -> Decision:
    """Where it goes: as its [[accept]] says, else by the first [[route]] that fits, else deliver.default."""
    deliver = place_of(facts, settings, domain, accept)
    if deliver == "refuse":
        return _NO_RELAYING
    if accept is None:
        return _routed(deliver, "none", suffix, settings.deliver.queue)
    return _routed(deliver, accept.pass_client, suffix, accept.is_queued)


def place_of(facts: Facts, settings: Settings, domain: bytes, accept: Accept | None) -> str:
    """The DEST of the sender's mail to this domain; "refuse" when it has none."""
    if accept is not None and accept.deliver:
        return accept.deliver
    sender = b"" if facts.sender is None else facts.sender.key
    return settings.routing.routes.find(sender, domain, settings.listen.name).deliver


@lru_cache(maxsize=1024)
def _routed(deliver: str, pass_client: str, suffix: bytes, is_queued: bool) -> Decision:
    """The same decision for the same place: made once, since it is the answer to nearly every RCPT."""
    return passed(Route(deliver, pass_client, suffix, is_queued=is_queued))
