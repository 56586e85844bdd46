"""swaks, curl, smtp-source, openssl s_client and a client that half-closes, against a real server with two workers."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.integration.daemon import PATIENCE_S, Daemon, ran
from tests.peers import path as program

pytestmark = pytest.mark.slow

CONFIG = """
[[listen]]
name = "mx"
[[listen]]
name = "tls"
tls = "implicit"
[[listen]]
name = "proxy"
proxy_from = ["127.0.0.1"]
[[listen]]
name = "proxytls"
proxy_from = ["127.0.0.1"]
tls = "implicit"
[[listen]]
name = "front"
xclient_from = ["127.0.0.1"]
"""

MESSAGE = b"Subject: hello\n\nOne\n.\n..two\n\n"
UTF8_MESSAGE = "Subject: Grüße\n\nSchön\n".encode()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(CONFIG) as one:
        (one.folder / "message.txt").write_bytes(MESSAGE)
        (one.folder / "utf8.txt").write_bytes(UTF8_MESSAGE)
        yield one


# --- swaks ------------------------------------------------------------------------------------------


def swaks(
    daemon: Daemon,
    listener: str,
    recipient: str,
    *options: str,
    sender: str = "a@example.net",
    file: str = "message.txt",
) -> str:
    """One message by swaks; it ends with 0 when it was accepted."""
    return ran(
        program("swaks"), "--server", "127.0.0.1", "--port", str(daemon.ports[listener]),
        "--timeout", str(int(PATIENCE_S)), "--helo", "client.example", "--from", sender, "--to", recipient,
        "--data", f"@{daemon.folder / file}", *options,
    )  # fmt: skip


PROXIED = (
    "--proxy-source", "192.0.2.8", "--proxy-source-port", "4000",
    "--proxy-dest", "192.0.2.1", "--proxy-dest-port", "25",
)  # fmt: skip
V1 = ("--proxy-version", "1", "--proxy-family", "TCP4", *PROXIED)
V2 = ("--proxy-version", "2", "--proxy-family", "AF_INET", *PROXIED)
XCLIENT = ("--xclient-addr", "192.0.2.9", "--xclient-name", "mail.client.example", "--xclient-port", "77")

# How it is sent; what Received says of the client, and of the protocol.
SWAKS: dict[str, tuple[str, tuple[str, ...], bytes, bytes]] = {
    "plain": ("mx", (), b"[127.0.0.1]", b"ESMTP"),
    "HELO": ("mx", ("--protocol", "SMTP"), b"[127.0.0.1]", b"SMTP"),
    "STARTTLS": ("mx", ("--tls",), b"[127.0.0.1]", b"ESMTPS (TLSv1.3 "),
    "STARTTLS, TLS 1.2": ("mx", ("--tls", "--tls-protocol", "tlsv1_2"), b"[127.0.0.1]", b"ESMTPS (TLSv1.2 "),
    "implicit TLS": ("tls", ("--tls-on-connect",), b"[127.0.0.1]", b"ESMTPS (TLSv1.3 "),
    "pipelined": ("mx", ("--pipeline",), b"[127.0.0.1]", b"ESMTP"),
    "PROXY v1": ("proxy", V1, b"[192.0.2.8]", b"ESMTP"),
    "PROXY v2": ("proxy", V2, b"[192.0.2.8]", b"ESMTP"),
    "PROXY v1, STARTTLS": ("proxy", (*V1, "--tls"), b"[192.0.2.8]", b"ESMTPS (TLSv1.3 "),
    "PROXY v2, implicit TLS": ("proxytls", (*V2, "--tls-on-connect"), b"[192.0.2.8]", b"ESMTPS (TLSv1.3 "),
    "XCLIENT": ("front", XCLIENT, b"mail.client.example [192.0.2.9]", b"ESMTP"),
    "XCLIENT, IPv6": (
        "front", ("--xclient", "ADDR=IPV6:2001:db8::9 NAME=[UNAVAILABLE]"), b"[IPv6:2001:db8::9]", b"ESMTP",
    ),
    "XCLIENT behind STARTTLS": (
        "front", (*XCLIENT, "--tls"), b"mail.client.example [192.0.2.9]", b"ESMTPS (TLSv1.3 ",
    ),
    "XCLIENT before STARTTLS": (
        "front", (*XCLIENT, "--tls", "--xclient-before-starttls"),
        b"mail.client.example [192.0.2.9]", b"ESMTPS (TLSv1.3 ",
    ),
}  # fmt: skip


@needs("swaks")
@pytest.mark.parametrize("how", SWAKS)
def test_swaks(daemon: Daemon, how: str) -> None:
    listener, options, client, protocol = SWAKS[how]
    box = "swaks." + re.sub(r"\W+", "-", how.lower()) + "@example.org"
    said = swaks(daemon, listener, box, *options)
    assert "=== Connection closed with remote host." in said, "QUIT is answered, and the end is clean"
    letter = daemon.one(box)
    # swaks puts CRLF behind the file's last one.
    assert letter.text == MESSAGE + b"\n"
    assert b"Received: from client.example (%b)\n" % client in letter.trace
    assert b"(fastsmtp) with %b" % protocol in letter.trace


@needs("swaks")
@pytest.mark.parametrize("tls", [(), ("--tls",)], ids=["plain", "STARTTLS"])
def test_swaks_smtputf8(daemon: Daemon, tls: tuple[str, ...]) -> None:
    """swaks doesn't know SMTPUTF8, and brackets what it is given; xtext (RFC 3461 section 4) may hold ">"."""
    box = f"jörg{len(tls)}@example.org"
    sender = "jürgen@bücher.example> SMTPUTF8 BODY=8BITMIME ENVID=x"
    swaks(daemon, "mx", box, *tls, sender=sender, file="utf8.txt")
    letter = daemon.one(box)
    assert letter.text == UTF8_MESSAGE + b"\n"
    assert letter.sender == "jürgen@bücher.example".encode()
    assert b" with UTF8SMTPS (" in letter.trace if tls else b" with UTF8SMTP id" in letter.trace


