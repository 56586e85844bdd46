"""A private Exim for tests: its own configuration, spool and log, unpacked beside the Postfix that is installed.

    with Exim("127.0.0.1", certificate) as exim:
        ... exim.dest, exim.wait_for_mail("joe", 1), exim.say_yes() ...

Needs root, as its daemon delivers by another process; mark tests with NEEDS_EXIM.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.conftest import needs
from tests.integration.servers import Process, until
from tests.peers import libraries, path
from tests.ports import free_port

ACCOUNT = "mail"
"""Who its processes are; of Debian's base-passwd."""

COMPILED_IN = "Debian-exim"
"""The account that the package makes when it is installed: looked up before the configuration is read."""

_CONFIG = """\
{settings}
acl_smtp_rcpt = rcpt
acl_smtp_data = data
domainlist local = example.org
begin acl
rcpt:
  defer message = 4.2.1 come back later
        local_parts = later
        condition = ${{if !exists{{{folder}/yes}}}}
  accept domains = +local
         local_parts = {users}
  deny message = 5.1.1 nobody of that name
data:
  defer message = 4.3.2 come back with it
        condition = ${{if forany{{<, $recipients}}{{match{{$item}}{{^afterwards@}}}}}}
        condition = ${{if !exists{{{folder}/yes}}}}
  accept
begin routers
ours:
  driver = accept
  domains = +local
  local_parts = {users}
  transport = maildir
begin transports
maildir:
  driver = appendfile
  directory = {folder}/mail/$local_part_data
  maildir_format
  user = {account}
"""


NEEDS_EXIM = (
    needs("exim4"),
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="Exim starts as root"),
)
"""The marks of a test that starts one."""


class Exim:
    """One instance.

    host         the loopback address that it listens on, at a port of its own
    certificate  PEM with key and certificate; None: it has no STARTTLS
    settings     of its main configuration, over the defaults below

    It takes mail of example.org: for joe and ann; for "later" not at RCPT, for "afterwards" not at the dot,
    before say_yes(); for nobody else.
    """

    def __init__(
        self, host: str, certificate: bytes | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="exim-"))
        self.folder.chmod(0o755)
        account = pwd.getpwnam(ACCOUNT)
        for name in ("spool", "log", "mail"):
            (self.folder / name).mkdir()
            os.chown(self.folder / name, account.pw_uid, account.pw_gid)
        # Its account runs it anew for each delivery, and may not be allowed into the checkout.
        self._program = self.folder / "exim4"
        shutil.copy(path("exim4"), self._program)
        self._program.chmod(0o755)
        port = free_port()
        values = {
            "primary_hostname": "exim.example",
            "exim_path": str(self._program),
            "spool_directory": f"{self.folder}/spool",
            "log_file_path": f"{self.folder}/log/%s",
            "pid_file_path": f"{self.folder}/spool/pid",
            "exim_user": ACCOUNT,
            "exim_group": str(account.pw_gid),
            "log_selector": "+all",
            "keep_environment": "LD_LIBRARY_PATH : LD_PRELOAD : NSS_WRAPPER_PASSWD : NSS_WRAPPER_GROUP",
            "deliver_drop_privilege": "true",
            "local_interfaces": f"<; [{host}]:{port}",
            "smtputf8_advertise_hosts": "*",
            "tls_advertise_hosts": "",
            "host_lookup": "",
            "rfc1413_hosts": "",
            "local_from_check": "false",
            "smtp_accept_max": "0",
            # All is delivered at once, however many come.
            "smtp_accept_queue_per_connection": "0",
            # A container may count none.
            "check_spool_space": "0",
            "check_spool_inodes": "0",
            **(settings or {}),
        }
        if certificate is not None:
            file = self.folder / "certificate.pem"
            file.write_bytes(certificate)
            # Read by the process that has a connection, which isn't root's.
            file.chmod(0o600)
            os.chown(file, account.pw_uid, account.pw_gid)
            values |= {"tls_advertise_hosts": "*", "tls_certificate": str(file), "tls_privatekey": str(file)}
        self._config = self.folder / "exim.conf"
        self._config.write_text(
            _CONFIG.format(
                settings="\n".join(f"{name} = {value}" for name, value in values.items()),
                folder=self.folder,
                users="joe : ann : later : afterwards",
                account=ACCOUNT,
            )
        )
        bracketed = f"[{host}]" if ":" in host else host
        self.dest = f"smtp://{bracketed}:{port}"

    def _environment(self) -> dict[str, str]:
        """What it wants in an environment because it is not installed."""
        own = self.folder / "lib"
        if not own.exists():
            own.mkdir()
            for file in [one for directory in libraries("exim4") for one in directory.glob("*.so*")]:
                shutil.copy(file, own)
        environment = {"LD_LIBRARY_PATH": str(own)}
        try:
            pwd.getpwnam(COMPILED_IN)
        except KeyError:
            account = pwd.getpwnam(ACCOUNT)
            passwd, group = self.folder / "passwd", self.folder / "group"
            lines = [":".join(map(str, one)) for one in pwd.getpwall()]
            lines.append(f"{COMPILED_IN}:x:{account.pw_uid}:{account.pw_gid}::/nonexistent:/usr/sbin/nologin")
            passwd.write_text("\n".join(lines) + "\n")
            group.write_text(Path("/etc/group").read_text() + f"{COMPILED_IN}:x:{account.pw_gid}:\n")
            environment |= {
                "LD_PRELOAD": str(own / "libnss_wrapper.so"),
                "NSS_WRAPPER_PASSWD": str(passwd),
                "NSS_WRAPPER_GROUP": str(group),
            }
        return environment

    def __enter__(self) -> Self:
        self._process = Process(
            [str(self._program), "-C", str(self._config), "-bdf"], environment=self._environment()
        )
        try:
            until(lambda: "listening for SMTP" in self.log(), "it listens")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.signal(signal.SIGTERM)
        self._process.end()
        self._remove()

    def _remove(self) -> None:
        self._process.close()
        # A delivery that has just ended may still write its log.
        shutil.rmtree(self.folder, ignore_errors=True)

    def stopped(self) -> AbstractContextManager[None]:
        """The kernel takes connections, and nobody greets them."""
        return self._process.suspended()

    def say_yes(self) -> None:
        """From now on "later" and "afterwards" get their mail."""
        (self.folder / "yes").touch()

    def mail(self, user: str) -> list[bytes]:
        """What has arrived, in no order."""
        return [file.read_bytes() for file in (self.folder / "mail" / user / "new").glob("*")]

    def wait_for_mail(self, user: str, count: int) -> list[bytes]:
        until(lambda: len(self.mail(user)) >= count, f"{count} for {user}")
        return self.mail(user)

    def log(self, name: str = "main") -> str:
        file = self.folder / "log" / name
        return file.read_text("utf-8", "replace") if file.exists() else ""
