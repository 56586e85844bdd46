"""Python's smtplib against a real server: plain, STARTTLS, implicit TLS, SMTPUTF8, many recipients, refusals."""

from __future__ import annotations

import email.message
import smtplib
import socket
import ssl
from collections.abc import Iterator

import pytest

from tests.integration.daemon import ACCEPT, PATIENCE_S, Daemon

pytestmark = pytest.mark.slow

CONFIG = """
[[listen]]
name = "mx"
[[listen]]
name = "tls"
tls = "implicit"
[[listen]]
name = "strict"
tls = "required"
[[listen]]
name = "small"
[listen.limits]
message_bytes = 10_000
recipients = 5
errors = 3
[[listen]]
name = "normal"
bare_newline = "normalize"
[[accept]]
domain = "listed.example"
recipients = "{folder}/recipients"
deliver = "maildir:{folder}/mail/{domain}/{local}"
"""

TEXT = b"Subject: hello\r\n\r\nOne\r\n.\r\n..two\r\n\r\n"
STORED = TEXT.replace(b"\r\n", b"\n")
SENDER = "a@example.net"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    one = Daemon(CONFIG, accept=ACCEPT)
    (one.folder / "recipients").write_text("joe@listed.example\n# sue@listed.example\n")
    with one:
        yield one


def connect(daemon: Daemon, listener: str = "mx") -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", daemon.ports[listener], "client.example", PATIENCE_S)


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_plain(daemon: Daemon) -> None:
    with connect(daemon) as client:
        assert client.sendmail(SENDER, "plain@example.org", TEXT) == {}
    letter = daemon.one("plain@example.org")
    assert letter.text == STORED
    assert (letter.sender, letter.recipient) == (b"a@example.net", b"plain@example.org")
    assert (
        b"Received: from client.example ([127.0.0.1])\n\tby mx.example.org (fastsmtp) with ESMTP "
        in letter.trace
    )
    assert b"\tfor <plain@example.org>;\n" in letter.trace


def test_helo_gives_smtp(daemon: Daemon) -> None:
    with connect(daemon) as client:
        client.helo()
        assert client.mail(SENDER)[0] == 250
        assert client.rcpt("helo@example.org")[0] == 250
        assert client.data(TEXT)[0] == 250
    assert b" with SMTP id " in daemon.one("helo@example.org").trace


def test_starttls(daemon: Daemon) -> None:
    with connect(daemon) as client:
        client.starttls(context=trusting())
        client.sendmail(SENDER, "starttls@example.org", TEXT)
    letter = daemon.one("starttls@example.org")
    assert letter.text == STORED
    assert b" with ESMTPS (TLSv1.3 TLS_" in letter.trace


def test_implicit_tls(daemon: Daemon) -> None:
    with smtplib.SMTP_SSL(
        "127.0.0.1", daemon.ports["tls"], "client.example", timeout=PATIENCE_S, context=trusting()
    ) as client:
        client.sendmail(SENDER, "implicit@example.org", TEXT)
    assert daemon.one("implicit@example.org").text == STORED


def test_required_tls(daemon: Daemon) -> None:
    with connect(daemon, "strict") as client:
        with pytest.raises(smtplib.SMTPSenderRefused) as refused:
            client.sendmail(SENDER, "strict@example.org", TEXT)
        assert (refused.value.smtp_code, refused.value.smtp_error[:5]) == (530, b"5.7.0")
        client.starttls(context=trusting())
        client.sendmail(SENDER, "strict@example.org", TEXT)
    assert daemon.one("strict@example.org").text == STORED


def test_smtputf8(daemon: Daemon) -> None:
    message = email.message.EmailMessage()
    message["From"] = "jörg@bücher.example"
    message["To"] = "grüße@example.org"
    message["Subject"] = "Grüße"
    message.set_content("Ein schöner Text.\n", cte="8bit")
    with connect(daemon) as client:
        client.send_message(message)
    letter = daemon.one("grüße@example.org")
    assert b" with UTF8SMTP id " in letter.trace
    assert letter.sender == "jörg@bücher.example".encode()
    assert "\tfor <grüße@example.org>;\n".encode() in letter.trace
    assert "Subject: Grüße\n".encode() in letter.text
    assert letter.text.endswith("\n\nEin schöner Text.\n".encode())


def test_many_recipients_in_one_transaction(daemon: Daemon) -> None:
    """More than the 100 that RFC 5321 section 4.5.3.1.8 demands."""
    recipients = [f"many{number}@example.org" for number in range(101)]
    with connect(daemon) as client:
        assert client.sendmail(SENDER, recipients, TEXT) == {}
    letters = [daemon.one(recipient) for recipient in recipients]
    assert {letter.text for letter in letters} == {STORED}
    assert [letter.recipient.decode() for letter in letters] == recipients
    (trace,) = {letter.trace.split(b"\n", 2)[2] for letter in letters}
    assert b"for <" not in trace, "nobody learns who else got it"
    line = daemon.wait_for_log("message", rcpts=101)
    assert line["from"] == SENDER


