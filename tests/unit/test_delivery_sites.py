"""Who waits for which site, what a shard may have, and the packets in which both are told."""

from __future__ import annotations

import struct

import pytest

from fastsmtp import reply
from fastsmtp.delivery import sites as module
from fastsmtp.delivery import wire
from fastsmtp.delivery.job import Damaged, Job, Result, shard_of
from fastsmtp.delivery.outcome import Delivered, Failed, Retry
from fastsmtp.delivery.sites import Sites
from fastsmtp.queue.place import Place


def job(site: str, offset: int = 4096, recipients: tuple[int, ...] = (0,)) -> Job:
    deliver = "mx" if site.startswith("mx:") else site
    return Job(Place(1, 7, offset, 100), deliver, site, recipients, 1)


def test_sites_take_turns_and_a_site_keeps_its_order() -> None:
    sites = Sites(1)
    for offset in range(3):
        assert sites.add(job("mx:a.example", offset))
    assert sites.add(job("mx:b.example", 10))
    taken = [(one.site, one.place.offset) for one in sites.take(0)]
    assert taken == [("mx:a.example", 0), ("mx:b.example", 10), ("mx:a.example", 1), ("mx:a.example", 2)]
    assert sites.waiting == 0


def test_a_site_has_a_window_and_so_has_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SITE_WINDOW", 2)
    monkeypatch.setattr(module, "SHARD_WINDOW", 4)
    sites = Sites(1)
    jobs = [job("mx:a.example", offset) for offset in range(4)] + [job(f"mx:{n}.example") for n in "bcde"]
    for one in jobs:
        assert sites.add(one)
    first = list(sites.take(0))
    assert [one.site for one in first] == ["mx:a.example", "mx:b.example", "mx:c.example", "mx:d.example"]
    for one in first:
        assert sites.over(one) == 0
    assert [one.site for one in sites.take(0)] == ["mx:e.example", "mx:a.example", "mx:a.example"]


@pytest.mark.parametrize("hanging", [1, 9, 10, 50, 200])
def test_sites_that_hang_leave_room_for_the_others(hanging: int) -> None:
    """Each of them would fill its window, and all of them the shard's."""
    sites = Sites(1)
    for number in range(hanging):
        for offset in range(module.SITE_WINDOW + 1):
            assert sites.add(job(f"mx:slow{number}.example", offset))
    assert len(list(sites.take(0))) < module.SHARD_WINDOW
    for offset in range(3):
        assert sites.add(job("mx:good.example", offset))
        (one,) = [found for found in sites.take(0) if found.site == "mx:good.example"]
        assert sites.over(one) == 0
    # One of theirs that ends makes room for one, and nothing is forgotten.
    assert sites.add(job("mx:good.example"))
    assert [found.site for found in sites.take(0)].count("mx:good.example") == 1


def test_big_messages_of_a_site_do_not_fill_a_shards_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 250)
    sites = Sites(1)
    for offset in range(6):
        sites.add(job("mx:a.example", offset))
    taken = list(sites.take(0))
    assert len(taken) == 3
    sites.add(job("mx:b.example"))
    sites.add(job("mx:b.example", 1))
    assert [one.site for one in sites.take(0)] == ["mx:b.example"]
    for one in taken:
        sites.over(one)
    assert [one.site for one in sites.take(0)] == ["mx:a.example", "mx:b.example"]


def test_what_is_too_much_for_memory_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SITE_WAITING", 2)
    monkeypatch.setattr(module, "WAITING", 3)
    sites = Sites(1)
    assert [sites.add(job("mx:slow.example", offset)) for offset in range(3)] == [True, True, False]
    assert sites.add(job("mx:b.example"))
    assert not sites.add(job("mx:b.example", 1))
    # A site that nobody waits for is let in all the same: a slow one doesn't shut out the others.
    assert sites.add(job("mx:c.example"))
    assert sites.room() == 0
    # But not without end.
    assert [sites.add(job(f"mx:{name}.example")) for name in "defgh"] == [True, True, False, False, False]


def test_jobs_of_a_dead_shard_go_out_first_and_in_their_order() -> None:
    sites = Sites(1)
    for offset in range(3):
        sites.add(job("mx:a.example", offset))
    taken = sites.take(0)
    lost = [next(taken), next(taken)]
    sites.put_back(lost)
    assert [one.place.offset for one in sites.take(0)] == [0, 1, 2]


def test_a_site_is_always_in_the_same_shard() -> None:
    sites = Sites(4)
    names = [f"mx:d{number}.example" for number in range(50)]
    for name in names:
        sites.add(job(name))
    for shard in range(4):
        assert {one.site for one in sites.take(shard)} == {
            name for name in names if shard_of(name, 4) == shard
        }


def test_jobs_arrive_as_they_were_sent_in_as_many_packets_as_it_takes() -> None:
    jobs = [job("mx:exämple.org".encode("idna").decode(), n, tuple(range(n % 90))) for n in range(400)]
    jobs.append(job("lmtp+unix:/run/lmtp", 9))
    packets = list(wire.jobs(jobs))
    assert len(packets) > 1
    assert max(map(len, packets)) <= wire.FULL_BYTES
    assert [one for packet in packets for one in wire.read_jobs(packet)] == jobs


@pytest.mark.parametrize(
    "outcome",
    [
        Delivered("2.0.0 Ok", "mx.example [192.0.2.1]", "one"),
        Retry(reply.Reply(450, "4.2.0", "later", "really"), "said so", True, "mx.example", "one"),
        Failed(reply.Reply(550, "5.1.1", "nöbody"), "said so", "mx.example"),
        Damaged("mail-1: no valid record at 4096"),
    ],
)
def test_outcomes_arrive_as_they_were_sent(outcome: object) -> None:
    result = Result(Place(1, 2**63, 4096, 20), 3, outcome)  # type: ignore[arg-type]
    number, (found,) = wire.read_results(wire.results(17, [result]))
    assert number == 17
    assert found == result


def test_what_a_next_hop_says_is_cut_to_a_length() -> None:
    result = Result(Place(1, 2, 3, 4), 0, Failed(reply.Reply(550, "5.0.0", *["ä" * 400] * 9), "x" * 5_000))
    _, (found,) = wire.read_results(wire.results(1, [result]))
    assert isinstance(found.outcome, Failed)
    assert found.outcome.reason == "x" * wire.TEXT_BYTES
    assert len("\n".join(found.outcome.reply.lines).encode()) <= wire.TEXT_BYTES


def test_what_is_no_packet_is_an_error_and_no_outcome() -> None:
    whole = wire.results(1, [Result(Place(1, 2, 3, 4), 0, Delivered("Ok"))])
    with pytest.raises(struct.error):
        wire.read_results(whole[:-20])
