"""`fastsmtp serve` and `openssl s_client -cert`: who may relay, and what the others are told."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastsmtp.certificate import make_certificate
from tests.conftest import needs
from tests.integration.daemon import Daemon
from tests.integration.servers import until
from tests.peers import path as program
from tests.pki import CLIENT, Authority, Pair

pytestmark = needs("openssl")

OURS = Authority("Our CA")
THEIRS = Authority("Their CA")
JOE = OURS.issue("Joe@Example.org", purposes=CLIENT)
ANN = OURS.issue(subject_email="ann@example.org")
BOX = OURS.issue(common="a box without an address")
EVE = OURS.issue("eve@example.org")
GONE = OURS.issue("joe@example.org")
OLD = OURS.issue("joe@example.org", days=(-5, -1))
FOREIGN = THEIRS.issue("joe@example.org")

LISTENERS = """
[relay]
networks = []
certificates = "{folder}/tlsclients"
certificates_from = ["127.0.0.1"]
[deliver]
default = "maildir:{folder}/mail/{domain}/{local}"
queue = false
[tls]
client_ca = "{folder}/clientca.pem"
client_crl = "{folder}/clientcrl.pem"
[[listen]]
name = "mx"
[[listen]]
name = "smtps"
tls = "implicit"
[[listen]]
name = "theirs"
[listen.tls]
client_ca = "{folder}/theirs.pem"
"""


class Certificates(Daemon):
    """A daemon with files of ours in its folder."""

    def __init__(self, config: str = LISTENERS) -> None:
        super().__init__(config)
        self.put("clientca.pem", OURS.pem)
        self.put("clientcrl.pem", OURS.revoke(GONE))
        self.put("theirs.pem", THEIRS.pem)
        self.put("tlsclients", f"joe@example.org\nANN@example.org\n{BOX.fingerprint}  # the box\n".encode())

    def put(self, name: str, contents: bytes) -> None:
        """As an editor does it: never half a file."""
        fresh = self.folder / f".{name}.new"
        fresh.write_bytes(contents)
        fresh.rename(self.folder / name)

    def ask(
        self,
        listener: str,
        version: str,
        pair: Pair | None,
        recipient: str,
        *,
        source: str = "127.0.0.1",
        folder: Path,
    ) -> str:
        """The answer to RCPT; see answer_of."""
        port = self.ports[listener]
        return answer_of(
            port, version, pair, recipient, is_implicit=listener == "smtps", source=source, folder=folder
        )


def answer_of(
    port: int,
    version: str,
    pair: Pair | None,
    recipient: str,
    *,
    is_implicit: bool = False,
    source: str = "127.0.0.1",
    folder: Path,
) -> str:
    """What s_client hears to RCPT in a session in TLS; the message is sent where it is 250."""
    command = [
        program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", f"-{version}",
        "-bind", f"{source}:0", "-ign_eof", "-crlf", "-quiet",
    ]  # fmt: skip
    if not is_implicit:
        command += ["-starttls", "smtp"]
    if pair is not None:
        certificate, key = pair.write(folder, "client")
        command += ["-cert", certificate, "-key", key]
    dialogue = f"EHLO client.example\nMAIL FROM:<a@example.net>\nRCPT TO:<{recipient}>\nDATA\n"
    dialogue += "Subject: x\n\ntext\n.\nQUIT\n"
    done = subprocess.run(command, input=dialogue.encode(), capture_output=True, timeout=60, check=False)
    said = done.stdout.decode().splitlines()
    answers = [line for line in said if re.match(r"\d{3} ", line)]
    # EHLO (and the greeting, or the capabilities of STARTTLS), MAIL, RCPT, DATA ...
    at = next(index for index, line in enumerate(answers) if line.startswith("250 2.1.0"))
    return answers[at + 1]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Certificates]:
    running = Certificates()
    with running:
        yield running


NO = "550 5.7.1 Relaying denied: "
WHO: dict[str, tuple[Pair | None, str]] = {
    "joe": (JOE, ""),
    "ann": (ANN, ""),
    "box": (BOX, ""),
    "eve": (EVE, f"{NO}your certificate gives no right to it"),
    "gone": (GONE, f"{NO}your certificate has been revoked"),
    "old": (OLD, f"{NO}your certificate has expired"),
    "foreign": (FOREIGN, f"{NO}your certificate is of an authority that is not known here"),
    "none": (None, f"{NO}you have shown no certificate"),
}


WAYS = [(listener, version) for listener in ("mx", "smtps") for version in ("tls1_2", "tls1_3")]


@pytest.fixture(scope="module")
def answers(daemon: Certificates, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What RCPT was answered, by recipient: everybody has been there, on each way."""
    # pytest's factory is not for several threads.
    folders = tmp_path_factory.mktemp("clients")

    def ask(case: tuple[str, str, str]) -> tuple[str, str]:
        listener, version, who = case
        recipient = f"{who}-{listener}-{version}@elsewhere.example"
        folder = folders / recipient
        folder.mkdir()
        return recipient, daemon.ask(listener, version, WHO[who][0], recipient, folder=folder)

    with ThreadPoolExecutor(4) as pool:
        return dict(pool.map(ask, [(*way, who) for way in WAYS for who in WHO]))


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize(("listener", "version"), WAYS)
def test_who_may_relay(
    daemon: Certificates, answers: dict[str, str], listener: str, version: str, who: str
) -> None:
    pair, refusal = WHO[who]
    recipient = f"{who}-{listener}-{version}@elsewhere.example"
    answer = answers[recipient]
    if refusal:
        assert answer.startswith(refusal)
        line = daemon.wait_for_log("reject", rcpt=recipient)
        assert f"{line['code']} {line['enhanced']} {line['reason']}" == refusal
        assert line["stage"] == "recipient"
        assert daemon.mail(recipient) == []
    else:
        assert answer.startswith("250 2.1.5")
        granted = {"joe": "joe@example.org", "ann": "ann@example.org", "box": BOX.fingerprint}[who]
        assert daemon.wait_for_log("message", rcpt=recipient)["relay_cert"] == granted
        assert f"\n\t(cert {granted})\n".encode() in daemon.one(recipient).trace.replace(b" id ", b"\n", 1)
    shown = daemon.wait_for_log("tls", cert=pair.fingerprint) if pair is not None else {}
    expected = refusal.partition("your certificate ")[2] if pair is not None else ""
    assert shown.get("cert_fault", "") == ("" if who == "eve" else expected)


