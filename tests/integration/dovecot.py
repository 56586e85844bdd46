"""A private Dovecot for tests, of which only the LMTP server runs: on a port, and on a socket in a directory.

    with Dovecot(certificate) as dovecot:
        ... dovecot.dest, dovecot.unix, dovecot.wait_for_mail("joe", 1), dovecot.make_room() ...

Needs root, since each of its processes becomes somebody else; mark tests with NEEDS_DOVECOT.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.conftest import needs
from tests.integration.servers import Process, until
from tests.peers import path
from tests.ports import free_port

ACCOUNT = "mail"
"""Whose the mail is; of Debian's base-passwd."""

_CONFIG = """\
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
protocols = lmtp
hostname = dovecot.example
postmaster_address = postmaster@dovecot.example
mail_location = maildir:{folder}/mail/%n
mail_uid = {account}
mail_gid = {account}
first_valid_uid = 1
first_valid_gid = 1
{tls}
# Over quota is 452 where the last word is "yes".
quota_full_tempfail = {is_later}
mail_plugins = quota
plugin {{
  quota = maildir
}}
passdb {{
  driver = passwd-file
  args = {folder}/users
}}
userdb {{
  driver = passwd-file
  args = {folder}/users
}}
service lmtp {{
  unix_listener {folder}/lmtp.socket {{
    mode = 0666
  }}
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {port}
  }}
}}
"""


NEEDS_DOVECOT = (
    needs("dovecot", "/usr/lib/dovecot/lmtp"),
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="Dovecot starts as root"),
)
"""The marks of a test that starts one."""


class Dovecot:
    """One instance.

    certificate  PEM with key and certificate; None: it has no STARTTLS
    is_later     what a full mailbox says: 452 where that is true, 552 else

    It takes mail of example.org: for joe and ann; for "full", who has no room before make_room(); for nobody
    else.  Who has room is found out at the dot.
    """

    def __init__(self, certificate: bytes | None = None, *, is_later: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dovecot-"))
        self.folder.chmod(0o755)
        account = pwd.getpwnam(ACCOUNT)
        (self.folder / "mail").mkdir()
        os.chown(self.folder / "mail", account.pw_uid, account.pw_gid)
        tls = "ssl = no"
        if certificate is not None:
            file = self.folder / "certificate.pem"
            file.write_bytes(certificate)
            file.chmod(0o600)
            tls = f"ssl = yes\nssl_cert = <{file}\nssl_key = <{file}"
        port = free_port()
        self._config = self.folder / "dovecot.conf"
        self._config.write_text(
            _CONFIG.format(
                folder=self.folder,
                account=ACCOUNT,
                tls=tls,
                is_later="yes" if is_later else "no",
                port=port,
            )
        )
        self._write_users("bytes=10")
        self.dest = f"lmtp://127.0.0.1:{port}"
        self.unix = f"lmtp+unix:{self.folder}/lmtp.socket"

    def _write_users(self, room: str) -> None:
        new = self.folder / "users.new"
        new.write_text(
            f"joe@example.org::::::\nann@example.org::::::\nfull@example.org:::::::userdb_quota_rule=*:{room}\n"
        )
        new.chmod(0o644)
        new.rename(self.folder / "users")

    def start(self) -> None:
        started = self.log().count("starting up for lmtp")
        self._process = Process([path("dovecot"), "-F", "-c", str(self._config)])
        until(lambda: self.log().count("starting up for lmtp") > started, "it has started")

    def stop(self) -> None:
        self._process.signal(signal.SIGTERM)
        self._process.end()
        self._process.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._remove()

    def _remove(self) -> None:
        self._process.close()
        # Its processes end behind their master, and some write files then.
        shutil.rmtree(self.folder, ignore_errors=True)

    def stopped(self) -> AbstractContextManager[None]:
        """The kernel takes connections, and nobody greets them: its master starts who does."""
        return self._process.suspended()

    def make_room(self) -> None:
        """From now on "full" gets its mail."""
        self._write_users("bytes=100M")

    def mail(self, user: str) -> list[bytes]:
        """What has arrived, in no order."""
        return [file.read_bytes() for file in (self.folder / "mail" / user / "new").glob("*")]

    def wait_for_mail(self, user: str, count: int) -> list[bytes]:
        until(lambda: len(self.mail(user)) >= count, f"{count} for {user}")
        return self.mail(user)

    def log(self) -> str:
        file = self.folder / "log"
        return file.read_text("utf-8", "replace") if file.exists() else ""
