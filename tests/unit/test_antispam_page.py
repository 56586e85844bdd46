"""docs/antispam.md against the program: every key, every variable, and every reply with its compatible one."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from fastsmtp import reply
from fastsmtp.config import environment
from fastsmtp.config.rules import Policy
from fastsmtp.config.toml import hints
from fastsmtp.policy import helo, reverse_dns
from fastsmtp.reply import Reply

PAGE = (pathlib.Path(__file__).parent.parent.parent / "docs/antispam.md").read_text()


def keys(cls: Any, prefix: str) -> Iterator[str]:
    for field in dataclasses.fields(cls):
        hint = hints(cls)[field.name]
        item = next(iter(getattr(hint, "__args__", ())), None)
        inner = hint if dataclasses.is_dataclass(hint) else item if dataclasses.is_dataclass(item) else None
        if inner is None:
            yield prefix + field.name
        else:
            yield from keys(inner, f"{prefix}{field.name}.")


@pytest.mark.parametrize("key", list(keys(Policy, "policy.")))
def test_every_key_of_policy_is_on_the_page(key: str) -> None:
    assert f"`{key}`" in PAGE


def test_every_key_on_the_page_is_one_of_policy() -> None:
    known = set(keys(Policy, "policy."))
    tables = {key.rpartition(".")[0] for key in known}
    assert {key for key in re.findall(r"`\[*(policy\.[a-z0-9_.]+)\]*`", PAGE)} <= known | tables


def test_every_variable_that_changes_what_we_do_is_on_the_page() -> None:
    assert [name for name in environment.KNOWN if f"`{name}`" not in PAGE and f"`{name} " not in PAGE] == []


ROWS = {
    cells[0]: cells
    for line in PAGE.partition("\n## ")[0].splitlines()
    if line.startswith("| ") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 7
}
LISTED = reply.client_listed("[192.0.2.1]", "zone.example")
DOMAIN = reply.domain_listed("sender", "a.example", "zone.example")
REPLIES: list[tuple[str, list[Reply]]] = [
    ("denied clients", [reply.CLIENT_DENIED]),
    ("lists of addresses", [LISTED, LISTED.softened()]),
    ("the client's reverse name", [*reverse_dns._REPLIES.values()]),
    ("lists of domains: reverse name", [DOMAIN, DOMAIN.softened()]),
    ("early talkers", [reply.EARLY_TALKER]),
    ("HELO", [*helo._REPLIES.values()]),
    ("lists of domains: HELO", [DOMAIN, DOMAIN.softened()]),
    ("declared size", [reply.TOO_BIG]),
    ("senders that need TLS", [reply.NEED_TLS]),
    ("bad senders", [reply.BAD_SENDER]),
    ("DENYMAIL", [reply.BAD_SENDER, reply.NO_BOUNCES, reply.SENDER_NO_ADDRESS]),
    ("the sender's domain", [reply.SENDER_HAS_NO_MAIL, reply.SENDER_NULL_MX, reply.SENDER_UNKNOWN_YET]),
    ("lists of domains: sender", [DOMAIN, DOMAIN.softened()]),
    ("relaying", [reply.NO_RELAYING]),
    ("unknown recipients", [reply.UNKNOWN_RECIPIENT]),
    ("scores", [reply.SCORE]),
    ("mail loop", [reply.MAIL_LOOP]),
    ("a header too long to look through", [reply.HEADER_TOO_LONG]),
    ("signatures", [reply.signature_found("TVqQ", 1)]),
]


def codes(one: Reply) -> str:
    return f"{one.code} {one.enhanced}"


@pytest.mark.parametrize(("check", "replies"), REPLIES)
def test_each_reply_is_the_one_on_the_page(check: str, replies: list[Reply]) -> None:
    row = ROWS[check]
    for one in replies:
        assert codes(one) in row[5]
        assert codes(one.as_qmail()) in (row[5] if row[6] == "the same" else row[6])
    if row[6] == "the same":
        assert [one for one in replies if codes(one) != codes(one.as_qmail())] == []


def test_the_rest_of_the_table_is_looked_at_elsewhere() -> None:
    elsewhere = {"check", "a rule's word about the client", "the client's system", "bad recipients", "tarpit",
                 "a rule of your own"}  # fmt: skip
    assert set(ROWS) - {check for check, _ in REPLIES} == elsewhere
    assert codes(reply.UNKNOWN_RECIPIENT) == ROWS["bad recipients"][5]
    assert codes(reply.DENIED.as_qmail()) == ROWS["bad recipients"][6]