def test_many_messages_on_one_connection(daemon: Daemon) -> None:
    with connect(daemon) as client:
        for number in range(50):
            client.sendmail(SENDER, "row@example.org", TEXT + b"%d\r\n" % number)
    found = {letter.text for letter in daemon.mail("row@example.org")}
    assert found == {STORED + b"%d\n" % number for number in range(50)}


def test_the_null_sender_and_a_quoted_local_part(daemon: Daemon) -> None:
    with connect(daemon) as client:
        client.sendmail("<>", ['"a b/../c"@example.org'], TEXT)
    letter = daemon.one('"a b/../c"@example.org')
    assert (letter.sender, letter.text) == (b"", STORED)
    assert (daemon.mailboxes / "example.org" / "a%20b%2F..%2Fc" / "new").is_dir()


def test_postmaster(daemon: Daemon) -> None:
    """RFC 5321 section 4.5.1: without a domain, in any case, and at every accepted domain, list or not."""
    with connect(daemon) as client:
        client.sendmail(SENDER, ["Postmaster"], TEXT)
        client.sendmail(SENDER, ["PostMaster@listed.example"], TEXT)
    assert daemon.one("postmaster@mx.example.org").text == STORED
    assert daemon.one("postmaster@listed.example").text == STORED


def test_unknown_and_foreign_recipients(daemon: Daemon) -> None:
    with connect(daemon) as client:
        recipients = ["joe@listed.example", "sue@listed.example", "joe@elsewhere.example"]
        refused = client.sendmail(SENDER, recipients, TEXT)
    # From loopback, which may relay; but nothing says where such mail would go.
    assert {name: (code, text[:5]) for name, (code, text) in refused.items()} == {
        "sue@listed.example": (550, b"5.1.1"),
        "joe@elsewhere.example": (550, b"5.7.1"),
    }
    assert daemon.one("joe@listed.example").text == STORED


def test_limits_of_a_listener(daemon: Daemon) -> None:
    with connect(daemon, "small") as client:
        with pytest.raises(smtplib.SMTPSenderRefused) as declared:
            client.sendmail(SENDER, "big@example.org", b"x" * 20_000)
        assert (declared.value.smtp_code, declared.value.smtp_error[:5]) == (552, b"5.3.4")
        client.mail(SENDER)
        client.rcpt("big@example.org")
        code, text = client.data(b"Subject: x\r\n\r\n" + b"x" * 70 + b"\r\n" * 20_000)
        assert (code, text[:5]) == (552, b"5.3.4")
        client.mail(SENDER)
        codes = [client.rcpt(f"few{number}@example.org")[0] for number in range(6)]
        assert codes == [250] * 5 + [452]
        # The third refusal was the last.
        code, text = client.docmd("NOOP")
        assert (code, text[:5]) == (421, b"4.7.0")


@pytest.mark.parametrize("text", [b"a\0b\r\n", b"a\r\n\0\r\n"])
def test_nul_in_data(daemon: Daemon, text: bytes) -> None:
    with connect(daemon) as client:
        client.ehlo()
        client.mail(SENDER)
        client.rcpt("nul@example.org")
        code, said = client.data(text)
        assert (code, said[:5]) == (550, b"5.6.0")
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()
    assert daemon.mail("nul@example.org") == []


@pytest.mark.parametrize("listener", ["mx", "normal"])
def test_bare_newlines(daemon: Daemon, listener: str) -> None:
    """A bare LF is refused, or a line end inside the text; LF . LF and its like never end it."""
    box = f"bare.{listener}@example.org"
    raw = b"Subject: x\n\r\none\n.\ntwo\n.\r\nthree\r\n.\nfour\rfive\n.\r\r\n.\r\n"
    with connect(daemon, listener) as client:
        client.ehlo()
        client.mail(SENDER)
        client.rcpt(box)
        client.docmd("DATA")
        assert isinstance(client.sock, socket.socket)
        client.sock.sendall(raw)
        code, said = client.getreply()
        if listener == "mx":
            assert (code, said[:5]) == (550, b"5.6.0")
            assert daemon.mail(box) == []
            return
        assert code == 250
        assert client.noop()[0] == 250, "nothing of it was read as a command"
    # A dot is taken off where the sender put one: behind CRLF.
    assert daemon.one(box).text == b"Subject: x\n\none\n.\ntwo\n.\nthree\n\nfour\nfive\n.\n\n"


def test_help_noop_vrfy_rset_quit(daemon: Daemon) -> None:
    with connect(daemon) as client:
        assert b"HELO EHLO MAIL RCPT DATA BDAT" in client.help()
        assert client.noop()[0] == 250
        assert client.verify("joe")[0] == 252
        client.ehlo()
        client.mail(SENDER)
        assert client.rset()[0] == 250
        assert client.rcpt("joe@example.org")[0] == 503
        assert client.quit()[0] == 221
