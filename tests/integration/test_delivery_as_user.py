"""Delivery as another account, in the real server: the files are the account's, and nothing is got by asking oddly."""

from __future__ import annotations

import os
import pathlib
import pwd
import signal
import socket
import stat

import pytest

from fastsmtp.delivery.errand import errand, key_of, read_answer
from fastsmtp.delivery.outcome import Delivered
from fastsmtp.queue.line import connect
from fastsmtp.queue.memory import memory_file
from fastsmtp.supervisor.lspawn import CAPABILITIES
from tests.integration.daemon import Daemon
from tests.integration.servers import until
from tests.integration.test_queue_serve import pid_of, send

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else"),
]

CONFIG = """
queue_user = "daemon"
[queue]
free_bytes = 0
retry_min_s = 0.2
retry_max_s = 0.4
"""

# games and mail are accounts of Debian's base-passwd, as daemon and nobody are.
ACCEPT = """
[[accept]]
domain = ["example.org"]
deliver = "maildir:{folder}/mail/{domain}/{local}"
user = "games"
[[accept]]
domain = ["example.net"]
deliver = "pipe:/bin/sh {folder}/program"
user = "mail"
[deliver]
queue = true
"""

PROGRAM = """
exec >> {mailboxes}/said
id -u; id -g; id -G; umask; pwd
env | LC_ALL=C sort | grep -v '^_=\\|^PWD=\\|^SHLVL=\\|^OLDPWD='
cat
grep -E '^(Uid|CapEff|CapPrm)' /proc/self/status
ls -l /proc/$$/fd
echo end
"""

BIG = b"Subject: big\r\n\r\n" + b"0123456789\r\n" * 20_000


def daemon_with(program: str, accept: str = ACCEPT) -> Daemon:
    daemon = Daemon(CONFIG, accept=accept, workers=1)
    (daemon.folder / "program").write_text(program.format(mailboxes=daemon.mailboxes))
    return daemon


def said(daemon: Daemon) -> str:
    path = daemon.mailboxes / "said"
    until(lambda: path.exists() and path.read_text().endswith("end\n"), "the program has ended")
    return path.read_text()


def test_a_maildir_belongs_to_its_account_whatever_the_size() -> None:
    games = pwd.getpwnam("games")
    with Daemon(CONFIG, accept=ACCEPT, workers=1) as daemon:
        send(daemon, "joe@example.org", "/etc/ann@example.org")
        send(daemon, "joe@example.org", content=BIG)
        daemon.wait_for_logs("delivered", 3)
        assert sorted(len(letter.text) for letter in daemon.mail("joe@example.org")) == [23, 220_014]
        assert len(daemon.mail("/etc/ann@example.org")) == 1
        for path in (daemon.mailboxes / "example.org").rglob("*"):
            found = path.stat()
            assert (found.st_uid, found.st_gid) == (games.pw_uid, games.pw_gid), path
            assert not stat.S_IMODE(found.st_mode) & 0o077, path
        assert (daemon.mailboxes / "example.org").stat().st_uid == games.pw_uid
        assert daemon.log("lspawn_failed") == daemon.log("lspawn_refused") == daemon.log("defect") == []
        children = pathlib.Path(f"/proc/{pid_of(daemon, 'lspawn')}/task")
        assert len(list(children.iterdir())) == 1, "it has one thread"
        (thread,) = children.iterdir()
        until(lambda: not (thread / "children").read_text(), "all are reaped")


