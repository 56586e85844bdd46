"""Processes beside the workers, with a real master: start before them, stop after them, death, reload."""

from __future__ import annotations

import os
import pathlib
import signal

import pytest

from fastsmtp.supervisor import privilege
from tests.integration.servers import Client, StandIn, is_alive, standin, until, workers_of

pytestmark = pytest.mark.slow

THREE = [{"name": "queue", "order": 1}, {"name": "metrics"}, {"name": "delivery", "order": 2}]
ONE = [{"name": "queue"}]


def order(server: StandIn, *patterns: str) -> None:
    """Lines come in this order; each is waited for."""
    after = 0
    for pattern in patterns:
        server.wait_for(pattern, after=after)
        after = next(at for at in range(after, len(server.lines)) if server.lines[at].startswith(pattern[1:]))


def up(server: StandIn, name: str = "queue", text: str = "", after: int = 0) -> int:
    """The pid of a process that runs."""
    return int(server.wait_for(rf"^{name} up (\d+) {text}$", after=after)[1])


def test_they_start_by_order_before_the_workers_and_stop_in_reverse_after_them(
    tmp_path: pathlib.Path,
) -> None:
    with standin(tmp_path, asides=THREE) as server:
        server.ready()
        server.signal(signal.SIGTERM)
        assert server.end() == 0
        order(
            server,
            "^aside_start what=metrics", "^aside_ready what=metrics",
            "^aside_start what=queue", "^aside_ready what=queue",
            "^aside_start what=delivery", "^aside_ready what=delivery",
            "^worker_start", "^ready ",
            "^stop", "^drain worker=0", "^worker_exit worker", "^worker_exit worker",
            "^drain what=delivery", "^delivery down", "^aside_exit what=delivery",
            "^drain what=queue", "^queue down", "^aside_exit what=queue",
            "^drain what=metrics", "^metrics down", "^aside_exit what=metrics",
        )  # fmt: skip
        assert server.count("^aside_exit .* reason=asked .* status=0") == 3


def test_those_of_one_order_start_together(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path, asides=[{"name": "delivery-0"}, {"name": "delivery-1"}]) as server:
        server.ready()
        order(server, "^aside_start what=delivery-0", "^aside_start what=delivery-1", "^aside_ready")


@pytest.mark.parametrize(
    ("going_wrong", "sentence"),
    [
        ({"fail": "the queue is of a newer version"}, "error: queue: the queue is of a newer version"),
        ({"unable": "no such directory"}, "error: queue: no such directory"),
        ({"bare": "no such module"}, "error: queue: no such module"),
        ({"crash": True}, "error: queue: ended with signal SIGKILL before it was ready"),
    ],
)
def test_a_server_ends_and_says_why_when_one_cannot_start(
    tmp_path: pathlib.Path, going_wrong: dict[str, object], sentence: str
) -> None:
    asides = [{"name": "metrics"}, {"name": "queue", "order": 1, **going_wrong}]
    with standin(tmp_path, asides=asides) as server:
        assert server.end() == 78
        assert sentence in server.lines
        assert server.count("^worker_start") == 0
        assert server.count("^metrics up") == 1
        assert not (tmp_path / "state" / "fastsmtp.pid").exists()


def test_one_that_is_killed_is_replaced_and_the_workers_go_on(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path, asides=ONE) as server, Client(server.address()) as client:
        first = up(server)
        after = len(server.lines)
        os.kill(first, signal.SIGKILL)
        server.wait_for(rf"^aside_exit what=queue pid={first} reason=died .*signal=SIGKILL delay_s=0.0")
        second = up(server, after=after)
        assert second != first
        assert client.say(b"PING").startswith(b"250")
        assert server.count("^queue owned") == 2
        after = len(server.lines)
        os.kill(second, signal.SIGKILL)
        server.wait_for(rf"^aside_exit what=queue pid={second} .*delay_s=0.5")
        up(server, after=after)
        assert server.count("^worker_exit") == 0


def test_one_that_cannot_come_back_is_tried_again_and_again(tmp_path: pathlib.Path) -> None:
    mended = tmp_path / "state" / "queue.mended"
    mended.parent.mkdir()
    mended.touch()
    with standin(tmp_path, asides=[{"name": "queue", "crash": True}]) as server:
        server.ready()
        mended.unlink()
        os.kill(up(server), signal.SIGKILL)
        for delay in ("0.0", "0.5", "1.0"):
            server.wait_for(rf"^aside_exit what=queue .*signal=SIGKILL delay_s={delay}")
        mended.touch()
        server.wait_for(r"^aside_ready", after=len(server.lines))


def test_a_silent_one_is_killed_and_replaced(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path, asides=[{"name": "queue"}, {"name": "metrics"}]) as server:
        server.ready()
        hanging, stopped = up(server), up(server, "metrics")
        os.kill(hanging, signal.SIGUSR1)
        os.kill(stopped, signal.SIGSTOP)
        for name, pid in (("queue", hanging), ("metrics", stopped)):
            server.wait_for(rf"^aside_stalled what={name} pid={pid} signal=SIGABRT")
            server.wait_for(rf"^aside_exit what={name} pid={pid} reason=died .*delay_s=0.0")
            server.wait_for(rf"^aside_ready what={name} pid=(?!{pid} )")
        assert "standin.py" in server.errors(), "it tells where it hung"


