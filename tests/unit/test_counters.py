"""The shared counters: against a model of dicts, across real processes, when full, and when a worker died."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from fastsmtp._counters import CONNECTIONS, HANDSHAKES, MESSAGES, RECIPIENTS, Counters, Region


def client(number: int) -> bytes:
    """An IPv4 client's key."""
    return bytes(10) + b"\xff\xff" + number.to_bytes(4, "big")


def test_connections_are_summed_over_the_workers() -> None:
    counters = Counters(3, 64)
    one, two, three = (counters.region(worker) for worker in range(3))
    assert one.connect(client(1), 10.0) == 1
    assert two.connect(client(1), 10.0) == 2
    assert three.connect(client(2), 10.0) == 1
    assert [r.client_connections(client(1)) for r in (one, two, three)] == [2, 2, 2]
    assert counters.connections() == one.connections() == 3
    two.disconnect(client(1))
    assert one.client_connections(client(1)) == 1
    assert counters.connections() == 2


def test_uncounted_connections_count_in_all_only() -> None:
    counters = Counters(2, 64)
    region = counters.region(0)
    region.connect_uncounted()
    region.connect_uncounted()
    region.disconnect_uncounted()
    assert counters.region(1).connections() == 1
    assert region.client_connections(client(1)) == 0


def test_a_disconnect_that_was_never_counted_takes_nothing_away() -> None:
    region = Counters(1, 64).region(0)
    region.disconnect(client(1))
    region.disconnect_uncounted()
    assert region.connections() == 0
    assert region.connect(client(1), 0.0) == 1


@pytest.mark.parametrize(
    ("taken_s", "asked_s", "rate"),
    [
        (60.0, 60.0, 10),  # the same minute counts whole
        (60.0, 119.9, 10),
        (60.0, 120.0, 10),  # the minute before counts by what is left of it
        (60.0, 150.0, 5),
        (60.0, 178.0, 0),  # 2/60 of 10, rounded
        (60.0, 180.0, 0),  # older ones do not
        (119.9, 60.0, 10),  # a reader whose clock is behind
    ],
)
def test_rates_slide_over_a_minute(taken_s: float, asked_s: float, rate: int) -> None:
    counters = Counters(2, 64)
    counters.region(0).take(client(1), MESSAGES, taken_s, 4)
    counters.region(1).take(client(1), MESSAGES, taken_s, 6)
    assert counters.region(0).rate(client(1), MESSAGES, asked_s) == rate
    assert counters.region(0).rate(client(1), RECIPIENTS, asked_s) == 0
    assert counters.region(0).rate(client(2), MESSAGES, asked_s) == 0


def test_the_minute_before_is_kept_when_a_new_one_begins() -> None:
    region = Counters(1, 64).region(0)
    region.take(client(1), RECIPIENTS, 60.0, 30)
    region.take(client(1), RECIPIENTS, 120.0, 7)
    assert region.rate(client(1), RECIPIENTS, 120.0) == 37
    region.take(client(1), RECIPIENTS, 240.0)
    assert region.rate(client(1), RECIPIENTS, 240.0) == 1


def test_a_pass_holds_until_its_time_and_is_seen_by_all() -> None:
    counters = Counters(2, 64)
    counters.region(0).grant_pass(client(1), 1000.0)
    other = counters.region(1)
    assert other.has_pass(client(1), 999.9)
    assert not other.has_pass(client(1), 1000.0)
    assert not other.has_pass(client(2), 0.0)
    counters.region(0).grant_pass(client(1), 900.0)
    assert other.has_pass(client(1), 950.0), "an earlier end does not shorten a pass"


def test_the_key_of_all_zeros_is_a_client_like_any_other() -> None:
    region = Counters(1, 64).region(0)
    assert region.client_connections(bytes(16)) == 0
    assert region.connect(bytes(16), 0.0) == 1
    assert region.client_connections(client(1)) == 0


def test_a_full_table_counts_no_more_clients_and_refuses_none() -> None:
    region = Counters(1, 16).region(0)
    for number in range(16):
        assert region.connect(client(number), 600.0) == 1
    assert region.overflows == 0
    assert region.connect(client(99), 600.0) == 0
    region.take(client(99), MESSAGES, 600.0)
    assert region.rate(client(99), MESSAGES, 600.0) == 0
    assert region.overflows == 2
    assert region.connections() == 17
    region.disconnect(client(99))
    assert region.connections() == 16
    assert region.client_connections(client(3)) == 1


def test_only_slots_that_say_nothing_are_given_away() -> None:
    region = Counters(1, 16).region(0)
    region.connect(client(0), 600.0)  # stays connected
    region.take(client(1), MESSAGES, 840.0)  # in the minute before
    region.take(client(2), MESSAGES, 780.0)  # stale by 900
    region.grant_pass(client(3), 10_000.0)
    region.take(client(3), MESSAGES, 600.0)
    for number in range(4, 16):
        region.connect(client(number), 600.0)
    assert region.connect(client(20), 900.0) == 1
    assert region.rate(client(2), MESSAGES, 800.0) == 0, "the stale slot went"
    assert region.has_pass(client(3), 900.0)
    assert region.connect(client(21), 900.0) == 1
    assert not region.has_pass(client(3), 900.0), "with nothing else left, a pass gives way to a count"
    assert region.connect(client(22), 900.0) == 0
    assert region.client_connections(client(0)) == 1
    assert region.rate(client(1), MESSAGES, 840.0) == 1


