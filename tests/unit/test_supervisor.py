"""The supervisor's arithmetic and tables, without a process: back-off, life signs, sockets, accounts, watched files."""

from __future__ import annotations

import os
import pathlib
import pwd
import signal
import socket

import pytest

from fastsmtp.errors import ConfigError
from fastsmtp.queue.memory import memory_file
from fastsmtp.supervisor.backoff import Backoff
from fastsmtp.supervisor.channel import Channel
from fastsmtp.supervisor.heartbeat import LOOK_S, Pulse
from fastsmtp.supervisor.notify import Notifier
from fastsmtp.supervisor.privilege import Account, account_for
from fastsmtp.supervisor.shapes import Listener
from fastsmtp.supervisor.sockets import Bound, HandedOver, Sockets, assign, handed_over, match, show
from fastsmtp.supervisor.statefile import PidFile
from fastsmtp.supervisor.watch import Signature, Watch


@pytest.mark.parametrize(
    ("lives_s", "delays_s"),
    [
        ([3600.0], [0.0]),
        ([1.0] * 7, [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0]),
        ([1.0, 1.0, 60.0, 1.0], [0.0, 0.5, 0.0, 0.5]),  # a steady life makes up for the past
    ],
)
def test_back_off_doubles_to_a_bound(lives_s: list[float], delays_s: list[float]) -> None:
    backoff = Backoff()
    assert [backoff.after(lived_s) for lived_s in lives_s] == delays_s


def judged(
    beats: dict[float, float], until_s: float, *, skips: tuple[float, float] = (0.0, 0.0)
) -> list[tuple[float, str]]:
    """What Pulse wants at which time, for a worker born at 100.

    beats: from a time on, when it beat last; skips: between these the master slept.
    """
    pulse = Pulse(100.0)
    wanted = []
    now = 100.0
    while now <= until_s:
        beat = max((beat for at, beat in beats.items() if at <= now), default=0.0)
        if not skips[0] < now < skips[1]:
            number = pulse.judge(beat, now)
            if number is not None:
                wanted.append((now, number.name))
        now += LOOK_S
    return wanted


@pytest.mark.parametrize(
    ("beats", "until_s", "wanted"),
    [
        ({100.5 + at: 100.5 + at for at in range(20)}, 118.0, []),  # alive
        ({101.0: 101.0}, 103.75, []),
        ({101.0: 101.0}, 104.25, [(104.0, "SIGABRT")]),
        ({101.0: 101.0}, 104.75, [(104.0, "SIGABRT"), (104.5, "SIGKILL"), (104.75, "SIGKILL")]),
        ({}, 129.0, []),  # it starts, and may take its time
        ({}, 130.25, [(130.0, "SIGABRT")]),
    ],
)
def test_silence_is_judged(
    beats: dict[float, float], until_s: float, wanted: list[tuple[float, str]]
) -> None:
    assert judged(beats, until_s) == wanted


def test_when_the_master_itself_stood_still_workers_are_not_blamed() -> None:
    # Silent for one second before, and then for as long as it is looked at.
    assert judged({101.0: 101.0}, 112.25, skips=(102.0, 110.0))[0] == (111.75, "SIGABRT")
    assert judged({102.0: 102.0}, 112.5, skips=(102.0, 110.0)) == []
    assert judged({102.0: 102.0, 105.0: 105.0}, 112.5, skips=(102.0, 110.0)) == []


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 24])
def test_every_socket_has_one_owner_and_shared_ones_all(workers: int) -> None:
    own = Bound(("127.0.0.1", 25, 0), ("127.0.0.1", 25), list(range(100, 124)))
    shared = Bound(("127.0.0.2", 25, 0), ("127.0.0.2", 25), [7], shared=True)
    seats = assign([[own], [shared]], workers)
    dealt = [fd for seat in seats for listener, fd in seat if listener == 0]
    assert sorted(dealt) == own.fds
    assert max(map(len, seats)) - min(map(len, seats)) <= 1
    assert all((1, 7) in seat for seat in seats)


LISTENERS = [Listener("mx", (("0.0.0.0", 25),)), Listener("in", (("127.0.0.1", 2525),))]


@pytest.mark.parametrize(
    ("adopted", "given"),
    [
        (HandedOver(3, "in", ("0.0.0.0", 25)), 1),  # the name counts first
        (HandedOver(3, "", ("0.0.0.0", 25)), 0),
        (HandedOver(3, "unknown", ("127.0.0.1", 2525)), 1),
    ],
)
def test_a_handed_over_socket_finds_its_listener(adopted: HandedOver, given: int) -> None:
    assert match([adopted], LISTENERS)[given] == [adopted]


