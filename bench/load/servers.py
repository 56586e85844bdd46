"""The servers that are loaded side by side: how each is started, and what it does with a message.

Each entry says which rules run and what is durable, because a figure without
that means nothing.  All listen on a port of 127.0.0.1 and write only below
the folder that they are given.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
HERE = pathlib.Path(__file__).resolve().parent
NODE_MODULES = ROOT / "build" / "peers" / "node_modules"
SBIN = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

START_S = 30.0
STOP_S = 20.0


@dataclass(frozen=True)
class Site:
    """Where one server lives while it is measured."""

    folder: pathlib.Path
    port: int
    recipients: pathlib.Path
    workers: int = 1


@dataclass(frozen=True)
class Server:
    """One line of the table.

    rules, durability   in full, above the tables
    does        the same in a few words, in each line of a table: a server that does less says so there
    command     what to run; the process that stays is the root of what is measured
    absent      why it can't run here, or None
    version     a short text
    stop        the command that ends it, if not SIGTERM
    process_each  it has a process for each connection: idle ones are on another scale
    peer_group  "all": only measured when asked for
    """

    name: str
    rules: str
    durability: str
    does: str
    command: Callable[[Site], list[str]]
    absent: Callable[[], str | None]
    version: Callable[[], str]
    stop: Callable[[Site], list[str]] | None = None
    process_each: bool = False
    peer_group: str = "default"


@dataclass
class Running:
    server: Server
    site: Site
    pid: int


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- fastsmtp ---------------------------------------------------------------------------------------------

CHECKED = """
hostname = "bench.example.org"
state = "{folder}/state"
workers = {workers}
[[listen]]
address = ["127.0.0.1:{port}"]
[tls]
certificate = "{folder}/cert.pem"
key = "{folder}/key.pem"
[limits]
connections_per_client = 10_000
connections_per_client_per_min = 1_000_000
messages_per_client_per_min = 10_000_000
recipients_per_client_per_min = 10_000_000
handshakes_per_client_per_min = 1_000_000
[relay]
networks = []
[[accept]]
domain = ["example.org"]
recipients = "{recipients}"
deliver = "discard"
[deliver]
queue = false
[policy.mfcheck]
mode = "off"
[policy.helo]
mode = "off"
[policy.reverse_dns]
mode = "off"
[log]
to = "{folder}/log"
"""

BARE = """
hostname = "bench.example.org"
state = "{folder}/state"
workers = {workers}
[[listen]]
address = ["127.0.0.1:{port}"]
[tls]
certificate = "{folder}/cert.pem"
key = "{folder}/key.pem"
[limits]
connections_per_client = 0
[relay]
networks = ["127.0.0.0/8"]
[[accept]]
domain = ["example.org"]
recipients = "any"
deliver = "discard"
[deliver]
queue = false
[policy]
mode = "off"
[log]
to = "/dev/null"
"""


# The same with the queue: every message is synced before its 250, and then discarded like mail of any other route.
DURABLE = (
    CHECKED.replace("queue = false", "queue = true")
    + """
[queue]
free_bytes = 0
"""
)


def make_certificate(folder: pathlib.Path) -> None:
    """An ECDSA P-256 key and certificate, the same kind for every server."""
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", "30", "-subj", "/CN=bench.example.org",
            "-addext", "subjectAltName=DNS:bench.example.org",
            "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    (folder / "key.pem").chmod(0o600)


def fastsmtp_command(text: str) -> Callable[[Site], list[str]]:
    def command(site: Site) -> list[str]:
        make_certificate(site.folder)
        configuration = site.folder / "fastsmtp.toml"
        configuration.write_text(
            text.format(
                folder=site.folder, port=site.port, recipients=site.recipients, workers=site.workers
            ).lstrip()
        )
        return [sys.executable, "-m", "fastsmtp", "serve", "--config", str(configuration)]

    return command


def _fastsmtp_absent() -> str | None:
    done = subprocess.run(
        [sys.executable, "-m", "fastsmtp", "--version"], cwd=ROOT, capture_output=True, check=False
    )
    return None if done.returncode == 0 else "it is not built (make build)"


# --- Postfix ----------------------------------------------------------------------------------------------

POSTFIX_MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/spool
data_directory = {folder}/data
mail_owner = postfix
setgid_group = postdrop
maillog_file = {folder}/mail.log
maillog_file_prefixes = {folder}
myhostname = bench.example.org
mydestination =
mynetworks =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
relay_domains = example.org
relay_recipient_maps = {tables}:{folder}/recipients
relay_transport = discard:
default_transport = error:none
smtpd_relay_restrictions = reject_unauth_destination
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
default_process_limit = 100
message_size_limit = 52428800
alias_maps =
alias_database =
local_recipient_maps =
"""

