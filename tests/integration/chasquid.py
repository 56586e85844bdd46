"""A private chasquid for tests: a mail server in Go, unpacked beside the Postfix that is installed.

with Chasquid("127.0.0.1", certificate) as chasquid:
    ... chasquid.dest, chasquid.wait_for_mail("joe", 1) ...
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.integration.servers import Process, until
from tests.peers import path
from tests.ports import free_port


class Chasquid:
    """One instance.

    host         the loopback address that it listens on, at a port of its own
    certificate  PEM with key and certificate; chasquid offers STARTTLS with it, and has no way to be without
    users        of example.org; it takes mail for nobody else
    """

    def __init__(self, host: str, certificate: bytes, users: tuple[str, ...] = ("joe", "ann")) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chasquid-"))
        self._mail = self.folder / "mail"
        own = self.folder / "certs" / "chasquid.example"
        domain = self.folder / "domains" / "example.org"
        for directory in (own, domain, self._mail, self.folder / "data"):
            directory.mkdir(parents=True)
        for name in ("privkey.pem", "fullchain.pem"):
            (own / name).write_bytes(certificate)
        # Whole when it has its last name, which no other message has: numbers of processes come again.
        keep = self.folder / "keep"
        keep.write_text(
            "#!/bin/sh\nset -e\n"
            f'file=$(mktemp --suffix=.part "{self._mail}/$1.XXXXXXXX")\n'
            'cat > "$file"\nmv "$file" "${file%.part}"\n'
        )
        keep.chmod(0o755)
        (domain / "aliases").write_text("".join(f"{user}: | {keep} {user}\n" for user in users))
        bracketed = f"[{host}]" if ":" in host else host
        where = f"{bracketed}:{free_port()}"
        self.dest = f"smtp://{where}"
        (self.folder / "chasquid.conf").write_text(
            f'hostname: "chasquid.example"\nsmtp_address: "{where}"\ndata_dir: "{self.folder}/data"\n'
            f'mail_log_path: "{self.folder}/log"\n'
        )

    def __enter__(self) -> Self:
        self._process = Process([path("chasquid"), "-config_dir", str(self.folder)])
        self._process.wait_for("Server listening on")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.close()
        shutil.rmtree(self.folder)

    def mail(self, user: str) -> list[bytes]:
        """What has arrived, in no order."""
        return [file.read_bytes() for file in self._mail.glob(f"{user}.*") if file.suffix != ".part"]

    def wait_for_mail(self, user: str, count: int) -> list[bytes]:
        until(lambda: len(self.mail(user)) >= count, f"{count} for {user}")
        return self.mail(user)

    def log(self) -> str:
        return (self.folder / "log").read_text()
