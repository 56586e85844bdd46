"""SIGHUP and changed files: nothing is lost while workers change, and what is wrong changes nothing."""

from __future__ import annotations

import functools
import os
import pathlib
import signal
import socket
import threading
from collections import Counter

import pytest

from tests.integration.servers import Client, StandIn, standin, until, workers_of

pytestmark = pytest.mark.slow


class Load(threading.Thread):
    """Connects, says PING, hangs up, again and again.  421 is an answer; anything else than that and 250 is a loss."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.is_over = threading.Event()
        self.answers: Counter[str] = Counter()
        self.workers: set[int] = set()

    def run(self) -> None:
        while not self.is_over.is_set():
            try:
                with Client(self.address) as client:
                    self.workers.add(client.worker)
                    self.answers[client.say(b"PING")[:3].decode() or "closed"] += 1
            except (OSError, ValueError) as error:
                self.answers[type(error).__name__] += 1

    def end(self) -> None:
        self.is_over.set()
        self.join(60)


def test_workers_change_from_4_to_2_to_6_under_load_and_no_connection_is_lost(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path, workers=4) as server:
        address = server.address()
        clients = [Load(address) for _ in range(4)]
        for client in clients:
            client.start()
        for workers in (2, 6):
            enough = answered(clients) + 50
            until(functools.partial(have_more, clients, enough), "clients are answered")
            old = workers_of(server.pid)
            server.reload(workers=workers)
            for pid in old:
                server.wait_for(rf"^worker_exit worker=\d pid={pid} reason=asked took_ms=\d+ status=0")
            # A check in a child of its own may still be ending.
            until(functools.partial(are_left, server.pid, workers), "only the new workers are left")
            now = set(workers_of(server.pid))
            until(functools.partial(reach, clients, now), "each new worker gets its share")
        for client in clients:
            client.end()
        answers = sum((client.answers for client in clients), Counter[str]())
        assert set(answers) <= {"250", "421"}, answers
        assert answers["250"] > 100
        assert server.count("^reload reason=reload") == 2


def are_left(pid: int, workers: int) -> bool:
    return len(workers_of(pid)) == workers


def answered(clients: list[Load]) -> int:
    return sum(sum(client.answers.values()) for client in clients)


def have_more(clients: list[Load], enough: int) -> bool:
    return answered(clients) > enough


def reach(clients: list[Load], workers: set[int]) -> bool:
    return workers <= {pid for client in clients for pid in list(client.workers)}


def test_a_bad_configuration_changes_nothing(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path) as server, Client(server.address()) as client:
        before = workers_of(server.pid)
        server.file.write_text("{")
        server.signal(signal.SIGHUP)
        server.wait_for("^reload_refused reason=.*config.json: ")
        assert set(before) <= set(workers_of(server.pid))
        assert client.say(b"PING").startswith(b"250")
        server.reload(workers=3)
        assert server.count("^reload reason=reload workers=3") == 1


def test_an_address_that_cannot_be_bound_changes_nothing(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, standin(tmp_path) as server:
        before = server.address()
        descriptors = len(os.listdir(f"/proc/{server.pid}/fd"))
        taken = other.getsockname()[1]
        server.reload(listeners=[["mx", [["127.0.0.1", 0], ["127.0.0.2", 0], ["127.0.0.1", taken]]]])
        assert server.count("^reload_refused reason=cannot listen on 127.0.0.1:") == 1
        assert len(os.listdir(f"/proc/{server.pid}/fd")) == descriptors
        with Client(before) as client:
            assert client.say(b"PING").startswith(b"250")


def test_new_workers_that_cannot_start_leave_the_old_ones_in_service(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path) as server, Client(server.address()) as client:
        before = set(workers_of(server.pid))
        server.reload(fail="the new one is wrong")
        assert server.count("^reload_refused reason=the new one is wrong") == 1
        assert client.say(b"PING").startswith(b"250")
        until(lambda: set(workers_of(server.pid)) == before, "the new workers are gone")
        server.reload(fail="", workers=1)
        assert server.count("^reload reason=reload workers=1") == 1


def test_addresses_come_and_go_and_those_that_stay_keep_their_sockets(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path, listeners=[["mx", [["127.0.0.1", 0], ["127.0.0.2", 0]]]]) as server:
        stays, goes = server.ready()[0]
        sockets = listening_sockets(server, stays[1])
        assert len(sockets) == 24
        with socket.create_server(("127.0.0.3", 0)) as free:
            comes = free.getsockname()
        server.reload(listeners=[["mx", [["127.0.0.1", 0], list(comes)]]])
        for address in (stays, comes):
            with Client(address) as client:
                assert client.say(b"PING").startswith(b"250")
        assert listening_sockets(server, stays[1]) == sockets
        until(lambda: is_refused(goes), "the old address is closed")


def test_a_reload_in_a_row_is_done_after_the_one_before(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path) as server:
        server.ready()
        for _ in range(5):
            server.signal(signal.SIGHUP)
        server.reload(workers=3)
        until(lambda: has_settled(server, 3), "the last word counts")


def has_settled(server: StandIn, workers: int) -> bool:
    server.signal(signal.SIGCHLD)
    return len(workers_of(server.pid)) == workers


def says(client: Client, end: bytes) -> bool:
    return client.say(b"PING").endswith(end)


def test_a_changed_list_reaches_workers_that_run_and_those_to_come(tmp_path: pathlib.Path) -> None:
    listed = tmp_path / "list"
    listed.write_text("first\n")
    with standin(tmp_path, watched=[str(listed)]) as server, Client(server.address()) as client:
        before = set(workers_of(server.pid))
        assert client.say(b"PING").endswith(b" first\r\n")
        replace(listed, "second\n")
        server.wait_for(f"^lists_reloaded file={listed}")
        until(functools.partial(says, client, b" second\r\n"), "the new text is served")
        assert before <= set(workers_of(server.pid))
        os.kill(client.worker, signal.SIGKILL)
        fresh = int(server.wait_for(r"^worker_start .*pid=(\d+) reason=replacement")[1])
        for _ in range(1000):
            with Client(server.address()) as other:
                if other.worker == fresh:
                    assert other.say(b"PING").endswith(b" second\r\n")
                    return
                # Each of those that run takes the new text when it comes to it.
                until(functools.partial(says, other, b" second\r\n"), "the new text is served")
        pytest.fail("the replacement was never reached")


def test_a_bad_list_changes_nothing(tmp_path: pathlib.Path) -> None:
    listed = tmp_path / "list"
    listed.write_text("first\n")
    with standin(tmp_path, watched=[str(listed)]) as server, Client(server.address()) as client:
        for contents, reason in (("bad\n", "is bad"), ("die\n", "the check died")):
            replace(listed, contents)
            server.wait_for(f"^lists_refused file={listed} reason=.*{reason}")
            assert client.say(b"PING").endswith(b" first\r\n")
        replace(listed, "third\n")
        until(lambda: client.say(b"PING").endswith(b" third\r\n"), "a good one is served")


def test_a_file_that_was_refused_is_tried_again_with_its_companion(tmp_path: pathlib.Path) -> None:
    """A certificate and its key change one after the other."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_text("1\n")
    key.write_text("1\n")
    with (
        standin(tmp_path, watched=[str(certificate), str(key)]) as server,
        Client(server.address()) as client,
    ):
        replace(certificate, "2\n")
        server.wait_for(f"^cert_refused file={certificate} reason=the key doesn't fit")
        assert client.say(b"PING").endswith(b" 1 1\r\n")
        replace(key, "2\n")
        server.wait_for(f"^cert_reloaded file={certificate}")
        server.wait_for(f"^cert_reloaded file={key}")
        until(lambda: client.say(b"PING").endswith(b" 2 2\r\n"), "both are served")


