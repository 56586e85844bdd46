"""fastsmtp policy: the checks for Postfix, by its policy delegation protocol.

With --listen it serves TCP and UNIX sockets until SIGTERM; without, one connection on standard input and
output, as Postfix's spawn(8) starts it.  SIGHUP reads the configuration anew.  docs/policy-server.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fastsmtp.cli.flags import make_parser, parse_flags
from fastsmtp.errors import ConfigError, system_words
from fastsmtp.records import replace

if TYPE_CHECKING:
    from fastsmtp.config.flags import Flags
    from fastsmtp.config.load import Loaded

EX_OSERR = 71
"""An address can't be bound; sysexits.h."""

UNIX = "unix:"
CLIENT_SLOTS = 32_768


def run(arguments: Sequence[str]) -> int:
    """0: ended in order; 1: the configuration is wrong, or a request was; 71: an address can't be bound."""
    parser = make_parser(
        "policy",
        "The checks for Postfix, by its policy delegation protocol: with --listen HOST:PORT or --listen unix:PATH "
        "a server, else one connection on standard input and output, under spawn(8).",
        without=("--tcprules", "--workers", "--accept", "--deliver", "--no-queue", "--state"),
        words={
            "--listen": "or unix:PATH; may be given again",
            "--hostname": "ours, for the checks of HELO",
            "--user": "the account to run as, when started as root",
        },
    )
    flags, _ = parse_flags(parser, arguments)
    places = [_place(text) for text in flags.listen]
    flags = replace(flags, listen=())

    import asyncio

    from fastsmtp.config.load import load
    from fastsmtp.supervisor.worker import new_loop

    loaded = load(flags, is_served=False)
    if not places:
        return _spawned(loaded)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        try:
            return runner.run(_serve(loaded, flags, places))
        except _NotBound as error:
            print(f"fastsmtp policy: cannot listen on {error}", file=sys.stderr)
            return EX_OSERR


class _NotBound(Exception):
    """A place of --listen, and why."""


def _place(text: str) -> tuple[str, int] | str:
    """(host, port), or the path of a UNIX socket."""
    if text.startswith((UNIX, "/")):
        return os.path.abspath(text.removeprefix(UNIX))
    from fastsmtp.config.endpoint import parse_endpoint

    try:
        return parse_endpoint(text)
    except ValueError as error:
        raise ConfigError(f"--listen: {error}, and no {UNIX}PATH") from None


async def _made(loaded: Loaded) -> tuple[Any, Any]:
    """(service, office): everything that judging needs, in the running loop."""
    import time

    from fastsmtp._counters import Counters
    from fastsmtp.callable_sink import CallableSink
    from fastsmtp.delegation.desk import Office
    from fastsmtp.delegation.judge import Judge
    from fastsmtp.log import LogWriter
    from fastsmtp.log_destination import open_destination
    from fastsmtp.log_format import JsonLines, Logfmt
    from fastsmtp.policy.own import load_stages
    from fastsmtp.queue.spool import Budget
    from fastsmtp.resolver import make_resolver
    from fastsmtp.smtp.service import Service

    config = loaded.config
    settings = loaded.settings[:1]
    log = LogWriter(open_destination(config.log.to), JsonLines() if config.log.format == "json" else Logfmt())
    dns = config.dns
    service = Service(
        settings=settings,
        log=log,
        counters=Counters(1, CLIENT_SLOTS).region(0),
        # Never opened: no mail comes here.
        sink=CallableSink(lambda message: None, budget=Budget(0)),
        resolver=make_resolver(dns.servers, timeout_s=dns.timeout_s, cache_bytes=dns.cache_bytes),
        questions_s=dns.timeout_s,
        own_stages=load_stages([one.policy for one in settings]),
    )
    office = Office(Judge(service, service.profile(0)), log, time.monotonic)
    return service, office


def _spawned(loaded: Loaded) -> int:
    import asyncio

    from fastsmtp.delegation.desk import talk

    # Not uvloop: one connection, and it starts for each.
    with asyncio.Runner() as runner:
        service, office = runner.run(_made(loaded))
        try:
            return talk(office, 0, 1, runner.run)
        finally:
            runner.run(service.close())


async def _serve(loaded: Loaded, flags: Flags, places: Sequence[tuple[str, int] | str]) -> int:
    import asyncio
    import signal

    from fastsmtp.delegation.desk import Desk
    from fastsmtp.delegation.judge import Judge
    from fastsmtp.supervisor.privilege import account_for, become
    from fastsmtp.supervisor.sockets import show

    loop = asyncio.get_running_loop()
    servers: list[asyncio.Server] = []
    shown: list[str] = []
    service, office = await _made(loaded)
    try:
        for place in places:
            where = f"{UNIX}{place}" if isinstance(place, str) else show(*place)
            try:
                if isinstance(place, str):
                    servers.append(await loop.create_unix_server(lambda: Desk(office), place))
                    os.chmod(place, 0o666)  # noqa: S103 - who may ask, says the directory that it is in
                    shown.append(where)
                else:
                    server = await loop.create_server(lambda: Desk(office), *place)
                    servers.append(server)
                    shown += [show(*sock.getsockname()[:2]) for sock in server.sockets]
            except OSError as error:
                raise _NotBound(f"{where}: {system_words(error)}") from None
        account, warning = account_for(
            loaded.config.user, [place for place in places if not isinstance(place, str)]
        )
        if warning:
            print(f"fastsmtp policy: warning: {warning}", file=sys.stderr)
        become(account)
        office.open(loop)
        stop = asyncio.Event()

        def reload() -> None:
            from fastsmtp.config.load import load

            try:
                service.update(load(flags, is_served=False).settings[:1])
            except ConfigError as error:
                for fault in error.faults:
                    print(f"fastsmtp policy: {fault}", file=sys.stderr)
                return
            office.judge = Judge(service, service.profile(0))

        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload)
        print(f"fastsmtp policy ready: {', '.join(shown)}", flush=True)
        await stop.wait()
    finally:
        for server in servers:
            server.close()
        office.close()
        await service.close()
        for place in places:
            if isinstance(place, str):
                # As another account we may not; the next start does it.
                with suppress(OSError):
                    os.unlink(place)
    return 0