POSTFIX_MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
pickup    unix n - n 60 1 pickup
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 300 1 qmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
verify    unix - - n - 1 verify
flush     unix n - n 1000? 0 flush
proxymap  unix - - n - - proxymap
showq     unix n - n - - showq
error     unix - - n - - error
retry     unix - - n - - error
discard   unix - - n - - discard
anvil     unix - - n - 1 anvil
postlog   unix-dgram n - n - 1 postlogd
"""


def _postfix_tables() -> str:
    return "lmdb" if "lmdb" in _output("/usr/sbin/postconf", "-m").split() else "hash"


def postfix_command(site: Site, main: str = POSTFIX_MAIN, master: str = POSTFIX_MASTER) -> list[str]:
    for name in ("etc", "spool", "data"):
        (site.folder / name).mkdir()
    owner = pwd.getpwnam("postfix")
    os.chown(site.folder / "data", owner.pw_uid, owner.pw_gid)
    values = {"folder": site.folder, "port": site.port, "tables": _postfix_tables()}
    (site.folder / "etc" / "main.cf").write_text(main.format(**values).lstrip())
    (site.folder / "etc" / "master.cf").write_text(master.format(**values).lstrip())
    table = site.folder / "recipients"
    table.write_text("".join(f"{line} x\n" for line in site.recipients.read_text().split()))
    subprocess.run(
        ["/usr/sbin/postmap", "-c", str(site.folder / "etc"), f"{values['tables']}:{table}"], check=True
    )
    return ["/usr/sbin/postfix", "-c", str(site.folder / "etc"), "start-fg"]


def _postfix_absent() -> str | None:
    if not shutil.which("postfix", path=SBIN):
        return "not installed (Debian: postfix)"
    return None if os.getuid() == 0 else "its master wants root"


# --- the others -------------------------------------------------------------------------------------------


def smtp_sink_command(site: Site) -> list[str]:
    sink = shutil.which("smtp-sink", path=SBIN) or "smtp-sink"
    user = ["-u", "nobody"] if os.getuid() == 0 else []
    return [sink, *user, "-m", "20000", "-h", "bench.example.org", f"127.0.0.1:{site.port}", "4096"]


def haraka_command(site: Site) -> list[str]:
    folder = site.folder / "haraka"
    (folder / "config").mkdir(parents=True)
    (folder / "plugins").mkdir()
    for name, text in {
        "smtp.ini": f"listen=127.0.0.1:{site.port}\nnodes=0\n",
        # It wants every section of the file that it ships.
        "connection.ini": (NODE_MODULES / "Haraka" / "config" / "connection.ini").read_text(),
        "plugins": "accept\ndiscard\n",
        "loglevel": "ERROR\n",
        "me": "bench.example.org\n",
    }.items():
        (folder / "config" / name).write_text(text)
    (folder / "plugins" / "accept.js").write_text(
        "exports.hook_rcpt = (next) => next(OK);\n"
        "exports.hook_mail = (next) => next(OK);\n"
        'exports.hook_lookup_rdns = (next) => next(OK, "unknown");\n'
    )
    (folder / "plugins" / "discard.js").write_text("exports.hook_queue = (next) => next(OK);\n")
    return ["node", str(NODE_MODULES / "Haraka" / "bin" / "haraka"), "-c", str(folder)]


def _npm_absent(package: str) -> Callable[[], str | None]:
    def absent() -> str | None:
        if not shutil.which("node"):
            return "node is not installed (Debian: nodejs npm)"
        return None if (NODE_MODULES / package).exists() else "not installed (make bench PEERS=all)"

    return absent


def _npm_version(package: str) -> Callable[[], str]:
    def version() -> str:
        text = (NODE_MODULES / package / "package.json").read_text()
        found = re.search(r'"version":\s*"([^"]+)"', text)
        return f"{found[1] if found else '?'} on node {_output('node', '--version')}"

    return version


def _module_version(module: str) -> str:
    return _output(
        sys.executable, "-c", f"from importlib.metadata import version; print(version('{module}'))"
    )


def _missing_module(module: str) -> str | None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}, uvloop"], capture_output=True, check=False
    )
    return None if done.returncode == 0 else f"{module} is not installed (pip install {module})"


def _postfix_version() -> str:
    return _output("/usr/sbin/postconf", "-dh", "mail_version")


SMTP_SINK = "smtp-sink"
POSTFIX = "Postfix smtpd"

QUEUE = Server(
    name="fastsmtp, queue",
    rules="as with all checks",
    durability="its queue (fdatasync before the 250, many messages share one), then discard; all its processes counted",
    does="checks, Received, log; synced, then discarded",
    command=fastsmtp_command(DURABLE),
    absent=_fastsmtp_absent,
    version=lambda: _output(sys.executable, "-m", "fastsmtp", "--version"),
)

SERVERS = [
    Server(
        name="fastsmtp, all checks",
        rules="relay control, recipients from the list, limits in all and for each client, header and hop"
        " count, Received, one log line a message to a file",
        durability="none (discard)",
        does="checks, Received, log; keeps nothing",
        command=fastsmtp_command(CHECKED),
        absent=_fastsmtp_absent,
        version=lambda: _output(sys.executable, "-m", "fastsmtp", "--version"),
    ),
    Server(
        name="fastsmtp, no policy",
        rules="none: relay clients, any recipient, policy off; log to /dev/null",
        durability="none (discard)",
        does="no checks; keeps nothing",
        command=fastsmtp_command(BARE),
        absent=_fastsmtp_absent,
        version=lambda: _output(sys.executable, "-m", "fastsmtp", "--version"),
    ),
    Server(
        name=SMTP_SINK,
        rules="none, no Received, no log",
        durability="none",
        does="no checks, no Received; keeps nothing",
        command=smtp_sink_command,
        absent=lambda: None if shutil.which("smtp-sink", path=SBIN) else "not installed (Debian: postfix)",
        version=lambda: f"Postfix {_postfix_version()}",
    ),
    Server(
        name=POSTFIX,
        rules="relay control, recipients from the same list, Received, its log to a file",
        durability="its queue (fsync), then discard(8); all its processes counted",
        does="checks, Received, log; synced, then discarded",
        command=postfix_command,
        absent=_postfix_absent,
        version=_postfix_version,
        stop=lambda site: ["/usr/sbin/postfix", "-c", str(site.folder / "etc"), "abort"],
        process_each=True,
    ),
    Server(
        name="aiosmtpd on uvloop",
        rules="none, no Received, no log",
        durability="none",
        does="no checks, no Received; keeps nothing",
        command=lambda site: [sys.executable, str(HERE / "peers" / "aiosmtpd_server.py"), str(site.port)],
        absent=lambda: _missing_module("aiosmtpd"),
        version=lambda: f"{_module_version('aiosmtpd')}, uvloop {_module_version('uvloop')}",
    ),
    Server(
        name="node smtp-server",
        rules="none, no Received, no log",
        durability="none",
        does="no checks, no Received; keeps nothing",
        command=lambda site: ["node", str(HERE / "peers" / "smtp_server.js"), str(site.port)],
        absent=_npm_absent("smtp-server"),
        version=_npm_version("smtp-server"),
        peer_group="all",
    ),
    Server(
        name="Haraka",
        rules="none, Received, no log",
        durability="none (a queue hook that says OK)",
        does="no checks; keeps nothing",
        command=haraka_command,
        absent=_npm_absent("Haraka"),
        version=_npm_version("Haraka"),
        peer_group="all",
    ),
]


def relaying(server: Server, next_hop_port: int) -> Server:
    """QUEUE or Postfix with all mail sent on to a next hop, over connections that are kept."""
    next_hop = f"127.0.0.1:{next_hop_port}"
    if server is QUEUE:
        return replace(
            server,
            name="fastsmtp, relay",
            does="checks, Received, log; synced, then sent on",
            durability="its queue (fdatasync before the 250, many messages share one), then smtp:// to smtp-sink",
            command=fastsmtp_command(DURABLE.replace('"discard"', f'"smtp://{next_hop}"')),
        )
    # Connections are cached on demand, as by default; the cache is a service.
    main = POSTFIX_MAIN.replace("discard:", "smtp:[127.0.0.1]:" + str(next_hop_port))
    master = POSTFIX_MASTER + "smtp      unix - - n - - smtp\nscache    unix - - n - 1 scache\n"
    return replace(
        server,
        name="Postfix, relay",
        does="checks, Received, log; synced, then sent on",
        durability="its queue (fsync), then smtp(8) to smtp-sink",
        command=lambda site: postfix_command(site, main, master),
    )


@contextlib.contextmanager
def counting_sink(folder: pathlib.Path) -> Iterator[tuple[int, Callable[[], int]]]:
    """An smtp-sink that is nobody's child: (its port, how many messages it has taken so far)."""
    folder.mkdir(mode=0o755)
    site = Site(folder, free_port(), folder)
    counters = folder / "counters"
    command = smtp_sink_command(site)
    with counters.open("wb") as output:
        process = subprocess.Popen(
            [command[0], "-c", *command[1:]], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )

    def taken() -> int:
        with counters.open("rb") as file:
            file.seek(max(0, counters.stat().st_size - 400))
            found = re.findall(rb"mesg=(\d+)", file.read())
        return int(found[-1]) if found else 0

    try:
        _wait_for_greeting(process, site, counters)
        yield site.port, taken
    finally:
        process.terminate()
        process.wait()


