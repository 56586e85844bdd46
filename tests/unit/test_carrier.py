"""What lspawn's child does between two messages: it takes the next of its own kind, or goes, and none is lost."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from fastsmtp.delivery.carrier import Stay, serve
from fastsmtp.delivery.errand import errand, key_of, read_answer
from fastsmtp.delivery.outcome import Delivered, Outcome, Retry
from fastsmtp.queue.memory import memory_file

KEY = key_of("joe", "maildir:/home/joe/Maildir")
LONG_S = 3_600.0


class Child:
    """serve() in a thread, with a first message, and the line to it."""

    def __init__(self, **stay: float) -> None:
        self.line, self._sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line.settimeout(60)
        self._sock.setblocking(False)
        self._reading, self._writing = os.pipe()
        self.carried: list[bytes] = []
        self.during: Callable[[], None] = lambda: None
        until_s = stay.pop("until_s", LONG_S)
        options = {"messages": 1_000, "idle_s": LONG_S, **stay}
        self._stay = Stay(self._reading, until_s, **options)  # type: ignore[arg-type]
        self._thread = threading.Thread(target=self._run, args=(handed(b"first"),))

    def start(self) -> None:
        self._thread.start()

    def _run(self, first: list[int]) -> None:
        serve(self._sock, KEY, self._carry, first, self._stay, now=lambda: 0.0)
        self._sock.close()

    def _carry(self, descriptors: Sequence[int]) -> Outcome:
        self.carried.append(os.pread(descriptors[0], 100, 0))
        self.during()
        return Delivered(self.carried[-1].decode())

    def send(self, content: bytes, key: bytes = KEY) -> None:
        descriptors = handed(content)
        try:
            socket.send_fds(self.line, [errand(key)], descriptors)
        finally:
            os.close(descriptors[0])

    def answer(self) -> object:
        return read_answer(self.line.recv(40_000))

    def call_off(self) -> None:
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1

    def end(self) -> None:
        """It has gone by itself."""
        self._thread.join(60)
        assert not self._thread.is_alive()

    def close(self) -> None:
        self.call_off()
        self.line.close()
        self.end()
        self._sock.close()
        os.close(self._reading)


def handed(content: bytes) -> list[int]:
    writable = memory_file("record", content)
    try:
        return [os.open(f"/proc/self/fd/{writable}", os.O_RDONLY)]
    finally:
        os.close(writable)


@pytest.fixture
def make() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def one(**stay: float) -> Child:
        children.append(Child(**stay))
        return children[-1]

    yield one
    for child in children:
        child.close()


def test_one_after_the_other_on_one_line(make: Callable[..., Child]) -> None:
    gc.collect()  # what other tests have left open
    before = len(os.listdir("/proc/self/fd"))
    child = make()
    child.start()
    for content in (b"second", b"third", b"fourth"):
        assert child.answer() == Delivered(child.carried[-1].decode())
        child.send(content)
    assert child.answer() == Delivered("fourth")
    assert child.carried == [b"first", b"second", b"third", b"fourth"]
    child.line.close()
    child.end()
    # Those of the test's pipe; a message's are closed behind it.
    assert len(os.listdir("/proc/self/fd")) == before + 2


@pytest.mark.parametrize(
    "stay", [{"messages": 1}, {"until_s": 0.0}, {"idle_s": 0.0}], ids=["enough", "long enough", "idle"]
)
def test_who_goes_takes_nothing_with_it(make: Callable[..., Child], stay: dict[str, float]) -> None:
    child = make(**stay)
    child.start()
    assert child.answer() == Delivered("first")
    if "idle_s" in stay:
        child.end()
    with pytest.raises(ConnectionError):
        child.send(b"second")
    child.end()
    assert child.carried == [b"first"]


def test_what_was_sent_before_it_went_is_delivered(make: Callable[..., Child]) -> None:
    # Nobody of ours sends before the answer; what the kernel took must not be lost all the same.
    child = make()

    def during() -> None:
        if len(child.carried) == 1:
            child.send(b"second")
            child.call_off()

    child.during = during
    child.start()
    assert child.answer() == Delivered("first")
    assert child.answer() == Delivered("second")
    child.end()
    assert child.carried == [b"first", b"second"]


def test_who_waits_goes_when_it_is_called_off(make: Callable[..., Child]) -> None:
    child = make()
    child.start()
    assert child.answer() == Delivered("first")
    child.call_off()
    child.end()
    with pytest.raises(ConnectionError):
        child.send(b"second")
    assert child.carried == [b"first"]


def test_what_is_another_ones_is_not_delivered(make: Callable[..., Child]) -> None:
    for key, content, reason in (
        (key_of("ann", "maildir:/home/joe/Maildir"), b"second", "another process"),
        (key_of("joe", "pipe:/bin/sh"), b"second", "another process"),
        (KEY, None, "without a message"),
    ):
        child = make()
        child.start()
        assert child.answer() == Delivered("first")
        if content is None:
            child.line.send(errand(key))
        else:
            child.send(content, key)
        found = child.answer()
        assert isinstance(found, Retry)
        assert reason in found.reason
        child.end()
        assert child.carried == [b"first"]
