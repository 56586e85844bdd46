"""What a qmail home says to qmail-remote: files in, route, address and TLS out."""

from __future__ import annotations

import pytest

from fastsmtp.config.remote import RemoteHome, TlsOf, Unusable
from tests.unit.config_host import FakeHost

HOME = "/var/qmail"
SENDER, HOST = "joe@a.example", "mx.b.example"
FOUR, SIX = "192.0.2.99", "2001:db8::99"


def home(
    files: dict[str, str | bytes], environment: dict[str, str] | None = None, now: float = 0.0
) -> RemoteHome:
    paths = {f"{HOME}/control/{name}": text for name, text in files.items()}
    return RemoteHome(FakeHost(paths), HOME, environment, now=lambda: now)


EVERYTHING = {
    "smtproutes.d/mx.b.example": "outgoingip=192.0.2.1\n",
    "outgoingip.mx.b.example": "192.0.2.3\n",
    "bindroutes": "192.0.2.:192.0.2.4\n",
    "domainbindings": "a.example:192.0.2.5\n",
    "senderip": "a.example:192.0.2.6\n",
    "outgoingips": "a.example:192.0.2.7\n",
    "outgoingip": "192.0.2.8\n",
}


def bound(
    files: dict[str, str | bytes],
    sender: str,
    host: str,
    environment: dict[str, str] | None = None,
    now: float = 0.0,
) -> tuple[str, str, str]:
    """What is bound towards FOUR and SIX, and the name for EHLO ("": helohost)."""
    found = home(files, environment, now)
    choice = found.sender_address(sender, host, found.relay_for(host))
    return choice.towards(FOUR), choice.towards(SIX), choice.helo


@pytest.mark.parametrize(
    ("left_out", "environment", "expected"),
    [
        ((), {"OUTGOINGIP": "192.0.2.2"}, "192.0.2.1"),
        (("smtproutes.d/mx.b.example",), {"OUTGOINGIP": "192.0.2.2"}, "192.0.2.2"),
        (("smtproutes.d/mx.b.example",), {}, "192.0.2.3"),
        (("smtproutes.d/mx.b.example", "outgoingip.mx.b.example"), {}, "192.0.2.4"),
        (("smtproutes.d/mx.b.example", "outgoingip.mx.b.example", "bindroutes"), {}, "192.0.2.5"),
        (("smtproutes.d/mx.b.example", "outgoingip.mx.b.example", "bindroutes", "domainbindings"), {}, "192.0.2.6"),
        (tuple(EVERYTHING)[:5], {}, "192.0.2.7"),
        (tuple(EVERYTHING)[:6], {}, "192.0.2.8"),
        (tuple(EVERYTHING), {}, ""),
    ],
)  # fmt: skip
def test_who_comes_first(left_out: tuple[str, ...], environment: dict[str, str], expected: str) -> None:
    files: dict[str, str | bytes] = {name: text for name, text in EVERYTHING.items() if name not in left_out}
    assert bound(files, SENDER, HOST, environment)[0] == expected