@needs("swaks")
@pytest.mark.parametrize(
    ("listener", "options"),
    [("mx", V1), ("mx", V2), ("mx", XCLIENT), ("proxy", ("--proxy", "TCP4 nonsense"))],
    ids=["PROXY v1", "PROXY v2", "XCLIENT", "bad PROXY"],
)
def test_swaks_is_refused(daemon: Daemon, listener: str, options: tuple[str, ...]) -> None:
    """Who is not trusted to name another client does not; who must name one and doesn't is not served."""
    box = "swaks.refused@example.org"
    with pytest.raises(AssertionError):
        swaks(daemon, listener, box, *options)
    assert daemon.mail(box) == []


# --- curl -------------------------------------------------------------------------------------------


def curl(daemon: Daemon, recipient: str, *options: str, status: int = 0, listener: str = "mx") -> str:
    scheme = "smtps" if listener == "tls" else "smtp"
    return ran(
        program("curl"), "--silent", "--show-error", "--verbose", "--max-time", str(int(PATIENCE_S)), "--insecure",
        "--url", f"{scheme}://127.0.0.1:{daemon.ports[listener]}/client.example", "--mail-from", "a@example.net",
        "--mail-rcpt", recipient, "--upload-file", str(daemon.folder / "message.txt"), *options, status=status,
    )  # fmt: skip


@needs("curl")
@pytest.mark.parametrize(
    ("listener", "options", "protocol"),
    [("mx", (), b"ESMTP id"), ("mx", ("--ssl-reqd",), b"ESMTPS (TLSv1."), ("tls", (), b"ESMTPS (TLSv1.")],
    ids=["plain", "STARTTLS", "implicit TLS"],
)
def test_curl(daemon: Daemon, listener: str, options: tuple[str, ...], protocol: bytes) -> None:
    box = f"curl.{listener}.{len(options)}@example.org"
    curl(daemon, box, "--crlf", *options, listener=listener)
    letter = daemon.one(box)
    assert letter.text == MESSAGE
    assert b"Received: from client.example ([127.0.0.1])\n" in letter.trace
    assert b" with " + protocol in letter.trace


