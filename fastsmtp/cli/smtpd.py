"""fastsmtp smtpd: one SMTP session on standard input and output, under tcpserver or inetd, in qmail-smtpd's place.

It starts once for each connection, so nothing is imported here that this session doesn't need: no event loop
without a question to a name server, no TLS without STARTTLS (tests/unit/test_smtpd_start.py).  Rank 10.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself makes enumerations of it, for 4 ms
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastsmtp.config.flags import Flags
    from fastsmtp.config.load import Loaded
    from fastsmtp.config.rules import PythonStage
    from fastsmtp.config.settings import Settings
    from fastsmtp.policy.facts import Client
    from fastsmtp.policy.stage import Stage
    from fastsmtp.sink import DirectSink

DEFAULT_HOME = "/var/qmail"
# Flags of `serve` that mean nothing to one session: tcpserver listens, and has read the rules.
NOT_OURS = ("--listen", "--workers", "--tcprules", "--no-queue", "--state", "--user")
# Reply to a client whose server can't read its configuration (qmail-smtpd: 421 4.3.0 and exit).
NOT_CONFIGURED = b"421 4.3.0 Unable to read the configuration\r\n"
NO_ADDRESS = "0.0.0.0"  # noqa: S104 - of a client that nobody knows: in no network


def run(arguments: Sequence[str]) -> int:
    """0: the session ended as it should; 1: the client went away or was silent, or the configuration is wrong."""
    import gc

    # What is imported stays: looking at it again and again would be a tenth of the start.
    gc.set_threshold(20_000, 20, 100)
    from fastsmtp.errors import ConfigError

    flags = _flags(list(arguments))
    _open_standard_streams()
    try:
        return _serve(flags)
    except ConfigError as error:
        for fault in error.faults:
            print(f"fastsmtp smtpd: {fault}", file=sys.stderr)
        try:
            os.write(1, NOT_CONFIGURED)
        except OSError:
            # Nobody is there to be told.
            return 1
        return 1


def _flags(arguments: list[str]) -> Flags:
    """--config and all other flags of the configuration; without a configuration a qmail home's."""
    from fastsmtp.config.flags import Flags
    from fastsmtp.config.load import DEFAULT_FILE
    from fastsmtp.records import replace

    flags = Flags()
    if arguments:
        from fastsmtp.cli.flags import make_parser, parse_flags

        parser = make_parser(
            "smtpd",
            "One SMTP session on standard input and output, in qmail-smtpd's place. The client's address and its "
            "rule (RELAYCLIENT ...) are in the environment, as tcpserver has it; a rules file is not read.",
            without=NOT_OURS,
            words={"--config": "else /etc/fastsmtp/fastsmtp.toml when it exists, else the qmail home $QMAILHOME, "
                               "or /var/qmail"},
        )  # fmt: skip
        flags, _ = parse_flags(parser, arguments)
    if flags.config is None and flags.qmail is None and not os.path.exists(DEFAULT_FILE):
        flags = replace(flags, qmail=os.environ.get("QMAILHOME") or DEFAULT_HOME)
    return flags


def _serve(flags: Flags) -> int:
    from fastsmtp.config.environment import apply
    from fastsmtp.config.load import load
    from fastsmtp.smtp.alone import Alone, LaterLog, LaterTls, SoleProfile
    from fastsmtp.smtp.single import Single
    from fastsmtp.smtp.wire import Wire

    environment = dict(os.environ)
    loaded = load(flags, is_served=False)
    config = loaded.config
    _refuse_queued(loaded)
    settings = apply(loaded.settings[0], environment)
    client = client_of(environment)
    client.environment = environment
    log = LaterLog(config.log.to, config.log.format)

    def make_sink() -> DirectSink:
        from fastsmtp.queue.disk import InlineDisk
        from fastsmtp.queue.spool import Budget
        from fastsmtp.sink import DirectSink

        return DirectSink(
            disk=InlineDisk(),
            budget=Budget(settings.limits.body_memory_bytes),
            spool_directory=environment.get("TMPDIR") or "/tmp",  # noqa: S108 - files without a name
            hostname=config.hostname,
            log=log,
            qmail_home=_home(flags, loaded),
            is_compatible=settings.is_compatible,
        )

    alone = Alone(loaded, make_sink, log, _own_stages(settings))
    has_tls = settings.listen.tls != "off" and bool(settings.tls.certificate)
    tls = LaterTls(settings.tls, alone.log_failure) if has_tls else None
    profile = SoleProfile(alone, settings, tls)  # type: ignore[arg-type]
    if _needs_loop(loaded):
        alone.loop  # noqa: B018 - made
    is_implicit = has_tls and ("SMTPS" in environment or settings.listen.tls == "implicit")
    wire = Wire(0, 1, alone.now, _stop())
    local = environment.get("TCPLOCALIP") or environment.get("TCP6LOCALIP") or _name_of("getsockname")[0]
    return Single(alone, profile, client, local, wire, is_implicit=is_implicit).serve()


