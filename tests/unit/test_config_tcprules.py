"""tcpserver's rules: which rule a client gets, what is a fault, and that no file hangs or raises.

Debian's tcprules and tcprulescheck (ucspi-tcp) are the oracle where they are there.
"""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp.address import Address
from fastsmtp.config.cdb import is_cdb, read_cdb
from fastsmtp.config.tcprules import EXPANDED_MAX, Rules, expand, parse_line, parse_rules
from tests.cdbs import make_cdb
from tests.conftest import needs

FILE = "/etc/tcp.smtp"


def rules(text: str | bytes) -> Rules:
    faults: list[str] = []
    found = parse_rules(FILE, text.encode() if isinstance(text, str) else text, faults)
    assert faults == []
    return found


def line_of(found: Rules, address: str, name: str = "") -> int:
    """The line of the client's rule; 0 for none."""
    rule = found.find(Address(address), name)
    return 0 if rule is None else int(rule.place.rpartition(":")[2])


IPV4 = """\
192.0.2.1:allow
192.0.2.37-53:deny
192.0.2.:allow,A="b"
192.:deny
10.2-3.:allow
=mail.example.org:allow
=.example.org:allow
=:allow
198.51.100.0/25:deny
198.51.100.7:allow
:deny
"""


@pytest.mark.parametrize(
    ("address", "name", "line"),
    [
        ("192.0.2.1", "", 1),
        ("192.0.2.1", "mail.example.org", 1),
        ("192.0.2.36", "", 3),
        ("192.0.2.37", "", 2),
        ("192.0.2.53", "", 2),
        ("192.0.2.54", "", 3),
        ("192.0.3.1", "", 4),
        ("193.0.2.1", "", 11),
        ("10.2.3.4", "", 5),
        ("10.3.255.255", "", 5),
        ("10.4.0.0", "", 11),
        # A name's own rule comes before a prefix; the end of a name after it.
        ("192.0.2.2", "mail.example.org", 6),
        ("192.0.2.2", "MAIL.Example.ORG.", 6),
        ("192.0.2.2", "www.example.org", 3),
        ("203.0.113.1", "www.example.org", 7),
        ("203.0.113.1", "example.org", 8),
        ("203.0.113.1", "a.example", 8),
        ("203.0.113.1", "", 11),
        ("198.51.100.7", "", 10),
        ("198.51.100.8", "", 9),
        ("198.51.100.128", "", 11),
        ("::ffff:192.0.2.1", "", 1),
        ("2001:db8::1", "", 11),
    ],
)
def test_which_rule_a_client_gets(address: str, name: str, line: int) -> None:
    assert line_of(rules(IPV4), address, name) == line


IPV6 = """\
2001:db8::1:allow
2001:DB8:0:0:0:0:0:2:allow
2001:db8::5:deny
2001:db8:1::allow
2001:db8:1:2::/64:deny
2001:db8::5:6:allow
fe80::/10:allow
2001:0db8:7::allow
::/0:deny
"""


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("2001:db8::1", 1),
        ("2001:0db8:0000::0001", 1),
        ("2001:db8::2", 2),
        ("2001:db8:1::9", 4),
        ("2001:db8:1:2::9", 5),
        ("2001:db8::5:6", 6),
        ("febf::1", 7),
        ("2001:db8:7::8", 8),
        ("2001:db8:7:1::8", 8),
        ("2001:db8:77::8", 9),
        ("2002::", 9),
        ("192.0.2.1", 0),
    ],
)
def test_which_rule_an_ipv6_client_gets(address: str, line: int) -> None:
    assert line_of(rules(IPV6), address) == line


def test_a_prefix_with_two_colons_is_compared_as_text() -> None:
    found = rules("2001:db8::5::allow\n2001:db8::ab:allow\nfe80:::allow")
    assert line_of(found, "2001:db8::ab") == 2
    assert line_of(found, "fe80::1:2") == 3
    assert line_of(found, "fe80:1::2") == 0


def test_nobody_is_denied_without_a_rule() -> None:
    assert rules("").find(Address("192.0.2.1")) is None
    assert rules("# nothing\n\n   \n").find(Address("192.0.2.1")) is None


