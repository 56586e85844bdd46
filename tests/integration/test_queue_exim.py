"""Mail out of the queue of a real server into Exim, which looks at pipelining more strictly than others do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.integration.daemon import Daemon
from tests.integration.exim import NEEDS_EXIM, Exim
from tests.integration.test_queue_peers import MESSAGE, send
from tests.mails import MAILS

pytestmark = [pytest.mark.slow, *NEEDS_EXIM]

CONFIG = """
[queue]
free_bytes = 0
retry_min_s = 0.2
retry_max_s = 0.4

[remote]
connections = {connections}
pause_s = 1
pause_max_s = 1

[[route]]
destination = "example.org"
deliver = "{dest}"
{route}

[[accept]]
domain = "example.org"
recipients = "any"

[deliver]
queue = true
default = "discard"
"""

WITHOUT_CHUNKING = {"chunking_advertise_hosts": ""}


def serving(exim: Exim, route: str = "", connections: int = 1) -> Daemon:
    config = (
        CONFIG.replace("{dest}", exim.dest)
        .replace("{route}", route)
        .replace("{connections}", str(connections))
    )
    return Daemon(config, accept="", workers=1)


def lf(message: bytes) -> bytes:
    return message.replace(b"\r\n", b"\n")


@pytest.mark.parametrize(
    ("host", "settings"), [("127.0.0.1", {}), ("::1", WITHOUT_CHUNKING)], ids=["BDAT", "DATA"]
)
def test_messages_arrive_as_they_were_over_verified_tls(
    host: str, settings: Mapping[str, str], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    with (
        Exim(host, authority.sign(host).read_bytes(), settings) as exim,
        serving(exim, f'tls = "verified"\nca = "{authority.file}"') as daemon,
    ):
        for content in MAILS.values():
            send(daemon, "joe@example.org", content=content)
        found = [lf(one) for one in exim.wait_for_mail("joe", len(MAILS))]
        for name, content in MAILS.items():
            assert len([one for one in found if one.endswith(lf(content))]) == 1, name
        assert {line["tls"] for line in daemon.wait_for_logs("delivered", len(MAILS))} == {"TLSv1.3"}
        assert len(exim.mail("joe")) == len(MAILS)


@pytest.mark.parametrize("settings", [{}, WITHOUT_CHUNKING], ids=["BDAT", "DATA"])
def test_many_messages_on_one_connection_meet_no_protest(settings: Mapping[str, str]) -> None:
    kinds = (
        ("joe",), ("joe", "nobody", "ann"), ("nobody",), ("afterwards",), ("ann", "later"), ("later",),
        ("joe", "afterwards"),
    )  # fmt: skip
    turns = 3
    with Exim("127.0.0.1", None, settings) as exim, serving(exim) as daemon:
        # All of them are there when it greets: each goes out behind the one before.
        with exim.stopped():
            for number, users in enumerate(kinds * turns):
                send(
                    daemon,
                    *(f"{user}@example.org" for user in users),
                    content=b"Subject: %d\r\n\r\n.\r\n" % number,
                )
        daemon.wait_for_logs("deferred", 5 * turns)
        daemon.wait_for_logs("bounced", 2 * turns, rcpt="nobody@example.org")
        exim.say_yes()
        for user in ("joe", "ann", "afterwards", "later"):
            expected = [
                b"Subject: %d" % number for number, users in enumerate(kinds * turns) if user in users
            ]
            found = exim.wait_for_mail(user, len(expected))
            subjects = [line for one in found for line in one.splitlines() if line.startswith(b"Subject: ")]
            assert sorted(subjects) == sorted(expected), "each once"
            daemon.wait_for_logs("delivered", len(expected), rcpt=f"{user}@example.org")
        for protest in ("synchronization", "syntax", "bad command", "lost", "unexpected"):
            assert protest not in exim.log()
        assert exim.log("reject").count("nobody of that name") == 2 * turns
        # Who is put off at the dot is so with all of that message.
        assert {line["rcpt"].partition("@")[0] for line in daemon.log("deferred")} == {
            "afterwards",
            "joe",
            "later",
        }


@pytest.mark.parametrize("settings", [{}, WITHOUT_CHUNKING], ids=["BDAT", "DATA"])
def test_what_is_put_off_is_tried_again_and_nothing_comes_twice(settings: Mapping[str, str]) -> None:
    with Exim("127.0.0.1", None, settings) as exim, serving(exim) as daemon:
        send(daemon, "joe@example.org", "later@example.org", "nobody@example.org")
        send(daemon, "afterwards@example.org")
        assert daemon.wait_for_log("deferred", rcpt="later@example.org")["code"] == 451
        assert daemon.wait_for_log("deferred", rcpt="afterwards@example.org")["code"] == 451
        assert daemon.wait_for_log("bounced", rcpt="nobody@example.org")["enhanced"] == "5.1.1"
        exim.wait_for_mail("joe", 1)
        exim.say_yes()
        for user in ("later", "afterwards"):
            (found,) = exim.wait_for_mail(user, 1)
            assert lf(found).endswith(lf(MESSAGE))
            daemon.wait_for_log("delivered", rcpt=f"{user}@example.org")
        assert len(exim.mail("joe")) == 1


@pytest.mark.parametrize(
    ("settings", "connections"),
    [
        ({"recipients_max": "1"}, 1),
        # 421 to MAIL, and 421 in place of a greeting.
        ({"smtp_accept_max_per_connection": "2"}, 1),
        ({"smtp_accept_max_per_connection": "2", **WITHOUT_CHUNKING}, 1),
        ({"smtp_accept_max": "1"}, 5),
    ],
    ids=["recipients", "messages", "messages by DATA", "connections"],
)
def test_it_takes_a_few_at_a_time_and_nothing_is_put_off(
    settings: Mapping[str, str], connections: int
) -> None:
    with Exim("127.0.0.1", None, settings) as exim, serving(exim, connections=connections) as daemon:
        with exim.stopped():
            for number in range(7):
                send(
                    daemon, "joe@example.org", "ann@example.org", content=b"Subject: %d\r\n\r\n.\r\n" % number
                )
        for user in ("joe", "ann"):
            found = exim.wait_for_mail(user, 7)
            subjects = sorted(line for one in found for line in one.splitlines() if line[:9] == b"Subject: ")
            assert subjects == [b"Subject: %d" % number for number in range(7)]
        daemon.wait_for_logs("delivered", 14)
        assert daemon.log("deferred") == daemon.log("site_paused") == []


def test_what_is_too_big_is_never_offered() -> None:
    with Exim("127.0.0.1", None, {"message_size_limit": "20K"}) as exim, serving(exim) as daemon:
        send(daemon, "joe@example.org", content=MESSAGE + b"0123456789abcdef\r\n" * 2_000)
        send(daemon, "joe@example.org")
        assert daemon.wait_for_log("bounced", rcpt="joe@example.org")["enhanced"] == "5.3.4"
        exim.wait_for_mail("joe", 1)
        assert "size" not in exim.log("reject")


@pytest.mark.parametrize("is_offered", [True, False])
def test_addresses_that_are_not_ascii_go_where_smtputf8_is_offered(is_offered: bool) -> None:
    settings = {} if is_offered else {"smtputf8_advertise_hosts": ""}
    with Exim("127.0.0.1", None, settings) as exim, serving(exim) as daemon:
        send(daemon, "joe@example.org", sender="josé@example.net", options=["SMTPUTF8", "BODY=8BITMIME"])
        if is_offered:
            exim.wait_for_mail("joe", 1)
            assert "josé@example.net" in exim.log()
        else:
            assert daemon.wait_for_log("bounced", rcpt="joe@example.org")["enhanced"] == "5.6.7"
            assert exim.mail("joe") == []