def test_the_pass_that_ends_first_goes_first() -> None:
    region = Counters(1, 16).region(0)
    for number in range(16):
        region.grant_pass(client(number), 10_000.0 + (number * 7) % 16)
    region.connect(client(50), 900.0)
    lost = [number for number in range(16) if not region.has_pass(client(number), 900.0)]
    assert lost == [0]


def test_clear_forgets_a_dead_worker_only() -> None:
    counters = Counters(2, 64)
    dead, alive = counters.region(0), counters.region(1)
    for number in range(8):
        dead.connect(client(number), 60.0)
        alive.connect(client(number), 60.0)
        dead.take(client(number), MESSAGES, 60.0)
        dead.grant_pass(client(number), 9999.0)
    dead.beat(12.5)
    alive.beat(13.5)
    counters.clear(0)
    assert (counters.beat_s(0), counters.beat_s(1)) == (0.0, 13.5)
    assert counters.connections() == 8
    for number in range(8):
        assert alive.client_connections(client(number)) == 1
        assert alive.rate(client(number), MESSAGES, 60.0) == 0
        assert not alive.has_pass(client(number), 60.0)
    assert counters.region(0).connect(client(3), 61.0) == 2


def test_release_keeps_rates_and_passes() -> None:
    counters = Counters(2, 64)
    old, new = counters.region(0), counters.region(1)
    old.connect(client(1), 60.0)
    old.take(client(1), CONNECTIONS, 60.0)
    old.grant_pass(client(1), 9999.0)
    old.beat(60.0)
    counters.release(0)
    assert counters.connections() == new.client_connections(client(1)) == 0
    assert counters.beat_s(0) == 0.0
    assert new.rate(client(1), CONNECTIONS, 61.0) == 1
    assert new.has_pass(client(1), 61.0)


def test_readers_look_at_the_regions_in_use() -> None:
    counters = Counters(4, 64)
    counters.region(3).connect(client(1), 60.0)
    counters.use(2)
    assert counters.region(0).client_connections(client(1)) == 0
    counters.use(4)
    assert counters.region(0).client_connections(client(1)) == 1


def test_wrong_use_is_told() -> None:
    counters = Counters(2, 64)
    region = counters.region(0)
    with pytest.raises(IndexError):
        counters.region(2)
    with pytest.raises(IndexError):
        counters.use(3)
    with pytest.raises(IndexError):
        region.take(client(1), 4, 0.0)
    with pytest.raises(IndexError):
        region.rate(client(1), -1, 0.0)
    with pytest.raises(ValueError):
        region.connect(b"short", 0.0)
    with pytest.raises(ValueError):
        Counters(0)
    with pytest.raises(ValueError):
        Counters(1, 0)
    with pytest.raises(TypeError):
        Region()


def test_a_region_outlives_its_counters_object() -> None:
    region = Counters(1, 64).region(0)
    assert region.connect(client(1), 0.0) == 1


@given(st.sets(st.binary(min_size=16, max_size=16), min_size=1, max_size=40))
def test_any_keys_stay_apart(keys: set[bytes]) -> None:
    region = Counters(1, 1024).region(0)
    for count, key in enumerate(sorted(keys), 1):
        for _ in range(count):
            region.connect(key, 0.0)
    assert [region.client_connections(key) for key in sorted(keys)] == list(range(1, len(keys) + 1))


