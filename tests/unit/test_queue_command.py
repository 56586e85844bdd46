"""fastsmtp queue on a stopped server's state directory, and on a running one's admin socket."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from fastsmtp import errors
from fastsmtp.admin import protocol
from fastsmtp.admin.client import Client, NotRunning
from fastsmtp.admin.desk import Desk
from fastsmtp.admin.server import CLIENTS, AdminServer
from fastsmtp.cli import main
from fastsmtp.cli.queue import printable
from fastsmtp.delivery.hands import InHand
from fastsmtp.log import ListLog
from fastsmtp.queue.deferred import DeferredIndex
from fastsmtp.queue.done import Outcome
from fastsmtp.queue.index import IndexFile
from fastsmtp.queue.model import QueuedMessage
from fastsmtp.queue.place import Place
from fastsmtp.queue.row import Filter, Said, State, row_of
from fastsmtp.supervisor.statefile import PidFile
from tests.queued import ACCEPTED_MS, fill, index_rows, message

NOW = ACCEPTED_MS + 60_000


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")


def queue(state: pathlib.Path, *arguments: str) -> int:
    return main(["queue", *arguments, "--state", str(state)])


@pytest.fixture
def stopped(tmp_path: pathlib.Path) -> pathlib.Path:
    """Three messages: one waits and one of its recipients is done with, one is held, one was never tried."""
    messages = [
        message("ID1", "ann@there.example", "bob@there.example", "done@there.example"),
        message("ID2", "cyd@else.example", sender=""),
        message("ID3", "dan@else.example", sender="kim@other.example"),
    ]
    places = fill(
        tmp_path,
        messages,
        over=[
            (0, 0, Outcome.DEFERRED), (0, 1, Outcome.DEFERRED), (0, 2, Outcome.DELIVERED), (1, 0, Outcome.DEFERRED),
        ],
    )  # fmt: skip
    said = Said(451, "4.7.1", "try again later", "mx.there.example [192.0.2.1]")
    deferred = row_of(places[0], messages[0], 0, next_ms=NOW)._replace(
        attempts=3, last_ms=NOW - 9_000, said=said, source="a", site="mx:there.example"
    )
    late = row_of(places[0], messages[0], 1, next_ms=NOW)._replace(
        attempts=1, last_ms=NOW, said=Said(text="connection timed out")
    )
    held = row_of(places[1], messages[1], 0, next_ms=NOW)._replace(state=State.HELD)
    index_rows(tmp_path, [deferred, late, held])
    return tmp_path


LISTED = """\
-Queue ID-----  --Size-- ----Arrival Time---- -Sender/Recipient-------
ID1                   64 Fri Jan 15 08:00:00  joe@sender.example
                (mx.there.example [192.0.2.1] said: 451 4.7.1 try again later)
                                              ann@there.example
                (connection timed out)
                                              bob@there.example

ID2!                  64 Fri Jan 15 08:00:00  MAILER-DAEMON
                                              cyd@else.example

ID3                   64 Fri Jan 15 08:00:00  kim@other.example
                                              dan@else.example