@pytest.mark.parametrize("who", WHO)
def test_everybody_may_write_to_ours(daemon: Certificates, tmp_path: Path, who: str) -> None:
    answer = daemon.ask("mx", "tls1_3", WHO[who][0], f"{who}@example.org", folder=tmp_path)
    assert answer.startswith("250 2.1.5")


def test_only_clients_of_certificates_from_are_asked(daemon: Certificates, tmp_path: Path) -> None:
    answer = daemon.ask("mx", "tls1_3", JOE, "far@elsewhere.example", source="127.0.0.2", folder=tmp_path)
    assert answer.startswith("550 5.7.1 Relaying denied")
    assert not answer.startswith(NO)
    assert "cert" not in daemon.wait_for_log("tls", client="127.0.0.2")


def test_a_listener_may_have_its_own_authority(daemon: Certificates, tmp_path: Path) -> None:
    """And without the revocation lists of the global one's."""
    yes = daemon.ask("theirs", "tls1_3", FOREIGN, "theirs@elsewhere.example", folder=tmp_path)
    assert yes.startswith("250 2.1.5")
    no = daemon.ask("theirs", "tls1_3", JOE, "ours@elsewhere.example", folder=tmp_path)
    assert no.startswith(f"{NO}your certificate is of an authority")


def test_authorities_lists_and_grants_are_re_read(tmp_path: Path) -> None:
    with Certificates() as daemon:

        def becomes(pair: Pair, start: str) -> None:
            until(
                lambda: daemon.ask("mx", "tls1_3", pair, "a@elsewhere.example", folder=tmp_path).startswith(
                    start
                ),
                start,
            )

        becomes(JOE, "250")
        daemon.put("clientcrl.pem", OURS.revoke(JOE))
        becomes(JOE, f"{NO}your certificate has been revoked")
        assert daemon.log("cert_reloaded", file=f"{daemon.folder}/clientcrl.pem")
        daemon.put("clientcrl.pem", b"not a list")
        assert "holds no revocation list" in daemon.wait_for_log("cert_refused")["reason"]
        becomes(GONE, "250")
        daemon.put("clientca.pem", OURS.pem + THEIRS.pem)
        daemon.put("clientcrl.pem", OURS.revoke())
        becomes(JOE, "250")
        becomes(FOREIGN, f"{NO}your certificate cannot be checked: its authority has no revocation list")
        warned = daemon.wait_for_log("authority_warning")
        assert warned["reason"].startswith("no list of CN=Their CA")
        daemon.put("tlsclients", b"eve@example.org\n")
        becomes(JOE, f"{NO}your certificate gives no right to it")
        becomes(EVE, "250")
        daemon.process.signal(signal.SIGHUP)
        daemon.wait_for_log("reload")
        becomes(EVE, "250")


