"""The signature scanner: a table of mails, each whole, octet by octet and at random cuts, and hostile ones."""

from __future__ import annotations

import base64
import email.policy
import quopri
import random
from collections.abc import Iterable, Iterator
from email.message import EmailMessage

import pytest

from fastsmtp._signatures import LINE_BYTES_MAX, SignatureHit, Signatures, SignatureScanner
from tests.reference.signatures import find

EXE = b"TVqQAAMAA"
SIGNATURES = Signatures([EXE, b"UEsDBBQAA", b"X5O!P%@AP", b"Sig: x"])

Hit = tuple[bytes, int, bool]


def scan(
    pieces: Iterable[bytes], *, is_decoding: bool = False, signatures: Signatures = SIGNATURES
) -> Hit | None:
    scanner = SignatureScanner(signatures, is_decoding=is_decoding)
    for piece in pieces:
        scanner.feed(piece)
    hit = scanner.finish()
    return None if hit is None else (hit.signature, hit.part, hit.is_decoded)


def cut(mail: bytes, seed: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    at = 0
    while at < len(mail):
        step = chance.choice((1, 2, 3, 10, 100))
        yield mail[at : at + step]
        at += step


MULTIPART = b'Subject: x\r\nContent-Type: multipart/mixed; boundary="b1"\r\n\r\n'
PART = b"--b1\r\nContent-Type: text/plain\r\n\r\nhello\r\n"
BASE64_PART = b"--b1\r\nContent-Transfer-Encoding: base64\r\n\r\n"
INNER = b"--b1\r\nContent-Type: multipart/alternative; boundary=b2\r\n\r\n--b2\r\n\r\ninner\r\n"

# Under each sentence: the mail, and the part that is hit, 0 for none.
CASES: dict[str, tuple[bytes, int]] = {
    "an empty mail": (b"", 0),
    "a mail without a body": (b"Subject: x\r\n", 0),
    "the first line of the body": (b"Subject: x\r\n\r\n" + EXE + b"AAAA\r\n", 1),
    "the line may be the signature, and the last octets": (b"Subject: x\r\n\r\n" + EXE, 1),
    "a shorter line is none": (b"Subject: x\r\n\r\n" + EXE[:-1] + b"\r\nA\r\n", 0),
    "no header": (b"\r\n" + EXE, 1),
    "case counts": (b"Subject: x\r\n\r\n" + EXE.lower() + b"\r\n", 0),
    "only the beginning of the line": (b"Subject: x\r\n\r\n " + EXE + b"\r\n", 0),
    "only the first line": (b"Subject: x\r\n\r\nx\r\n" + EXE + b"\r\n", 0),
    "empty lines come before the first": (b"Subject: x\r\n\r\n\r\n\r\n" + EXE + b"\r\n", 1),
    "LF for line ends": (b"Subject: x\n\n" + EXE + b"\n", 1),
    "a line that is no field may be the body's first": (b"Subject: x\r\n" + EXE + b"AAAA\r\n", 1),
    "a header field is none": (b"Subject: x\r\nSig: x\r\n\r\ntext\r\n", 0),
    "the preamble's first line": (MULTIPART + EXE + b"\r\n", 1),
    "a part": (MULTIPART + PART + BASE64_PART + EXE + b"AAAA\r\n--b1--\r\n", 3),
    "a part without a header": (MULTIPART + b"--b1\r\n\r\n" + EXE + b"\r\n", 2),
    "a part that the next boundary cuts in its header": (MULTIPART + b"--b1\r\nX: y\r\n--b1\r\n\r\n" + EXE, 3),
    "not another line of a part": (MULTIPART + PART + EXE + b"\r\n--b1--\r\n", 0),
    "a boundary without quotes, behind other parameters, folded": (
        b'Content-Type: multipart/mixed; charset="x; y"\r\n\t; BOUNDARY = b1 ; a=b\r\n\r\n' + PART + BASE64_PART + EXE,
        3,
    ),
    "a boundary with escapes": (
        b'Content-Type: multipart/mixed; boundary="b\\1"\r\n\r\n' + BASE64_PART + EXE,
        2,
    ),
    "a boundary in RFC 2231's pieces": (
        b'Content-Type: multipart/mixed; boundary*0="b"; boundary*1="1"\r\n\r\n' + BASE64_PART + EXE,
        2,
    ),
    "a name in capitals, blanks before the colon": (
        b"CONTENT-TYPE \t: multipart/mixed; boundary=b1\r\n\r\n" + BASE64_PART + EXE,
        2,
    ),
    "two Content-Type fields count both": (
        b"Content-Type: text/plain\r\nContent-Type: multipart/x; boundary=b1\r\n\r\n" + BASE64_PART + EXE,
        2,
    ),
    "a boundary right behind the field that names it": (
        b"Content-Type: multipart/mixed; boundary=b1\r\n" + BASE64_PART + EXE,
        2,
    ),
    "blanks behind the boundary": (MULTIPART + b"--b1 \t\r\n\r\n" + EXE, 2),
    "a part in a part": (MULTIPART + INNER + b"--b2\r\n\r\n" + EXE, 4),
    "a part behind the end of an inner one": (MULTIPART + INNER + b"--b2--\r\n--b1\r\n\r\n" + EXE, 5),
    "a part of the outer one, the inner never ended": (MULTIPART + INNER + b"--b1\r\n\r\n" + EXE, 4),
    "a message in a message": (
        MULTIPART + b"--b1\r\nContent-Type: message/rfc822\r\n\r\nSubject: y\r\n\r\n" + EXE,
        3,
    ),
    "a multipart message in a message": (
        b"Content-Type: message/rfc822\r\n\r\n" + MULTIPART + BASE64_PART + EXE,
        3,
    ),
    "the copy in qmail's bounce": (
        b"Subject: failure notice\r\n\r\nHi. This is the qmail-send program at x.\r\n\r\n<a@b>:\r\n\r\n"
        b"--- Below this line is a copy of the message.\r\n\r\nReturn-Path: <x>\r\n" + MULTIPART + BASE64_PART + EXE,
        3,
    ),
    "the copy in Exim's bounce": (
        b"Subject: x\r\n\r\nThis message was created automatically by mail delivery software.\r\n\r\n"
        b"------ This is a copy of the message, including all the headers. ------\r\n\r\nA: b\r\n\r\n" + EXE,
        2,
    ),
    "hyphens in an ordinary text": (b"Subject: x\r\n\r\nHi.\r\n--- cut ---\r\n\r\n" + EXE, 0),
    "a boundary that nobody announced": (b"Subject: x\r\n\r\ntext\r\n--b1\r\n\r\n" + EXE, 0),
    "a signature with other characters": (MULTIPART + b"--b1\r\n\r\nX5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR\r\n", 2),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("is_decoding", [False, True], ids=["", "decoding"])
def test_case(case: str, is_decoding: bool) -> None:
    """Decoding sees what the prefix rule sees, and here no more."""
    mail, part = CASES[case]
    whole = scan([mail], is_decoding=is_decoding)
    assert (0 if whole is None else whole[1]) == part
    assert whole is None or not whole[2]
    for pieces in (map(bytes, zip(mail, strict=True)), *(cut(mail, seed) for seed in range(5))):
        assert scan(pieces, is_decoding=is_decoding) == whole


PROGRAM = b"MZ\x90\x00\x03\x00\x00\x00\x04" + bytes(range(256))
BINARY = {
    "8bit": b"--b1\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + PROGRAM,
    "binary, without a field": b"--b1\r\n\r\n" + PROGRAM,
    "quoted-printable": b"--b1\r\nContent-Transfer-Encoding: Quoted-Printable\r\n\r\n" + quopri.encodestring(PROGRAM),
    "all of it escaped, a line break in every line": (
        b"--b1\r\ncontent-transfer-encoding:\r\n quoted-printable\r\n\r\n"
        + b"=\r\n".join(b"=%02x" % octet for octet in PROGRAM)
    ),
    "base64 in odd lines": b"--b1\r\nContent-Transfer-Encoding: BASE64\r\n\r\n"
    + b"\r\n".join(base64.b64encode(PROGRAM)[at : at + 5] for at in range(0, 300, 5)),
    "base64 with blanks and rubbish": b"--b1\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    + b" !".join(bytes([octet]) for octet in base64.b64encode(PROGRAM)),
    "base64 of a short file": b"--b1\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    + b"\r\n ".join([b"TVqQ", b"AAMA", b"AA=="]),
}  # fmt: skip


@pytest.mark.parametrize("case", BINARY)
@pytest.mark.parametrize("end", [b"\r\n--b1--\r\n", b""], ids=["ended", "cut off"])
def test_decoding_sees_the_file_whatever_its_encoding(case: str, end: bytes) -> None:
    mail = MULTIPART + PART + BINARY[case] + end
    assert scan([mail]) is None
    assert scan([mail], is_decoding=True) == (EXE, 3, True)
    assert all(scan(cut(mail, seed), is_decoding=True) == (EXE, 3, True) for seed in range(5))


def test_decoding_compares_a_text_too() -> None:
    text = base64.encodebytes(b"\r\nX5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR")
    mail = MULTIPART + BASE64_PART + text + b"--b1--\r\n"
    assert scan([mail]) is None
    assert scan([mail], is_decoding=True) == (b"X5O!P%@AP", 2, True)


def test_mails_that_the_library_makes() -> None:
    """Python's own writer is the oracle: random trees of parts, one of them a program or none."""
    chance = random.Random(7)
    for _ in range(60):
        has_program = chance.random() < 0.5
        mail = EmailMessage(policy=email.policy.SMTP)
        mail["Subject"] = "x" * chance.randint(1, 200)
        mail.set_content("hello\n" * chance.randint(0, 5))
        files = [b"harmless" * chance.randint(1, 100) for _ in range(chance.randint(0, 3))]
        if has_program:
            files.insert(chance.randint(0, len(files)), PROGRAM)
        for file in files:
            mail.add_attachment(file, "application", "octet-stream", filename="a.bin")
        for _ in range(chance.randint(0, 3)):
            outer = EmailMessage(policy=email.policy.SMTP)
            outer.set_content("see below")
            outer.add_attachment(mail)
            mail = outer
        text = mail.as_bytes()
        for is_decoding in (False, True):
            assert (scan(cut(text, 1), is_decoding=is_decoding) is not None) == has_program


def nested(depth: int) -> bytes:
    head = b"".join(
        b"Content-Type: multipart/mixed; boundary=level%d\r\n\r\n--level%d\r\n" % (level, level)
        for level in range(depth)
    )
    return head + b"\r\n" + EXE + b"\r\n"


def hostile(size: int) -> dict[str, tuple[bytes, bool]]:
    """Mails of about so many octets that cost much where the scanner is careless; the names tell of 1 MB."""
    return {
        "parts nested 1,000 deep": (nested(1_000), True),
        "messages nested 1,000 deep": (b"Content-Type: message/rfc822\r\n\r\n" * 1_000 + b"A: b\r\n\r\n" + EXE, True),
        "a line of 1 MB in the header": (b"X: " + b"y" * size + b"\r\n\r\n" + EXE, True),
        "a line of 1 MB in the body, then a part": (MULTIPART + b"y" * size + b"\r\n--b1\r\n\r\n" + EXE, True),
        "a boundary behind 1 MB of parameters": (
            b"Content-Type: multipart/mixed; x=" + b"y" * size + b"; boundary=b1\r\n\r\n" + BASE64_PART + EXE,
            True,
        ),
        "a boundary behind 10,000 folded lines": (
            b"Content-Type: multipart/mixed\r\n" + b" ;x=y\r\n" * (size // 100) + b" ;boundary=b1\r\n\r\n"
            + BASE64_PART + EXE,
            True,
        ),
        "a boundary of 1 MB": (
            b"Content-Type: multipart/mixed; boundary=" + b"y" * size + b"\r\n\r\n--yyy\r\n\r\n" + EXE,
            True,
        ),
        "an empty boundary": (b'Content-Type: multipart/mixed; boundary=""\r\n\r\n--\r\n\r\n' + EXE, True),
        "200 boundaries in one field": (
            b"Content-Type: multipart/mixed"
            + b"".join(b"; boundary=c%d" % at for at in range(200))
            + b"\r\n\r\n--c199\r\n\r\n"
            + EXE,
            True,
        ),
        "100,000 empty parts": (MULTIPART + b"--b1\r\n" * (size // 10) + b"\r\n" + EXE, True),
        "100,000 lines of hyphens": (MULTIPART + b"--\r\n" * (size // 10), False),
        "1 MB of line ends": (MULTIPART + b"\r\n" * (size // 2), False),
        "1 MB of NUL": (b"\0" * size, False),
        "1 MB of colons": (b":" * size, False),
        "1 MB of hyphens": (MULTIPART + b"-" * size, False),
        "base64 that is none": (MULTIPART + BASE64_PART + b"!" * size, False),
    }  # fmt: skip


HOSTILE = hostile(1_000_000)


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("is_decoding", [False, True], ids=["", "decoding"])
def test_hostile_mails_hide_nothing_and_need_no_memory(case: str, is_decoding: bool) -> None:
    mail, is_hit = HOSTILE[case]
    pieces = [mail[at : at + 65_536] for at in range(0, len(mail), 65_536)]
    assert (scan(pieces, is_decoding=is_decoding) is not None) == is_hit


WORDS = [
    b"--", b"b1", b"\r\n", b"\n", b"\r", b":", b" ", b"=", b'"', b"\xff", EXE, b"TVqQ", b"AAMA",
    b"MZ=90=00=03=00=00=00",
    b"Content-Type: multipart/x; boundary=b1", b"X: y\n boundary=b1", b"Content-Transfer-Encoding: base64", b"\r\n\r\n",
    b"message/rfc822", b"Content-Transfer-Encoding: quoted-printable\n", b"Hi. This is the \n", b"---\n", b"\n--b1\n\n",
    b"Content-Type: message/x\n\n", b"boundary=;",
]  # fmt: skip


def test_random_mails_against_the_reference() -> None:
    chance = random.Random(3)
    literals = [EXE, b"UEsDBBQAA", b"X5O!P%@AP", b"Sig: x"]
    for seed in range(1_500):
        mail = b"".join(chance.choices(WORDS, k=chance.randint(0, 25)))
        for is_decoding in (False, True):
            expected = find(mail, literals, is_decoding=is_decoding)
            assert scan([mail], is_decoding=is_decoding) == expected, mail
            assert scan(cut(mail, seed), is_decoding=is_decoding) == expected, mail


# The reference looks at each line in Python: a tenth says the same.
MAILS = {case: mail for table in (CASES, hostile(100_000)) for case, (mail, _) in table.items()}


@pytest.mark.parametrize("case", MAILS)
def test_the_reference_agrees(case: str) -> None:
    mail = MAILS[case]
    assert find(mail, [EXE, b"UEsDBBQAA", b"X5O!P%@AP", b"Sig: x"]) == scan([mail])


@pytest.mark.parametrize(
    ("literals", "line", "found"),
    [
        ([], b"x", None),
        ([b"b"], b"", None),
        ([b"b"], b"a", None),
        ([b"b"], b"c", None),
        ([b"b"], b"bc", b"b"),
        ([b"b", b"bc", b"bcd"], b"bcde", b"b"),
        ([b"ba", b"bb", b"bc"], b"bb", b"bb"),
        ([b"ba", b"bb", b"bc"], b"bbz", b"bb"),
        ([b"ba", b"bc"], b"bbz", None),
        ([b"\xff"], b"\xff\xff", b"\xff"),
        ([b"bb"], b"b", None),
    ],
)
def test_find(literals: list[bytes], line: bytes, found: bytes | None) -> None:
    assert Signatures(literals).find(line) == found


def test_find_is_what_a_loop_finds() -> None:
    chance = random.Random(5)
    for _ in range(300):
        literals = [
            bytes(chance.choices(b"ab\xff", k=chance.randint(1, 4))) for _ in range(chance.randint(0, 8))
        ]
        signatures = Signatures(literals)
        for _ in range(20):
            line = bytes(chance.choices(b"ab\xff", k=chance.randint(0, 6)))
            hits = [literal for literal in literals if line.startswith(literal)]
            assert signatures.find(line) == (min(hits, key=len) if hits else None)


def test_a_signature_that_could_not_match_is_refused() -> None:
    assert len(Signatures([b"x" * LINE_BYTES_MAX])) == 1
    for literal in (b"", b"x" * (LINE_BYTES_MAX + 1)):
        with pytest.raises(ValueError, match="1 to 1024 octets"):
            Signatures([literal])


def test_types() -> None:
    with pytest.raises(TypeError):
        Signatures(["text"])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        SignatureHit()
    with pytest.raises(TypeError):
        SignatureScanner(SIGNATURES).feed("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        SignatureScanner(None)  # type: ignore[arg-type]
    scanner = SignatureScanner(SIGNATURES)
    scanner.feed(b"\r\n" + EXE)
    assert repr(scanner.finish()) == "SignatureHit(b'TVqQAAMAA', part 1)"
    assert repr(SIGNATURES) == "Signatures(4)"