def test_what_cannot_be_swapped_in_place_is_a_rolling_replacement(tmp_path: pathlib.Path) -> None:
    listed = tmp_path / "list"
    listed.write_text("first\n")
    with standin(tmp_path, watched=[str(listed)]) as server, Client(server.address()) as client:
        replace(listed, "roll\n")
        server.wait_for("^reload reason=files workers=2")
        assert client.file.readline() == b"421 4.3.2 going\r\n"
        # The other old worker may take one more connection before it hears that it has been replaced.
        until(lambda: says_roll(server), "the new workers serve")


def says_roll(server: StandIn) -> bool:
    with Client(server.address()) as client:
        return client.say(b"PING").endswith(b" roll\r\n")


def test_a_generation_that_gets_old_is_replaced_so_that_ticket_keys_are(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path, renew_s=0.5) as server:
        first = set(workers_of(server.pid)) if server.ready() else set()
        server.wait_for("^reload reason=tickets workers=2")
        for pid in first:
            server.wait_for(rf"^worker_exit worker=\d pid={pid} reason=asked took_ms=\d+ status=0")


def replace(path: pathlib.Path, text: str) -> None:
    """Write a file as an editor does."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def listening_sockets(server: StandIn, port: int) -> set[str]:
    """Inodes of the sockets that listen on a port of IPv4."""
    rows = [line.split() for line in pathlib.Path(f"/proc/{server.pid}/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}


def is_refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, 60).close()
    except ConnectionRefusedError:
        return True
    return False
