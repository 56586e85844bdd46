"""What the checks cost when every answer is cached:  python bench/bench_policy.py [--seconds 1.0]

Whole sessions through session, conversation, policy and resolver, without sockets; the sink throws away.  The same
sessions with no rule on, and with all on: eight DNSBL, a DNSWL, an RHSBL of sender, HELO and reverse name, mfcheck,
HELO and reverse DNS.  CPU is time.process_time(), the median of seven rounds, the two in turn.

  message     one more message on an open connection
  connection  accept to QUIT with one message
  classic     a message more with every check of qmail's patches on, and with none: badmailfrom and badrcptto of 100,000
              lines each, DENYMAIL with DNSCHECK, mfcheck, an RHSBL, require_tls, a tarpit, p0f, signatures; ours, and
              compatible; and once more without those that ask the DNS
  strangers   the connect phase alone with eight DNSBL, each client from another address, so nothing is cached; 50 at
              a time, answered by bench/load/dnsresponder.c
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import uvloop  # noqa: E402

from bench.bench_dns import responder  # noqa: E402
from fastsmtp._counters import Counters  # noqa: E402
from fastsmtp._session import Session  # noqa: E402
from fastsmtp.address import Address  # noqa: E402
from fastsmtp.config.load import load  # noqa: E402
from fastsmtp.fingerprint import Fingerprint, P0fQuestion  # noqa: E402
from fastsmtp.log import NullLog  # noqa: E402
from fastsmtp.policy.decision import Decision  # noqa: E402
from fastsmtp.policy.facts import Client, Facts, Phase  # noqa: E402
from fastsmtp.queue.disk import InlineDisk  # noqa: E402
from fastsmtp.queue.spool import Budget  # noqa: E402
from fastsmtp.resolver import Resolver  # noqa: E402
from fastsmtp.sink import DirectSink  # noqa: E402
from fastsmtp.smtp.conversation import HANDLERS, Conversation  # noqa: E402
from fastsmtp.smtp.service import Service  # noqa: E402
from tests.fakes.dns_server import MX, PTR, A, a, dns_server, mx, name  # noqa: E402

ROUNDS = 7
LISTS = [f"list{n}.example" for n in range(8)]
ALL: dict[str, Any] = {
    "dnsbl": [{"zone": zone} for zone in LISTS],
    "dnswl": [{"zone": "good.example"}],
    "rhsbl": [{"zone": "domains.example"}],
    "helo": {"mode": "enforce"},
    "reverse_dns": {"mode": "enforce"},
}
CLASSIC: dict[str, Any] = {
    "helo": {"mode": "off"},
    "reverse_dns": {"mode": "off"},
    "denymail": ["NOBOUNCE", "DNSCHECK"],
    "mfcheck": {"mode": "enforce"},
    "rhsbl": [{"zone": "domains.example", "of": ["mail"], "action": "reject"}],
    "require_tls": [{"sender": ["@bank.example", "@.bank.example"]}],
    "tarpit": {"after_recipients": 50},
    "p0f": {"socket": "/nowhere", "header": True, "match": [{"os": "Windows *", "score": 2, "delay_s": 1}]},
}
WITHOUT_DNS: dict[str, Any] = {"denymail": ["NOBOUNCE"], "mfcheck": {"mode": "off"}, "rhsbl": []}
RUNS = ("all", "classic", "compatible", "no DNS")
LINES = 100_000
CACHED_S = 60.0
NONE: dict[str, Any] = {"mode": "off", "header": ""}
ZONE: dict[tuple[str, int], Any] = {
    ("1.2.0.192.in-addr.arpa", PTR): [name("mail.example.net")],
    ("mail.example.net", A): [a("192.0.2.1")],
    ("sender.example", MX): [mx(10, "mail.example.net"), mx(20, "b.example.net")],
    ("test.domains.example", A): [a("127.0.1.2")],
    **{(f"2.0.0.127.{zone}", A): [a("127.0.0.2")] for zone in [*LISTS, "good.example"]},
}
GROUP = (
    b"MAIL FROM:<a@sender.example> SIZE=4096\r\n",
    b"RCPT TO:<b@example.org>\r\n",
    b"DATA\r\n",
    b"Received: from a by b\r\nSubject: x\r\nFrom: a@sender.example\r\n\r\n"
    + (b"x" * 76 + b"\r\n") * 50
    + b".\r\n",
)


class Talk:
    """One session, as connection.py drives it."""

    def __init__(self, service: Service) -> None:
        profile = service._profiles[0]
        self.session = Session(profile.terms, b"ID")
        facts = Facts("ID", "mx", "198.51.100.25", Client(Address("192.0.2.1"), 4321))
        facts.bad_lists = service.lists.bad
        self.conversation = conversation = Conversation(profile, self.session, facts)
        conversation.apply(_decided(profile, Phase.CLIENT, facts).effects, Phase.CLIENT)
        decision = _decided(profile, Phase.CONNECT, facts)
        conversation.apply(decision.effects, Phase.CONNECT)
        self.session.greet(service.banner(profile))
        self.say(b"EHLO mail.example.net\r\n")

    def say(self, data: bytes) -> None:
        session = self.session
        session.feed(data)
        while (event := session.next_event()) is not None:
            wait = HANDLERS[event.kind](self.conversation, event)
            if wait is not None:
                # The question is on its way; nobody waits for the decision.
                wait.close()
                raise AssertionError("an answer was not cached")
        session.hold()
        session.take()

    def message(self) -> None:
        for piece in GROUP:
            self.say(piece)


def _decided(profile: Any, phase: Phase, facts: Facts) -> Decision:
    waiting = profile.plan.run(phase, facts)
    if type(waiting) is Decision:
        return waiting
    decision: Decision | None = profile.inquire(waiting).decision
    assert decision is not None, "an answer was not cached"
    return decision


class KnowingP0f:
    """An answerer that knows everybody, at once: what is measured is ours."""

    def put(self, questions: Any, deadline: float, answered: Any) -> tuple[Any, ...]:
        return (Fingerprint("Linux 3.11 and newer", "Ethernet or modem"),) * len(questions)

    async def close(self) -> None:
        """Nothing is open."""


def classic_in(folder: pathlib.Path) -> dict[str, Any]:
    """CLASSIC, with its files in this folder."""
    lines = "".join(f"user{n}@host{n}.example\n" if n % 2 else f"@bad{n}.example\n" for n in range(LINES))
    for file in ("badmailfrom", "badrcptto"):
        (folder / file).write_text(lines)
    (folder / "signatures").write_text("TVqQAAMAA\nTVpQAAIAA\nTVpAALQAc\n")
    return {
        **CLASSIC,
        "badmailfrom": [str(folder / "badmailfrom"), "spam@"],
        "badrcptto": [str(folder / "badrcptto"), ".nobody.example"],
        "signatures": {"file": str(folder / "signatures")},
    }


def service_with(
    policy: dict[str, Any], resolver: Resolver | None, sink: Any, *, compatible: bool = False
) -> Service:
    values = {
        "compatible": compatible,
        "hostname": "mx.example.org",
        "accept": [{"domain": ["example.org"], "deliver": "discard"}],
        "policy": policy,
    }
    return Service(
        settings=load(values=values).settings,
        log=NullLog(),
        counters=Counters(1, 1_024).region(0),
        sink=sink,
        resolver=resolver,
        answerers={P0fQuestion: KnowingP0f()},
    )


def cpu_us(function: Callable[[], object], seconds: float) -> float:
    """CPU microseconds a call."""
    count = 0
    began = time.process_time()
    while (took := time.process_time() - began) < seconds:
        for _ in range(50):
            function()
        count += 50
    return took / count * 1e6


async def cached(service: Service) -> None:
    """Until nothing that a message asks has to be waited for: answers come late on a busy machine, and get old."""
    deadline = time.monotonic() + CACHED_S
    while True:
        try:
            return Talk(service).message()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


async def strangers(where: str) -> None:
    """CPU of the connect phase for clients that nobody knows, with eight lists and with none."""
    resolver = Resolver([where])
    sink = DirectSink(
        disk=InlineDisk(), budget=Budget(1 << 20), spool_directory="/tmp", hostname="mx.example.org"
    )
    plain = {"reverse_dns": {"mode": "off"}}
    # The responder knows nobody, so the lists' own tests can't succeed.
    lists = [{"zone": zone, "tested": False} for zone in LISTS]
    services = {
        "none": service_with(plain, resolver, sink),
        "eight": service_with({**plain, "dnsbl": lists}, resolver, sink),
    }
    numbers = iter(range(1, 1 << 24))

    async def clients(service: Service, count: int) -> None:
        profile = service._profiles[0]
        for _ in range(count):
            n = next(numbers)
            facts = Facts(
                "ID", "mx", "198.51.100.25", Client(Address(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"))
            )
            decision = profile.plan.run(Phase.CONNECT, facts)
            if type(decision) is not Decision:
                decision = await profile.inquire(decision).wait()  # type: ignore[arg-type]
            assert decision.reply is None

    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for which, service in services.items():
            began = time.process_time()
            await asyncio.gather(*(clients(service, 20) for _ in range(50)))
            found.setdefault(which, []).append((time.process_time() - began) / 1_000 * 1e6)
    none, eight = (statistics.median(found[which]) for which in ("none", "eight"))
    print(f"{'strangers':12} none {none:6.1f} us   eight {eight:6.1f} us   the lists {eight - none:6.1f} us")
    for service in services.values():
        service.resolver = None
        await service.close()
    resolver.close()


async def measure(seconds: float) -> None:
    async with dns_server(ZONE) as dns:
        resolver = Resolver([dns.where])
        sink = DirectSink(
            disk=InlineDisk(), budget=Budget(1 << 20), spool_directory="/tmp", hostname="mx.example.org"
        )
        services = {"none": service_with(NONE, None, sink), "all": service_with(ALL, resolver, sink)}
        with tempfile.TemporaryDirectory() as folder:
            classic = classic_in(pathlib.Path(folder))
            services["classic"] = service_with(classic, resolver, sink)
            services["compatible"] = service_with(classic, resolver, sink, compatible=True)
            services["no DNS"] = service_with({**classic, **WITHOUT_DNS}, resolver, sink)
        for which in RUNS:
            await services[which].lists.settled()
            assert not services[which].lists.bad
            await cached(services[which])
        gc.collect()
        gc.freeze()
        found: dict[tuple[str, str], list[float]] = {}
        for _ in range(ROUNDS):
            for which, service in services.items():
                await cached(service)
                talk = Talk(service)
                found.setdefault(("message", which), []).append(cpu_us(talk.message, seconds))
                found.setdefault(("connection", which), []).append(
                    cpu_us(lambda service=service: Talk(service).message(), seconds)  # type: ignore[misc]
                )
        for what in ("message", "connection"):
            none = statistics.median(found[what, "none"])
            for which in RUNS:
                one = statistics.median(found[what, which])
                goal = "   goal: 8 us at most" if (what, which) == ("message", "no DNS") else ""
                print(
                    f"{what:12} none {none:6.1f} us   {which:10} {one:6.1f} us   the checks {one - none:6.1f} us"
                    f"{goal}"
                )
        for service in services.values():
            service.resolver = None
            await service.close()
        resolver.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="of each round")
    seconds = parser.parse_args().seconds
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(seconds))
    with responder("0", "unlisted") as where, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(strangers(where))


if __name__ == "__main__":
    main()