def test_a_program_runs_as_its_account_with_nothing_of_ours() -> None:
    mail = pwd.getpwnam("mail")
    with daemon_with(PROGRAM) as daemon:
        send(daemon, "joe@example.net")
        lines = said(daemon).splitlines()
        where = mail.pw_dir if os.path.isdir(mail.pw_dir) else "/"
        assert lines[:5] == [
            str(mail.pw_uid), str(mail.pw_gid), " ".join(map(str, os.getgrouplist("mail", mail.pw_gid))), "0077", where,
        ]  # fmt: skip
        names = [line.partition("=")[0] for line in lines if "=" in line]
        assert {"HOME", "LOGNAME", "PATH", "SHELL", "USER", "SENDER", "RECIPIENT", "LOCAL", "HOST"} <= set(
            names
        )
        assert all(
            name
            in ("HOME", "LOGNAME", "PATH", "SHELL", "USER", "SENDER", "RECIPIENT", "LOCAL", "HOST", "PROTO")
            or name.endswith("LINE")
            or name.startswith("TCP")
            for name in names
        ), names
        assert "USER=mail" in lines
        assert "RECIPIENT=joe@example.net" in lines
        assert "Subject: hello" in lines
        uids = next(line for line in lines if line.startswith("Uid:")).split()[1:]
        assert uids == [str(mail.pw_uid)] * 4, "none of its ids is root's"
        assert {line.split()[1] for line in lines if line.startswith("Cap")} == {"0" * 16}
        files = {line.split()[-3] for line in lines if " -> " in line and "/program" not in line}
        assert files == {"0", "1", "2"}, "the shell's own is its program"


def test_what_a_program_says_by_its_status() -> None:
    with daemon_with(
        'case "$LOCAL" in no) echo nobody; exit 67;; *) test -e {mailboxes}/there;; esac'
    ) as daemon:
        send(daemon, "no@example.net", "later@example.net")
        bounced = daemon.wait_for_log("bounced", rcpt="no@example.net")
        assert bounced["reason"] == "as mail: /bin/sh ended with 67: nobody"
        assert daemon.wait_for_log("deferred", rcpt="later@example.net")["code"] == 451
        (daemon.mailboxes / "there").touch()
        daemon.wait_for_log("delivered", rcpt="later@example.net")


def test_a_child_that_dies_is_heard_of_and_its_mail_is_tried_again() -> None:
    with daemon_with("test -e {mailboxes}/there || kill -9 $PPID") as daemon:
        send(daemon, "joe@example.net")
        line = daemon.wait_for_log("lspawn_failed", what="mail")
        assert line["reason"] == "ended by signal 9"
        assert "ended by signal 9" in daemon.wait_for_log("deferred", rcpt="joe@example.net")["reason"]
        (daemon.mailboxes / "there").touch()
        daemon.wait_for_log("delivered", rcpt="joe@example.net")


def test_lspawn_may_die_and_no_mail_is_lost() -> None:
    with Daemon(CONFIG, accept=ACCEPT, workers=1) as daemon:
        before = pid_of(daemon, "lspawn")
        os.kill(before, signal.SIGKILL)
        send(daemon, "joe@example.org")
        daemon.wait_for_log("delivered", rcpt="joe@example.org")
        assert pid_of(daemon, "lspawn") != before


def test_a_reload_brings_another_account() -> None:
    with Daemon(CONFIG, accept=ACCEPT, workers=1) as daemon:
        before = pid_of(daemon, "lspawn")
        send(daemon, "joe@example.org")
        daemon.wait_for_log("delivered", rcpt="joe@example.org")
        daemon.file.write_text(daemon.file.read_text().replace('user = "games"', 'user = "news"'))
        # Of the first account; its directories are not for the other.
        os.chown(daemon.mailboxes / "example.org", pwd.getpwnam("news").pw_uid, -1)
        daemon.process.signal(signal.SIGHUP)
        until(lambda: pid_of(daemon, "lspawn") != before, "another has come")
        daemon.wait_for_log("aside_ready", what="lspawn", pid=pid_of(daemon, "lspawn"))
        send(daemon, "ann@example.org")
        daemon.wait_for_log("delivered", rcpt="ann@example.org")
        owner = (daemon.mailboxes / "example.org" / "ann" / "new").stat().st_uid
        assert owner == pwd.getpwnam("news").pw_uid


