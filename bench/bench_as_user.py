"""What delivery as another account costs: a real server, mail for Maildirs, user and system time of each process.

    python bench/bench_as_user.py [--messages 400] [--account games]

Needs root, since only root can become somebody else.  Three servers, one after the other: the delivery process
writes the Maildir itself; one account does, with mail that keeps coming; the account does, and each message is for
a destination of its own that had none before, so that a process is forked for it.

CPU is counted from the first message's way in until the last one's "delivered", what ended included.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pwd
import re
import shutil
import signal
import smtplib
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.load import measure  # noqa: E402

MESSAGE = b"From: a@example.org\r\nSubject: x\r\n\r\n" + b"0123456789abcdef\r\n" * 225
WAIT_S = 300
CONFIG = """
hostname = "mx.example.org"
state = "{folder}/state"
user = "nobody"
queue_user = "daemon"
workers = 1
[queue]
free_bytes = 0
[[listen]]
address = ["127.0.0.1:0"]
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
ACCEPT = """
[[accept]]
domain = "{domain}"
recipients = "any"
deliver = "maildir:{folder}/mail/{domain}"
"""


class Server:
    """`fastsmtp serve` with a Maildir for each of the domains, as this account; "": as the delivery process."""

    def __init__(self, domains: list[str], account: str) -> None:
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="fastsmtp-bench-"))
        self.folder.chmod(0o755)
        mail = self.folder / "mail"
        mail.mkdir()
        os.chown(mail, pwd.getpwnam(account or "daemon").pw_uid, -1)
        text = CONFIG.format(folder=self.folder)
        for domain in domains:
            text += ACCEPT.format(folder=self.folder, domain=domain)
            text += f'user = "{account}"\n' if account else ""
        file = self.folder / "fastsmtp.toml"
        file.write_text(text)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastsmtp", "serve", "--config", str(file)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.port = 0
        for line in self.process.stdout:
            if found := re.search(r"ready: .*:(\d+) \(", line):
                self.port = int(found[1])
                break
        if not self.port:
            raise SystemExit("the server didn't start")

    def send(self, domains: list[str]) -> None:
        """One message for each, and wait until all are delivered."""
        expected = self.delivered() + len(domains)
        with smtplib.SMTP("127.0.0.1", self.port, "client.example.org", timeout=60) as client:
            for domain in domains:
                client.sendmail("a@example.org", [f"joe@{domain}"], MESSAGE)
        deadline_s = time.monotonic() + WAIT_S
        while self.delivered() < expected:
            if time.monotonic() > deadline_s:
                raise SystemExit(f"{self.delivered()} of {expected} were delivered")
            time.sleep(0.05)

    def log(self, event: str) -> list[dict[str, Any]]:
        path = self.folder / "log"
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        lines = whole.splitlines()
        return [one for one in map(json.loads, lines) if one["event"] == event]

    def delivered(self) -> int:
        return len(self.log("delivered"))

    def processes(self) -> dict[str, int]:
        """Of the asides, by name."""
        return {one["what"]: one["pid"] for one in self.log("aside_start")}

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        shutil.rmtree(self.folder)


def run(title: str, account: str, domains: list[str], warm: list[str]) -> None:
    server = Server(list(dict.fromkeys([*domains, *warm])), account)
    try:
        server.send(warm)
        processes = server.processes()
        before = {name: measure.tree_cpu_s(pid) for name, pid in processes.items()}
        server.send(domains)
        used_us = {
            name: (measure.tree_cpu_s(pid) - before[name]) * 1e6 / len(domains)
            for name, pid in processes.items()
            if name == "lspawn" or name.startswith("delivery")
        }
    finally:
        server.close()
    shown = ", ".join(f"{name} {us:.0f}" for name, us in sorted(used_us.items()))
    print(f"{title:<58} {sum(used_us.values()):8.0f} us a message ({shown})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--messages", type=int, default=400)
    parser.add_argument("--account", default="games")
    asked = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("needs root")
    warm, one = ["warm.example"] * 20, ["one.example"] * asked.messages
    apart = [f"d{number}.example" for number in range(asked.messages)]
    run("one Maildir, by the delivery process itself", "", one, warm)
    run("one Maildir, as another account", asked.account, one, warm)
    run("a destination a message, as another account", asked.account, apart, warm)


if __name__ == "__main__":
    main()
