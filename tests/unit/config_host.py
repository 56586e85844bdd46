"""A machine made of values, for tests of the configuration."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from fastsmtp.config.host import Host


class FakeHost(Host):
    """files: path -> text or bytes; modes: path -> permission bits, 0o600 where not given."""

    def __init__(
        self,
        files: Mapping[str, str | bytes] | None = None,
        *,
        modes: Mapping[str, int] | None = None,
        environ: Mapping[str, str] | None = None,
        root: bool = False,
        accounts: tuple[str, ...] = (),
        name: str = "mx.example.org",
        cores: int = 2,
        open_files: int = 1_000_000,
        directory: str = "/here",
    ) -> None:
        self.files = {
            path: text.encode() if isinstance(text, str) else text for path, text in (files or {}).items()
        }
        self.modes = dict(modes or {})
        self.fake_environ = dict(environ or {})
        self.root = root
        self.accounts = accounts
        self.fake_name = name
        self.fake_cores = cores
        self.fake_open_files = open_files
        self.fake_directory = directory

    @property
    def environ(self) -> Mapping[str, str]:
        return self.fake_environ

    def is_root(self) -> bool:
        return self.root

    def directory(self) -> str:
        return self.fake_directory

    def exists(self, path: str) -> bool:
        return path in self.files

    def names(self, path: str) -> list[str]:
        found = {
            name.removeprefix(f"{path}/").partition("/")[0]
            for name in self.files
            if name.startswith(f"{path}/")
        }
        if not found:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return sorted(found)

    def read(self, path: str) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self.files[path]

    def mode(self, path: str) -> tuple[int, int]:
        self.read(path)
        return self.modes.get(path, 0o600), 0

    def has_account(self, name: str) -> bool:
        return name in self.accounts

    def account(self, name: str) -> int | None:
        """root is there, and `accounts`."""
        return {"root": 0, **dict.fromkeys(self.accounts, 1_000)}.get(name)

    def cores(self) -> int:
        return self.fake_cores

    def open_files(self) -> int:
        return self.fake_open_files

    def name(self) -> str:
        return self.fake_name
