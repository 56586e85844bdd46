"""What `check --live` looks at before any mail leaves: can each source be used, do the next hops answer?

A source is in order when each of its addresses can be bound, has a reverse name that leads back to it, and
the name that it says in EHLO is that name, or leads to the address as well: what big receivers ask for.

Rank 6: may import ranks 0 to 5.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastsmtp import errors
from fastsmtp._dns import Question, Status
from fastsmtp.address import Address
from fastsmtp.config.routes import Route, Source
from fastsmtp.delivery.callout import Callouts
from fastsmtp.delivery.deliverer import KINDS, Deliverer
from fastsmtp.delivery.source import fault_of_binding
from fastsmtp.policy.callout import Callout, Heard
from fastsmtp.policy.questions import reverse_name
from fastsmtp.resolver import AAAA, PTR, A, Answer, Asker

# For one answer, with connecting, in seconds.
ASK_S = 30.0


class Finding(NamedTuple):
    """One line of the check: what was looked at, and what is wrong with it; fault "" is well."""

    what: str
    fault: str
    praise: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.fault or self.praise}"


async def look_at_sources(
    sources: Sequence[Source], resolver: Asker, *, binding: Callable[[str], str] = fault_of_binding
) -> list[Finding]:
    """Each address of each source.

    binding   why an address can't be bound; "" when it can
    """
    pairs = [(source, address) for source in sources for address in (source.ipv4, source.ipv6) if address]
    return list(await asyncio.gather(*(_look_at(*pair, resolver, binding) for pair in pairs)))


async def _look_at(source: Source, address: str, resolver: Asker, binding: Callable[[str], str]) -> Finding:
    what = f"source {source.name}, {address}"
    faults = []
    cannot = binding(address)
    if cannot:
        faults.append(f"can't be bound: {cannot}")
    try:
        packed = Address(address.partition("%")[0])
    except ValueError:
        return Finding(what, "is no address")
    (pointer,) = await resolver.ask((Question(reverse_name(packed), PTR),))
    names = [name.decode() for name in pointer.records]
    helo = source.helo
    if not names:
        faults.append(_no_name(pointer))
    kind = A if packed.is_ipv4 else AAAA
    wanted = socket.inet_pton(socket.AF_INET if packed.is_ipv4 else socket.AF_INET6, packed.text)
    looked_up = tuple(dict.fromkeys([*names, helo]))
    answers = dict(
        zip(
            looked_up,
            await resolver.ask([Question(name.encode(), kind) for name in looked_up]),
            strict=True,
        )
    )
    confirmed = [name for name in names if wanted in answers[name].records]
    if names and not confirmed:
        faults.append(f"its reverse name {names[0]} does not lead back to it{_why(answers[names[0]])}")
    if helo not in confirmed and wanted not in answers[helo].records:
        faults.append(f"its EHLO name {helo} does not lead to it{_why(answers[helo])}")
    elif confirmed and helo not in confirmed:
        faults.append(f"its EHLO name {helo} is not its reverse name {confirmed[0]}")
    return Finding(what, "; ".join(faults), f"can be bound, is {helo} and nobody else")


def _no_name(answer: Answer) -> str:
    if answer.is_failed:
        return f"its reverse name can't be looked up ({answer.reason})"
    return "it has no reverse name"


def _why(answer: Answer) -> str:
    if answer.is_failed:
        return f" ({answer.reason})"
    return " (no such name)" if answer.status == Status.NXDOMAIN else ""


async def look_at_next_hops(routes: Sequence[Route], deliverer: Deliverer) -> list[Finding]:
    """Connect to each server of each place as mail would: from the route's sources, with its TLS."""
    findings = []
    for route in dict.fromkeys(routes):
        if route.dest.kind not in KINDS or route.dest.kind == "mx":
            continue
        try:
            probes = await deliverer.probe(route)
        except errors.TemporaryError as error:
            findings.append(Finding(route.deliver, str(error)))
            continue
        for hop, fault in probes:
            come_from = f" from {hop.source}" if hop.source else ""
            what = f"{route.deliver}, {hop}{come_from}"
            safe = f" over {hop.tls}{', verified' if hop.is_verified else ''}" if hop.tls else ""
            findings.append(Finding(what, fault, f"answers{safe}"))
    return findings


async def ask_for_nobody(questions: Sequence[Callout], callouts: Callouts) -> list[Finding]:
    """Each next hop that is asked about recipients, with an address that nobody has.

    One that takes it takes everything, and bounces later: then recipients must come from elsewhere.
    """
    loop = asyncio.get_running_loop()
    hops = {question.deliver: question for question in questions}
    futures: list[asyncio.Future[tuple[Any, ...]]] = []
    for question in hops.values():
        future: asyncio.Future[tuple[Any, ...]] = loop.create_future()
        futures.append(future)
        callouts.put((question,), loop.time() + ASK_S, future.set_result)
    return [
        _nobody(deliver, answer)
        for deliver, (answer,) in zip(hops, await asyncio.gather(*futures), strict=True)
    ]


def _nobody(deliver: str, answer: Any) -> Finding:
    what = f"recipients of {deliver}"
    if type(answer) is not Heard:
        return Finding(what, f"can't be asked about: {answer.reason}; mail for them waits with their senders")
    if answer.refusal is None:
        return Finding(what, "any is taken, a random name too: mail for nobody would come back as a bounce")
    if answer.refusal.is_temporary:
        said = f"{answer.refusal.code} {answer.refusal.lines[-1]}"
        return Finding(what, f"a random name gets {said}: mail for nobody would wait for ever")
    return Finding(what, "", "known: a random name is refused")
