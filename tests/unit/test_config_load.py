"""Flags over files over defaults; where each value comes from; the trial; warnings; Settings."""

from __future__ import annotations

import tomllib
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from fastsmtp.address import Address
from fastsmtp.config.flags import Flags
from fastsmtp.config.lists import Lists
from fastsmtp.config.load import Loaded, load
from fastsmtp.config.model import Config, Limits, Listen, Tls
from fastsmtp.config.rules import Policy
from fastsmtp.config.settings import Settings, compile_settings, list_paths
from fastsmtp.config.write import as_json, effective
from fastsmtp.errors import ConfigError
from tests.unit.config_host import FakeHost

PEM = "-----BEGIN CERTIFICATE-----\n"
KEY = "-----BEGIN PRIVATE KEY-----\n"

FULL = """\
hostname = "mx.example.org"
postmaster = "Admin@Example.org"
workers = 3

[[listen]]
name = "mx"
address = ["0.0.0.0:25", "[::]:25"]
proxy_from = "192.0.2.7"
[listen.policy]
exempt = ["/exempt"]

[[listen]]
address = "127.0.0.1:587"
xclient_from = ["127.0.0.1"]
[listen.tls]
mode = "required"
minimum = "1.3"
[listen.limits]
recipients = 5

[tls]
certificate = "/cert.pem"
key = "/key.pem"
[tls.names."mx2.example.org"]
certificate = "/cert2.pem"
key = "/key2.pem"

[limits]
recipients = 50
errors = 3

[relay]
networks = ["10.0.0.0/8", "/networks"]

[[accept]]
domain = ["example.org", "Bücher.example", "/domains"]
recipients = "/people"
deliver = "lmtp://127.0.0.1"
pass_client = "xforward"
queue = false

[[accept]]
domain = ".example.org"

[deliver]
default = "smtp://smart.example.net"
"""
FILES = {
    "/f.toml": FULL,
    "/cert.pem": PEM,
    "/key.pem": KEY,
    "/cert2.pem": PEM,
    "/key2.pem": KEY,
    "/networks": "2001:db8::/32 # office\n",
    "/exempt": "203.0.113.0/24\n",
    "/domains": "# ours\nexample.net\n.sub.example.net\n",
    "/people": "# all of us\nAlice@Example.org\nbob@example.net # second\n",
}


def loaded(text: str = FULL, host: FakeHost | None = None, **flags: object) -> Loaded:
    host = host or FakeHost({**FILES, "/f.toml": text})
    return load(Flags(config="/f.toml", **flags), host=host)  # type: ignore[arg-type]


def test_what_the_file_says_stands_in_the_model() -> None:
    config = loaded().config
    assert config.workers == 3
    assert config.listen[0].address == ("0.0.0.0:25", "[::]:25")
    assert config.listen[0].proxy_from == ("192.0.2.7",)
    assert config.tls.names[0].name == "mx2.example.org"
    assert config.accept[0].queue is False
    assert config.accept[1].queue is None
    hash(config)
    with pytest.raises(FrozenInstanceError):
        config.workers = 4  # type: ignore[misc]


def test_a_listener_s_tables_lie_over_the_global_ones() -> None:
    mx, submission = loaded().config.listen
    assert mx.limits is None
    assert mx.tls == "starttls"
    assert mx.tls_table is None
    assert mx.policy == Policy(exempt=("/exempt",))
    assert submission.name == "listen2"
    assert submission.limits == Limits(recipients=5, errors=3)
    assert submission.tls == "required"
    assert submission.tls_table is not None
    assert submission.tls_table.minimum == "1.3"
    assert submission.tls_table.certificate == "/cert.pem"
    assert submission.tls_table.names[0].key == "/key2.pem"


def test_settings_have_every_look_up_ready() -> None:
    mx, submission = loaded().settings
    assert mx.hostname == "mx.example.org"
    assert mx.postmaster == b"admin@example.org"
    assert mx.limits.recipients == 50
    assert submission.limits.recipients == 5
    assert submission.tls.minimum == "1.3"
    assert mx.tls.minimum == "1.2"
    assert Address("10.1.2.3") in mx.relay
    assert Address("2001:db8::5") in mx.relay
    assert Address("127.0.0.1") not in mx.relay
    assert Address("203.0.113.9") in mx.exempt
    assert Address("203.0.113.9") not in submission.exempt
    assert Address("192.0.2.7") in mx.proxy_from
    assert Address("127.0.0.1") in submission.xclient_from


