"""The engine alone, over a socket pair: no loop, no clock, every packet chosen."""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsmtp._dns import (
    CASE,
    FAILED,
    NO_EDNS,
    NOBODY,
    TIMED_OUT,
    TRUNCATED,
    Answer,
    Engine,
    Open,
    Port,
    Question,
    Status,
)
from fastsmtp._dns import Server as NameServer
from fastsmtp._dnscache import Cache
from tests.fakes.dns_server import A, a, packet, record

MAIL = Question(b"mail.example.org", A)
GOOD = record(b"\xc0\x0c", A, 300, a("192.0.2.1"))


class Bench:
    """An engine, one port of it, and the far end of its socket; answers collects what is called back."""

    def __init__(self, near: socket.socket, far: socket.socket, random: Callable[[int], bytes]) -> None:
        self.engine = Engine(random, cache_bytes=65_536)
        self.server = NameServer("127.0.0.1", trusts_ad=False)
        self.port = Port(self.server, near, 0.0)
        self.far = far
        self.answers: list[tuple[Answer, ...]] = []

    def ask(self, *questions: Question, deadline: float = 5.0, now: float = 0.0) -> list[bytes]:
        """Put and send; the packets that left."""
        batch = self.engine.ask(questions, deadline, now, self.answers.append)
        if batch.fresh is None:
            return []
        assert self.engine.send(self.port, batch.fresh, now, 1.0) == 0
        return [self.far.recv(2_048) for _ in batch.fresh]

    def take(self, *packets: bytes, now: float = 0.1) -> list[Open]:
        for each in packets:
            self.far.send(each)
        return self.engine.receive(self.port, now) or []


@contextmanager
def bench(random: Callable[[int], bytes] = os.urandom) -> Iterator[Bench]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield Bench(near, far, random)


def test_a_question_goes_out_and_its_answer_comes_back() -> None:
    with bench() as it:
        (query,) = it.ask(MAIL)
        assert it.port.open == len(it.engine) == 1
        assert it.take(packet(query, [GOOD])) == []
        ((answer,),) = it.answers
        assert answer.records == (a("192.0.2.1"),)
        assert it.port.open == len(it.engine) == 0
        assert it.server.latency_s == pytest.approx(0.1)
        assert it.engine.peek(MAIL, 0.2) == answer


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda q: packet(q, flags=0x8380), TRUNCATED),
        (lambda q: packet(q.swapcase(), [GOOD]), CASE),
        (lambda q: q[:2] + b"\x81\x81" + b"\0" * 8, NO_EDNS),
        (lambda q: packet(q, rcode=1), NO_EDNS),
        (lambda q: packet(q, rcode=2), FAILED),
        (lambda q: packet(q, [GOOD[:-1]]), FAILED),
        (lambda q: packet(q, [GOOD]) + b"\0" * 1_600, TRUNCATED),  # more than we have ever asked for
    ],
)
def test_what_wants_a_decision_is_handed_back(change: Callable[[bytes], bytes], verdict: int) -> None:
    with bench() as it:
        (query,) = it.ask(MAIL)
        changed = change(query)
        (open,) = it.take(query[:2] + changed[2:])  # the id is not a letter
        assert open.verdict == verdict
        assert open.question == MAIL
        assert open.port is None
        assert not it.answers
        it.engine.settle(open, 0.2)
        assert it.answers[0][0].is_failed


def test_silence_is_handed_back_and_the_deadline_is_answered() -> None:
    with bench() as it:
        (query,) = it.ask(MAIL, deadline=5.0)
        assert it.engine.tick(0.9) == []
        (open,) = it.engine.tick(1.1)
        assert open.verdict == TIMED_OUT
        assert it.take(packet(query, [GOOD])) == []
        assert (it.engine.late, it.engine.timeouts) == (1, 1)
        assert it.engine.send(it.port, [open], 1.1, 10.0) == 0
        assert it.far.recv(512)[:2] != query[:2]
        assert it.engine.tick(5.1) == []
        assert it.answers == [(it.answers[0][0],)]
        assert it.answers[0][0].status is Status.TIMEOUT
        assert len(it.engine) == 1  # it may still fill the cache
        assert it.engine.tick(11.2) == []
        assert len(it.engine) == 0


def test_a_socket_that_is_closed_at_the_far_end_is_nobody() -> None:
    with bench() as it:
        batch = it.engine.ask([MAIL], 5.0, 0.0, it.answers.append)
        it.far.close()
        assert batch.fresh is not None
        assert it.engine.send(it.port, batch.fresh, 0.0, 1.0) != 0
        (open,) = it.engine.tick(0.0)
        assert open.verdict == NOBODY
        assert it.port.open == 0


def test_a_full_socket_costs_no_attempt() -> None:
    with bench() as it:
        questions = [Question(b"x%d.example" % i, A) for i in range(2_000)]
        batch = it.engine.ask(questions, 5.0, 0.0, it.answers.append)
        assert batch.fresh is not None
        it.engine.send(it.port, batch.fresh, 0.0, 1.0)
        again = it.engine.tick(0.0)
        assert 0 < len(again) < 2_000
        assert {open.attempts for open in again} == {0}
        assert it.engine.timeouts == 0