# --- fastsmtp smtpd -------------------------------------------------------------------------------

SMTPD = """
hostname = "mx.example.org"
[relay]
networks = []
certificates = "{folder}/tlsclients"
[deliver]
default = "maildir:{folder}/mail/{domain}/{local}"
queue = false
[tls]
certificate = "{folder}/server.pem"
key = "{folder}/server.key"
client_ca = "{folder}/clientca.pem"
[policy.mfcheck]
mode = "off"
[policy.helo]
mode = "off"
[policy.reverse_dns]
mode = "off"
[log]
to = "{folder}/log"
format = "json"
"""


@pytest.fixture
def smtpd(tmp_path: Path) -> Path:
    """A folder with a configuration for `fastsmtp smtpd`."""
    Pair(*make_certificate(["mx.example.org"], days=2)).write(tmp_path, "server")
    (tmp_path / "clientca.pem").write_bytes(OURS.pem)
    (tmp_path / "tlsclients").write_text("joe@example.org\n")
    (tmp_path / "fastsmtp.toml").write_text(SMTPD.replace("{folder}", str(tmp_path)))
    return tmp_path


def smtpd_answer(folder: Path, pair: Pair | None) -> str:
    """answer_of one `fastsmtp smtpd`, started as tcpserver does it."""
    command = [sys.executable, "-m", "fastsmtp", "smtpd", "--config", str(folder / "fastsmtp.toml")]
    environment: dict[str, str] = {**os.environ, "TCPREMOTEIP": "127.0.0.1", "PROTO": "TCP"}

    def serve() -> None:
        client, _ = listening.accept()
        with client:
            subprocess.run(
                command,
                stdin=client.fileno(),
                stdout=client.fileno(),
                env=environment,
                timeout=60,
                check=False,
            )

    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve)
        port = listening.getsockname()[1]
        answer = answer_of(port, "tls1_3", pair, "a@elsewhere.example", folder=folder)
        serving.result()
    return answer


@pytest.mark.parametrize("who", ["joe", "eve", "foreign", "none"])
def test_smtpd_asks_as_well(smtpd: Path, who: str) -> None:
    pair, refusal = WHO[who]
    answer = smtpd_answer(smtpd, pair)
    assert answer.startswith(refusal or "250 2.1.5")


def test_smtpd_goes_on_without_its_authorities(smtpd: Path) -> None:
    """A file that breaks later takes no session with it: nobody relays by certificate, that is all."""
    pem = OURS.pem.replace(b"MII", b"!!!", 1)
    (smtpd / "clientca.pem").write_bytes(pem)
    assert smtpd_answer(smtpd, JOE).startswith("550 5.7.1 Relaying denied")
    log = [json.loads(line) for line in (smtpd / "log").read_text().splitlines()]
    (line,) = [line for line in log if line["event"] == "defect"]
    assert (line["what"], "clientca.pem:1: the certificate can't be read" in line["reason"]) == (
        "tls.client_ca",
        True,
    )