@pytest.mark.parametrize(
    ("domain", "deliver"),
    [
        (b"example.org", "lmtp://127.0.0.1"),
        (b"example.net", "lmtp://127.0.0.1"),
        (b"a.sub.example.net", "lmtp://127.0.0.1"),
        (b"sub.example.net", None),
        (b"xn--bcher-kva.example", "lmtp://127.0.0.1"),
        ("bücher.example".encode(), "lmtp://127.0.0.1"),
        (b"a.b.example.org", "smtp://smart.example.net"),
        (b"example.com", None),
    ],
)
def test_a_domain_goes_where_its_accept_says_else_to_the_default(domain: bytes, deliver: str | None) -> None:
    settings = loaded().settings[0]
    accept = settings.accept.find(domain)
    assert (settings.routing.find(b"", domain, "mx").deliver if accept else None) == deliver


def test_recipients_are_a_set_of_keys_read_once() -> None:
    first, second = loaded().settings
    accept = first.accept.find(b"example.org")
    assert accept is not None
    assert accept.recipients == frozenset({b"alice@example.org", b"bob@example.net"})
    assert accept.pass_client == "xforward"
    assert second.accept is first.accept
    suffix = first.accept.find(b"x.example.org")
    assert suffix is not None
    assert suffix.recipients is None


def test_the_files_to_watch_are_all_that_the_configuration_names() -> None:
    result = loaded()
    assert set(result.watched_files) == set(FILES)
    assert set(result.lists.files) == {"/networks", "/exempt", "/domains", "/people"}
    assert set(list_paths(result.config)) == set(result.lists.files)


def test_a_worker_compiles_the_same_from_a_snapshot_and_a_change_to_it() -> None:
    result = loaded()
    again = compile_settings(result.config, result.lists)
    assert again[0].accept.find(b"example.net") == result.settings[0].accept.find(b"example.net")
    changed = compile_settings(result.config, result.lists.with_file("/people", b"carol@example.org\n"))
    accept = changed[0].accept.find(b"example.org")
    assert accept is not None
    assert accept.recipients == frozenset({b"carol@example.org"})
    with pytest.raises(ConfigError, match=r"^/people:1: 'carol' has no domain$"):
        compile_settings(result.config, result.lists.with_file("/people", b"carol\n"))
    assert Lists().with_file("/a", b"b").files == {"/a": b"b"}


FLAGS = [
    ({"workers": "7"}, "workers", 7, "--workers"),
    ({"hostname": "mx9.example.org"}, "hostname", "mx9.example.org", "--hostname"),
    ({"user": "mail"}, "user", "mail", "--user"),
    ({"state": "s"}, "state", "/here/s", "--state"),
    ({"state": "/var/s"}, "state", "/var/s", "--state"),
    ({"listen": ("127.0.0.1:0", "[::1]:0")}, "listen[0].address", ("127.0.0.1:0", "[::1]:0"), "--listen"),
    ({"listen": ("127.0.0.1:0",)}, "listen[0].name", "mx", "/f.toml:6"),
    ({"deliver": "discard"}, "deliver.default", "discard", "--deliver"),
    ({"deliver": "discard"}, "accept[1].deliver", "discard", "--deliver"),
    ({"deliver": "maildir:m"}, "accept[1].deliver", "maildir:/here/m", "--deliver"),
    ({"no_queue": True}, "deliver.queue", False, "--no-queue"),
    ({"no_queue": True}, "accept[0].queue", False, "--no-queue"),
    ({"accept": ("a.example", "b.example")}, "accept[2].domain", ("a.example", "b.example"), "--accept"),
    ({"accept": ("a.example",)}, "accept[2].recipients", "any", "--accept"),
    ({"accept": ("a.example",), "deliver": "print"}, "accept[2].deliver", "print", "--deliver"),
    ({}, "workers", 3, "/f.toml:3"),
    ({}, "relay.networks", ("10.0.0.0/8", "/networks"), "/f.toml:33"),
    ({}, "listen[0].policy.exempt", ("/exempt",), "/f.toml:10"),
    ({}, "listen[1].name", "listen2", "default"),
    ({}, "listen[1].limits.recipients", 5, "/f.toml:19"),
    ({}, "listen[1].limits.errors", 3, "/f.toml:30"),
    ({}, "listen[1].limits.session_s", 7200.0, "default"),
    ({}, "listen[1].tls.mode", "required", "/f.toml:16"),
    ({}, "tls.names.mx2.example.org.key", "/key2.pem", "/f.toml:26"),
    ({}, "accept[1].pass_client", "none", "default"),
    ({}, "state", "/home/me/.local/state/fastsmtp", "default"),
]