-- 0 kB in 3 messages for 4 recipients.
"""


def test_a_stopped_server_s_queue_is_listed_as_mailq_does(
    stopped: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert queue(stopped, "list") == 0
    assert capsys.readouterr() == (LISTED, "")
    # Looking changes nothing, and leaves the lock.
    assert queue(stopped, "list") == 0
    assert capsys.readouterr().out == LISTED
    assert not (stopped / "fastsmtp.pid").exists()


def ids(text: str) -> str:
    return " ".join(f"{one['id'][2:]}:{one['recipient'][0]}" for one in map(json.loads, text.splitlines()))


CHOSEN = [
    ([], "1:a 1:b 2:c 3:d"),
    (["ID2", "ID3"], "2:c 3:d"),
    (["--sender", "<>"], "2:c"),
    (["--sender", "@sender.example"], "1:a 1:b"),
    (["--recipient", "Bob@There.example"], "1:b"),
    (["--domain", "ELSE.example"], "2:c 3:d"),
    (["--source", "a"], "1:a"),
    (["--in", "held"], "2:c"),
    (["--in", "deferred", "--limit", "2"], "1:a 1:b"),
    (["--all"], "1:a 1:b 2:c 3:d"),
    (["--in", "active"], ""),
    (["--domain", "nowhere.example"], ""),
]


@pytest.mark.parametrize(("arguments", "expected"), CHOSEN)
def test_entries_are_chosen(
    stopped: pathlib.Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert queue(stopped, "list", "--json", *arguments) == 0
    assert ids(capsys.readouterr().out) == expected


def states(state: pathlib.Path) -> str:
    file = IndexFile(str(state / "queue/deferred.sqlite"), version="0.1.0")
    file.open()
    found = " ".join(f"{row.address[:1].decode()}:{row.state.name}" for row in file.find(Filter()).rows)
    file.close()
    return found


ACTED = [
    (["hold", "--domain", "there.example"], 2, "a:HELD b:HELD c:HELD d:DUE"),
    (["release", "ID2"], 1, "a:DUE b:DUE c:DUE d:DUE"),
    (["delete", "--recipient", "ann@there.example"], 1, "a:DELETE b:DUE c:HELD d:DUE"),
    (["delete", "--all"], 4, "a:DELETE b:DELETE c:DELETE d:DELETE"),
    (["bounce", "ID1", "ID2"], 3, "a:BOUNCE b:BOUNCE c:BOUNCE d:DUE"),
    (["flush", "--all"], 3, "a:DUE b:DUE c:HELD d:DUE"),
    (["hold", "NOBODY"], 0, "a:DUE b:DUE c:HELD d:DUE"),
]


@pytest.mark.parametrize(("arguments", "count", "after"), ACTED)
def test_what_the_operator_does_to_a_stopped_queue_is_found_by_the_next_start(
    stopped: pathlib.Path, capsys: pytest.CaptureFixture[str], arguments: list[str], count: int, after: str
) -> None:
    assert queue(stopped, *arguments) == (0 if count else 1)
    noun = "recipient" if count == 1 else "recipients"
    assert capsys.readouterr().out == f"{arguments[0]}: {count} {noun}\n"
    assert states(stopped) == after


def test_one_message_is_shown_with_all_that_is_known(
    stopped: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert queue(stopped, "show", "ID1") == 0
    assert capsys.readouterr().out == (
        "id            ID1\naccepted      2027-01-15 08:00:00 +0000\nsender        joe@sender.example\n"
        "recipients    3\nsize_bytes    64\nclient        192.0.2.9\nclient_name   client.example\n"
        "helo          client\nlistener      mx\n"
        "\nrecipient     ann@there.example\n  state       deferred\n"
        "  attempts    3, the last 2027-01-15 08:00:51 +0000\n  next        2027-01-15 08:01:00 +0000\n"
        "  site        mx:there.example\n  source      a\n"
        "  said        mx.there.example [192.0.2.1] said: 451 4.7.1 try again later\n"
        "\nrecipient     bob@there.example\n  state       deferred\n"
        "  attempts    1, the last 2027-01-15 08:01:00 +0000\n  next        2027-01-15 08:01:00 +0000\n"
        "  site        smtp://127.0.0.1:1\n"
        "  said        connection timed out\n"
    )
    assert queue(stopped, "show", "ID3", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["sender"], shown["waiting"][0]["state"]) == ("kim@other.example", "deferred")
    assert queue(stopped, "show", "ID1", "--message") == 0
    assert capsys.readouterr().out.startswith("Received: by us\r\nFrom: joe@sender.example\r\n")
    for more in ([], ["--message"]):
        assert queue(stopped, "show", "GONE", *more) == 1
        assert capsys.readouterr() == ("", "fastsmtp: GONE: not in the queue\n")


@pytest.mark.parametrize("is_indexed", [True, False])
def test_a_session_s_id_means_all_of_its_messages(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], is_indexed: bool
) -> None:
    ids = ["S1.1", "S1.2", "S10.1", "S2"]
    messages = [message(id, f"{id.lower()}@there.example") for id in ids]
    places = fill(
        tmp_path, messages, over=[(at, 0, Outcome.DEFERRED) for at in range(4)] if is_indexed else []
    )
    if is_indexed:
        index_rows(tmp_path, [row_of(*one, 0, next_ms=NOW) for one in zip(places, messages, strict=True)])

    def found(*arguments: str) -> list[str]:
        assert queue(tmp_path, "list", "--json", *arguments) == 0
        return [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]

    assert found("S1") == ["S1.1", "S1.2"]
    assert found("S1.2", "S2") == ["S1.2", "S2"]
    assert found("S1.") == found("S") == []
    assert queue(tmp_path, "show", "S10") == 0
    assert capsys.readouterr().out.startswith("id            S10.1\n")
    assert queue(tmp_path, "show", "S1") == 1
    assert capsys.readouterr().err == "fastsmtp: S1: which of S1.1, S1.2?\n"
    assert queue(tmp_path, "hold", "S1") == 0
    assert capsys.readouterr().out == "hold: 2 recipients\n"
    assert found("--in", "held") == ["S1.1", "S1.2"]


WRONG = [
    ["delete"],
    ["flush"],
    ["hold", "--all", "ID1"],
    ["show"],
    ["show", "ID1", "ID2"],
    ["list", "--in", "nowhere"],
    ["hold", "ID1", "--message"],
    ["mangle"],
    ["list", "--recipient", ""],
    ["list", "--limit", "0"],
    ["list", "--limit", "-1"],
    ["list", "--all", "ID1"],
]


@pytest.mark.parametrize("arguments", WRONG)
def test_a_wrong_command_line_changes_nothing(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        queue(tmp_path, *arguments)
    assert stopped.value.code == 2
    assert "usage: fastsmtp queue" in capsys.readouterr().err


def test_without_a_queue_it_says_so(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert queue(tmp_path, "list") == 1
    assert capsys.readouterr().err == (
        f"fastsmtp: {tmp_path}/queue: No such file or directory: there is no queue\n"
    )


def test_a_faulty_configuration_does_not_stand_in_the_way(
    stopped: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "f.toml"
    file.write_text(f"state = '{stopped}'\ncolour = 'red'\n[tls]\ncertificate = '/not/there'")
    assert main(["queue", "list", "--config", str(file)]) == 0
    assert capsys.readouterr() == (LISTED, "")
    file.write_text("state = 'here'")
    assert main(["queue", "list", "--config", str(file)]) == 1
    file.write_text("state = [")
    assert main(["queue", "list", "--config", str(file)]) == 1
    assert capsys.readouterr().err == (
        f"fastsmtp: {file}:1: state: path 'here' must begin with /\n"
        "fastsmtp: where the queue is can be said with --state DIR\n"
        f"fastsmtp: {file}:1: Invalid value\n"
        "fastsmtp: where the queue is can be said with --state DIR\n"
    )


def test_beside_a_server_whose_queue_does_not_answer_nothing_is_touched(
    stopped: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = PidFile(str(stopped))
    assert queue(stopped, "delete", "--all") == 1
    assert "another fastsmtp" in capsys.readouterr().err
    lock.remove()
    assert "DELETE" not in states(stopped)


def test_damage_in_the_journal_is_told_and_the_rest_is_listed(
    stopped: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment = min((stopped / "queue").glob("mail-*"))
    contents = bytearray(segment.read_bytes())
    at = contents.index(b"ID2")
    contents[at] ^= 0xFF
    segment.write_bytes(contents)
    assert queue(stopped, "list", "--json") == 0
    out, err = capsys.readouterr()
    assert ids(out) == "1:a 1:b 3:d"
    assert "bytes at" in err
    assert "a copy is" in err
    assert "warning: ID2: the message was in what is damaged" in err


@pytest.mark.parametrize(
    ("text", "shown"), [("plain ä", "plain ä"), ("a\x1b[31mb\r\n\0", "a?[31mb???"), ("\u202e\ud800", "??")]
)
def test_what_others_chose_does_nothing_to_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


# --- a running server ------------------------------------------------------------------------------------------


class Read:
    def __init__(self, message: QueuedMessage) -> None:
        self.message = message

    async def pieces(self) -> AsyncIterator[bytes]:
        assert isinstance(self.message.body, tuple)
        for piece in self.message.body:
            yield piece


class Dispatcher:
    """Hands of a dispatcher that does nothing."""

    def __init__(self) -> None:
        self.messages: dict[Place, QueuedMessage] = {}
        self.hands: list[InHand] = []
        self.woken: list[bool] = []

    def ready(self) -> None:
        return None

    def in_hand(self) -> Iterator[InHand]:
        return iter(list(self.hands))

    async def settled(self) -> None:
        return None

    def read(self, place: Place) -> Read:
        if place not in self.messages:
            raise errors.QueueDamaged("gone")
        return Read(self.messages[place])

    def wake(self, *, is_flush: bool) -> None:
        self.woken.append(is_flush)


Scene = Callable[[DeferredIndex, Dispatcher, "Asking"], None]


class Asking:
    """Asks from another thread, as another process would."""

    def __init__(self, directory: pathlib.Path, loop: asyncio.AbstractEventLoop) -> None:
        self.directory = directory
        self.loop = loop

    def client(self) -> Client:
        return Client(str(self.directory))

    def on_loop(self, work: Callable[[], Any]) -> Any:
        async def call() -> Any:
            found = work()
            return await found if asyncio.isfuture(found) or asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(30)


def serve(state: pathlib.Path, scene: Scene, log: ListLog | None = None) -> list[dict[str, object]]:
    """The admin socket over an index with ID1 (deferred) and ID2 (held); ID3 waits in hand, ID4 is under way."""
    directory = state / "queue"
    directory.mkdir(mode=0o700, parents=True)
    log = log or ListLog()

    async def work() -> None:
        loop = asyncio.get_running_loop()
        index = DeferredIndex(str(directory / "deferred.sqlite"), loop=loop, version="0.1.0")
        await index.open()
        dispatcher = Dispatcher()
        for number in range(1, 5):
            place = Place(1, 77, 4096 * number, 500)
            one = message(f"ID{number}", f"{'abcd'[number - 1]}@there.example")
            dispatcher.messages[place] = one
            if number < 3:
                made = row_of(place, one, 0, next_ms=NOW + 9_999)
                await index.defer([made._replace(state=State.HELD if number == 2 else State.DUE, attempts=1)])
            else:
                dispatcher.hands.append(InHand(place, 0, "mx:there.example", number == 4))
        server = AdminServer(
            Desk(index, dispatcher, wall=lambda: NOW / 1000),
            str(directory),
            version="0.1.0",
            log=log,
        )
        await server.start()
        try:
            await asyncio.to_thread(scene, index, dispatcher, Asking(directory, loop))
        finally:
            await server.close()
            await index.close()

    asyncio.run(work())
    return log.of("defect")


def seen(client: Client, filter: Filter = Filter(), state: str = "") -> dict[str, str]:  # noqa: B008 - frozen
    return {one.id: one.state for entries in client.entries(filter, state) for one in entries}


def test_a_running_server_shows_what_is_deferred_held_waiting_and_under_way(tmp_path: pathlib.Path) -> None:
    def scene(index: DeferredIndex, dispatcher: Dispatcher, asking: Asking) -> None:
        client = asking.client()
        everything = {"ID1": "deferred", "ID2": "held", "ID3": "waiting", "ID4": "active"}
        assert seen(client) == everything
        for state in ("deferred", "held", "waiting", "active"):
            assert seen(client, state=state) == {k: v for k, v in everything.items() if v == state}
        assert seen(client, Filter(recipient=b"c@there.example")) == {"ID3": "waiting"}
        assert client.counts() == {"active": 1, "waiting": 1, "deferred": 1, "held": 1, "messages": 4}
        # One that is tried again is in the index and in hand.
        row = (
            asking.on_loop(lambda: index.flush(Filter(), NOW))
            and asking.on_loop(lambda: index.due(NOW, 1))[0]
        )
        dispatcher.hands.append(InHand(row.place, 0, "", True))
        assert seen(client) == {**everything, "ID1": "active"}
        assert seen(client, state="active") == {"ID1": "active", "ID4": "active"}
        assert client.counts() == {"active": 2, "waiting": 1, "deferred": 0, "held": 1, "messages": 4}
        for id in ("ID1", "ID4"):
            about = client.describe(id)
            assert about is not None
            assert about["sender"] == "joe@sender.example"
            assert b"".join(client.message(id)).startswith(b"Received: by us\r\nFrom:")
        assert client.describe("ID9") is None
        assert b"".join(client.message("ID9")) == b""
        client.close()

    assert serve(tmp_path, scene) == []


def test_what_the_operator_wants_is_in_the_index_before_it_is_answered(tmp_path: pathlib.Path) -> None:
    def scene(index: DeferredIndex, dispatcher: Dispatcher, asking: Asking) -> None:
        client = asking.client()
        assert client.act("hold", Filter()) == 3
        assert seen(client) == dict.fromkeys(("ID1", "ID2", "ID3", "ID4"), "held")
        assert len(index.pinned) == 2
        assert client.act("release", Filter(ids=("ID1",))) == 1
        assert client.act("delete", Filter(ids=("ID1", "ID4"))) == 2
        assert client.act("bounce", Filter(ids=("ID3", "NONE"))) == 1
        assert seen(client) == {"ID1": "deleting", "ID2": "held", "ID3": "bouncing", "ID4": "deleting"}
        assert client.act("flush", Filter(domain=b"nowhere.example")) == 0
        assert dispatcher.woken == [False, False, False, False, True]
        # What isn't in hand comes out of the index for that; the rest when the dispatcher lets go of it.
        due = asking.on_loop(lambda: index.due(NOW, 9))
        assert [(row.id, row.state) for row in due] == [("ID1", State.DELETE)]
        asking.on_loop(lambda: index.give_back(list(index.pinned)))
        due = asking.on_loop(lambda: index.due(NOW, 9))
        assert {(row.id, row.state) for row in due} == {("ID3", State.BOUNCE), ("ID4", State.DELETE)}
        client.close()

    log = ListLog()
    assert serve(tmp_path, scene, log) == []
    # Who did it is told.
    assert [(line["what"], line["found"], line["reason"]) for line in log.of("operator")] == [
        ("hold", 3, "all"), ("release", 1, "ids=['ID1']"), ("delete", 2, "ids=['ID1', 'ID4']"),
        ("bounce", 1, "ids=['ID3', 'NONE']"), ("flush", 0, "domain=nowhere.example"),
    ]  # fmt: skip
    assert all(line["pid"] == os.getpid() for line in log.of("operator"))


def test_an_attempt_that_ends_while_the_operator_s_wish_is_written_leaves_nothing_behind(
    tmp_path: pathlib.Path,
) -> None:
    def scene(index: DeferredIndex, dispatcher: Dispatcher, asking: Asking) -> None:
        other = dispatcher.hands[1].place
        pin = index.pin

        def slow(rows: Any, in_hand: Any) -> Any:
            # One is delivered, the other is deferred while the pins are written.
            written = pin(rows, in_hand)
            dispatcher.hands.clear()
            index.defer([row_of(other, dispatcher.messages[other], 0, next_ms=NOW + 99)._replace(attempts=1)])
            return written

        index.pin = slow  # type: ignore[method-assign]
        client = asking.client()
        assert client.act("hold", Filter(ids=("ID3", "ID4"))) == 1
        assert seen(client) == {"ID1": "deferred", "ID2": "held", "ID4": "held"}
        assert not index.pinned
        assert index.taken == 0
        client.close()

    assert serve(tmp_path, scene) == []


def test_the_command_asks_the_running_server(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def scene(index: DeferredIndex, dispatcher: Dispatcher, asking: Asking) -> None:
        assert queue(tmp_path, "list") == 0
        out = capsys.readouterr().out
        assert "ID4*  " in out
        assert "ID2!  " in out
        assert "-- 0 kB in 4 messages for 4 recipients." in out
        assert queue(tmp_path, "hold", "ID1", "ID4", "--json") == 0
        assert json.loads(capsys.readouterr().out) == {"command": "hold", "recipients": 2}
        assert queue(tmp_path, "show", "ID4", "--message") == 0

    assert serve(tmp_path, scene) == []
    # And where it has gone, the directory itself; the journal has none of these messages.
    assert not (tmp_path / "queue" / protocol.SOCKET).exists()


def test_long_lists_come_in_pieces(tmp_path: pathlib.Path) -> None:
    def scene(index: DeferredIndex, dispatcher: Dispatcher, asking: Asking) -> None:
        one = message("MANY")
        many = [row_of(Place(2, 78, 4096 * at, 9), one, 0, next_ms=NOW) for at in range(1, 2_300)]
        asking.on_loop(lambda: index.defer(many))
        client = asking.client()
        sizes = [len(entries) for entries in client.entries(Filter(ids=("MANY",)), "")]
        assert sum(sizes) == 2_299
        assert max(sizes) == protocol.ENTRIES
        client.close()

    assert serve(tmp_path, scene) == []


def test_a_client_that_has_seen_enough_is_no_error(tmp_path: pathlib.Path) -> None:
    def scene(index: DeferredIndex, dispatcher: Dispatcher, asking: Asking) -> None:
        one = message("MANY")
        many = [row_of(Place(2, 78, 4096 * at, 9), one, 0, next_ms=NOW) for at in range(1, 9_000)]
        asking.on_loop(lambda: index.defer(many))
        client = asking.client()
        next(iter(client.entries(Filter(), "")))
        client.close()
        other = asking.client()
        assert seen(other, Filter(ids=("ID1",))) == {"ID1": "deferred"}
        other.close()

    assert serve(tmp_path, scene) == []


def test_the_socket_is_for_its_owner_only_and_serves_few_at_a_time(tmp_path: pathlib.Path) -> None:
    def scene(index: DeferredIndex, dispatcher: Dispatcher, asking: Asking) -> None:
        path = asking.directory / protocol.SOCKET
        assert path.stat().st_mode & 0o777 == 0o600
        clients = [asking.client() for _ in range(CLIENTS)]
        with pytest.raises(errors.ConfigError, match="others are being served"):
            asking.client()
        for client in clients:
            assert client.counts()
            client.close()

    assert serve(tmp_path, scene) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another account")
def test_another_account_is_refused_even_when_it_can_reach_the_socket(tmp_path: pathlib.Path) -> None:
    code = (
        "import os, socket, sys\n"
        "os.chdir(sys.argv[1]); os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "try: s.connect('admin'); print(s.recv(999)[4:].decode())\n"
        "except OSError as error: print(type(error).__name__)\n"
    )

    def ask(directory: pathlib.Path) -> str:
        command = [sys.executable, "-c", code, str(directory)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    def scene(index: DeferredIndex, dispatcher: Dispatcher, asking: Asking) -> None:
        assert ask(asking.directory) == "PermissionError\n"
        os.chmod(asking.directory / protocol.SOCKET, 0o666)
        os.chmod(asking.directory, 0o711)
        assert json.loads(ask(asking.directory)) == {
            "refused": "only root and the account of the queue may do this"
        }

    assert serve(tmp_path, scene) == []


REFUSED = [
    (b'{"protocol": 9, "command": "list"}', "protocol 9"),
    (b'{"protocol": 1, "command": "explode"}', "isn't known"),
    (b'{"protocol": 1, "command": "delete", "filter": {}}', "not asked for as such"),
    (b'{"protocol": 1, "command": "delete", "filter": {"colour": "red"}}', "colour isn't known"),
    (b'{"protocol": 1, "command": "delete"}', "must be an object"),
    (b'{"protocol": 1, "command": "list", "filter": {"ids": "x"}}', "ids isn't known"),
    (b'{"protocol": 1, "command": "list", "filter": {}, "state": "gone"}', "isn't known"),
    (b'{"protocol": 1, "command": "show"}', "lacks something"),
]


def exchange(directory: pathlib.Path, *frames: bytes) -> list[bytes]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        folder = os.open(directory, os.O_RDONLY)
        sock.connect(protocol.reachable(str(directory), folder))
        os.close(folder)
        for one in frames:
            sock.sendall(one)
        sock.shutdown(socket.SHUT_WR)
        data = b""
        while piece := sock.recv(65_536):
            data += piece
    found = []
    while data:
        (length,) = struct.unpack(">I", data[:4])
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found


def framed(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def test_what_is_no_request_of_ours_is_refused_and_the_next_one_is_heard(tmp_path: pathlib.Path) -> None:
    def scene(index: DeferredIndex, dispatcher: Dispatcher, asking: Asking) -> None:
        good = framed(b'{"protocol": 1, "command": "counts"}')
        for request, reason in REFUSED:
            hello, refusal, answer = exchange(asking.directory, framed(request), good)
            assert json.loads(hello)["protocol"] == 1
            assert reason in json.loads(refusal)["refused"]
            assert json.loads(answer)["end"]["messages"] == 4
        for junk in (
            b"GET / HTTP/1.0\r\n\r\n",
            framed(b"[1]"),
            framed(b"{" * 60_000),
            b"\xff\xff\xff\xff",
            b"\0\0",
        ):
            assert len(exchange(asking.directory, junk)) == 1
        client = asking.client()
        assert client.counts()["messages"] == 4
        client.close()

    assert serve(tmp_path, scene) == []


def test_an_error_of_ours_is_told_as_such_and_logged(tmp_path: pathlib.Path) -> None:
    def scene(index: DeferredIndex, dispatcher: Dispatcher, asking: Asking) -> None:
        def broken(place: Place) -> Any:
            raise KeyError(place)

        dispatcher.read = broken  # type: ignore[method-assign]
        client = asking.client()
        with pytest.raises(errors.ConfigError, match="its log says more"):
            client.describe("ID1")
        assert client.counts()
        client.close()

    (defect,) = serve(tmp_path, scene)
    assert str(defect["reason"]).startswith("KeyError")


def test_a_server_with_another_protocol_is_told_by_name(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "queue"
    directory.mkdir()
    hello = framed(b'{"server": "fastsmtp 9.9", "protocol": 2}')

    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.sendall(hello)
        connection.close()

    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(directory, os.O_RDONLY)
        listener.bind(protocol.reachable(str(directory), folder))
        os.close(folder)
        listener.listen()
        server = threading.Thread(target=answer, args=(listener,))
        server.start()
        assert queue(tmp_path, "list") == 1
        server.join()
    assert "fastsmtp 9.9 speaks protocol 2, this command 1" in capsys.readouterr().err


def test_a_socket_that_nobody_listens_at_is_no_server(tmp_path: pathlib.Path) -> None:
    with pytest.raises(NotRunning):
        Client(str(tmp_path))
    stale = socket.socket(socket.AF_UNIX)
    folder = os.open(tmp_path, os.O_RDONLY)
    stale.bind(protocol.reachable(str(tmp_path), folder))
    os.close(folder)
    stale.close()
    with pytest.raises(NotRunning):
        Client(str(tmp_path))