@pytest.mark.parametrize(
    ("files", "sender", "expected"),
    [
        # outgoingip: one line as ever, a second one or a file of its own for IPv6; EHLO never changes
        ({"outgoingip": "192.0.2.8"}, SENDER, ("192.0.2.8", "", "")),
        ({"outgoingip": "192.0.2.8 \t\n"}, SENDER, ("192.0.2.8", "", "")),
        ({"outgoingip": "192.0.2.8\r\n"}, SENDER, ("192.0.2.8", "", "")),
        ({"outgoingip": "0.0.0.0\n"}, SENDER, ("", "", "")),
        ({"outgoingip": "192.0.2.8\n2001:db8::8\n"}, SENDER, ("192.0.2.8", "2001:db8::8", "")),
        ({"outgoingip": "2001:db8:0::8\n"}, SENDER, ("", "2001:db8::8", "")),
        ({"outgoingip": "192.0.2.8\n", "outgoingip6": "[2001:db8::8]\n"}, SENDER, ("192.0.2.8", "2001:db8::8", "")),
        ({"outgoingip6": "::\n"}, SENDER, ("", "", "")),
        ({"outgoingip": "192.0.2.8\n\n192.0.2.9\n"}, SENDER, ("192.0.2.8", "", "")),
        # by the sender: the domain, its suffixes, then what is for all
        ({"outgoingips": "a.example:192.0.2.7"}, SENDER, ("192.0.2.7", "", "a.example")),
        ({"outgoingips": "A.Example:192.0.2.7"}, "JOE@a.EXAMPLE", ("192.0.2.7", "", "a.example")),
        ({"outgoingips": ".example:192.0.2.7"}, SENDER, ("192.0.2.7", "", "a.example")),
        ({"outgoingips": ".example:192.0.2.7\na.example:192.0.2.6"}, SENDER, ("192.0.2.6", "", "a.example")),
        ({"outgoingips": "a.example:192.0.2.6\na.example:192.0.2.7"}, SENDER, ("192.0.2.7", "", "a.example")),
        ({"outgoingips": ":192.0.2.7"}, SENDER, ("192.0.2.7", "", "a.example")),
        ({"outgoingips": ":192.0.2.7,2001:db8::7"}, SENDER, ("192.0.2.7", "2001:db8::7", "a.example")),
        ({"outgoingips": ":2001:db8::7"}, SENDER, ("", "2001:db8::7", "a.example")),
        ({"outgoingips": "a.example:"}, SENDER, ("", "", "")),
        ({"outgoingips": "a.example:", "outgoingip": "192.0.2.8"}, SENDER, ("", "", "")),
        ({"outgoingips": "b.example:192.0.2.7", "outgoingip": "192.0.2.8"}, SENDER, ("192.0.2.8", "", "")),
        ({"outgoingips": "# a.example:192.0.2.7\nno colon\n"}, SENDER, ("", "", "")),
        # the null sender: what is for all, and EHLO stays helohost
        ({"outgoingips": ":192.0.2.7"}, "", ("192.0.2.7", "", "")),
        ({"outgoingips": "a.example:192.0.2.6"}, "", ("", "", "")),
        ({"domainbindings": ":192.0.2.5"}, "", ("192.0.2.5", "", "")),
        ({"outgoingips": ":192.0.2.7"}, "#@[]", ("192.0.2.7", "", "")),
        # senderip knows whole domains, and leaves EHLO alone
        ({"senderip": "a.example:192.0.2.6"}, SENDER, ("192.0.2.6", "", "")),
        ({"senderip": ".example:192.0.2.6\n:192.0.2.6"}, SENDER, ("", "", "")),
        # domainbindings knows addresses too
        ({"domainbindings": "joe@a.example:192.0.2.4\na.example:192.0.2.5"}, SENDER, ("192.0.2.4", "", "a.example")),
        ({"domainbindings": "ann@a.example:192.0.2.4\na.example:192.0.2.5"}, SENDER, ("192.0.2.5", "", "a.example")),
        # bindroutes: the longest prefix of the destination's address
        ({"bindroutes": "192.0.2.99:192.0.2.1\n192.0.2.:192.0.2.2"}, SENDER, ("192.0.2.1", "", "")),
        ({"bindroutes": "192.0.2.:192.0.2.2\n192.:192.0.2.3"}, SENDER, ("192.0.2.2", "", "")),
        ({"bindroutes": ":192.0.2.4\n10.:192.0.2.3"}, SENDER, ("192.0.2.4", "", "")),
        ({"bindroutes": "10.:192.0.2.3", "outgoingip": "192.0.2.8"}, SENDER, ("192.0.2.8", "", "")),
        ({"bindroutes": "192.:0.0.0.0", "outgoingip": "192.0.2.8"}, SENDER, ("", "", "")),
        ({"bindroutes": "[2001:db8::/32]:2001:db8::1"}, SENDER, ("", "2001:db8::1", "")),
        ({"bindroutes": "[2001:db8::/32]:2001:db8::1\n[2001:db8::99]:[2001:db8::2]"}, SENDER, ("", "2001:db8::2", "")),
        # by the host
        ({"outgoingip.mx.b.example": "192.0.2.3\n2001:db8::3"}, SENDER, ("192.0.2.3", "2001:db8::3", "")),
        ({"smtproutes.d/*.b.example": "outgoingip6=2001:db8::1"}, SENDER, ("", "2001:db8::1", "")),
        ({"smtproutes.d/default": "outgoingip=192.0.2.1\noutgoingip6=2001:db8::1"}, SENDER,
         ("192.0.2.1", "2001:db8::1", "")),
        ({"smtproutes.d/default": "relay=relay.example", "outgoingip": "192.0.2.8"}, SENDER, ("192.0.2.8", "", "")),
    ],
)  # fmt: skip
def test_what_is_bound(files: dict[str, str | bytes], sender: str, expected: tuple[str, str, str]) -> None:
    assert bound(files, sender, HOST) == expected