def behind_slow_next_hop(next_hop_port: int) -> Server:
    """Ours with everything relayed live to a next hop, so that the next hop can hold a client back at RCPT."""
    text = CHECKED.replace('"discard"', f'"smtp://127.0.0.1:{next_hop_port}"')
    return replace(SERVERS[0], name="fastsmtp, slow next hop", command=fastsmtp_command(text))


def with_tarpit() -> Server:
    """Ours with all checks, and a tarpit in which every recipient is for as long as one can be."""
    text = CHECKED + "[policy.tarpit]\nafter_recipients = 1\ndelay_s = 225\n"
    return replace(SERVERS[0], name="fastsmtp, tarpit", command=fastsmtp_command(text))


def with_implicit_tls(port: int) -> Server:
    """Ours with all checks and a second listener, on which TLS comes first: nothing is said in clear."""
    text = CHECKED + f'[[listen]]\naddress = ["127.0.0.1:{port}"]\ntls = "implicit"\n'
    return replace(SERVERS[0], name="fastsmtp, implicit TLS", command=fastsmtp_command(text))


def install_npm_peers() -> None:
    """Fetch node's servers into build/peers; without npm they are left out with the reason."""
    if shutil.which("npm") and any(not (NODE_MODULES / name).exists() for name in ("smtp-server", "Haraka")):
        NODE_MODULES.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "install", "--no-save", "--no-audit", "--no-fund", "--omit=optional", "--prefix",
             str(NODE_MODULES.parent), "smtp-server", "Haraka"],
            check=False,
        )  # fmt: skip


def _wait_for_greeting(process: subprocess.Popen[bytes], site: Site, log: pathlib.Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", site.port), 2) as probe:
            probe.settimeout(5)
            if probe.recv(3) == b"220":
                probe.sendall(b"QUIT\r\n")
                return
        if process.poll() not in (None, 0):
            break
        time.sleep(0.05)
    raise RuntimeError(f"it does not answer on port {site.port}:\n{log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def running(
    server: Server, folder: pathlib.Path, recipients: pathlib.Path, workers: int = 1
) -> Iterator[Running]:
    """Start a server below a fresh folder, wait until it greets, stop it at the end."""
    folder.mkdir(mode=0o755)
    site = Site(folder, free_port(), recipients, workers)
    log = folder / "output"
    environment = {**os.environ, "NODE_PATH": str(NODE_MODULES)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            server.command(site),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
        )
    try:
        _wait_for_greeting(process, site, log)
        yield Running(server, site, process.pid)
    finally:
        if server.stop:
            subprocess.run(server.stop(site), check=False, capture_output=True)
        else:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
