"""popup and pop3d as tcpserver runs them: a process for each connection, and clients that others wrote."""

from __future__ import annotations

import contextlib
import pathlib
import poplib
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.conftest import needs
from tests.peers import path
from tests.programs import environment, install

# Knows one user and one password, in clear and for APOP; can be told to fail in the other ways.
CHECKPASSWORD = """\
import hashlib, os, sys
user, secret, timestamp, rest = os.read(3, 512).split(b"\\0")
os.close(3)
digest = hashlib.md5(timestamp + b"se cret").hexdigest().encode()
if user == b"broken":
    sys.exit(111)
if user == b"killed":
    os.kill(os.getpid(), 9)
if user != b"joe" or secret not in (b"se cret", digest) or rest or not timestamp.endswith(b"@pop.example.org>"):
    sys.exit(1)
os.execvp(sys.argv[1], sys.argv[1:])
"""

ONE = b"Subject: one\n\nfirst\n.\n..dots\n"
# Larger than one piece, and without a line end at its end.
TWO = b"Subject: two\r\n\r\n" + (b"x" * 998 + b"\r\n") * 300 + b"last"
ONE_LINES = [b"Subject: one", b"", b"first", b".", b"..dots"]


class Tcpserver:
    """Runs a command for each connection, with the connection on descriptors 0 and 1."""

    def __init__(self, command: list[str], log: pathlib.Path) -> None:
        self._command = command
        self._log = log
        self._environment = environment(TCPREMOTEIP="192.0.2.1")
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._started: queue.Queue[subprocess.Popen[bytes]] = queue.Queue()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, self._log.open("ab") as log:
                process = subprocess.Popen(
                    self._command,
                    stdin=connection.fileno(),
                    stdout=connection.fileno(),
                    stderr=log,
                    env=self._environment,
                )
                self._processes.append(process)
                self._started.put(process)

    def wait(self) -> int:
        """The exit status of the next one that was started, once it has ended."""
        return self._started.get(timeout=60).wait(60)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(60)