def test_no_link_leads_a_maildir_out_of_its_place() -> None:
    with Daemon(CONFIG, accept=ACCEPT, workers=1) as daemon:
        domain = daemon.mailboxes / "example.org"
        outside = daemon.folder / "outside"
        for path in (domain, outside):
            path.mkdir()
            os.chown(path, pwd.getpwnam("games").pw_uid, -1)
        (domain / "joe").symlink_to(outside)
        send(daemon, "joe@example.org")
        line = daemon.wait_for_log("deferred", rcpt="joe@example.org")
        assert "leads out of" in line["reason"]
        assert list(outside.iterdir()) == []


@pytest.mark.parametrize("has_programs", [False, True])
def test_the_process_that_keeps_root_can_become_others_and_no_more(has_programs: bool) -> None:
    accept = ACCEPT if has_programs else ACCEPT.replace("pipe:/bin/sh {folder}/program", "maildir:{folder}/x")
    with Daemon(CONFIG, accept=accept, workers=1) as daemon:
        send(daemon, "joe@example.org")
        daemon.wait_for_log("delivered", rcpt="joe@example.org")
        lines = pathlib.Path(f"/proc/{pid_of(daemon, 'lspawn')}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines)
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == sum(1 << one for one in CAPABILITIES)
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        # What a program that is set-uid can be given has to stay.
        assert (int(status["CapBnd"], 16) != 0, status["NoNewPrivs"]) == (
            has_programs,
            "01"[not has_programs],
        )


def test_who_may_ask_and_for_what(tmp_path: pathlib.Path) -> None:
    with Daemon(CONFIG, accept=ACCEPT, workers=1) as daemon:
        path = daemon.folder / "state" / "lspawn.socket"
        found = path.stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (pwd.getpwnam("daemon").pw_uid, 0o600)
        deliver = f"maildir:{daemon.folder}/mail/{{domain}}/{{local}}"
        # Root may connect where it likes, but isn't who may ask.
        ask(path, errand(key_of("games", deliver)), [])
        daemon.wait_for_log("lspawn_refused", reason="a process of uid 0")
        record = memory_file("record", b"no message")
        readable = os.open(f"/proc/self/fd/{record}", os.O_RDONLY)
        reading, writing = os.pipe()
        cases = [
            (errand(key_of("mail", deliver)), [readable], "the configuration doesn't have"),
            (errand(key_of("root", deliver)), [readable], "the configuration doesn't have"),
            (errand(key_of("games", "pipe:/bin/sh")), [readable], "the configuration doesn't have"),
            (b"x", [readable], "33 bytes"),
            (b"\x02" + errand(key_of("games", deliver))[1:], [readable], "version 2"),
            (errand(key_of("games", deliver)), [], "without a message"),
            (errand(key_of("games", deliver)), [record], "for reading only"),
            (errand(key_of("games", deliver)), [reading], "for reading only"),
        ]
        for packet, descriptors, reason in cases:
            before = len(daemon.log("lspawn_refused"))
            assert ask(path, packet, descriptors, as_user="daemon") == b""
            lines = daemon.wait_for_logs("lspawn_refused", before + 1)
            assert reason in lines[-1]["reason"]
        # What isn't a message is found out by the child, which is nobody special.
        said = ask(path, errand(key_of("games", deliver)), [readable], as_user="daemon")
        assert not isinstance(read_answer(said), Delivered)
        for fd in (record, readable, reading, writing):
            os.close(fd)
        send(daemon, "joe@example.org")
        daemon.wait_for_log("delivered", rcpt="joe@example.org")


def ask(path: pathlib.Path, packet: bytes, descriptors: list[int], as_user: str = "") -> bytes:
    """What lspawn answers; b"" when it hangs up.  The kernel notes who connects: that may be another account."""
    if as_user:
        os.seteuid(pwd.getpwnam(as_user).pw_uid)
    try:
        sock = connect(str(path))
    finally:
        os.seteuid(0)
    with sock:
        sock.settimeout(60)
        try:
            socket.send_fds(sock, [packet], descriptors)
            return sock.recv(40_000)
        except (BrokenPipeError, ConnectionResetError):
            return b""
