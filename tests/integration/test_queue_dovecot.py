"""Mail out of the queue of a real server into Dovecot by LMTP, which answers for each recipient at the dot."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.authority import Authority
from tests.integration.daemon import Daemon
from tests.integration.dovecot import NEEDS_DOVECOT, Dovecot
from tests.integration.test_queue_exim import CONFIG, lf
from tests.integration.test_queue_peers import MESSAGE, send
from tests.mails import MAILS

pytestmark = [pytest.mark.slow, *NEEDS_DOVECOT]


def serving(dest: str, route: str = "") -> Daemon:
    config = CONFIG.replace("{dest}", dest).replace("{route}", route).replace("{connections}", "1")
    return Daemon(config, accept="", workers=1)


@pytest.mark.parametrize("way", ["a Unix socket", "verified TLS"])
def test_messages_arrive_as_they_were(way: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    has_tls = way == "verified TLS"
    with Dovecot(authority.sign("127.0.0.1").read_bytes() if has_tls else None) as dovecot:
        route = f'tls = "verified"\nca = "{authority.file}"' if has_tls else ""
        with serving(dovecot.unix if way == "a Unix socket" else dovecot.dest, route) as daemon:
            for content in MAILS.values():
                send(daemon, "joe@example.org", content=content)
            found = [lf(one) for one in dovecot.wait_for_mail("joe", len(MAILS))]
            for name, content in MAILS.items():
                assert len([one for one in found if one.endswith(lf(content))]) == 1, name
            delivered = daemon.wait_for_logs("delivered", len(MAILS))
            assert {line.get("tls", "") for line in delivered} == {"TLSv1.3" if has_tls else ""}


@pytest.mark.parametrize("is_later", [False, True], ids=["552", "452"])
def test_each_recipient_has_an_answer_of_its_own_at_the_dot(is_later: bool) -> None:
    with Dovecot(is_later=is_later) as dovecot, serving(dovecot.dest) as daemon:
        send(daemon, "joe@example.org", "full@example.org", "nobody@example.org", "ann@example.org")
        for user in ("joe", "ann"):
            (found,) = dovecot.wait_for_mail(user, 1)
            assert lf(found).endswith(lf(MESSAGE))
            daemon.wait_for_log("delivered", rcpt=f"{user}@example.org")
        assert daemon.wait_for_log("bounced", rcpt="nobody@example.org")["code"] == 550
        if is_later:
            line = daemon.wait_for_log("deferred", rcpt="full@example.org")
            assert (line["code"], line["enhanced"]) == (452, "4.2.2")
            dovecot.make_room()
            (found,) = dovecot.wait_for_mail("full", 1)
            assert lf(found).endswith(lf(MESSAGE))
            daemon.wait_for_log("delivered", rcpt="full@example.org")
        else:
            line = daemon.wait_for_log("bounced", rcpt="full@example.org")
            assert (line["code"], line["enhanced"]) == (552, "5.2.2")
            assert dovecot.mail("full") == []
        # What it has is what was sent: nobody gets a second copy because of another.
        assert len(dovecot.mail("joe")) == len(dovecot.mail("ann")) == 1


def test_many_messages_on_one_connection() -> None:
    kinds = (
        ("joe",),
        ("nobody",),
        ("joe", "nobody", "full"),
        ("full",),
        ("full", "ann"),
        ("joe", "full", "ann"),
    )
    turns = 3
    with Dovecot() as dovecot, serving(dovecot.dest) as daemon:
        with dovecot.stopped():
            for number, users in enumerate(kinds * turns):
                send(
                    daemon,
                    *(f"{user}@example.org" for user in users),
                    content=b"Subject: %d\r\n\r\n.\r\n" % number,
                )
        for user, event in (
            ("nobody", "bounced"), ("full", "bounced"), ("joe", "delivered"), ("ann", "delivered"),
        ):  # fmt: skip
            expected = [
                b"Subject: %d" % number for number, users in enumerate(kinds * turns) if user in users
            ]
            daemon.wait_for_logs(event, len(expected), rcpt=f"{user}@example.org")
            if event == "delivered":
                found = dovecot.wait_for_mail(user, len(expected))
                subjects = [
                    line for one in found for line in one.splitlines() if line.startswith(b"Subject: ")
                ]
                assert sorted(subjects) == sorted(expected), "each once"
        assert daemon.log("deferred") == []


def test_a_server_that_starts_anew_has_all_of_it_in_the_end() -> None:
    with Dovecot() as dovecot, serving(dovecot.dest) as daemon:
        send(daemon, "joe@example.org")
        dovecot.wait_for_mail("joe", 1)
        dovecot.stop()
        send(daemon, "joe@example.org", "ann@example.org")
        daemon.wait_for_logs("deferred", 2)
        dovecot.start()
        dovecot.wait_for_mail("joe", 2)
        dovecot.wait_for_mail("ann", 1)
        daemon.wait_for_logs("delivered", 3)