@pytest.mark.parametrize(
    ("line", "key", "is_denied", "variables"),
    [
        (b"192.0.2.1:allow", "192.0.2.1", False, {}),
        (b":deny", "", True, {}),
        (b'1.:allow,RELAYCLIENT=""', "1.", False, {"RELAYCLIENT": ""}),
        (b'1.:allow,A="x,y:allow",B=/"/', "1.", False, {"A": "x,y:allow", "B": '"'}),
        (b"1.:allow,A=xbx", "1.", False, {"A": "b"}),
        (b'1.:allow,A="1",A="2"', "1.", False, {"A": "2"}),
        (b"2001:db8::1:allow,A=:b:", "2001:db8::1", False, {"A": "b"}),
        (b'1.:deny,A="b"', "1.", True, {"A": "b"}),
        (b'1.:allow,A="\xff"', "1.", False, {"A": "\udcff"}),
    ],
)
def test_a_line(line: bytes, key: str, is_denied: bool, variables: dict[str, str]) -> None:
    found, rule = parse_line(line, "F:1")
    assert (found, rule.is_denied, dict(rule.variables)) == (key, is_denied, variables)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        # The compiler of the ucspi-tcp with IPv6 looked for its colon for ever here.
        ("192.0.2.1", f"{FILE}:1: has neither :allow nor :deny"),
        ("192.0.2.1:alow", f"{FILE}:1: has neither :allow nor :deny"),
        ("\n192.0.2.1:allowed", f"{FILE}:2: has neither :allow nor :deny"),
        ("2001:db8::1", f"{FILE}:1: has neither :allow nor :deny"),
        ("1.:allow,", f"{FILE}:1: ',' is not ,NAME=\"value\""),
        ("1.:allow,A", f"{FILE}:1: ',A' is not ,NAME=\"value\""),
        ("1.:allow,=x", f"{FILE}:1: ',=x' is not ,NAME=\"value\""),
        ("1.:allow,A=", f"{FILE}:1: the value of A has no end"),
        ('1.:allow,A="', f"{FILE}:1: the value of A has no end"),
        ('1.:allow,A="b"x', f"{FILE}:1: 'x' is not ,NAME=\"value\""),
        ('1.:allow A="b"', f"{FILE}:1: has neither :allow nor :deny"),
        ("1.2.9-3:allow", f"{FILE}:1: the range '1.2.9-3' holds nothing"),
        ("0-255.0-255.0-255.:deny", f"{FILE}:1: the range '0-255.0-255.0-255.' holds too many addresses"),
        ("a" * 5000, f"{FILE}:1: has neither :allow nor :deny"),
    ],
)
def test_a_fault_names_its_line(text: str, fault: str) -> None:
    faults: list[str] = []
    parse_rules(FILE, text.encode(), faults)
    assert faults == [fault]


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("joe@192.0.2.1", "needs ident"),
        ("192.0.2", "is neither"),
        ("mail.example.org", "is neither"),
        ("192.0.2.0/33", "is no network"),
        ("192.0.2.0/x", "is no network"),
        ("300.", "is neither"),
        ("fe80::1%eth0", "has a zone"),
        ("1.2.3.4.", "is neither"),
    ],
)
def test_a_rule_that_fits_nobody_is_a_warning(key: str, what: str) -> None:
    found = rules(f"\n{key}:deny")
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith(f"{FILE}:2: ")
    assert what in found.warnings[0]
    assert len(found) == 0


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (':allow,RELAYCLIENT=""', "RELAYCLIENT for everybody: an open relay"),
        ('0.0.0.0/0:allow,RELAYCLIENT=""', "RELAYCLIENT for everybody: an open relay"),
        ('::/0:allow,RELAYCLIENT=""', "RELAYCLIENT for everybody: an open relay"),
        ('=.example.org:allow,RELAYCLIENT=""', "RELAYCLIENT by name: "),
        (':allow,DENYMAIL="NOBOUNCE,DNSCHECK"', "DENYMAIL=NOBOUNCE refuses every bounce"),
        ('192.0.2.:allow,DENYMAIL="SPAM"', "DENYMAIL=SPAM refuses all mail"),
    ],
)
def test_an_unsafe_rule_is_a_warning(line: str, what: str) -> None:
    found = rules(f"# comment\n{line}")
    assert found.warnings
    assert found.warnings[0].startswith(f"{FILE}:2: {what}")


