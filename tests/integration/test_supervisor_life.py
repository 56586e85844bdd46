"""The master with real workers and real signals: start, death and replacement, the end."""

from __future__ import annotations

import os
import pathlib
import signal
import socket

import pytest

from tests.integration.servers import Client, is_alive, standin, until, workers_of

pytestmark = pytest.mark.slow


def test_it_serves_on_every_address_and_spreads_over_the_workers(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path, workers=3, listeners=[["mx", [["127.0.0.1", 0], ["127.0.0.2", 0]]]]) as server:
        first, second = server.ready()[0]
        seen = set()
        for address in [first, second] * 100:
            with Client(address) as client:
                seen.add(client.worker)
        assert seen == set(workers_of(server.pid))
        assert len(seen) == 3
        assert (tmp_path / "state" / "fastsmtp.pid").read_text() == f"{server.pid}\n"


@pytest.mark.parametrize(
    ("going_wrong", "sentence"),
    [
        ({"fail": "no such thing"}, "error: no such thing"),
        ({"crash": True}, "error: a worker ended with signal SIGKILL before it was ready"),
    ],
)
def test_a_server_whose_workers_cannot_start_ends_and_says_why(
    tmp_path: pathlib.Path, going_wrong: dict[str, object], sentence: str
) -> None:
    with standin(tmp_path, **going_wrong) as server:
        assert server.end() == 78
        assert sentence in server.lines
        assert server.count("^worker_start") == 2, "nothing was respawned"
        assert not (tmp_path / "state" / "fastsmtp.pid").exists()


def test_a_port_that_is_taken_is_told(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with standin(tmp_path, listeners=[["mx", [["127.0.0.1", port]]]]) as server:
            assert server.end() == 78
            assert (
                f"error: cannot listen on 127.0.0.1:{port}: something else listens there already"
                in server.lines
            )


def test_another_server_is_not_joined_on_its_port(tmp_path: pathlib.Path) -> None:
    (tmp_path / "other").mkdir()
    with standin(tmp_path) as server:
        address = server.address()
        with standin(tmp_path / "other", listeners=[["mx", [list(address)]]]) as other:
            assert other.end() == 78
            assert other.count("something else listens there already") == 1


def test_one_server_a_state_directory(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path) as server:
        server.ready()
        with standin(tmp_path) as other:
            assert other.end() == 78
            assert (
                f"error: another fastsmtp (pid {server.pid}) uses the state directory {tmp_path}/state"
                in other.lines
            )
        server.signal(signal.SIGKILL)
        server.end()
    with standin(tmp_path) as server:
        server.ready()


def test_a_killed_worker_is_replaced(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path) as server:
        address = server.address()
        with Client(address) as client:
            os.kill(client.worker, signal.SIGKILL)
            assert client.file.readline() == b""
            found = server.wait_for(
                rf"^worker_exit worker=(\d) pid={client.worker} .*signal=SIGKILL delay_s=0.0"
            )
            server.wait_for(rf"^worker_start worker={found[1]} .*reason=replacement")
            server.wait_for(rf"^worker_ready worker={found[1]} pid=(?!{client.worker} )")
        for _ in range(50):
            with Client(address) as client:
                assert client.say(b"PING").startswith(b"250")


def test_a_stopped_worker_is_killed_and_its_queued_connections_are_served(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path) as server:
        address = server.address()
        stopped, other = workers_of(server.pid)
        os.kill(stopped, signal.SIGSTOP)
        # The kernel goes on queueing connections for it.
        queued = [socket.create_connection(address, 60) for _ in range(40)]
        try:
            found = server.wait_for(
                rf"^worker_exit worker=\d pid={stopped} reason=died took_ms=(\d+) signal=SIGKILL"
            )
            assert server.count(rf"^worker_stalled .*pid={stopped} signal=SIGABRT") == 1
            assert int(found[1]) < 30_000
            greetings = [sock.recv(100) for sock in queued]
        finally:
            for sock in queued:
                sock.close()
        assert all(greeting.startswith(b"220") for greeting in greetings)
        served_by = {int(greeting.split()[1]) for greeting in greetings}
        assert other in served_by
        assert len(served_by) == 2
        assert stopped not in served_by


def test_a_worker_that_hangs_is_told_to_say_where(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path) as server, Client(server.address()) as client:
        client.sock.sendall(b"HANG\r\n")
        server.wait_for(rf"^worker_exit .*pid={client.worker} ")
        assert "standin.py" in server.errors()


def test_sigterm_drains(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path) as server:
        address = server.address()
        with Client(address) as idle:
            server.signal(signal.SIGTERM)
            assert idle.file.readline() == b"421 4.3.2 going\r\n"
            assert idle.file.readline() == b""
        assert server.end() == 0
        assert server.count("^worker_exit .*reason=asked .*status=0") == 2
        assert not (tmp_path / "state" / "fastsmtp.pid").exists()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, 5)


def test_sigquit_ends_at_once_even_a_worker_that_hangs(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path) as server, Client(server.address()) as client:
        client.sock.sendall(b"HANG\r\n")
        server.signal(signal.SIGQUIT)
        assert server.end() == 0
        assert server.count(rf"^worker_exit .*pid={client.worker} .*signal=SIG(KILL|ABRT)") == 1


def test_a_worker_that_is_told_to_go_alone_is_replaced_before_it_has_gone(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path) as server, Client(server.address()) as client:
        os.kill(client.worker, signal.SIGTERM)
        assert client.file.readline() == b"421 4.3.2 going\r\n"
        server.wait_for(rf"^worker_ready worker={client.number} pid=(?!{client.worker} )")
        server.wait_for(rf"^worker_exit worker={client.number} pid={client.worker} reason=asked")


def test_workers_end_when_the_master_is_killed(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path) as server, Client(server.address()) as client:
        workers = workers_of(server.pid)
        server.signal(signal.SIGKILL)
        assert client.file.readline() == b"421 4.3.2 going\r\n"
        until(lambda: not any(map(is_alive, workers)), "they go")


def test_a_worker_has_its_own_descriptors_only(tmp_path: pathlib.Path) -> None:
    with (
        open(tmp_path / "inherited", "w") as inherited,
        standin(tmp_path, workers=4, pass_fds=(inherited.fileno(),)) as server,
    ):
        server.ready()
        listening: list[str] = []
        for pid in workers_of(server.pid):
            targets = {link.name: os.readlink(link) for link in pathlib.Path(f"/proc/{pid}/fd").iterdir()}
            assert str(tmp_path / "inherited") not in targets.values()
            sockets = {
                target for name, target in targets.items() if target.startswith("socket:") and int(name) > 2
            }
            # Six of 24 listening sockets (asyncio duplicates nothing), the line to the master, the loop's own pair.
            assert 7 <= len(sockets) <= 9
            listening += sockets
        masters = {os.readlink(link) for link in pathlib.Path(f"/proc/{server.pid}/fd").iterdir()}
        shared = [name for name in listening if name in masters]
        assert len(shared) == len(set(shared)) == 24, "each listening socket has one owner besides the master"