@pytest.mark.parametrize(
    ("files", "environment", "now", "expected"),
    [
        ({}, {"OUTGOINGIP": "192.0.2.2 192.0.2.3,2001:db8::2"}, 0.0, ("192.0.2.2", "2001:db8::2")),
        ({}, {"OUTGOINGIP": "192.0.2.2 192.0.2.3,2001:db8::2"}, 1.5, ("192.0.2.3", "2001:db8::2")),
        ({}, {"OUTGOINGIP": ""}, 0.0, ("", "")),
        ({"mine": "a.example:192.0.2.5", "domainbindings": "a.example:192.0.2.6"}, {"DOMAINBINDINGS": "mine"}, 0.0,
         ("192.0.2.5", "")),
    ],
)  # fmt: skip
def test_the_environment(
    files: dict[str, str | bytes], environment: dict[str, str], now: float, expected: tuple[str, str]
) -> None:
    assert bound(files, SENDER, HOST, environment, now)[:2] == expected


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"outgoingip": "192.0.2.300"}, "outgoingip:1: '192.0.2.300' is no IP address"),
        ({"outgoingip": "192.0.2.8junk"}, "outgoingip:1: '192.0.2.8junk' is no IP address"),
        ({"outgoingip": "\n192.0.2.8"}, None),
        ({"outgoingip": ""}, "outgoingip:1: is empty"),
        ({"outgoingip": "192.0.2.8\n192.0.2.9"}, "outgoingip:1: two IPv4 addresses"),
        ({"outgoingip": "2001:db8::1", "outgoingip6": "2001:db8::2"}, "outgoingip:1: two IPv6 addresses"),
        ({"outgoingips": "#\na.example:host"}, "outgoingips:2: 'host' is no IP address"),
        ({"outgoingip.mx.b.example": "192.0.2.3\nx"}, "outgoingip.mx.b.example:1: 'x' is no IP address"),
        ({"smtproutes.d/default": "outgoingip=x"}, "smtproutes.d/default:1: 'x' is no IP address"),
        ({"smtproutes.d/default": "outgoing=1"}, "smtproutes.d/default:1: 'outgoing=1': relay=, port=, outgoingip= "
         "or outgoingip6=, each once"),
        ({"smtproutes.d/default": "port=99999"}, "smtproutes.d/default:1: '99999' is no port"),
        ({"bindroutes": "[2001:db8::/99999]:2001:db8::1"}, "bindroutes:1: [2001:db8::/99999] is neither an IPv6 "
         "address nor a network"),
    ],
)  # fmt: skip
def test_what_can_t_be_used_is_named(files: dict[str, str | bytes], fault: str | None) -> None:
    if fault is None:
        assert bound(files, SENDER, HOST) == ("192.0.2.8", "", "")
        return
    with pytest.raises(Unusable) as error:
        bound(files, SENDER, HOST)
    assert str(error.value) == f"{HOME}/control/{fault}"


def test_a_route_to_nowhere_keeps_mail_back_for_its_destinations_only() -> None:
    choice = home({"bindroutes": "192.0.2.:blackhole"}).sender_address(SENDER, HOST, None)
    assert choice.towards("198.51.100.1") == ""
    with pytest.raises(Unusable):
        choice.towards(FOUR)


@pytest.mark.parametrize(
    ("files", "host", "expected"),
    [
        ({"smtproutes": "b.example:relay.example"}, "b.example", ("relay.example", 25)),
        ({"smtproutes": "B.Example:relay.example:26"}, "b.EXAMPLE", ("relay.example", 26)),
        ({"smtproutes": "b.example:relay.example"}, "mx.b.example", None),
        ({"smtproutes": ".b.example:relay.example"}, "mx.b.example", ("relay.example", 25)),
        ({"smtproutes": ".example:far.example\n.b.example:near.example"}, "mx.b.example", ("near.example", 25)),
        ({"smtproutes": ":relay.example"}, "mx.b.example", ("relay.example", 25)),
        ({"smtproutes": ":relay.example\nb.example:"}, "b.example", None),
        ({"smtproutes": "b.example:[2001:db8::1]:26"}, "b.example", ("2001:db8::1", 26)),
        ({"smtproutes": "b.example:[2001:db8::1]"}, "b.example", ("2001:db8::1", 25)),
        ({"smtproutes": "b.example:192.0.2.1"}, "b.example", ("192.0.2.1", 25)),
        ({"smtproutes": "[192.0.2.7]:relay.example"}, "[192.0.2.7]", ("relay.example", 25)),
        ({"smtproutes.d/b.example": "relay=relay.example\nport=26", "smtproutes": ":no.example"}, "b.example",
         ("relay.example", 26)),
        ({"smtproutes.d/*.example": "relay=relay.example"}, "b.example", ("relay.example", 25)),
        ({"smtproutes.d/default": "relay=relay.example"}, "b.example", ("relay.example", 25)),
        ({"smtproutes.d/default": "outgoingip=192.0.2.1"}, "b.example", ("", 25)),
    ],
)  # fmt: skip
def test_where_mail_goes(files: dict[str, str | bytes], host: str, expected: tuple[str, int] | None) -> None:
    found = home(files).relay_for(host)
    assert (None if found is None else (found.host, found.port)) == expected


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("b.example:[2001:db8::1:26", "'[2001:db8::1:26': no IPv6 address between the brackets"),
        ("b.example:2001:db8::1", "'2001:db8::1': an IPv6 address stands in brackets, as [::1]:25"),
        ("b.example:relay.example:x", "'x' is no port"),
        ("b.example:relay.example:26 joe secret",
         "'relay.example:26': a name and password behind it are not known here"),
    ],
)  # fmt: skip
def test_a_route_that_can_t_be_used_is_named(text: str, fault: str) -> None:
    with pytest.raises(Unusable) as error:
        home({"smtproutes": text}).relay_for("b.example")
    assert str(error.value) == f"{HOME}/control/smtproutes:1: {fault}"
    assert "secret" not in str(error.value)