@pytest.mark.parametrize(("flags", "key", "value", "origin"), FLAGS)
def test_each_value_says_where_it_comes_from(
    flags: dict[str, Any], key: str, value: object, origin: str
) -> None:
    host = FakeHost(FILES, environ={"HOME": "/home/me"})
    # --deliver with lmtp-only pass_client is a fault of its own, tested elsewhere.
    text = FULL.replace('pass_client = "xforward"\n', "\n")
    host.files["/f.toml"] = text.encode()
    result = loaded(host=host, **flags)
    assert as_json(result.config, result.provenance)[key] == {"value": value, "from": origin}


def test_deliver_over_a_pass_client_that_it_cannot_do_is_a_fault() -> None:
    with pytest.raises(
        ConfigError, match=r"pass_client: xforward needs an smtp or lmtp next hop, not discard"
    ):
        loaded(deliver="discard")


def test_the_effective_configuration_loads_to_itself() -> None:
    first = loaded()
    text = effective(first.config, first.provenance)
    tomllib.loads(text)
    second = loaded(text)
    assert second.config == first.config
    assert effective(second.config, first.provenance) == text


def test_no_configuration_at_all_is_a_trial() -> None:
    result = load(host=FakeHost(environ={"XDG_STATE_HOME": "/state"}, name="vm", open_files=1024))
    assert result.is_trial
    (settings,) = result.settings
    assert settings.listen.address == ("127.0.0.1:2525",)
    accept = settings.accept.find(b"anything.example")
    assert accept is not None
    assert accept.deliver == "maildir:/state/fastsmtp/maildir"
    assert accept.recipients is None
    assert settings.deliver.default == "refuse"
    assert result.warnings == ()
    assert result.watched_files == ()


@pytest.mark.parametrize(
    ("flags", "files", "is_trial"),
    [
        (Flags(), {}, True),
        (
            Flags(listen=("127.0.0.1:0",), workers="1", hostname="a.example", state="/s", no_queue=True),
            {},
            True,
        ),
        (Flags(accept=("a.example",), deliver="discard"), {}, False),
        (Flags(deliver="discard"), {}, False),
        (Flags(), {"/etc/fastsmtp/fastsmtp.toml": ""}, False),
        (Flags(config="/x"), {"/x": ""}, False),
    ],
)
def test_any_word_on_what_is_taken_ends_the_trial(
    flags: Flags, files: dict[str, str], is_trial: bool
) -> None:
    result = load(flags, host=FakeHost(files))
    assert result.is_trial is is_trial
    assert (result.settings[0].accept.find(b"other.example") is not None) is is_trial


def test_a_program_gives_values_and_may_take_everything() -> None:
    values = {"limits": {"errors": 2}, "accept": [{"domain": ["*"], "deliver": "discard"}]}
    result = load(values=values, host=FakeHost({"/etc/fastsmtp/fastsmtp.toml": "never read ["}))
    assert not result.is_trial
    assert result.settings[0].limits.errors == 2
    assert result.settings[0].accept.find(b"any.example") is not None
    assert values == {"limits": {"errors": 2}, "accept": [{"domain": ["*"], "deliver": "discard"}]}
    with pytest.raises(ConfigError, match=r"^accept\[0\]\.deliver: 'x' is no destination"):
        load(values={"accept": [{"domain": "a.example", "deliver": "x"}]}, host=FakeHost())


