"""docs/tls.md is true: its commands make an authority and a client that relays, and revoke it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from fastsmtp.tls_asking import REASONS
from tests.conftest import needs
from tests.integration.daemon import Daemon
from tests.integration.servers import until

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tls.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


class Shell:
    """Runs commands of the page as they stand there, but for the place of the configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.offline = folder / "offline"
        self.offline.mkdir()
        # "fastsmtp" is the one under test; curl finds mx.example.org where the server listens.
        program = folder / "fastsmtp"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m fastsmtp "$@"\n')
        program.chmod(0o755)
        path = f"{folder}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "CURL_HOME": str(folder)}

    def run(self, commands: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-e", "-c", commands.replace("/etc/fastsmtp", str(self.folder))],
            cwd=self.offline,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


SITE = """
[deliver]
default = "maildir:{folder}/mail/{domain}/{local}"
queue = false
"""


@needs("openssl", "curl")
def test_the_page_makes_a_client_that_relays_and_revokes_it() -> None:
    own, authority, client, fingerprint, send, list_, revoke = blocks("sh")
    tls, crl = blocks("toml")
    tls = tls.replace("[relay]\n", "[relay]\nnetworks = []\n").replace("/etc/fastsmtp", "{folder}")
    crl = crl.replace("/etc/fastsmtp", "{folder}").removeprefix("[tls]\n")
    daemon = Daemon(tls + SITE)
    shell = Shell(daemon.folder)
    for commands in (own, authority, client):
        done = shell.run(commands)
        assert done.returncode == 0, done.stderr
    with daemon:
        (daemon.folder / ".curlrc").write_text(f'connect-to = "mx.example.org:25:127.0.0.1:{daemon.port}"\n')
        done = shell.run(send)
        assert done.returncode == 0, done.stderr
        assert b"(cert joe@example.org)" in daemon.one("ann@elsewhere.example").trace
        shown = daemon.wait_for_log("tls")["cert"]
        printed = shell.run(fingerprint).stdout.lower().partition("=")[2].replace(":", "").strip()
        assert shown == f"sha256:{printed}"

        assert shell.run(list_).returncode == 0
        daemon.write(tls.replace("[tls]\n", "[tls]\n" + crl) + SITE)
        daemon.process.signal(signal.SIGHUP)
        daemon.wait_for_log("reload")
        assert shell.run(send).returncode == 0
        done = shell.run(revoke)
        assert done.returncode == 0, done.stderr
        until(lambda: shell.run(send).returncode != 0, "the client is revoked")
        assert daemon.wait_for_log("reject")["reason"] == "Relaying denied: your certificate has been revoked"
        assert len(daemon.mail("ann@elsewhere.example")) >= 2


def test_each_reason_is_on_the_page() -> None:
    said = [reason.removeprefix("cannot be checked: the revocation list ") for reason in REASONS]
    assert [reason for reason in said if reason not in PAGE] == []