def test_a_handed_over_socket_that_belongs_to_nobody_is_told() -> None:
    with pytest.raises(ConfigError, match=r"'x' from systemd \(127.0.0.9:9\) belongs to no \[\[listen\]\]"):
        match([HandedOver(3, "x", ("127.0.0.9", 9))], LISTENERS)
    only = HandedOver(3, "x", ("127.0.0.9", 9))
    assert match([only], LISTENERS[:1]) == [[only]]


def test_variables_of_another_process_are_not_ours_and_go() -> None:
    environment = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "mx", "HOME": "/"}
    assert handed_over(environment, os.getpid()) == []
    assert environment == {"HOME": "/"}


def test_sockets_stay_while_their_address_does_and_grow_with_the_workers() -> None:
    sockets = Sockets()
    try:
        listeners = [Listener("mx", (("127.0.0.1", 0), ("::1", 0)))]
        first = sockets.bind(listeners, 2)
        assert [len(bound.fds) for bound in first[0]] == [24, 24]
        port = first[0][0].actual[1]
        again = sockets.bind([Listener("mx", (("127.0.0.1", 0),))], 30)
        assert again[0][0].actual[1] == port
        assert len(again[0][0].fds) == 30
        sockets.keep([("127.0.0.1", 0, 0)])
        assert len(sockets.fds()) == 30
    finally:
        sockets.close()
    assert sockets.fds() == []


def test_an_address_stands_once_and_any_free_port_as_often_as_one_likes() -> None:
    sockets = Sockets()
    try:
        any_port = [Listener("a", (("127.0.0.1", 0),)), Listener("b", (("127.0.0.1", 0),))]
        (first,), (second,) = sockets.bind(any_port, 1)
        assert first.actual != second.actual
        assert [bound.actual for (bound,) in sockets.bind(any_port, 1)] == [first.actual, second.actual]
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{first.actual[1]} is listed twice"):
            sockets.bind([Listener("a", (first.actual,)), Listener("b", (first.actual,))], 1)
    finally:
        sockets.close()


def test_a_wildcard_address_joins_a_port_that_is_ours() -> None:
    with socket.create_server(("0.0.0.0", 0)) as free:
        port = free.getsockname()[1]
    sockets = Sockets()
    try:
        one, every = ("127.0.0.1", port), ("0.0.0.0", port)
        sockets.bind([Listener("mx", (one,))], 2)
        assert [bound.actual for bound in sockets.bind([Listener("mx", (one, every))], 2)[0]] == [one, every]
    finally:
        sockets.close()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        (("192.0.2.1", 0), "cannot listen on 192.0.2.1:0: this machine has no such address"),
        (("2001:db8::1", 25), r"cannot listen on \[2001:db8::1\]:25: this machine has no such address"),
    ],
)
def test_an_address_that_cannot_be_bound_is_told_and_nothing_stays_open(
    address: tuple[str, int], sentence: str
) -> None:
    sockets = Sockets()
    with pytest.raises(ConfigError, match=sentence):
        sockets.bind([Listener("mx", (("127.0.0.1", 0), address))], 2)
    assert sockets.fds() == []


def test_addresses_are_shown_as_they_are_written() -> None:
    assert (show("127.0.0.1", 25), show("::1", 25)) == ("127.0.0.1:25", "[::1]:25")


def account(name: str, uid: int) -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, uid + 1, "", "/", "/bin/false"))


def unknown(name: str) -> pwd.struct_passwd:
    raise KeyError(name)


EXPOSED, PRIVATE = [("127.0.0.1", 2525), ("0.0.0.0", 2525)], [("127.0.0.1", 2525), ("::1", 0)]


def test_who_is_not_root_stays_who_he_is() -> None:
    assert account_for("fastsmtp", EXPOSED, uid=1000, look_up=unknown) == (None, "")


def test_root_becomes_the_account() -> None:
    found = account_for("fastsmtp", PRIVATE, uid=0, look_up=lambda name: account(name, 500))
    assert found == (Account("fastsmtp", 500, 501), "")


@pytest.mark.parametrize("addresses", [EXPOSED, [("127.0.0.1", 25)], [("::1", 1023)], [("mx.example", 2525)]])
def test_without_the_account_root_serves_nothing_exposed(addresses: list[tuple[str, int]]) -> None:
    with pytest.raises(ConfigError, match=r"useradd --system .* fastsmtp$"):
        account_for("fastsmtp", addresses, uid=0, look_up=unknown)


