"""`check --live`: what only the network can say of a configuration, a row for each thing that is asked.

A row is a name and a function that looks, prints a line for each thing it looked at, and says whether all is
well.  They run one after the other, so that what is printed stands together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastsmtp.config.load import Loaded
    from fastsmtp.resolver import Asker

    Look = Callable[[Loaded, Asker], Awaitable[bool]]


def ask_all(loaded: Loaded) -> bool:
    """Run every row.  True when all is well."""
    import asyncio

    async def main() -> bool:
        from fastsmtp.resolver import make_resolver

        dns = loaded.config.dns
        resolver = make_resolver(dns.servers, timeout_s=dns.timeout_s)
        try:
            return all([await look(loaded, resolver) for _, look in CHECKS])
        finally:
            resolver.close()

    return asyncio.run(main())


async def lists(loaded: Loaded, resolver: Asker) -> bool:
    """Every DNS list as the server would test it; one that would be quarantined is a fault."""
    import asyncio
    import os

    from fastsmtp.listcare import probe_list

    zones = {
        zone.text: zone
        for one in loaded.settings
        for zone in (*one.lists, *(zone for zones in one.rhsbl.values() for zone in zones))
    }
    if not zones:
        print("no lists to ask")
        return True
    faults = await asyncio.gather(*(probe_list(zone, resolver, os.urandom) for zone in zones.values()))
    for name, fault in zip(zones, faults, strict=True):
        print(f"{name}: would be quarantined: it {fault}" if fault else f"{name}: works")
    return not any(faults)


async def systems(loaded: Loaded, resolver: Asker) -> bool:
    """Every p0f, about a host that it can't know; one that doesn't answer as p0f does is a fault."""
    import asyncio

    from fastsmtp.address import Address
    from fastsmtp.fingerprint import ANSWER_BYTES, decode_answer, encode_query

    async def ask(path: str) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            writer.write(encode_query(Address("::")))
            decode_answer(await reader.readexactly(ANSWER_BYTES))
        finally:
            writer.close()

    rules = {
        one.policy.p0f.socket: one.policy.p0f.timeout_s for one in loaded.settings if one.policy.p0f.socket
    }
    is_well = True
    for path, timeout_s in rules.items():
        try:
            await asyncio.wait_for(ask(path), timeout_s)
        except TimeoutError:
            fault = "no answer in time"
        except EOFError:
            fault = "closed without an answer"
        except OSError as error:
            fault = error.strerror or str(error)
        except ValueError as error:
            fault = str(error)
        else:
            fault = ""
        is_well = is_well and not fault
        print(f"{path}: {fault}: nothing would be known of clients' systems" if fault else f"{path}: works")
    return is_well


async def sources(loaded: Loaded, resolver: Asker) -> bool:
    """Every [[source]]: bindable, with a reverse name that leads back, and the name that it says."""
    from fastsmtp.config.settings import compile_sources
    from fastsmtp.delivery.preflight import look_at_sources

    findings = await look_at_sources(list(compile_sources(loaded.config).values()), resolver)
    for finding in findings:
        print(finding)
    return not any(finding.fault for finding in findings)


async def next_hops(loaded: Loaded, resolver: Asker) -> bool:
    """Every next hop that the configuration names: connected to, greeted, and with the TLS that is asked of it."""
    from fastsmtp.delivery.deliverer import Deliverer
    from fastsmtp.delivery.preflight import look_at_next_hops
    from fastsmtp.resolver import Hosts

    routing = loaded.settings[0].routing
    config = loaded.config
    places = [routing.own(accept.deliver) for accept in config.accept if accept.deliver]
    places += [*routing.routes.all(), routing.routes.default]
    hosts = Hosts()
    deliverer = Deliverer(
        remote=config.remote, hostname=config.hostname, resolver=resolver, resolve=hosts.addresses, routing=routing
    )  # fmt: skip
    try:
        findings = await look_at_next_hops(places, deliverer)
    finally:
        await deliverer.close()
        hosts.close()
    for finding in findings:
        print(finding)
    return not any(finding.fault for finding in findings)


async def recipients(loaded: Loaded, resolver: Asker) -> bool:
    """Every next hop that is asked about recipients: one that takes a name which nobody has can't be asked."""
    import secrets
    import time

    from fastsmtp.delivery.callout import make_callouts
    from fastsmtp.delivery.preflight import ask_for_nobody
    from fastsmtp.policy.callout import asked_of

    settings = loaded.settings[0]
    names = [name for accept in loaded.config.accept for name in accept.domain]
    addresses = [f"{secrets.token_hex(8)}@{name}".encode() for name in names if name[0] not in "/.*"]
    questions = [question for address in addresses if (question := asked_of(address, settings)) is not None]
    callouts = make_callouts(loaded.config.hostname, now=time.monotonic)
    try:
        findings = await ask_for_nobody(questions, callouts)
    finally:
        await callouts.close()
    for finding in findings:
        print(finding)
    return not any(finding.fault for finding in findings)


CHECKS: tuple[tuple[str, Look], ...] = (
    ("DNS lists", lists),
    ("p0f", systems),
    ("sources", sources),
    ("next hops", next_hops),
    ("recipients", recipients),
)