class Model(RuleBasedStateMachine):
    """The table against dicts.  Time only runs forward; the table is never full."""

    WORKERS = 3

    @initialize()
    def start(self) -> None:
        self.counters = Counters(self.WORKERS, 256)
        self.regions = [self.counters.region(worker) for worker in range(self.WORKERS)]
        self.now = 1000.0
        self.open: dict[tuple[int, bytes], int] = {}
        self.total = [0] * self.WORKERS
        self.taken: dict[tuple[int, bytes, int, int], int] = {}
        self.passes: dict[tuple[int, bytes], int] = {}

    clients = st.integers(0, 5).map(client)
    workers = st.integers(0, WORKERS - 1)
    tokens = st.sampled_from([CONNECTIONS, MESSAGES, RECIPIENTS, HANDSHAKES])

    @rule(step=st.sampled_from([0.25, 1.0, 17.0, 60.0, 130.0]))
    def time_passes(self, step: float) -> None:
        self.now += step

    @rule(worker=workers, key=clients)
    def connect(self, worker: int, key: bytes) -> None:
        self.open[worker, key] = self.open.get((worker, key), 0) + 1
        self.total[worker] += 1
        assert self.regions[worker].connect(key, self.now) == self.connections(key)

    @rule(worker=workers, key=clients)
    def disconnect(self, worker: int, key: bytes) -> None:
        if self.open.get((worker, key), 0):
            self.open[worker, key] -= 1
            self.total[worker] -= 1
            self.regions[worker].disconnect(key)

    @rule(worker=workers, key=clients, token=tokens, amount=st.integers(0, 50))
    def take(self, worker: int, key: bytes, token: int, amount: int) -> None:
        minute = int(self.now) // 60
        at = worker, key, token, minute
        self.taken[at] = self.taken.get(at, 0) + amount
        self.regions[worker].take(key, token, self.now, amount)

    @rule(worker=workers, key=clients, for_s=st.integers(1, 500))
    def grant(self, worker: int, key: bytes, for_s: int) -> None:
        self.passes[worker, key] = max(int(self.now) + for_s, self.passes.get((worker, key), 0))
        self.regions[worker].grant_pass(key, self.now + for_s)

    @rule(worker=workers, wipe=st.booleans())
    def die(self, worker: int, wipe: bool) -> None:
        self.total[worker] = 0
        self.open = {at: n for at, n in self.open.items() if at[0] != worker}
        if wipe:
            self.taken = {at: n for at, n in self.taken.items() if at[0] != worker}
            self.passes = {at: n for at, n in self.passes.items() if at[0] != worker}
            self.counters.clear(worker)
        else:
            self.counters.release(worker)

    @rule(worker=workers, key=clients, token=tokens)
    def ask(self, worker: int, key: bytes, token: int) -> None:
        region = self.regions[worker]
        minute, into = divmod(int(self.now), 60)
        current, previous = (
            sum(n for at, n in self.taken.items() if at[1:] == (key, token, minute - age)) for age in (0, 1)
        )
        assert region.rate(key, token, self.now) == current + (previous * (60 - into) + 30) // 60
        assert region.client_connections(key) == self.connections(key)
        assert region.connections() == self.counters.connections() == sum(self.total)
        known = max((until for at, until in self.passes.items() if at[1] == key), default=0)
        assert region.has_pass(key, self.now) == (known > int(self.now))
        assert region.overflows == 0

    def connections(self, key: bytes) -> int:
        return sum(n for at, n in self.open.items() if at[1] == key)


def test_the_table_answers_like_a_model_of_dicts() -> None:
    run_state_machine_as_test(Model)


def test_processes_share_by_fork() -> None:
    """Two writers and a reader: at the end each count is exact, and meanwhile no client has another's."""
    script = """
        import os, sys
        from fastsmtp._counters import MESSAGES, Counters

        ROUNDS, CLIENTS = 20_000, 40
        counters = Counters(2, 32)          # tight: slots change hands all the time
        key = lambda n: n.to_bytes(16, "big")
        children = []
        for worker in range(2):
            child = os.fork()
            if not child:
                region = counters.region(worker)
                # client n always has n + 1 connections, or none: a reader that mixes clients up sees it
                for round in range(ROUNDS):
                    n = round % CLIENTS
                    now = 120.0 * round
                    region.take(key(n), MESSAGES, now, n + 1)
                    region.beat(now)
                region.connect(key(1000 + worker), now + 600)
                os._exit(0)
            children.append(child)
        reader = counters.region(0)
        wrong = seen = 0
        while children:
            for n in range(CLIENTS):
                for at in (counters.beat_s(0), counters.beat_s(1)):
                    rate = reader.rate(key(n), MESSAGES, at)
                    seen += bool(rate)
                    if rate % (n + 1):
                        wrong += 1
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                assert status == 0, status
                children.remove(pid)
        print(wrong, seen > 0, counters.connections(), reader.client_connections(key(1000)), reader.overflows)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=100
    )
    assert result.stderr == ""
    assert result.stdout == "0 True 2 1 0\n"


def test_a_writer_killed_half_way_does_not_stall_readers() -> None:
    """SIGKILL at any moment: readers still answer, and clear() makes the region good again."""
    script = """
        import os, signal
        from fastsmtp._counters import MESSAGES, Counters

        counters = Counters(2, 16)
        key = lambda n: n.to_bytes(16, "big")
        for attempt in range(30):
            ready, tell = os.pipe()
            child = os.fork()
            if not child:
                region = counters.region(1)
                os.write(tell, b".")
                now = 0.0
                while True:
                    for n in range(40):
                        now += 120.0
                        region.take(key(n), MESSAGES, now)
            os.read(ready, 1)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            for n in range(40):
                counters.region(0).rate(key(n), MESSAGES, 0.0)
            (counters.clear if attempt % 2 else counters.release)(1)
            fresh = counters.region(1)
            if attempt % 2:
                for n in range(16):
                    assert fresh.connect(key(100 + n), 1e8) == 1, n
                    fresh.disconnect(key(100 + n))
            os.close(ready), os.close(tell)
        print("good")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=100
    )
    assert (result.stderr, result.stdout) == ("", "good\n")