CONTROL = f"{HOME}/control"


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        ((), "mx.b.example", TlsOf("opportunistic")),
        (("tlshosts/mx.b.example.pem",), "mx.b.example", TlsOf("verified", f"{CONTROL}/tlshosts/mx.b.example.pem")),
        (("tlshosts/mx.b.example.pem",), "MX.b.Example.", TlsOf("verified", f"{CONTROL}/tlshosts/mx.b.example.pem")),
        (("tlshosts/mx.b.example.pem", "notlshosts/mx.b.example"), "mx.b.example",
         TlsOf("verified", f"{CONTROL}/tlshosts/mx.b.example.pem")),
        (("notlshosts/mx.b.example",), "mx.b.example", TlsOf("off")),
        (("tlshosts/exhaustivelist",), "mx.b.example", TlsOf("off")),
        (("tlshosts/exhaustivelist", "tlshosts/mx.b.example.pem"), "mx.b.example",
         TlsOf("verified", f"{CONTROL}/tlshosts/mx.b.example.pem")),
        (("tlshosts/exhaustivelist",), "192.0.2.1", TlsOf("opportunistic")),
        (("tlshosts/exhaustivelist",), "2001:db8::1", TlsOf("opportunistic")),
        (("tlshosts/../me.pem",), "../me", TlsOf("opportunistic")),
        (("tlshosts/.pem",), "", TlsOf("opportunistic")),
    ],
)  # fmt: skip
def test_what_a_host_must_have(files: tuple[str, ...], name: str, expected: TlsOf) -> None:
    assert home(dict.fromkeys(files, "")).tls_for(name) == expected


class DeniedHost(FakeHost):
    def mode(self, path: str) -> tuple[int, int]:
        raise PermissionError(13, "Permission denied")

    def read(self, path: str) -> bytes:
        raise PermissionError(13, "Permission denied")


def test_what_can_t_be_looked_at_is_never_taken_for_absent() -> None:
    found = RemoteHome(DeniedHost(), HOME)
    with pytest.raises(Unusable):
        found.tls_for("mx.b.example")
    with pytest.raises(Unusable):
        found.sender_address(SENDER, HOST, None)
    with pytest.raises(Unusable):
        found.relay_for(HOST)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"me": "a.example\n"}, ("a.example", 60, 1200)),
        ({"me": "a.example", "helohost": "out.example ", "timeoutconnect": "30", "timeoutremote": "0"},
         ("out.example", 30, 1)),
        ({"me": "a.example", "timeoutconnect": "x", "timeoutremote": "90s"}, ("a.example", 60, 90)),
    ],
)  # fmt: skip
def test_names_and_times(files: dict[str, str | bytes], expected: tuple[str, int, int]) -> None:
    found = home(files)
    assert (found.helohost, found.connect_s, found.remote_s) == expected


def test_without_a_name_of_ours_nothing_is_sent() -> None:
    with pytest.raises(Unusable):
        _ = home({}).helohost


def test_certificate_and_ciphers() -> None:
    found = home({"clientcert.pem": "", "tlsclientciphers": "A:B\n# no\nC\n"})
    assert (found.certificate, found.ciphers) == (f"{CONTROL}/clientcert.pem", "A:B:C")
    assert home({"tlsclientciphers": "A"}, {"TLSCIPHERS": "D"}).ciphers == "D"
    assert (home({}).certificate, home({}).ciphers) == ("", "")