@pytest.mark.parametrize(
    ("host", "state", "origin"),
    [
        (FakeHost(environ={"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "XDG_STATE_HOME": "/x"}), "/var/lib/a",
         "$STATE_DIRECTORY"),
        (FakeHost(root=True, environ={"XDG_STATE_HOME": "/x"}), "/var/lib/fastsmtp", "default"),
        (FakeHost(environ={"XDG_STATE_HOME": "/x"}), "/x/fastsmtp", "$XDG_STATE_HOME"),
        (FakeHost(environ={"XDG_STATE_HOME": "relative", "HOME": "/me"}), "/me/.local/state/fastsmtp",
         "default"),
    ],
)  # fmt: skip
def test_the_state_directory_when_nobody_says(host: FakeHost, state: str, origin: str) -> None:
    result = load(host=host)
    assert (result.config.state, result.provenance["state"]) == (state, origin)


@pytest.mark.parametrize(
    ("name", "hosts", "hostname"),
    [
        ("mx.example.org", "", "mx.example.org"),
        ("MX", "127.0.1.1 MX.example.org MX # me\n", "mx.example.org"),
        ("mx", "# 127.0.1.1 mx.example.org mx\n", "mx"),
        ("mx", "127.0.1.1 other.example.org mx\n", "mx"),
        ("bad name", "", "localhost"),
    ],
)
def test_the_host_name_when_nobody_says(
    name: str, hosts: str, hostname: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Named(FakeHost):
        name = FakeHost.__mro__[1].name  # type: ignore[attr-defined]  # the real one, over the fake's files

    monkeypatch.setattr("socket.gethostname", lambda: name)
    result = load(host=Named({"/etc/hosts": hosts}))
    assert result.config.hostname == hostname
    assert result.config.postmaster == f"postmaster@{hostname}"
    assert result.provenance["hostname"] == "the system's name"


CERTIFIED = "[tls]\ncertificate = '/cert.pem'\nkey = '/key.pem'\n"
TAKING = "[[accept]]\ndomain = ['example.org', '.example.org']\ndeliver = 'discard'\n"

WARNINGS = [
    (TAKING + CERTIFIED, {}, []),
    (TAKING, {}, ["listen[0]: no certificate is configured, so a self-made one is used"]),
    (TAKING + "[[listen]]\ntls = 'off'\n", {}, []),
    ("hostname = 'mx'\npostmaster = 'a@example.org'\n" + TAKING + CERTIFIED, {}, [
        "F:1: hostname: 'mx' has no dot: other servers may refuse its greeting"
    ]),
    (CERTIFIED, {}, ["accept: no domain is accepted and nothing is relayed: all mail is refused"]),
    (TAKING + "[[accept]]\ndomain = 'EXAMPLE.org'\ndeliver = 'print'\n" + CERTIFIED, {}, [
        "F:5: accept.domain: EXAMPLE.org stands in an earlier [[accept]], which wins"
    ]),
    (TAKING + CERTIFIED + "[policy.signatures]\ndecoded = true", {}, [
        "F:8: policy.signatures.decoded: there is no file, so nothing is compared"
    ]),
    (TAKING + CERTIFIED + "[policy]\ndenymail = ['NOBOUNCE', 'SPAM']", {}, [
        "F:8: policy.denymail: NOBOUNCE refuses every bounce and receipt, which RFC 5321 sections 4.5.5 and 6.1 want "
        "taken",
        "F:8: policy.denymail: SPAM refuses all mail",
    ]),
    (TAKING + CERTIFIED + "[policy.tarpit]\nafter_recipients = 200", {}, [
        "F:8: policy.tarpit.after_recipients: a message with 1000 recipients (limits.recipients) is held back for "
        "4005 s, longer than limits.transaction_s or session_s: it can't get through"
    ]),
    (TAKING + CERTIFIED + "[policy.tarpit]\nafter_recipients = 500", {}, []),
    (TAKING + "[[listen]]\ntls = 'off'\n[[policy.require_tls]]\nsender = '@bank.example'", {}, [
        "F:6: policy.require_tls: listen1 offers no TLS, so mail of these senders can't come in there"
    ]),
    (TAKING + CERTIFIED + "[policy.p0f]\nheader = true\n[[policy.p0f.match]]\nos = '*'", {}, [
        "F:9: policy.p0f.match: there is no socket, so p0f is not asked"
    ]),
    ("workers = 30\n" + TAKING + CERTIFIED + "[policy.p0f]\nsocket = '/run/p0f'\ntimeout_s = 9", {}, [
        "F:9: policy.p0f.socket: p0f takes 20 clients unless started with -S, and there are more workers",
        "F:10: policy.p0f.timeout_s: all questions of a phase end with dns.timeout_s",
    ]),
    ("[relay]\nnetworks = '192.0.2.0/24'\n" + TAKING + CERTIFIED, {}, [
        "F:2: relay.networks: may send anywhere, but deliver.default is refuse"
    ]),
    ("[relay]\nnetworks = ['0.0.0.0/0', '::/0']\n[deliver]\ndefault = 'discard'\n" + CERTIFIED, {}, [
        "F:2: relay.networks: 0.0.0.0/0 makes this server an open relay",
        "F:2: relay.networks: ::/0 makes this server an open relay",
    ]),
    ("hostname = 'mx.example.net'\n" + TAKING + CERTIFIED, {}, [
        "postmaster: no [[accept]] takes mail for mx.example.net, so mail to <postmaster> without a domain is refused"
    ]),
    ("[log]\nto = 'syslog'\n" + TAKING + CERTIFIED, {}, [
        "F:2: log.to: there is no /dev/log now: until there is, lines are lost"
    ]),
    ("hostname = 'mx.example.net'\n[deliver]\ndefault = 'mx'\n" + TAKING + CERTIFIED, {}, [
        "postmaster: no [[accept]] takes mail for mx.example.net, "
        "so double bounces and answers to reports can't be delivered"
    ]),
    ("[[listen]]\naddress = ['192.0.2.1:465', '192.0.2.1:587', '192.0.2.1:25']\ntls = 'required'\n" + TAKING
     + CERTIFIED, {}, [
        "F:2: listen.address: clients of port 465 begin with TLS (RFC 8314 section 3.3): tls = \"implicit\"",
        "F:2: listen.address: a public server must not require TLS on port 25 (RFC 3207 section 4)",
    ]),
    ("[[listen]]\naddress = ['192.0.2.1:465', '192.0.2.1:25']\ntls = 'implicit'\n" + TAKING + CERTIFIED, {}, [
        "F:2: listen.address: other servers don't begin with TLS on port 25: tls = \"starttls\"",
    ]),
    ("[[listen]]\nproxy_from = ['0.0.0.0/0']\n" + TAKING + CERTIFIED, {}, [
        "F:2: listen.proxy_from: lets anyone claim to be any client"
    ]),
    (TAKING.replace("discard", "lmtp://192.0.2.1:25") + CERTIFIED, {}, [
        "F:3: accept.deliver: lmtp://192.0.2.1:25: LMTP is not spoken on port 25 (RFC 2033 section 5)"
    ]),
    (TAKING + CERTIFIED, {"open_files": 1024}, [
        "limits.connections: lowered from 20000 to 960, which is what 1024 open files allow 2 workers"
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "machine", "warnings"), WARNINGS)
def test_what_is_right_but_unwise_is_a_warning(
    text: str, machine: dict[str, int], warnings: list[str]
) -> None:
    host = FakeHost({**FILES, "/f.toml": text}, **machine)  # type: ignore[arg-type]
    assert [warning.replace("/f.toml:", "F:") for warning in loaded(host=host).warnings] == warnings


def test_connections_are_lowered_to_what_open_files_allow() -> None:
    text = TAKING + "[limits]\nconnections = 5000\n[[listen]]\n[listen.limits]\nconnections = 100\n"
    result = loaded(host=FakeHost({"/f.toml": text}, open_files=1024, cores=4))
    assert result.config.limits.connections == 1920
    assert result.settings[0].limits.connections == 100
    assert result.provenance["limits.connections"] == "lowered to what open files allow"


def test_the_model_s_defaults_make_a_configuration() -> None:
    config = Config()
    assert config == replace(config, listen=(Listen(),), tls=Tls())
    resolved = replace(config, hostname="mx.example.org", postmaster="postmaster@mx.example.org")
    (settings,) = compile_settings(resolved, Lists())
    assert isinstance(settings, Settings)
    assert Address("127.0.0.1") in settings.relay