def test_a_safe_rule_is_none() -> None:
    assert rules('192.0.2.:allow,RELAYCLIENT=""\n:allow,DENYMAIL="DNSCHECK"\n=:deny').warnings == []


@pytest.mark.parametrize(
    ("key", "keys"),
    [
        ("1.2.3.4", ["1.2.3.4"]),
        ("1.2.3.4-6", ["1.2.3.4", "1.2.3.5", "1.2.3.6"]),
        ("10.2-3.", ["10.2.", "10.3."]),
        ("1-2.7-8.", ["1.7.", "1.8.", "2.7.", "2.8."]),
        ("1.2.3.254-999", ["1.2.3.254", "1.2.3.255"]),
        ("=a-b.example", ["=a-b.example"]),
        ("joe@1.2.3.4-5", ["joe@1.2.3.4-5"]),
        ("", [""]),
    ],
)
def test_ranges(key: str, keys: list[str]) -> None:
    assert list(expand(key)) == keys


def test_a_range_of_two_octets_is_not_too_much() -> None:
    found = rules("10.0-255.0-255.:deny")
    assert len(found) == EXPANDED_MAX
    assert line_of(found, "10.255.255.1") == 1


def test_of_two_rules_for_one_client_the_first_counts() -> None:
    assert line_of(rules("1.2.3.4:allow\n1.2.3.4:deny\n:allow\n:deny"), "1.2.3.4") == 1


@pytest.mark.parametrize(
    ("text", "address", "wanted"),
    [
        ("=.example.org:allow\n192.0.2.1:deny", "192.0.2.1", False),
        ("=.example.org:allow\n192.0.2.1:deny", "192.0.2.2", True),
        ("192.0.2.:deny", "192.0.2.2", False),
    ],
)
def test_the_name_is_asked_for_only_where_it_decides(text: str, address: str, wanted: bool) -> None:
    assert rules(text).needs_name(Address(address)) is wanted


# --- cdb ---------------------------------------------------------------------------------------------


def test_a_cdb_of_rules() -> None:
    data = make_cdb([
        (b"192.0.2.1", b"+RELAYCLIENT=\0+X=a=b\0"), (b"192.0.2.", b"D\0"), (b"=.example.org", b""),
        (b"joe@192.0.2.9", b""), (b"", b"+Y=1\0nonsense\0+=\0"),
    ])  # fmt: skip
    found = rules(data)
    rule = found.find(Address("192.0.2.1"))
    assert rule is not None
    assert (rule.place, rule.is_denied, dict(rule.variables)) == (
        FILE,
        False,
        {"RELAYCLIENT": "", "X": "a=b"},
    )
    denied = found.find(Address("192.0.2.2"))
    assert denied is not None
    assert denied.is_denied
    default = found.find(Address("203.0.113.1"))
    assert default is not None
    assert dict(default.variables) == {"Y": "1"}
    assert found.is_by_name
    assert len(found.warnings) == 1


def test_an_empty_cdb() -> None:
    assert len(rules(make_cdb([]))) == 0


def test_a_cdb_that_is_cut_anywhere_is_a_fault_or_whole() -> None:
    data = make_cdb([(b"192.0.2.%d" % n, b"+A=%d\0" % n) for n in range(20)])
    for size in range(len(data)):
        cut = data[:size]
        faults: list[str] = []
        parse_rules(FILE, cut, faults)
        # Empty is a text without rules; a header's beginning is no text.
        assert bool(faults) is (size > 0), size
        assert all(fault.startswith(FILE) for fault in faults)


@given(st.binary(max_size=200), st.integers(0, 4000), st.integers(0, 255))
def test_a_hostile_cdb_ends(tail: bytes, at: int, octet: int) -> None:
    data = bytearray(make_cdb([(b"192.0.2.%d" % n, b"+A=%d\0" % n) for n in range(20)]) + tail)
    data[at % len(data)] = octet
    try:
        found = list(read_cdb(bytes(data)))
    except ValueError:
        return
    assert len(found) <= len(data)