def client_of(environment: Mapping[str, str]) -> Client:
    """Who tcpserver says the client is; under inetd, who the socket says."""
    from fastsmtp.address import Address
    from fastsmtp.policy.facts import Client

    text = environment.get("TCPREMOTEIP") or environment.get("TCP6REMOTEIP") or ""
    port = environment.get("TCPREMOTEPORT") or environment.get("TCP6REMOTEPORT") or ""
    try:
        address = Address(text)
    except ValueError:
        text, port = _name_of("getpeername")
        address = Address(text or NO_ADDRESS)
    client = Client(address, int(port) if port.isascii() and port.isdigit() else 0)
    client.name = environment.get("TCPREMOTEHOST") or environment.get("TCP6REMOTEHOST") or ""
    return client


def _name_of(what: str) -> tuple[str, str]:
    """Address and port of one end of the socket that standard input is; "" and "" when it is none."""
    import socket
    import stat

    if not stat.S_ISSOCK(os.fstat(0).st_mode):
        return "", ""
    with socket.socket(fileno=os.dup(0)) as ours:
        if ours.family not in (socket.AF_INET, socket.AF_INET6):
            return "", ""
        try:
            name = getattr(ours, what)()
        except OSError:
            return "", ""
    return name[0], str(name[1])


def _home(flags: Flags, loaded: Loaded) -> str:
    return flags.qmail or loaded.config.qmail or os.environ.get("QMAILHOME") or DEFAULT_HOME


def _own_stages(settings: Settings) -> Mapping[PythonStage, Stage]:
    if not settings.policy.python:
        return {}
    from fastsmtp.policy.own import load_stages

    return load_stages([settings.policy])


def _places(loaded: Loaded) -> list[str]:
    """Every DEST of the configuration."""
    config = loaded.config
    places = [config.deliver.default, *(one.deliver for one in config.accept)]
    return [*places, *(one.deliver for one in config.route)]


def _refuse_queued(loaded: Loaded) -> None:
    if "mx" in _places(loaded):
        from fastsmtp.errors import ConfigError

        raise ConfigError(
            "deliver: mx needs the queue of `fastsmtp serve`; smtpd hands mail over before the 250"
        )
    config = loaded.config
    if any((config.deliver.user, *(one.user for one in config.accept), *(one.user for one in config.route))):
        from fastsmtp.errors import ConfigError

        raise ConfigError("user: needs the queue of `fastsmtp serve`; smtpd becomes no other account")


def _needs_loop(loaded: Loaded) -> bool:
    """Whether mail goes to a next hop: that is waited for in a loop."""
    return any(place.startswith(("smtp:", "lmtp")) for place in _places(loaded))


def _stop() -> int:
    """A descriptor that becomes readable with SIGTERM: the client is told, and a message that is complete is kept."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    _signal.signal(_signal.SIGTERM, lambda number, frame: None)
    _signal.set_wakeup_fd(write_end)
    # Ignored by some who start us, and then no child of ours could be waited for.
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    return read_end


def _open_standard_streams() -> None:
    """Descriptors 0 to 2 that were closed become /dev/null: else a file or a pipe of ours would be one of them."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