@needs("curl")
@pytest.mark.parametrize("options", [(), ("--ssl-reqd",)], ids=["plain", "STARTTLS"])
def test_curl_without_crlf_is_refused_and_told(daemon: Daemon, options: tuple[str, ...]) -> None:
    said = curl(daemon, "curl.lf@example.org", *options, status=8)
    assert re.search(r"< 550 5\.6\.0 Bare <CR> or <LF> received \(id \w+\)", said), said
    assert daemon.mail("curl.lf@example.org") == []


@needs("curl")
def test_curl_asks(daemon: Daemon) -> None:
    url = f"smtp://127.0.0.1:{daemon.ports['mx']}/client.example"
    assert "214 2.0.0 Commands: " in ran(program("curl"), "-sSv", "--url", url)
    assert "252 2.5.2" in ran(
        program("curl"), "-sSv", "--url", url, "--mail-rcpt", "joe", "--request", "VRFY"
    )


# --- smtp-source ------------------------------------------------------------------------------------


def source(daemon: Daemon, recipient: str, *options: str) -> None:
    ran(
        program("smtp-source"), *options, "-f", "a@example.net", "-t", recipient, "-M", "client.example",
        f"127.0.0.1:{daemon.ports['mx']}",
    )  # fmt: skip


# Options; how many messages for the address; octets of text each.
SOURCE: dict[str, tuple[tuple[str, ...], int, int]] = {
    "200 sessions at once": (("-s", "200", "-m", "300", "-l", "2000"), 300, 2_000),
    "many messages a session": (("-d", "-s", "10", "-m", "200", "-l", "2000"), 200, 2_000),
    "a small TCP window": (("-T", "2048", "-s", "5", "-m", "10", "-l", "100000"), 10, 100_000),
    "bigger than memory takes": (("-s", "10", "-m", "10", "-l", "400000"), 10, 400_000),
}


@needs("smtp-source")
@pytest.mark.parametrize("how", SOURCE)
def test_smtp_source(daemon: Daemon, how: str) -> None:
    options, count, size_bytes = SOURCE[how]
    box = "source." + how.replace(" ", "-") + "@example.org"
    source(daemon, box, *options)
    letters = daemon.mail(box)
    assert len(letters) == count
    ids, texts = set(), set()
    for letter in letters:
        head, _, text = letter.text.partition(b"\n\n")
        texts.add(text)
        assert head.startswith(b"From: <a@example.net>\nTo: <%b>\n" % box.encode())
        ids.update(re.findall(rb"^Message-Id: (.*)", head, re.MULTILINE))
    assert len(ids) == count, "each came once"
    (text,) = texts
    # It counts CRLF in the text, but not the one in front of the dot.
    assert len(text.replace(b"\n", b"\r\n")) == size_bytes + 2
    assert re.fullmatch(rb"(\d?X{77,78}\n)+X*\n", text)
    assert len(daemon.wait_for_logs("message", count, rcpt=box)) == count


@needs("smtp-source")
def test_smtp_source_with_many_recipients(daemon: Daemon) -> None:
    source(daemon, "several@example.org", "-s", "5", "-m", "5", "-r", "20", "-l", "500")
    numbers = ["", *range(2, 21)]
    counts = [len(daemon.mail(f"{number}several@example.org")) for number in numbers]
    assert counts == [5] * 20


@needs("smtp-source")
def test_smtp_source_with_a_file(daemon: Daemon) -> None:
    source(daemon, "file@example.org", "-s", "10", "-m", "20", "-F", str(daemon.folder / "message.txt"))
    letters = daemon.mail("file@example.org")
    assert [letter.text for letter in letters] == [MESSAGE + b"\n"] * 20


# --- openssl s_client ---------------------------------------------------------------------------------

DIALOGUE = (
    b"EHLO client.example\nMAIL FROM:<a@example.net>\nRCPT TO:<%b>\nDATA\nSubject: x\n\ntext\n.\nQUIT\n"
)


