"""The writer batches, never blocks, stays within its bounds and says how many lines are missing."""

from __future__ import annotations

import fcntl
import os
import pathlib
import socket
from collections import deque
from collections.abc import Iterator

import pytest

from fastsmtp.errors import ConfigError
from fastsmtp.events import EVENTS
from fastsmtp.log import Log, LogWriter, NullLog
from fastsmtp.log_destination import File, Stream, Syslog, open_destination
from fastsmtp.log_format import Logfmt


class Reader:
    """A destination that takes `room` lines and then no more."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.room = room
        self.got: list[bytes] = []

    def frame(self, when: float, event: str, line: bytes) -> bytes:
        return line

    def send(self, lines: deque[bytes]) -> int:
        size = 0
        while lines and self.room:
            self.room -= 1
            self.got.append(lines.popleft())
            size += len(self.got[-1])
        return size

    def reopen(self) -> None: ...
    def close(self) -> None: ...

    @property
    def descriptors(self) -> tuple[int, ...]:
        return ()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def fill(writing: int) -> int:
    """Fill a pipe through a description of its own, so that the shared one stays blocking."""
    own = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK)
    size = 0
    try:
        for step in (4096, 1):
            try:
                while True:
                    size += os.write(own, b"#" * step)
            except BlockingIOError:
                pass
    finally:
        os.close(own)
    return size


def test_nothing_is_written_before_the_flush_and_the_time_is_that_of_the_event() -> None:
    clock, reader = Clock(), Reader()
    log: Log = LogWriter(reader, Logfmt(), wall=clock)
    log.line("ready", workers=2)
    clock.now = 5.0
    log.line("ready", workers=3)
    assert reader.got == []
    log.flush()
    assert reader.got == [
        b"ts=1970-01-01T00:00:00.000Z event=ready workers=2",
        b"ts=1970-01-01T00:00:05.000Z event=ready workers=3",
    ]


def test_a_burst_flushes_itself() -> None:
    reader = Reader()
    log = LogWriter(reader, Logfmt(), flush_at=10)
    for number in range(25):
        log.line("ready", workers=number)
    assert len(reader.got) == 20


@pytest.mark.parametrize("bound", [{"max_lines": 10}, {"max_bytes": 520}])
def test_a_reader_that_stalls_costs_lines_and_is_told_how_many(bound: dict[str, int]) -> None:
    reader = Reader(room=3)
    log = LogWriter(reader, Logfmt(), wall=Clock(), **bound)
    for number in range(100):
        log.line("ready", workers=number)
        log.flush()
    assert len(reader.got) == 3
    # 3 taken, 10 kept (each line is 51 or 52 bytes), the rest dropped: the oldest lines are those that stay.
    assert log.dropped == 87
    reader.room = 1_000
    log.line("ready", workers=100)
    log.flush()
    numbers = [line.rpartition(b"=")[2] for line in reader.got]
    assert numbers == [b"%d" % number for number in range(13)] + [b"87", b"100"]
    assert b"event=log_dropped lines=87" in reader.got[13]
    log.flush()
    assert len(reader.got) == 15


def test_a_full_pipe_never_blocks_and_the_shared_description_stays_as_it_was(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    before = fcntl.fcntl(writing, fcntl.F_GETFL)
    size = fill(writing)
    log = LogWriter(Stream(writing), Logfmt(), wall=Clock(), max_lines=50, flush_at=20)
    for _ in range(1_000):
        log.line("reject", client="192.0.2.1", helo=b"x" * 200)
    log.flush()
    assert log.dropped == 950
    assert fcntl.fcntl(writing, fcntl.F_GETFL) == before
    while size:
        size -= len(os.read(reading, size))
    log.flush()
    log.flush()
    got = os.read(reading, 1 << 20)
    while got.count(b"\n") < 51:
        log.flush()
        got += os.read(reading, 1 << 20)
    lines = got.decode().splitlines()
    assert len(lines) == 51
    assert all(line.startswith("ts=") for line in lines)
    assert lines[50] == "ts=1970-01-01T00:00:00.000Z event=log_dropped lines=950"
    log.close()
    os.write(writing, b"still open")


def test_without_a_description_of_its_own_a_stream_asks_before_it_writes(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = pipe
    real_open = os.open

    def refuse(path: str, *arguments: int, **options: int) -> int:
        if path.startswith("/proc/self/fd/"):
            raise PermissionError(13, "not for you")
        return real_open(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        stream = Stream(writing)
    lines = deque([b"one\n", b"two\n"])
    assert stream.send(lines) == 8
    assert os.read(reading, 100) == b"one\ntwo\n"
    fill(writing)
    lines = deque([b"three\n"])
    assert stream.send(lines) == 0
    assert list(lines) == [b"three\n"]
    stream.close()


def test_a_socket_as_stderr_is_written_without_waiting() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = Stream(ours.fileno())
        lines = deque(b"%06d\n" % number for number in range(500_000))
        sent = stream.send(lines)
        assert 0 < sent < 3_500_000
        assert ours.getblocking()
        got = b""
        while len(got) < sent:
            got += theirs.recv(1 << 20)
        while lines:
            more = stream.send(lines)
            while more:
                got += (block := theirs.recv(min(more, 1 << 20)))
                more -= len(block)
        assert got == b"".join(b"%06d\n" % number for number in range(500_000))
        stream.close()


def test_a_reader_that_went_away_raises_nothing() -> None:
    reading, writing = os.pipe()
    stream = Stream(writing)
    os.close(reading)
    lines = deque([b"one\n"])
    assert stream.send(lines) == 0
    assert list(lines) == [b"one\n"]
    stream.close()
    os.close(writing)


def test_a_file_is_appended_to_and_opened_anew_when_it_was_rotated(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    log = LogWriter(open_destination(str(path)), Logfmt(), wall=Clock())
    log.line("ready", workers=1)
    log.flush()
    path.rename(tmp_path / "log.1")
    log.line("ready", workers=2)
    log.flush()
    (tmp_path / "log").unlink()
    log.line("ready", workers=3)
    log.reopen()
    log.close()
    assert [line[-1:] for line in (tmp_path / "log.1").read_text().splitlines()] == ["d", "1"]
    assert [line[-1:] for line in path.read_text().splitlines()] == ["3"]
    assert path.stat().st_mode & 0o777 == 0o640 & ~_umask()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_a_file_that_cannot_be_opened_anew_stays_in_use(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    file = File(str(folder / "log"))
    folder.rename(tmp_path / "gone")
    assert file.send(deque([b"one\n"])) == 4
    file.close()
    assert (tmp_path / "gone" / "log").read_bytes() == b"one\n"


def test_a_full_disk_keeps_the_lines() -> None:
    file = File("/dev/full")
    lines = deque([b"one\n"])
    assert file.send(lines) == 0
    assert list(lines) == [b"one\n"]
    file.close()


def test_a_file_that_cannot_be_opened_is_a_fault_that_names_it(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"log.to: can't open .*/missing/log: No such file or directory"):
        open_destination(str(tmp_path / "missing" / "log"))


def test_syslog_gets_a_datagram_a_line_and_is_found_again_after_a_restart(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "syslog")
    log = LogWriter(Syslog(path), Logfmt(), wall=Clock())
    log.line("reject", client="192.0.2.1")
    log.flush()  # nobody there: kept
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(path)
        log.flush()
        first = daemon.recv(9_000).decode()
    header, _, rest = first.partition(": ")
    assert header.startswith("<21>Jan  1 ") or header.startswith("<21>Dec 31 ")
    assert header.endswith(f"fastsmtp[{os.getpid()}]")
    assert rest == "ts=1970-01-01T00:00:00.000Z event=reject client=192.0.2.1"
    os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(path)
        log.line("defect", what="x")
        log.flush()
        assert daemon.recv(9_000).startswith(b"<19>")
        # A daemon that reads nothing: the socket's queue fills, and we don't wait.
        for number in range(5_000):
            log.line("ready", workers=number)
        log.flush()
        assert daemon.recv(9_000).endswith(b" event=ready workers=0")
    log.close()


def test_a_child_forgets_what_its_parent_will_write() -> None:
    reader = Reader(room=0)
    log = LogWriter(reader, Logfmt())
    log.line("ready")
    log.flush()
    log.line("ready")
    log.forget()
    reader.room = 10
    log.flush()
    assert reader.got == []


def test_the_null_log_is_a_log() -> None:
    log: Log = NullLog()
    log.line("ready", workers=1)
    log.flush()
    assert "ready" in EVENTS


def test_what_a_child_must_keep_open_is_known(pipe: tuple[int, int], tmp_path: pathlib.Path) -> None:
    stream, file, syslog = Stream(pipe[1]), File(str(tmp_path / "log")), Syslog(str(tmp_path / "syslog"))
    (own,) = stream.descriptors
    assert own != pipe[1] and os.path.sameopenfile(own, pipe[1])
    assert os.path.samefile(f"/proc/self/fd/{file.descriptors[0]}", tmp_path / "log")
    assert syslog.descriptors == ()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(syslog.path)
        assert syslog.send(deque([b"one"])) == 3
        assert len(syslog.descriptors) == 1
    for destination in (stream, file, syslog):
        destination.close()
    assert stream.descriptors == syslog.descriptors == ()
