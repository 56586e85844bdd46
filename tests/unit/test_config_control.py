"""A qmail home as the configuration: what each control file comes to, who wins, and what broken files do."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsmtp.config.flags import Flags
from fastsmtp.config.load import Loaded, load
from fastsmtp.config.tree import dotted
from fastsmtp.config.write import leaves
from fastsmtp.errors import ConfigError
from tests.cdbs import make_cdb
from tests.unit.config_host import FakeHost

HOME = "/var/qmail"
CONTROL = f"{HOME}/control"
QUEUE = f"{HOME}/bin/qmail-queue"
PEM = "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n"


class Machine(FakeHost):
    """A machine with a qmail home of these control files; text, or an error to raise."""

    def __init__(
        self, control: dict[str, Any] | None = None, more: dict[str, str | bytes] | None = None, **known: Any
    ) -> None:
        control = {"me": "mx.example.org\n", "rcpthosts": "example.org\n", **(control or {})}
        self.errors = {
            f"{CONTROL}/{name}": text for name, text in control.items() if isinstance(text, OSError)
        }
        files = {f"{CONTROL}/{name}": text for name, text in control.items() if text is not None}
        super().__init__(
            {name: b"" if isinstance(text, OSError) else text for name, text in files.items()}
            | {QUEUE: b"", **(more or {})},
            modes={QUEUE: 0o755, f"{CONTROL}/servercert.pem": 0o640},
            **known,
        )

    def read(self, path: str) -> bytes:
        if path in self.errors:
            raise self.errors[path]
        return super().read(path)


def loaded(
    control: dict[str, Any] | None = None, flags: dict[str, Any] | None = None, **known: Any
) -> Loaded:
    return load(
        Flags(**{"qmail": HOME, "deliver": "discard", **(flags or {})}), host=Machine(control, **known)
    )


def value(found: Loaded, key: str) -> Any:
    return dict((dotted(path), one) for path, one in leaves(found.config))[key]


@pytest.mark.parametrize(
    ("name", "text", "key", "comes_to", "origin"),
    [
        ("me", "mx1.example.org  \nsecond\n", "hostname", "mx1.example.org", "me:1"),
        ("me", "mx1.example.org", "localiphost", "mx1.example.org", "me:1"),
        ("localiphost", "here.example\n", "localiphost", "here.example", "localiphost:1"),
        ("smtpgreeting", "mx.example.org no junk\n", "greeting", "mx.example.org no junk", "smtpgreeting:1"),
        ("databytes", "1000", "limits.message_bytes", 1000, "databytes:1"),
        ("databytes", "0", "limits.message_bytes", 0, "databytes:1"),
        ("databytes", "1000 bytes", "limits.message_bytes", 1000, "databytes:1"),
        ("timeoutsmtpd", "60", "limits.command_s", 60.0, "timeoutsmtpd:1"),
        ("timeoutsmtpd", "0", "limits.command_s", 1.0, "timeoutsmtpd:1"),
        ("concurrencyincoming", "40", "limits.connections", 40, "concurrencyincoming:1"),
        ("rcpthosts", "example.org", "accept[0].domain", (f"{CONTROL}/rcpthosts",), "rcpthosts"),
        ("badmailfrom", "@spam.example", "policy.badmailfrom", (f"{CONTROL}/badmailfrom",), "badmailfrom"),
        ("badrcptto", "a@example.org", "policy.badrcptto", (f"{CONTROL}/badrcptto",), "badrcptto"),
        ("mfcheck", "1", "policy.mfcheck.mode", "enforce", "mfcheck:1"),
        ("mfcheck", "0", "policy.mfcheck.mode", "off", "mfcheck:1"),
        ("mfcheck", "yes", "policy.mfcheck.mode", "off", None),
        ("tarpitcount", "50", "policy.tarpit.after_recipients", 50, "tarpitcount:1"),
        ("tarpitdelay", "7", "policy.tarpit.delay_s", 7.0, "tarpitdelay:1"),
        ("tarpitdelay", "7000", "policy.tarpit.delay_s", 225.0, "tarpitdelay:1"),
        ("signatures", "TVqQ\n", "policy.signatures.file", f"{CONTROL}/signatures", "signatures"),
        ("rhsbl", "# none\ndbl.example.org\n", "policy.rhsbl[0].zone", "dbl.example.org", "rhsbl:2"),
        ("rhsbl", "dbl.example.org", "policy.rhsbl[0].of", ("mail",), "rhsbl:1"),
        ("rhsbl", "dbl.example.org tag", "policy.rhsbl[0].action", "tag", "rhsbl:1"),
        ("rblzones", "a.example\nb.example defer", "policy.dnsbl[1].action", "defer", "rblzones:2"),
        ("rblzones", "a.example", "policy.dnsbl[0].action", "reject", "rblzones:1"),
        (
            "rblzones", "a.example 127.0.0.2,127.0.0.4-127.0.0.7 &0.0.0.8 reject",
            "policy.dnsbl[0].answers", ("127.0.0.2", "127.0.0.4-127.0.0.7", "&0.0.0.8"), "rblzones:1",
        ),
        ("tlsclients", "joe@example.org", "relay.certificates", (f"{CONTROL}/tlsclients",), "tlsclients"),
        ("servercert.pem", PEM, "tls.certificate", f"{CONTROL}/servercert.pem", "servercert.pem"),
        ("servercert.pem", PEM, "listen[0].tls", "starttls", None),
        ("cert.pem", PEM, "tls.certificate", f"{CONTROL}/cert.pem", "cert.pem"),
    ],
)  # fmt: skip
def test_what_a_control_file_comes_to(
    name: str, text: str, key: str, comes_to: object, origin: str | None
) -> None:
    found = loaded({name: text})
    assert value(found, key) == comes_to
    if origin is not None:
        assert found.provenance[key] == f"{CONTROL}/{origin}"


def test_what_a_home_means_by_itself() -> None:
    found = load(Flags(qmail=HOME), host=Machine())
    assert found.config.user == "qmaild"
    assert found.config.deliver.default == f"qmail-queue:{QUEUE}"
    assert found.config.deliver.queue is False
    assert found.config.relay.networks == ()
    policy = found.config.policy
    assert (policy.mfcheck.mode, policy.helo.mode, policy.reverse_dns.mode) == ("off", "off", "off")
    assert (policy.tarpit.after_recipients, policy.denymail, policy.dnsbl, policy.rhsbl) == (0, (), (), ())
    assert found.config.listen[0].greeting_delay_s == 0.0
    assert found.config.listen[0].tls == "off"
    one = found.settings[0]
    assert one.is_compatible
    assert one.greeting == "mx.example.org"
    assert not found.is_trial


@pytest.mark.parametrize(
    ("text", "flags", "key", "comes_to"),
    [
        ("", {}, "limits.message_bytes", 1000),
        ("limits.message_bytes = 5", {}, "limits.message_bytes", 5),
        ("limits.recipients = 5", {}, "limits.message_bytes", 1000),
        ("hostname = 'a.example.org'", {}, "hostname", "a.example.org"),
        ("hostname = 'a.example.org'", {"hostname": "b.example.org"}, "hostname", "b.example.org"),
        ("user = 'mail'", {}, "user", "mail"),
        ("[relay]\nnetworks = ['10.0.0.0/8']", {}, "relay.networks", ("10.0.0.0/8",)),
        ("[policy.mfcheck]\nmode = 'observe'", {}, "policy.mfcheck.mode", "observe"),
        ("[[policy.rhsbl]]\nzone = 'c.example'", {}, "policy.rhsbl[0].zone", "c.example"),
        (
            "[[listen]]\nname = 'a'\n[[listen]]\nname='b'\naddress = ['127.0.0.1:0']",
            {},
            "listen[1].tls",
            "off",
        ),
        ("[[accept]]\ndomain = ['first.example']", {}, "accept[1].domain", (f"{CONTROL}/rcpthosts",)),
        ("deliver.default = 'print'", {"deliver": None}, "deliver.default", "print"),
    ],
)
def test_a_flag_beats_the_file_which_beats_the_home(
    text: str, flags: dict[str, Any], key: str, comes_to: object
) -> None:
    control = {"databytes": "1000", "rhsbl": "a.example\nb.example\n"}
    more: dict[str, str | bytes] = {"/f.toml": f"qmail = '{HOME}'\n{text}"}
    found = loaded(control, {"qmail": None, "config": "/f.toml", **flags}, more=more)
    assert value(found, key) == comes_to


def test_an_array_of_the_file_is_not_mixed_with_the_homes() -> None:
    more: dict[str, str | bytes] = {"/f.toml": "[[policy.rhsbl]]\nzone = 'c.example'"}
    found = loaded({"rhsbl": "a.example\nb.example\n"}, {"config": "/f.toml"}, more=more)
    assert [rule.zone for rule in found.config.policy.rhsbl] == ["c.example"]


@pytest.mark.parametrize(("text", "is_compatible"), [("", True), ("compatible = false", False)])
def test_compatible_can_be_ended(text: str, is_compatible: bool) -> None:
    more: dict[str, str | bytes] = {"/f.toml": text}
    assert loaded({}, {"config": "/f.toml"}, more=more).settings[0].is_compatible is is_compatible


@pytest.mark.parametrize(
    ("domain", "is_ours"),
    [
        (b"example.org", True),
        (b"a.example.org", False),
        (b"a.example.net", True),
        (b"example.net", False),
        (b"big.example", True),
        (b"x.bigger.example", True),
        (b"other.example", False),
    ],
)
@pytest.mark.parametrize("is_compiled", [True, False])
def test_rcpthosts_and_morercpthosts(domain: bytes, is_ours: bool, is_compiled: bool) -> None:
    more = (
        {"morercpthosts.cdb": make_cdb([(b"big.example", b""), (b".bigger.example", b"")])}
        if is_compiled
        else {"morercpthosts": "big.example\n.bigger.example\n"}
    )
    found = loaded({"rcpthosts": "Example.ORG\n#no.example\n.example.net  \n", **more})
    assert (found.settings[0].accept.find(domain) is not None) is is_ours
    has_said = any(warning.startswith(f"{CONTROL}/morercpthosts:") for warning in found.warnings)
    assert has_said is not is_compiled


def test_without_rcpthosts_nothing_is_ours() -> None:
    found = loaded({"rcpthosts": None, "morercpthosts": "example.org\n"})
    assert found.settings[0].accept.find(b"example.org") is None
    (warning,) = [one for one in found.warnings if one.startswith(f"{CONTROL}/rcpthosts")]
    assert "only RELAYCLIENT may send" in warning


@pytest.mark.parametrize(
    ("control", "start"),
    [
        ({"me": None}, f"{CONTROL}/me: is not there"),
        ({"me": "mx.example.org\r\n"}, f"{CONTROL}/me:1: ends with a CR"),
        (
            {"rcpthosts": "a.example\nb.example\r\nc.example\r\n"},
            f"{CONTROL}/rcpthosts:2: the first of 2 CRs",
        ),
        ({"rcpthosts": "example.org\nno domain\n"}, f"{CONTROL}/rcpthosts:2: 'no domain' is no domain"),
        ({"badmailfrom": "spam\n"}, f"{CONTROL}/badmailfrom:1: 'spam' is none of"),
        ({"signatures": "TVqQ\r\n"}, f"{CONTROL}/signatures:1: ends with a CR"),
        ({"databytes": "many\n"}, f"{CONTROL}/databytes:1: 'many' is no number"),
        ({"databytes": "\n5\n"}, f"{CONTROL}/databytes:1: is empty"),
        ({"rsa512.pem": "x"}, f"{CONTROL}/rsa512.pem: an export-grade RSA key"),
        ({"dh1024.pem": "x"}, f"{CONTROL}/dh1024.pem: DH parameters"),
        ({"dh2048.pem": "x"}, f"{CONTROL}/dh2048.pem: DH parameters"),
        ({"locals": "example.org\nother.example\n"}, f"{CONTROL}/locals: other.example: not in rcpthosts"),
        ({"virtualdomains": "v.example:joe\n"}, f"{CONTROL}/virtualdomains: v.example: not in rcpthosts"),
    ],
)
def test_what_is_odd_is_a_warning_that_names_the_file(control: dict[str, Any], start: str) -> None:
    assert any(warning.startswith(start) for warning in loaded(control).warnings)


@pytest.mark.parametrize(
    "control",
    [
        {"locals": "example.org\nEXAMPLE.ORG\n"},
        {"virtualdomains": "example.org:joe\nno line\njoe@other.example:joe\nother.example:\n:catch\n"},
        {"locals": "a.example.net\n", "rcpthosts": "example.org\n.example.net\n"},
        {"virtualdomains": ".example.net:joe\n", "rcpthosts": "example.org\n.example.net\n"},
        {"rcpthosts": "example.org\n\n  \n# comment\n"},
    ],
)
def test_what_is_in_order_is_not_warned_of(control: dict[str, Any]) -> None:
    assert [one for one in loaded(control).warnings if one.startswith(CONTROL)] == []


@pytest.mark.parametrize(
    ("control", "fault"),
    [
        ({"me": "no name\n"}, f"{CONTROL}/me:1: hostname: 'no name' is no domain"),
        ({"me": "a\0b\n"}, f"{CONTROL}/me:1: has a NUL"),
        ({"smtpgreeting": "gr\u00fc\u00df\n"}, f"{CONTROL}/smtpgreeting:1: greeting: must be at most 400"),
        ({"me": b"\xff\n"}, f"{CONTROL}/me:1: not UTF-8"),
        ({"databytes": PermissionError(13, "Permission denied")}, f"{CONTROL}/databytes: Permission denied"),
        ({"rcpthosts": PermissionError(13, "Permission denied")}, f"{CONTROL}/rcpthosts: Permission denied"),
        ({"rcpthosts": IsADirectoryError(21, "Is a directory")}, f"{CONTROL}/rcpthosts: Is a directory"),
        ({"rhsbl": "dbl.example.org 127.0.0.300"}, f"{CONTROL}/rhsbl:1: policy.rhsbl.answers: "),
        ({"rhsbl": "ok.example\n!"}, f"{CONTROL}/rhsbl:2: policy.rhsbl.zone: "),
        ({"p0f": "run/p0f"}, f"{CONTROL}/p0f:1: policy.p0f.socket: path 'run/p0f' must begin with /"),
        ({"servercert.pem": "nothing\n"}, f"{CONTROL}/servercert.pem: tls.certificate: "),
    ],
)
def test_what_cannot_be_read_is_a_fault_that_names_the_file(control: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(control)
    assert any(one.startswith(fault) for one in raised.value.faults), raised.value.faults


def test_a_cdb_that_is_cut_is_a_fault() -> None:
    cdb = make_cdb([(b"%d.example" % n, b"") for n in range(50)])
    with pytest.raises(ConfigError, match=r"morercpthosts\.cdb: is damaged or cut"):
        loaded({"morercpthosts.cdb": cdb[:-100]})


@pytest.mark.parametrize(
    ("directory", "fault"),
    [
        ("/nowhere", "/nowhere/control: No such file or directory: /nowhere is no qmail home"),
        ("/f.toml", "/f.toml/control: No such file or directory: /f.toml is no qmail home"),
    ],
)
def test_what_is_no_home_is_a_fault(directory: str, fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(flags={"qmail": directory}, more={"/f.toml": ""})
    assert raised.value.faults[0] == fault


def test_what_is_found_and_not_acted_upon_is_listed() -> None:
    found = loaded({"smtproutes": "", "defaultdomain": "", "surprise": "", "rsa512.pem": ""})
    assert found.home is not None
    assert dict(found.home.unsupported) == {
        f"{CONTROL}/smtproutes": "read by qmail-remote, not by qmail-smtpd",
        f"{CONTROL}/defaultdomain": "read by qmail-inject, not by qmail-smtpd",
        f"{CONTROL}/surprise": "not known here",
    }


def test_the_environment_of_the_server_counts_but_relayclient() -> None:
    environ = {"DENYMAIL": "NOBOUNCE", "RELAYCLIENT": "", "DATABYTES": "7", "PATH": "/bin"}
    found = loaded({"databytes": "1000"}, environ=environ)
    one = found.settings[0]
    assert one.policy.denymail == ("NOBOUNCE",)
    assert one.limits.message_bytes == 7
    assert one.relay_suffix is None
    assert found.environment == {"DENYMAIL": "NOBOUNCE", "DATABYTES": "7"}
    assert any("RELAYCLIENT" in warning for warning in found.warnings)


def test_without_a_home_the_environment_says_nothing() -> None:
    found = load(
        Flags(deliver="discard", accept=("example.org",)), host=FakeHost(environ={"DENYMAIL": "SPAM"})
    )
    assert found.settings[0].policy.denymail == ()


@pytest.mark.parametrize(
    ("flags", "more", "file"),
    [
        ({}, {}, ""),
        ({}, {"/etc/tcp.smtp.cdb": make_cdb([])}, "/etc/tcp.smtp.cdb"),
        ({"tcprules": "rules"}, {"/etc/tcp.smtp.cdb": b"", "/here/rules": ":allow"}, "/here/rules"),
    ],
)
def test_which_rules_file(flags: dict[str, Any], more: dict[str, str | bytes], file: str) -> None:
    found = loaded(flags=flags, more=more)
    assert found.config.tcprules == file
    assert (found.settings[0].rules is not None) is bool(file)


def test_under_tcpserver_the_rules_have_had_their_say() -> None:
    more: dict[str, str | bytes] = {"/etc/tcp.smtp.cdb": ":deny"}
    assert loaded(environ={"TCPREMOTEIP": "192.0.2.1"}, more=more).settings[0].rules is None


@pytest.mark.parametrize(
    ("control", "environ", "ciphers", "origin"),
    [
        (
            {"tlsserverciphers": "AESGCM\n# no\nCHACHA20\n"},
            {},
            "AESGCM:CHACHA20",
            f"{CONTROL}/tlsserverciphers:1",
        ),
        ({"tlsserverciphers": "AESGCM\n"}, {"TLSCIPHERS": "CHACHA20"}, "CHACHA20", "$TLSCIPHERS"),
    ],
)
def test_ciphers(control: dict[str, Any], environ: dict[str, str], ciphers: str, origin: str) -> None:
    found = loaded(control, environ=environ)
    assert found.config.tls.ciphers == ciphers
    assert found.provenance["tls.ciphers"] == origin


def test_a_revocation_list_without_its_authority_counts_for_nothing() -> None:
    found = loaded({"clientcrl.pem": "-----BEGIN X509 CRL-----\n"})
    assert found.config.tls.client_crl == ""


def test_faults_and_warnings_of_rules_name_file_and_line() -> None:
    more: dict[str, str | bytes] = {"/r": "192.0.2.1:allow\njoe@192.0.2.1:deny\n1.2:allow\n192.0.2.2\n"}
    with pytest.raises(ConfigError) as raised:
        loaded(flags={"tcprules": "/r"}, more=more)
    assert raised.value.faults == ("/r:4: has neither :allow nor :deny",)
    found = loaded(flags={"tcprules": "/r"}, more={"/r": "joe@192.0.2.1:deny\n"})
    assert any(warning.startswith("/r:1: the rule for 'joe@192.0.2.1'") for warning in found.warnings)


NAMES = (
    "me", "smtpgreeting", "localiphost", "rcpthosts", "morercpthosts", "morercpthosts.cdb", "badmailfrom", "badrcptto",
    "databytes", "timeoutsmtpd", "locals", "virtualdomains", "concurrencyincoming", "tarpitcount", "tarpitdelay",
    "mfcheck", "signatures", "rhsbl", "rblzones", "p0f", "servercert.pem", "clientca.pem", "clientcrl.pem",
    "tlsclients", "tlsserverciphers",
)  # fmt: skip
WORDS = st.sampled_from(
    [b"example.org", b".example.net", b"@", b"a@b.example", b"127.0.0.2", b"reject", b"9" * 30, b"-1", b" ", b"\t",
     b"\r", b"\n", b"#", b":", b"\0", b"\xff", b"/run/p0f", b"DEFAULT", b"-----BEGIN CERTIFICATE-----", b"TVqQ"]
)  # fmt: skip


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.lists(WORDS, max_size=12).map(b"".join), max_size=6))
def test_whatever_control_files_hold_is_a_configuration_or_faults(control: dict[str, bytes]) -> None:
    try:
        found = loaded(control)
    except ConfigError as error:
        assert error.faults
        assert all(isinstance(fault, str) and "\n" not in fault for fault in error.faults)
        return
    assert found.settings[0].is_compatible
    assert all("\n" not in warning for warning in found.warnings)


def test_a_hundred_thousand_names_are_looked_up_at_once() -> None:
    names = "".join(f"host{n}.example.org\n" for n in range(100_000))
    began = time.process_time()
    found = loaded({"rcpthosts": names, "badrcptto": names.replace("host", "joe@h")})
    assert time.process_time() - began < 30
    table = found.settings[0].accept
    assert table.find(b"host99999.example.org") is not None
    assert table.find(b"host100000.example.org") is None
    assert len(found.settings[0].badrcptto) == 100_000
