"""fastsmtp remote HOST SENDER RECIPIENT...: one message to one host, in qmail-remote's place.

The message is on standard input, the report goes to standard output (delivery/report.py), and the exit status is
always 0: qmail-rspawn reads nothing else.  It takes standard error for a part of the report, so nothing is
written there, whatever happens.

With a qmail home (config/remote.py) the control files of qmail-remote say how; with --config the [remote],
[[route]] and [[source]] of a configuration.

Rank 10.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastsmtp.config.outgoing import Remote
    from fastsmtp.config.remote import Choice, RemoteHome
    from fastsmtp.config.routes import Route
    from fastsmtp.delivery.lf_file import LfFile
    from fastsmtp.delivery.outcome import Outcome
    from fastsmtp.delivery.starttls import TlsRule

USAGE: Final = (
    "usage: fastsmtp remote [--config FILE | --qmail DIR] [--dns HOST[:PORT]]... HOST SENDER RECIPIENT..."
)
HELP: Final = f"""{USAGE}

Send the message on standard input to HOST (a domain, or what smtproutes makes of it), in qmail-remote's place: the
report, as qmail-rspawn reads it, goes to standard output, and the exit status is 0 whatever becomes of the message.

  --config FILE       [remote], [[route]] and [[source]] of a configuration; without it a qmail home
  --qmail DIR         the qmail home; else $QMAILHOME, or /var/qmail
  --dns HOST[:PORT]   a resolver; may be given again