def test_without_the_account_a_trial_is_warned() -> None:
    found, warning = account_for("fastsmtp", PRIVATE, uid=0, look_up=unknown)
    assert found is None
    assert "useradd --system" in warning


def test_an_account_that_is_root_is_refused() -> None:
    with pytest.raises(ConfigError, match="'toor' is root"):
        account_for("toor", PRIVATE, uid=0, look_up=lambda name: account(name, 0))


def test_a_change_is_named_once_and_only_when_the_file_is_still() -> None:
    files: dict[str, Signature] = {"a": (1, 1, 1, 1), "b": (1, 2, 1, 1)}
    watch = Watch(files, look=files.get)
    assert watch.changed() == []
    files["a"] = (1, 1, 2, 2)
    assert watch.changed() == [], "it may still be written"
    files["a"] = (1, 1, 3, 3)
    assert watch.changed() == []
    assert watch.changed() == ["a"]
    assert watch.changed() == []
    files["b"] = None
    assert [watch.changed() for _ in range(3)] == [[], [], []], "gone is not changed"
    files["b"] = (1, 2, 1, 1)
    assert [watch.changed() for _ in range(3)] == [[], [], []], "and the same again isn't either"
    files["b"] = (1, 3, 1, 1)
    assert [watch.changed() for _ in range(3)] == [[], ["b"], []]


def test_a_file_that_may_come_and_go_does_both() -> None:
    files: dict[str, Signature] = {"a": (1, 1, 1, 1)}
    watch = Watch(["a"], look=files.get, coming=["a", "b"])
    assert watch.changed() == []
    del files["a"]
    assert [watch.changed() for _ in range(3)] == [[], ["a"], []]
    files["b"] = (1, 2, 1, 1)
    assert [watch.changed() for _ in range(3)] == [[], ["b"], []]
    files["a"] = (1, 3, 1, 1)
    del files["b"]
    assert [watch.changed() for _ in range(3)] == [[], ["a", "b"], []]


def test_what_changed_while_it_was_read_is_a_change() -> None:
    files: dict[str, Signature] = {"early": (1, 1, 1, 999), "late": (1, 2, 1, 1000)}
    assert Watch(files, 1000, look=files.get).changed() == ["late"]


def test_one_server_a_state_directory(tmp_path: pathlib.Path) -> None:
    first = PidFile(str(tmp_path / "deep" / "state"))
    assert first.path.read_text() == f"{os.getpid()}\n"
    with pytest.raises(ConfigError, match=rf"another fastsmtp \(pid {os.getpid()}\)"):
        PidFile(str(tmp_path / "deep" / "state"))
    first.remove()
    assert not first.path.exists()
    PidFile(str(tmp_path / "deep" / "state")).remove()


def test_a_state_directory_that_cannot_be_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot use the state directory"):
        PidFile(str(tmp_path / "file"))


def test_messages_and_files_cross_the_line_whole() -> None:
    ours, theirs = Channel.pair()
    contents = {f"/etc/list{number}": bytes([number % 256]) * 1000 for number in range(300)}
    fds = {name: memory_file(name, data) for name, data in contents.items()}
    try:
        assert ours.hear() is None
        assert theirs.say("ready")
        assert theirs.say("failed", "why not?\nbecause")
        assert [ours.hear(), ours.hear()] == [("ready", ""), ("failed", "why not?\nbecause")]
        assert ours.send_files(fds)
        received: dict[str, bytes] = {}
        while (heard := theirs.hear_with_files()) is not None:
            assert heard[0] == "files"
            received |= heard[2]
        assert received == contents
        with pytest.raises(PermissionError):
            os.pwrite(next(iter(fds.values())), b"x", 0)
        theirs.close()
        assert ours.hear() == ("", "")
        assert not ours.say("drain", "1")
    finally:
        for fd in fds.values():
            os.close(fd)
        ours.close()


def test_without_systemd_nothing_is_told(tmp_path: pathlib.Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "nobody-listens")}
    notifier = Notifier(environment)
    notifier.send("READY=1")
    Notifier({}).send("READY=1")
    assert environment == {}


def test_a_hung_worker_is_asked_where_before_it_is_killed() -> None:
    pulse = Pulse(0.0)
    seen = [pulse.judge(0.25, LOOK_S * step) for step in range(1, 20)]
    assert [number for number in seen if number][:2] == [signal.SIGABRT, signal.SIGKILL]