@pytest.fixture
def box(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "Maildir"
    for name in ("new", "cur", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "new" / "1.one").write_bytes(ONE)
    (folder / "cur" / "2.two:2,S").write_bytes(TWO)
    return folder


@pytest.fixture
def log(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "log"


@pytest.fixture
def server(tmp_path: pathlib.Path, box: pathlib.Path, log: pathlib.Path) -> Iterator[Tcpserver]:
    """Under their own names, as `fastsmtp qmail link` makes them."""
    script = install(tmp_path)
    for name in ("qmail-popup", "qmail-pop3d"):
        (tmp_path / name).symlink_to(script)
    check = write_checkpassword(tmp_path)
    popup, pop3d = (str(tmp_path / name) for name in ("qmail-popup", "qmail-pop3d"))
    server = Tcpserver([popup, "--delay", "0", "pop.example.org", check, pop3d, str(box)], log)
    yield server
    server.close()


def write_checkpassword(folder: pathlib.Path) -> str:
    check = folder / "checkpassword"
    check.write_text(f"#!{sys.executable}\n{CHECKPASSWORD}")
    check.chmod(0o755)
    return str(check)


def names(box: pathlib.Path) -> set[str]:
    return {str(path.relative_to(box)) for path in box.rglob("*") if path.is_file()}


@contextlib.contextmanager
def login(server: Tcpserver) -> Iterator[poplib.POP3]:
    client = poplib.POP3("127.0.0.1", server.port, timeout=60)
    client.user("joe")
    client.pass_("se cret")
    try:
        yield client
    finally:
        client.close()


def test_poplib_reads_and_deletes(server: Tcpserver, box: pathlib.Path, log: pathlib.Path) -> None:
    with login(server) as client:
        count, total = client.stat()
        sizes = [int(row.split()[1]) for row in client.list()[1]]
        assert (count, sum(sizes)) == (2, total)
        for number, lines in ((1, ONE_LINES), (2, TWO.split(b"\r\n"))):
            answer, got, _ = client.retr(number)
            assert got == lines
            told = int(answer.split()[1])
            assert answer == b"+OK %d octets" % told
            assert told == sizes[number - 1] == sum(len(line) + 2 for line in got)
        answer, got, _ = client.top(1, 1)
        assert (answer, got) == (b"+OK %d octets" % sizes[0], ONE_LINES[:3])
        assert client.uidl()[1] == [b"1 1.one", b"2 2.two"]
        assert "UIDL" in client.capa()
        client.dele(2)
        assert names(box) == {"new/1.one", "cur/2.two:2,S"}
        assert client.quit() == b"+OK"
    assert server.wait() == 0
    assert names(box) == {"cur/1.one:2,"}
    assert log.read_bytes() == b""


def test_apop(server: Tcpserver) -> None:
    client = poplib.POP3("127.0.0.1", server.port, timeout=60)
    client.apop("joe", "se cret")
    assert client.stat()[0] == 2
    client.quit()
    assert server.wait() == 0


def test_a_lost_connection_deletes_nothing(server: Tcpserver, box: pathlib.Path) -> None:
    with login(server) as client:
        client.dele(1)
        client.dele(2)
    assert server.wait() == 0
    assert names(box) == {"new/1.one", "cur/2.two:2,S"}


def test_a_connection_lost_within_a_message_deletes_nothing(server: Tcpserver, box: pathlib.Path) -> None:
    """More than the buffers of the kernel hold, so that the program is still writing."""
    (box / "new" / "3.big").write_bytes(b"y" * 20_000_000)
    with login(server) as client:
        client.sock.sendall(b"DELE 1\r\nRETR 3\r\nQUIT\r\n")
        assert client.sock.recv(10)
    assert server.wait() == 0
    assert names(box) == {"new/1.one", "cur/2.two:2,S", "new/3.big"}


def test_everything_in_one_packet(server: Tcpserver, box: pathlib.Path) -> None:
    """What comes behind the password belongs to pop3d, though it was there before pop3d was."""
    with socket.create_connection(("127.0.0.1", server.port), 60) as client:
        client.sendall(b"USER joe\r\nPASS se cret\r\nSTAT\r\nDELE 1\r\nQUIT\r\n")
        answers = b"".join(iter(lambda: client.recv(65_536), b"")).split(b"\r\n")
    assert answers[1:3] == [b"+OK", b"+OK"]
    assert server.wait() == 0
    assert answers[3].startswith(b"+OK 2 ") and answers[4:] == [b"+OK deleted when you QUIT", b"+OK", b""]
    assert names(box) == {"cur/2.two:2,S"}


@pytest.mark.parametrize(
    ("user", "password", "heard", "logged"),
    [
        ("joe", "wrong", "[AUTH] authorization failed", "refused: client=192.0.2.1 user='joe'"),
        ("jim\u00e9", "se cret", "[AUTH] authorization failed", r"user='jim\\xc3\\xa9'"),
        ("joe", "x" * 600, "[AUTH] authorization failed", "refused"),
        ("broken", "x", "[SYS/TEMP] ", "checkpassword failed: client=192.0.2.1 user='broken'"),
        ("killed", "x", "[SYS/TEMP] ", "checkpassword failed: client=192.0.2.1 user='killed'"),
    ],
    ids=["password", "user", "too long", "temporary", "killed"],
)
def test_no_login(
    server: Tcpserver, log: pathlib.Path, user: str, password: str, heard: str, logged: str
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 60) as client:
        client.sendall(f"USER {user}\r\nPASS {password}\r\n".encode())
        answers = b"".join(iter(lambda: client.recv(65_536), b"")).decode().split("\r\n")
    assert answers[1] == "+OK"
    assert answers[2].startswith(f"-ERR {heard}")
    assert server.wait() == 1
    assert logged in log.read_text()


def test_a_wrong_password_is_answered_late() -> None:
    from fastsmtp.cli import popup
    from fastsmtp.pop3.connection import Wire

    slept: list[float] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"USER joe\r\nPASS x\r\n")
        wire = Wire(theirs.fileno(), theirs.fileno(), 60.0)
        status = popup.serve(wire, "pop.example.org", ["sh", "-c", "exit 1"], popup.DELAY_S, slept.append)
    assert (status, slept) == (1, [popup.DELAY_S])


@needs("curl")
def test_curl_reads_a_message_and_the_list(server: Tcpserver, tmp_path: pathlib.Path) -> None:
    def curl(url: str, *options: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [path("curl"), "-sS", "--max-time", "60", "-u", "joe:se cret", *options,
             f"pop3://127.0.0.1:{server.port}/{url}"],
            capture_output=True, check=False,
        )  # fmt: skip

    done = curl("1")
    assert (done.returncode, done.stdout) == (0, b"".join(line + b"\r\n" for line in ONE_LINES)), done.stderr
    assert curl("").stdout.split() == [b"1", b"34", b"2", b"%d" % (len(TWO) + 2)]
    assert curl("", "-X", "UIDL").stdout == b"1 1.one\r\n2 2.two\r\n"
    wrong = subprocess.run(
        [path("curl"), "-sS", "-u", "joe:wrong", f"pop3://127.0.0.1:{server.port}/"],
        capture_output=True,
        check=False,
    )
    assert wrong.returncode == 67, "curl's `login denied`"


@needs("mpop")
@pytest.mark.parametrize("keeps", ["on", "off"])
@pytest.mark.parametrize("auth", ["user", "apop"])
def test_mpop_fetches_all_and_deletes_when_it_is_told_to(
    server: Tcpserver, tmp_path: pathlib.Path, box: pathlib.Path, keeps: str, auth: str
) -> None:
    """It pipelines, and compares the sizes that it was told with what comes."""
    inbox = tmp_path / "inbox"
    for name in ("new", "cur", "tmp"):
        (inbox / name).mkdir(parents=True)
    done = subprocess.run(
        [path("mpop"), "--host=127.0.0.1", f"--port={server.port}", "--user=joe", f"--auth={auth}", "--tls=off",
         "--passwordeval=printf 'se cret\\n'", f"--keep={keeps}", f"--delivery=maildir,{inbox}",
         "--received-header=off", f"--uidls-file={tmp_path}/uidls", "--timeout=60"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert {file.read_bytes().strip() for file in inbox.glob("*/*")} == {
        ONE.strip(),
        TWO.replace(b"\r\n", b"\n").strip(),
    }
    assert server.wait() == 0
    assert names(box) == ({"cur/1.one:2,", "cur/2.two:2,S"} if keeps == "on" else set())


@needs("tcpserver")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_under_tcpserver(tmp_path: pathlib.Path, box: pathlib.Path, host: str) -> None:
    """The line of docs/qmail-programs.md; the address of the client comes from tcpserver's environment."""
    script, check = str(install(tmp_path)), write_checkpassword(tmp_path)
    server = subprocess.Popen(
        [path("tcpserver"), "-1", "-H", "-R", "-l0", "-c", "10", host, "0",
         script, "popup", "--delay", "0", "pop.example.org", check, script, "pop3d", str(box)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    try:
        assert server.stdout is not None and server.stderr is not None
        port = int(server.stdout.readline())
        client = poplib.POP3(host, port, timeout=60)
        client.apop("joe", "se cret")
        assert client.stat()[0] == 2
        client.quit()
        wrong = poplib.POP3(host, port, timeout=60)
        wrong.user("joe")
        with pytest.raises(poplib.error_proto, match=r"\[AUTH\]"):
            wrong.pass_("wrong")
        wrong.close()
        assert server.stderr.readline().decode() == f"fastsmtp popup: refused: client={host} user='joe'\n"
    finally:
        server.terminate()
        server.communicate(timeout=60)


def pop3d(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "fastsmtp", "pop3d", *arguments],
        input=stdin, capture_output=True, env=environment(), timeout=60, check=False,
    )  # fmt: skip


def test_pop3d_between_pipes(box: pathlib.Path) -> None:
    done = pop3d(str(box), stdin=b"DELE 2\r\nQUIT\r\n")
    assert (done.returncode, done.stdout) == (0, b"+OK\r\n+OK deleted when you QUIT\r\n+OK\r\n")
    assert names(box) == {"cur/1.one:2,"}


def test_pop3d_without_a_maildir_tells_the_client_and_the_log(tmp_path: pathlib.Path) -> None:
    done = pop3d(str(tmp_path / "absent"))
    assert done.stdout == b"-ERR [SYS/PERM] there is no Maildir to be read\r\n"
    assert b"absent: No such file or directory" in done.stderr
    # Any other status would make popup say that the password was wrong.
    assert done.returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["pop3d"], ["pop3d", "a", "b"], ["popup"], ["popup", "host", "check"], ["popup", "--delay", "x", "h", "c", "p"],
        ["popup", "--delay", "61", "h", "c", "p"], ["popup", "--delay"], ["popup", "--frob", "h", "c", "p"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_call_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from fastsmtp.cli import main

    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"usage: fastsmtp {arguments[0]}")


@pytest.mark.parametrize("command", ["pop3d", "popup"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from fastsmtp.cli import main

    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: fastsmtp {command}")