"""
DEFAULT_HOME: Final = "/var/qmail"
COPY_BYTES: Final = 65_536


def run(arguments: Sequence[str]) -> int:
    """Always 0 for who calls it as qmail-rspawn does; what became of the message is in the report."""
    if list(arguments) in (["--help"], ["-h"]):
        print(HELP, end="")
        return 0
    os.write(1, _report(list(arguments)))
    return 0


def _report(arguments: list[str]) -> bytes:
    from fastsmtp.config.remote import Unusable
    from fastsmtp.delivery.report import fault
    from fastsmtp.errors import ConfigError, TemporaryError

    try:
        options, arguments = _options(arguments)
        if len(arguments) < 3:
            raise _Wrong(f"I (qmail-remote) was invoked improperly; {USAGE}")
        host, sender, *recipients = arguments
        return _deliver(options, host, sender, recipients)
    except _Wrong as error:
        return fault("D", str(error), "5.3.5")
    except (Unusable, ConfigError) as error:
        return fault("Z", f"Unable to use the configuration: {error}", "4.3.0")
    except (OSError, TemporaryError) as error:
        return fault("Z", f"System resources: {error}", "4.3.0")
    except Exception as error:  # noqa: BLE001 - a traceback would be taken for a report; the mail stays where it is
        return fault("Z", f"{type(error).__name__}: {error}", "4.3.0")


class _Wrong(Exception):
    """The command line is."""


class _Options:
    """config, qmail: "" when not given."""

    def __init__(self) -> None:
        self.config = ""
        self.qmail = ""
        self.dns: list[str] = []


def _options(arguments: list[str]) -> tuple[_Options, list[str]]:
    """What stands before HOST; a host never begins with "-"."""
    options = _Options()
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).partition("=")
        if name == "--" and not equals:
            break
        if name not in ("--config", "--qmail", "--dns") or not (equals or rest):
            raise _Wrong(f"{name}: {USAGE}")
        value = value if equals else rest.pop(0)
        if name == "--dns":
            options.dns.append(value)
        else:
            setattr(options, name[2:], value)
    return options, rest


def _deliver(options: _Options, host: str, sender: str, addresses: list[str]) -> bytes:
    """The report.  Raises what _report() turns into one."""
    import asyncio

    from fastsmtp.delivery.report import fault, report

    plan = _of_configuration(options, host, sender) if options.config else _of_home(options, host, sender)
    message = _message(sender, addresses)
    if not message.ends_with_lf:
        return fault("D", "The message has an incomplete last line", "5.6.2")
    return report(asyncio.run(plan.deliver(message)))


# --- how ------------------------------------------------------------------------------------------


class _Plan:
    """All that is known before the first packet.

    helo     for EHLO;  choice  which address to bind, None where the route's sources say it
    home     whose tlshosts say what a server must have; None: the route does
    literal  an address literal stands for the recipients' domain
    """

    def __init__(
        self,
        route: Route,
        remote: Remote,
        helo: str,
        servers: Sequence[str],
        host: str,
        choice: Choice | None = None,
        home: RemoteHome | None = None,
    ) -> None:
        self.route = route
        self.remote = remote
        self.helo = helo
        self.servers = servers
        self.host = host
        self.choice = choice
        self.home = home

    async def deliver(self, message: LfFile) -> Sequence[Outcome]:
        from fastsmtp.delivery.bound import BoundSources
        from fastsmtp.delivery.deliverer import Deliverer
        from fastsmtp.delivery.ourselves import is_ours
        from fastsmtp.delivery.starttls import rule_of_route
        from fastsmtp.hosts import Hosts
        from fastsmtp.resolver import make_resolver

        resolver = make_resolver(self.servers)
        hosts = Hosts(tuple(self.servers))
        deliverer = Deliverer(
            remote=self.remote,
            hostname=self.helo,
            resolver=resolver,
            resolve=hosts.addresses,
            is_us=is_ours,
            rule_for=rule_of_route if self.home is None else self.rule_for,
        )
        if self.choice is not None:
            deliverer.sources = BoundSources(self.helo, self.bound)
        try:
            # HOST decides, not the domain behind the recipients' "@": qmail-send may have rewritten it.
            for recipient in message.envelope.recipients:
                recipient.domain = self.host.lower().encode()
            return await deliverer.deliver(message, message.envelope.recipients, self.route)
        finally:
            await deliverer.close()
            hosts.close()
            resolver.close()

    def bound(self, address: str) -> str:
        """What is bound for a destination address.  Raises errors.NextHopDown, so that the next one is tried."""
        from fastsmtp.config.remote import Unusable
        from fastsmtp.errors import NextHopDown

        assert self.choice is not None
        try:
            return self.choice.towards(address)
        except Unusable as error:
            raise NextHopDown(f"{address}: {error}") from None

    def rule_for(self, route: Route, host: str) -> TlsRule:
        from fastsmtp.delivery.starttls import TlsRule

        assert self.home is not None
        return TlsRule(*self.home.tls_for(host))


def _of_home(options: _Options, host: str, sender: str) -> _Plan:
    """As the control files say.  Raises Unusable before any question to the DNS."""
    from fastsmtp.config.dest import Dest
    from fastsmtp.config.host import Host
    from fastsmtp.config.outgoing import Remote
    from fastsmtp.config.remote import RemoteHome
    from fastsmtp.config.routes import Route
    from fastsmtp.records import replace

    path = options.qmail or os.environ.get("QMAILHOME") or DEFAULT_HOME
    home = RemoteHome(Host(), path, os.environ)
    relay = home.relay_for(host)
    choice = home.sender_address(sender, host, relay)
    wait_s = float(home.remote_s)
    remote = replace(
        Remote(), connect_s=float(home.connect_s), greeting_s=wait_s, handshake_s=wait_s, command_s=wait_s,
        data_s=wait_s, block_s=wait_s, message_s=wait_s, ciphers=home.ciphers, certificate=home.certificate,
    )  # fmt: skip
    dest = Dest("mx")
    if relay is not None and relay.host:
        dest = Dest("smtp", relay.host, relay.port)
    route = Route(str(dest), dest)
    return _Plan(route, remote, choice.helo or home.helohost, options.dns, host, choice, home)


def _of_configuration(options: _Options, host: str, sender: str) -> _Plan:
    """As [remote], [[route]] and [[source]] say; a route that doesn't lead to a server is by MX."""
    from fastsmtp.config.dest import Dest
    from fastsmtp.config.flags import Flags
    from fastsmtp.config.load import load
    from fastsmtp.records import replace

    loaded = load(Flags(config=options.config, dns=tuple(options.dns)), is_served=False)
    config = loaded.config
    settings = loaded.settings[0]
    route = settings.routing.routes.find(sender.lower().encode(), host.lower().encode(), settings.listen.name)
    if route.dest.kind not in ("mx", "smtp"):
        route = replace(route, deliver="mx", dest=Dest("mx"))
    return _Plan(route, config.remote, config.hostname, config.dns.servers, host)


# --- the message ----------------------------------------------------------------------------------


def _message(sender: str, addresses: list[str]) -> LfFile:
    """Standard input as a message that can be read twice; a pipe is copied into a file without a name."""
    import time

    from fastsmtp.delivery.lf_file import LfFile
    from fastsmtp.message import Envelope, Recipient

    recipients = [Recipient(_bytes(address), b"") for address in addresses]
    is_utf8 = not all(one.isascii() for one in (sender, *addresses))
    envelope = Envelope(_bytes(sender), b"", is_smtputf8=is_utf8, recipients=recipients)
    fd, start = _seekable(0)
    return LfFile(fd, f"remote.{os.getpid()}", envelope, int(time.time() * 1000), start)


def _bytes(argument: str) -> bytes:
    return argument.encode(sys.getfilesystemencoding(), "surrogateescape")


def _seekable(fd: int) -> tuple[int, int]:
    """A descriptor of a file, and where in it the message begins."""
    import stat

    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd, os.lseek(fd, 0, os.SEEK_CUR)
    with tempfile.TemporaryFile() as file:
        while piece := os.read(fd, COPY_BYTES):
            file.write(piece)
        file.flush()
        return os.dup(file.fileno()), 0