def test_randomness_is_drawn_late_and_in_blocks() -> None:
    drawn: list[int] = []

    def source(n: int) -> bytes:
        drawn.append(n)
        return os.urandom(n)

    with bench(source) as it:
        assert drawn == []
        for i in range(100):
            it.ask(Question(b"x%d.example" % i, A))
        assert 1 <= len(drawn) <= 3


def test_a_source_that_repeats_itself_does_not_repeat_an_id() -> None:
    with bench(random.Random(1).randbytes) as it:
        ids = {it.ask(Question(b"x%d.example" % i, A))[0][:2] for i in range(5_000)}
        assert len(ids) == 5_000


def test_a_callback_that_raises_hurts_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(answers: tuple[Answer, ...]) -> None:
        raise RuntimeError("a defect of the caller")

    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    with bench() as it:
        batch = it.engine.ask([MAIL], 5.0, 0.0, fail)
        it.engine.ask([MAIL], 5.0, 0.0, it.answers.append)
        assert batch.fresh is not None
        it.engine.send(it.port, batch.fresh, 0.0, 1.0)
        it.take(packet(it.far.recv(512), [GOOD]))
    assert (len(seen), len(it.answers)) == (1, 1)


@settings(max_examples=200)
@given(st.data())
def test_whatever_comes_only_a_true_answer_is_taken(data: st.DataObject) -> None:
    with bench() as it:
        (query,) = it.ask(MAIL)
        good = packet(query, [GOOD])
        for _ in range(data.draw(st.integers(1, 5))):
            bad = bytearray(good)
            # The first 12 + 22 bytes are what an attacker must guess; touch one of them at least.
            for at in data.draw(
                st.lists(st.sampled_from([0, 1, *range(12, 34)]), min_size=1, max_size=4, unique=True)
            ):
                bad[at] ^= data.draw(st.integers(1, 255))
            end = data.draw(st.integers(0, len(bad)))
            it.take(bytes(bad[:end]) or b"\0")
            if it.port.open == 0:  # other letters were handed back
                return
            assert not it.answers
        it.take(good)
        assert it.answers[0][0].records == (a("192.0.2.1"),)


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=100), max_size=6), st.booleans())
def test_noise_raises_nothing(packets: list[bytes], has_id: bool) -> None:
    with bench() as it:
        (query,) = it.ask(MAIL)
        it.take(*((query[:2] if has_id else b"") + noise + b"\0" for noise in packets))
        assert it.engine.forged + it.engine.late + it.engine.duplicates <= len(packets)


# --------------------------------------------------------------- the cache


def fill(engine: Engine, port: Port, far: socket.socket, questions: list[Question], now: float) -> None:
    for start in range(0, len(questions), 50):
        batch = engine.ask(questions[start : start + 50], now + 5.0, now, lambda answers: None)
        if batch.fresh is not None:
            engine.send(port, batch.fresh, now, 1.0)
            for _ in batch.fresh:
                far.send(packet(far.recv(512), [GOOD] * 3))
            engine.receive(port, now)


def test_the_ring_goes_round_many_times() -> None:
    dice = random.Random(5)
    with bench() as it:
        cache = it.engine.cache
        newest = [Question(b"x", A)]
        for turn in range(40):
            newest = [
                Question(b"y" * dice.randint(1, 60) + b".x%d.t%d.example" % (i, turn), A) for i in range(200)
            ]
            fill(it.engine, Port(it.server, it.port.socket, 0.0), it.far, newest, float(turn))
            assert cache.used_bytes <= cache.capacity_bytes <= 65_536
            assert all(it.engine.peek(question, float(turn)) is not None for question in newest)
        assert len(cache) + cache.evicted == 40 * 200


def test_an_answer_replaces_the_one_before_it() -> None:
    with bench() as it:
        for turn in range(2_000):
            now = turn * 400.0
            fill(it.engine, Port(it.server, it.port.socket, now), it.far, [MAIL], now)
            assert it.engine.peek(MAIL, now) is not None
            assert it.engine.peek(MAIL, now + 301.0) is None
        assert len(it.engine.cache) == 1


def test_what_would_take_an_eighth_is_not_kept() -> None:
    with bench() as it:
        (query,) = it.ask(MAIL)
        long = [record(b"\xc0\x0c", A, 300, a("192.0.2.1"))] * 700
        (open,) = it.take(packet(query, flags=0x8380))
        frame = it.engine.encode(open, it.server, 7, 0.0, 1.0)
        assert it.engine.answer(open, packet(frame[2:], long), 0.1) == 0
        assert len(it.answers[0][0].records) == 700
        assert len(it.engine.cache) == 1
        wide = Question(b"wide.example.org", A)
        (query,) = it.ask(wide)
        (open,) = it.take(packet(query, flags=0x8380))
        frame = it.engine.encode(open, it.server, 7, 0.0, 1.0)
        assert it.engine.answer(open, packet(frame[2:], long * 3), 0.1) == 0
        assert it.engine.peek(wide, 0.1) is None


def test_a_cache_has_a_least_size() -> None:
    with pytest.raises(ValueError, match="too small"):
        Cache(4_095)
    assert Cache(4_096).used_bytes == 0
