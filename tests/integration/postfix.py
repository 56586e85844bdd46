"""A private Postfix for tests: its own configuration, queue and log, on a loopback port, ended by `postfix stop`.

    with Postfix({"virtual_mailbox_domains": "example.org"}) as postfix:
        ... postfix.port, postfix.xclient_port, postfix.proxy_port ...
        [message] = postfix.wait_for_mail("joe@example.org")

Needs root, as Postfix's master does; mark tests with `needs_postfix`.  Everything is below one
directory of /tmp that Postfix's own account may enter, which pytest's tmp_path is not.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, cast

import pytest

from tests.conftest import needs
from tests.peers import SEARCH_PATH
from tests.ports import free_port

# Long enough for a machine under load; reached only when something hangs.
PATIENCE_S = 60.0

_MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
127.0.0.1:{xclient_port} inet n - n - - smtpd -o smtpd_authorized_xclient_hosts=127.0.0.1 \
-o smtpd_authorized_xforward_hosts=127.0.0.1
127.0.0.1:{proxy_port} inet n - n - - smtpd -o smtpd_upstream_proxy_protocol=haproxy
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
pickup unix n - n 60 1 pickup
postlog unix-dgram n - n - 1 postlogd
"""


_IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0

T = TypeVar("T", bound=Callable[..., object])


def needs_postfix(test: T) -> T:
    """For tests that start one."""
    marked = pytest.mark.skipif(not _IS_ROOT, reason="Postfix starts as root")(test)
    return cast(T, needs("postfix", "postqueue", "sendmail")(marked))


class Postfix:
    """One instance.

    port          plain SMTP: takes mail for its virtual mailboxes, and relays for nobody
    xclient_port  the same, and XCLIENT and XFORWARD are allowed from 127.0.0.1
    proxy_port    the same behind the PROXY protocol
    settings      for main.cf, over the defaults below
    """

    def __init__(
        self, settings: Mapping[str, str] | None = None, mailboxes: tuple[str, ...] = ("joe@example.org",)
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="postfix-"))
        self.directory.chmod(0o755)
        self.port, self.xclient_port, self.proxy_port = free_port(), free_port(), free_port()
        self._mail = self.directory / "mail"
        self._config = self.directory / "etc"
        account = pwd.getpwnam("postfix")
        for name in ("etc", "queue", "data", "mail"):
            (self.directory / name).mkdir()
        for name in ("data", "mail"):
            os.chown(self.directory / name, account.pw_uid, account.pw_gid)
        (self._config / "mailboxes").write_text("".join(f"{address} {address}/\n" for address in mailboxes))
        domains = {address.rpartition("@")[2] for address in mailboxes}
        values = {
            "compatibility_level": "3.6",
            "queue_directory": str(self.directory / "queue"),
            "data_directory": str(self.directory / "data"),
            "maillog_file": str(self.directory / "log"),
            "maillog_file_prefixes": str(self.directory),
            "myhostname": "postfix.example",
            "mydestination": "",
            "mynetworks": "192.0.2.254",
            # Mail from this host is not completed or rewritten: it must arrive as it was sent.
            "local_header_rewrite_clients": "",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "all",
            "alias_maps": "",
            "smtputf8_autodetect_classes": "all",
            "disable_dns_lookups": "yes",
            "smtp_dns_support_level": "disabled",
            "message_size_limit": "104857600",
            "mailbox_size_limit": "0",
            "virtual_mailbox_limit": "0",
            "virtual_mailbox_domains": " ".join(sorted(domains)),
            "virtual_mailbox_base": str(self._mail),
            "virtual_mailbox_maps": f"texthash:{self._config}/mailboxes",
            "virtual_uid_maps": f"static:{account.pw_uid}",
            "virtual_gid_maps": f"static:{account.pw_gid}",
            "smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination",
            "smtpd_client_connection_count_limit": "0",
            "smtpd_peername_lookup": "no",
            **(settings or {}),
        }
        (self._config / "main.cf").write_text(
            "".join(f"{name} = {value}\n" for name, value in values.items())
        )
        ports = {"port": self.port, "xclient_port": self.xclient_port, "proxy_port": self.proxy_port}
        (self._config / "master.cf").write_text(_MASTER.format(**ports))

    def __enter__(self) -> Self:
        try:
            self.run("postfix", "start")
        except BaseException:
            shutil.rmtree(self.directory)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run("postfix", "stop")
        shutil.rmtree(self.directory)

    def run(self, program: str, *arguments: str, input: bytes = b"") -> bytes:
        """One of Postfix's programs on this instance; its output.  Raises AssertionError with its complaint."""
        path = shutil.which(program, path=SEARCH_PATH)
        assert path is not None, program
        command = [path, "-c", str(self._config)] if program == "postfix" else [path, "-C", str(self._config)]
        if program == "postqueue":
            command = [path, "-c", str(self._config)]
        done = subprocess.run(
            [*command, *arguments], input=input, capture_output=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 0, (done.stdout, done.stderr, self.log())
        return done.stdout

    def send(self, sender: str, recipients: tuple[str, ...], message: bytes) -> None:
        """Put a message into its queue, as sendmail(1)."""
        self.run("sendmail", "-i", "-f", sender, *recipients, input=message)

    def queue(self) -> str:
        """What postqueue -p says."""
        return self.run("postqueue", "-p").decode()

    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def mail(self, address: str = "joe@example.org") -> list[bytes]:
        """What has arrived for a mailbox: Maildir files, LF line ends, in the order of arrival."""
        new = self._mail / address / "new"
        files = sorted(new.iterdir(), key=lambda path: path.stat().st_mtime_ns) if new.is_dir() else []
        return [path.read_bytes() for path in files]

    def wait_for_mail(self, address: str = "joe@example.org", count: int = 1) -> list[bytes]:
        self.wait(lambda: len(self.mail(address)) >= count)
        return self.mail(address)

    def wait_for_log(self, text: str) -> None:
        self.wait(lambda: text in self.log())

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until it holds; the log in the AssertionError when it doesn't."""
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end_s, self.log()
            time.sleep(0.02)