def s_client(daemon: Daemon, recipient: str, *options: str) -> str:
    return ran(
        program("openssl"), "s_client", "-connect", f"127.0.0.1:{daemon.ports['mx']}", "-starttls", "smtp",
        "-name", "client.example", "-crlf", "-ign_eof", *options, input=DIALOGUE % recipient.encode(),
    )  # fmt: skip


def worker_of(said: str) -> int:
    """The worker that answered: it stands in the session's id (smtp/ids.py)."""
    found = re.search(r"accepted as (\w+)\.1", said)
    assert found, said
    number = 0
    for letter in found[1]:
        number = number << 5 | "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(letter)
    return number >> 10 & 0xFF


@needs("openssl")
@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
def test_a_tls_session_resumes_on_any_worker(daemon: Daemon, version: str) -> None:
    box = f"resumed.{version}@example.org"
    ticket = str(daemon.folder / version)
    first = s_client(daemon, box, f"-{version}", "-sess_out", ticket)
    assert re.search(r"^New, TLSv1\.[23], Cipher is ", first, re.MULTILINE)
    answered_by = {worker_of(first)}
    count = 1
    while len(answered_by) < 2:
        said = s_client(daemon, box, f"-{version}", "-sess_in", ticket)
        assert re.search(r"^Reused, TLSv1\.[23], Cipher is ", said, re.MULTILINE)
        answered_by.add(worker_of(said))
        count += 1
        assert count < 100, "the kernel gives one worker everything"
    assert [letter.text for letter in daemon.mail(box)] == [b"Subject: x\n\ntext\n"] * count
    version_shown = b"TLSv1.3" if version == "tls1_3" else b"TLSv1.2"
    assert all(version_shown in letter.trace for letter in daemon.mail(box))


@needs("openssl")
def test_old_tls_is_refused(daemon: Daemon) -> None:
    command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{daemon.ports['tls']}"]
    said = ran(*command, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", status=None)
    assert "Cipher is (NONE)" in said


# --- a client that shuts its side -----------------------------------------------------------------------


def test_a_client_that_half_closes_gets_all_its_answers(daemon: Daemon) -> None:
    """As `nc -N` with a prepared dialogue."""
    box = b"half@example.org"
    messages = [b"Subject: %d\r\n\r\n" % number + b"x" * 60_000 + b"\r\n" for number in range(3)]
    sent = b"EHLO client.example\r\n"
    for message in messages:
        sent += b"MAIL FROM:<a@example.net>\r\nRCPT TO:<%b>\r\nDATA\r\n%b.\r\n" % (box, message)
    with socket.create_connection(("127.0.0.1", daemon.ports["mx"]), PATIENCE_S) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        got = b"".join(iter(lambda: sock.recv(65_536), b""))
    codes = re.findall(rb"^(\d{3}) ", got, re.MULTILINE)
    assert codes == [b"220", b"250", *[b"250", b"250", b"354", b"250"] * 3]
    found = {letter.text for letter in daemon.mail(box.decode())}
    assert found == {message.replace(b"\r\n", b"\n") for message in messages}


def test_half_a_message_is_none(daemon: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", daemon.ports["mx"]), PATIENCE_S) as sock:
        sock.sendall(
            b"EHLO client.example\r\nMAIL FROM:<a@example.net>\r\nRCPT TO:<cut@example.org>\r\nDATA\r\n"
        )
        sock.sendall(b"Subject: cut\r\n\r\ntext\r\n.")
        sock.shutdown(socket.SHUT_WR)
        got = b"".join(iter(lambda: sock.recv(65_536), b""))
    assert re.findall(rb"^(\d{3}) ", got, re.MULTILINE) == [b"220", b"250", b"250", b"250", b"354"]
    assert daemon.mail("cut@example.org") == []


def test_files_of_the_daemon_stay_in_their_place(daemon: Daemon) -> None:
    """Runs last: nothing is left in tmp, nothing in the spool."""
    assert [path for path in daemon.mailboxes.glob("*/*/tmp/*")] == []
    assert list(Path(daemon.folder / "state" / "spool").iterdir()) == []
