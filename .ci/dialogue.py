"""A dialogue with an installed server: python dialogue.py /path/to/fastsmtp

Runs outside the source tree with the Python that the wheel was installed
into.  Starts the server on a free port, sends mail with smtplib (plain, then
STARTTLS) and with curl, finds each in the Maildir, stops the server with
SIGTERM and wants exit 0.
"""

from __future__ import annotations

import importlib.util
import pathlib
import re
import signal
import smtplib
import ssl
import subprocess
import sys
import tempfile
import threading
from email.message import EmailMessage

START_S = 60.0
STOP_S = 60.0


def message(subject: str) -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "me@example.net", "you@example.org", subject
    mail.set_content("Hello.\n.\n..two dots\nBye.\n")
    return mail


def ready_port(server: subprocess.Popen[str]) -> int:
    """The port that the ready line names; what the server says before it is shown."""
    assert server.stdout is not None
    watchdog = threading.Timer(START_S, server.kill)
    watchdog.start()
    try:
        for line in server.stdout:
            print(f"server: {line.rstrip()}")
            found = re.search(r"\b127\.0\.0\.1:([1-9]\d*)", line)
            if found:
                return int(found[1])
    finally:
        watchdog.cancel()
    raise SystemExit(f"the server ended with {server.wait()} before it was ready")


def send_with_smtplib(port: int, *, tls: bool) -> None:
    with smtplib.SMTP("127.0.0.1", port, local_hostname="ci.example.net", timeout=30) as client:
        client.ehlo()
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            client.starttls(context=context)
            client.ehlo()
        refused = client.send_message(message("by smtplib over TLS" if tls else "by smtplib"))
        assert not refused, refused


def send_with_curl(port: int, folder: pathlib.Path) -> None:
    mail = folder / "mail"
    mail.write_text("Subject: by curl\n\nHello.\n")
    subprocess.run(
        [
            "curl", "--silent", "--show-error", "--crlf", "--max-time", "30", "--upload-file", mail,
            "--mail-from", "me@example.net", "--mail-rcpt", "you@example.org", f"smtp://127.0.0.1:{port}",
        ],
        check=True,
    )  # fmt: skip


def main(program: str) -> None:
    found = importlib.util.find_spec("fastsmtp")
    assert found is not None and found.origin is not None and "site-packages" in found.origin, found
    print(subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout.strip())
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        maildir = folder / "Maildir"
        server = subprocess.Popen(
            [
                program, "serve", "--listen", "127.0.0.1:0", "--workers", "2", "--hostname", "ci.example.org",
                "--accept", "example.org", "--deliver", f"maildir:{maildir}", "--no-queue",
                "--state", str(folder / "state"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        try:
            port = ready_port(server)
            send_with_smtplib(port, tls=False)
            send_with_smtplib(port, tls=True)
            send_with_curl(port, folder)
            texts = [path.read_bytes() for path in (maildir / "new").iterdir()]
            subjects = sorted(re.findall(rb"^Subject: (.*)$", b"\n".join(texts), re.MULTILINE))
            assert subjects == [b"by curl", b"by smtplib", b"by smtplib over TLS"], subjects
            assert all(text.count(b"\nReceived: ") + text.startswith(b"Received: ") == 1 for text in texts), (
                texts
            )
            assert not any(b"\r" in text for text in texts)
            server.send_signal(signal.SIGTERM)
            rest, _ = server.communicate(timeout=STOP_S)
            print(*(f"server: {line}" for line in rest.splitlines()), sep="\n")
            assert server.returncode == 0, f"SIGTERM ended it with {server.returncode}"
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()
    print("three mails kept, STARTTLS spoken, SIGTERM obeyed")


if __name__ == "__main__":
    main(sys.argv[1])