def test_one_that_is_told_to_go_alone_is_replaced_when_it_has_gone(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path, asides=ONE) as server:
        server.ready()
        first = up(server)
        after = len(server.lines)
        os.kill(first, signal.SIGTERM)
        server.wait_for(rf"^aside_exit what=queue pid={first} reason=asked .*status=0")
        assert up(server, after=after) != first


def test_a_reload_replaces_what_changed_and_nothing_else(tmp_path: pathlib.Path) -> None:
    asides = [{"name": "queue", "text": "one"}, {"name": "metrics"}, {"name": "delivery-1"}]
    with standin(tmp_path, asides=asides) as server:
        server.ready()
        first, metrics, gone = up(server, text="one"), up(server, "metrics"), up(server, "delivery-1")
        server.reload(asides=[{"name": "queue", "text": "two"}, {"name": "metrics"}, {"name": "delivery-2"}])
        second = up(server, text="two")
        up(server, "delivery-2")
        order(server, f"^queue down {first}", "^aside_exit what=queue", "^queue released one",
              "^aside_start what=queue")  # fmt: skip
        order(server, f"^delivery-1 down {gone}", "^aside_exit what=delivery-1", "^delivery-1 released")
        assert server.count("^aside_start what=metrics") == 1
        assert is_alive(metrics)
        assert server.count("^aside_exit .*delay_s") == 0
        until(lambda: set(workers_of(server.pid)) >= {second, metrics}, "they live")


def test_what_stays_through_a_reload_is_replaced_by_the_newest(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path, asides=[{"name": "queue", "text": "same"}]) as server:
        server.ready()
        first = up(server, text="same")
        server.reload(asides=[{"name": "queue", "text": "same"}])
        after = len(server.lines)
        os.kill(first, signal.SIGKILL)
        up(server, text="same", after=after)
        order(server, f"^aside_exit what=queue pid={first}", "^queue released same", "^queue owned")


def test_a_second_reload_overtakes_a_drain_and_there_are_never_two(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path, asides=[{"name": "queue", "text": "one", "stays": True}]) as server:
        server.ready()
        first = up(server, text="one")
        server.reload(asides=[{"name": "queue", "text": "two"}])
        server.wait_for(f"^queue draining {first}")
        server.reload(asides=[{"name": "queue", "text": "three"}])
        assert is_alive(first)
        os.kill(first, signal.SIGQUIT)
        up(server, text="three")
        assert server.count("^queue up .* two") == 0
        order(server, "^queue released two", f"^queue down {first}", "^queue released one", "^queue up")


def test_sigquit_ends_them_with_the_workers(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path, asides=[{"name": "queue", "stays": True}, {"name": "metrics"}]) as server:
        server.ready()
        os.kill(up(server, "metrics"), signal.SIGSTOP)
        server.signal(signal.SIGQUIT)
        assert server.end() == 0
        assert server.count("^queue draining") == 0
        assert server.count("^queue down") == 1
        assert server.count("^aside_exit what=metrics .*signal=SIG(KILL|ABRT)") == 1


def test_sigterm_before_they_are_ready_ends_the_server(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path, asides=THREE) as server:
        server.wait_for("^aside_start")
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def test_they_end_when_the_master_is_killed(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path, asides=THREE) as server:
        server.ready()
        processes = workers_of(server.pid)
        assert len(processes) == 5
        server.signal(signal.SIGKILL)
        until(lambda: not any(map(is_alive, processes)), "they go")


def test_changed_files_reach_them(tmp_path: pathlib.Path) -> None:
    (tmp_path / "list").write_bytes(b"old")
    with standin(tmp_path, asides=ONE, watched=[str(tmp_path / "list")]) as server:
        server.ready()
        (tmp_path / "list").write_bytes(b"new")
        server.wait_for("^queue file new")


def test_one_has_its_own_descriptors_only(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path, asides=ONE) as server:
        server.ready()
        links = pathlib.Path(f"/proc/{up(server)}/fd").iterdir()
        targets = [os.readlink(link) for link in links if int(link.name) > 2]
        assert str(tmp_path / "state" / "queue") in targets
        # The line to the master and the loop's own pair; no listener.
        assert sum(target.startswith("socket:") for target in targets) <= 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another")
def test_each_runs_as_its_own_account(tmp_path: pathlib.Path) -> None:
    nobody, _ = privilege.account_for("nobody", ())
    daemon, _ = privilege.account_for("daemon", ())
    assert nobody is not None
    assert daemon is not None
    asides = [{"name": "queue", "user": "daemon"}, {"name": "metrics", "user": "nobody"}]
    with standin(tmp_path, user="nobody", asides=asides) as server:
        server.ready()
        for name, account in (("queue", daemon), ("metrics", nobody)):
            status = pathlib.Path(f"/proc/{up(server, name)}/status").read_text()
            assert f"Uid:\t{account.uid}\t{account.uid}\t{account.uid}" in status
            server.wait_for(rf"^{name} owned \({account.uid}, {account.gid}\)")
