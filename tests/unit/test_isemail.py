"""The corpus of is_email, an independent table of addresses, against the compiled and the reference parser.

The corpus asks a wider question: is this an address anywhere in mail?  We ask a narrow one: may it stand
between the angle brackets of MAIL and RCPT (RFC 5321 section 4.1.2)?  VERDICTS states our answer for each
diagnosis of the corpus, and why.

data/isemail holds tests.xml, meta.xml and the licence (BSD, Dominic Sayers) as they were published.
"""

from __future__ import annotations

import pathlib
import re
import xml.etree.ElementTree as ElementTree
from typing import NamedTuple

import pytest

from fastsmtp import _parser
from tests.reference import parser as reference

CORPUS = pathlib.Path(__file__).resolve().parent.parent / "data" / "isemail"


class Case(NamedTuple):
    number: int
    address: bytes
    category: str
    diagnosis: str


def read_corpus() -> list[Case]:
    """Every test.  A control character stands in the file as U+2400 plus its code."""
    tests = []
    for test in ElementTree.parse(CORPUS / "tests.xml").getroot().iter("test"):
        text = test.findtext("address") or ""
        address = re.sub("[\u2400-\u241f]", lambda found: chr(ord(found[0]) - 0x2400), text).encode()
        category, diagnosis = (
            test.findtext(tag, "").removeprefix("ISEMAIL_") for tag in ("category", "diagnosis")
        )
        tests.append(Case(int(test.get("id", "")), address, category, diagnosis))
    return tests


TESTS = read_corpus()

GRAMMAR = "no rule of RFC 5321 makes it: invalid for any purpose"
COMMENT = "comments and folding are a header's; an envelope has none (RFC 5321 section 4.1.2)"
OBSOLETE = "obsolete in RFC 5322, and never in RFC 5321's grammar"
LITERAL = "a domain literal of RFC 5322 that is no address literal of RFC 5321 section 4.1.3"
LENGTH = "a limit of RFC 5321 section 4.5.3.1, or of a DNS label (63)"
NO_DNS = "right by its grammar; whether its domain exists is a question for policy, not for the parser"

# Diagnosis: (may it stand in a path, why).  "ERR_*": all of the category.
VERDICTS: dict[str, tuple[bool, str]] = {
    "VALID": (True, "an ordinary address"),
    "DNSWARN_NO_RECORD": (True, NO_DNS),
    "DNSWARN_NO_MX_RECORD": (True, NO_DNS),
    "RFC5321_TLD": (True, "a Domain may be one label (RFC 5321 section 2.3.5): user@localhost"),
    "RFC5321_TLDNUMERIC": (True, "a label may be all digits (RFC 1123 section 2.1)"),
    "RFC5321_QUOTEDSTRING": (True, "a Quoted-string is a Local-part"),
    "RFC5321_ADDRESSLITERAL": (True, "an address literal is as good as a Domain"),
    "RFC5321_IPV6DEPRECATED": (
        True,
        "'::' for a single group: RFC 5321 wants two or more, but RFC 4291 allows it, and it is clear",
    ),
    "CFWS_COMMENT": (False, COMMENT),
    "CFWS_FWS": (False, COMMENT),
    "DEPREC_CFWS_NEAR_AT": (False, COMMENT),
    "DEPREC_COMMENT": (False, COMMENT),
    "DEPREC_CTEXT": (False, COMMENT),
    "DEPREC_FWS": (False, COMMENT),
    "DEPREC_LOCALPART": (False, OBSOLETE),
    "DEPREC_QP": (False, OBSOLETE),
    "DEPREC_QTEXT": (False, OBSOLETE),
    "RFC5322_DOMAIN": (False, "a dot-atom that is no Domain"),
    "RFC5322_DOMAINLITERAL": (False, LITERAL),
    "RFC5322_DOMLIT_OBSDTEXT": (False, LITERAL),
    "RFC5322_IPV6_2X2XCOLON": (False, LITERAL),
    "RFC5322_IPV6_BADCHAR": (False, LITERAL),
    "RFC5322_IPV6_COLONEND": (False, LITERAL),
    "RFC5322_IPV6_COLONSTRT": (False, LITERAL),
    "RFC5322_IPV6_GRPCOUNT": (False, LITERAL),
    "RFC5322_IPV6_MAXGRPS": (False, LITERAL),
    "RFC5322_DOMAIN_TOOLONG": (False, LENGTH),
    "RFC5322_LABEL_TOOLONG": (False, LENGTH),
    "RFC5322_LOCAL_TOOLONG": (False, LENGTH),
    "RFC5322_TOOLONG": (False, LENGTH),
    "ERR_*": (False, GRAMMAR),
}

# Where one test of a diagnosis differs from the rest of it.
EXCEPTIONS: dict[int, tuple[bool, str]] = {
    66: (True, "'1111:2222...' is a General-address-literal with the tag 1111, which policy may not know"),
}


def verdict(test: Case) -> tuple[bool, str]:
    if test.number in EXCEPTIONS:
        return EXCEPTIONS[test.number]
    return VERDICTS["ERR_*" if test.category == "ERR" else test.diagnosis]


def test_every_diagnosis_of_the_corpus_has_a_verdict_and_no_verdict_is_idle() -> None:
    assert len(TESTS) == 164
    in_corpus = {"ERR_*" if test.category == "ERR" else test.diagnosis for test in TESTS}
    assert in_corpus == set(VERDICTS)


@pytest.mark.parametrize("test", TESTS, ids=lambda test: f"{test.number}-{test.diagnosis}")
def test_reverse_and_forward_path(test: Case) -> None:
    is_admitted, why = verdict(test)
    # The brackets make the empty address of the corpus the null path, which only a reverse path may be.
    is_null = test.address == b""
    for is_reverse in (True, False):
        expected = is_admitted or (is_null and is_reverse)
        for name, parser in (("compiled", _parser), ("reference", reference)):
            outcome = parser.parse_path(b"<" + test.address + b">", is_reverse=is_reverse)
            is_read = isinstance(outcome, tuple) and outcome[1] == b""
            assert is_read == expected, f"{name}: {test.address!r}: {why}; got {outcome}"
            if is_read and not is_null:
                assert isinstance(outcome, tuple)
                assert outcome[0].address == test.address
                assert outcome[0].domain == test.address.rpartition(b"@")[2].lower()


@pytest.mark.parametrize("test", TESTS, ids=lambda test: f"{test.number}-{test.diagnosis}")
def test_smtputf8_admits_nothing_more_of_an_ascii_corpus(test: Case) -> None:
    is_admitted, why = verdict(test)
    text = b"<" + test.address + b">"
    for parser in (_parser, reference):
        outcome = parser.parse_path(text, is_utf8_allowed=True)
        assert (isinstance(outcome, tuple) and outcome[1] == b"") == is_admitted, why