@given(st.binary(max_size=3000))
def test_any_octets_are_rules_or_faults(data: bytes) -> None:
    faults: list[str] = []
    found = parse_rules(FILE, data, faults)
    found.find(Address("192.0.2.1"), "a.example.org")
    found.find(Address("2001:db8::1"))


def test_a_hundred_thousand_rules_are_looked_up_at_once() -> None:
    lines = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}:deny" for n in range(100_000)]
    found = rules("\n".join(lines))
    assert line_of(found, "10.1.0.7") == 65_536 + 8
    began = time.process_time()
    for _ in range(2_000):
        found.find(Address("10.1.0.7"))
    few = rules("10.1.0.7:deny")
    middle = time.process_time()
    for _ in range(2_000):
        few.find(Address("10.1.0.7"))
    # The same steps, whatever the number of rules; 20 times leaves room for a busy machine.
    assert middle - began < 20 * (time.process_time() - middle) + 0.05


# --- the oracle ----------------------------------------------------------------------------------------


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """IPV4 without what only we know, as Debian's tcprules compiles it."""
    text = "".join(line for line in IPV4.splitlines(keepends=True) if "/" not in line)
    cdb = tmp_path / "rules.cdb"
    subprocess.run(["tcprules", str(cdb), str(tmp_path / "tmp")], input=text.encode(), check=True, timeout=60)
    return cdb


@needs("tcprules", "tcprulescheck")
def test_tcpserver_and_we_choose_the_same(compiled: Path) -> None:
    data = compiled.read_bytes()
    assert is_cdb(data)
    found = rules(data)
    chance = random.Random(7)
    clients = ["192.0.2.1", "192.0.2.37", "192.0.2.53", "192.0.2.54", "10.2.9.9", "10.4.1.1", "198.51.100.7"]
    clients += [f"192.0.{chance.randrange(4)}.{chance.randrange(256)}" for _ in range(20)]
    for client in clients:
        for name in ("", "mail.example.org", "x.example.org", "a.example"):
            environment = {"TCPREMOTEIP": client, "PATH": "/usr/bin:/bin"} | (
                {"TCPREMOTEHOST": name} if name else {}
            )
            said = subprocess.run(
                ["tcprulescheck", str(compiled)], env=environment, capture_output=True, check=True, timeout=60
            ).stdout.decode()
            rule = found.find(Address(client), name)
            assert rule is not None
            assert ("deny" in said) is rule.is_denied, (client, name, said)
            assert ("set environment variable A=b" in said) is (rule.variables == {"A": "b"}), (
                client,
                name,
                said,
            )


@needs("tcprules", "tcprulescheck")
@pytest.mark.parametrize(
    "client",
    [
        "2001:db8::1",
        "2001:db8::2",
        "2001:db8:7::9",
        "2001:db8:7:1::9",
        "2001:db9::1",
        "fe80::1",
        "fe80:1::2",
        "::1",
    ],
)
def test_tcpserver_and_we_choose_the_same_for_ipv6(tmp_path: Path, client: str) -> None:
    text = (
        "2001:db8::1:allow,A=#1#\n2001:db8::allow,A=#2#\n2001:db8:7::allow,A=#3#\nfe80:::deny\n:allow,A=#4#\n"
    )
    cdb = tmp_path / "rules.cdb"
    subprocess.run(["tcprules", str(cdb), str(tmp_path / "tmp")], input=text.encode(), check=True, timeout=60)
    environment = {"TCPREMOTEIP": client, "TCP6REMOTEIP": client, "PATH": "/usr/bin:/bin"}
    said = subprocess.run(
        ["tcprulescheck", str(cdb)], env=environment, capture_output=True, check=True, timeout=60
    ).stdout.decode()
    for found in (rules(cdb.read_bytes()), rules(text)):
        rule = found.find(Address(client))
        assert rule is not None
        assert ("deny" in said) is rule.is_denied
        for value in "1234":
            assert (f"variable A={value}" in said) is (rule.variables.get("A") == value), (said, rule)
