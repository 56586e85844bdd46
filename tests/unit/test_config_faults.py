"""Bad configurations and the exact faults that they get."""

from __future__ import annotations

import pytest

from fastsmtp.config.flags import Flags
from fastsmtp.config.load import load
from fastsmtp.errors import ConfigError
from tests.unit.config_host import FakeHost

PEM = "-----BEGIN CERTIFICATE-----\n"
KEY = "-----BEGIN PRIVATE KEY-----\n"
FILES: dict[str, str | bytes] = {
    "/cert.pem": PEM,
    "/key.pem": KEY,
    "/both.pem": PEM + KEY,
    "/domains": "example.org\n# comment\nexa mple\n\n.example.net\n",
    "/people": "a@example.org\npostmaster\n\nb@@example.org\n",
    "/networks": "192.0.2.0/24\n192.0.2.1/24\nfoo\n",
    "/latin1": b"example.org\nb\xfccher.example\n",
}

FAULTS = [
    # what the file says, what is said about it; "F" is the file
    ("hostname = ", ["F:1: Invalid value"]),
    ("a = 1\na = 2\n", ["F:2: Cannot overwrite a value"]),
    ("hostnam = 'mx.example.org'", ["F:1: hostnam: no such key; did you mean 'hostname'?"]),
    ("frobnicate = 1", ["F:1: frobnicate: no such key"]),
    ("[limit]\nrecipients = 1", ["F:1: limit: no such key; did you mean 'limits'?"]),
    ("workers = '2'", ["F:1: workers: must be a whole number, not '2'"]),
    ("workers = -1", ["F:1: workers: must be at least 0, not -1"]),
    ("workers = 100_000", ["F:1: workers: must be at most 1_024, not 100000"]),
    ("workers = true", ["F:1: workers: must be a whole number, not true"]),
    ("workers = 2.0", ["F:1: workers: must be a whole number, not 2.0"]),
    ("hostname = 5", ["F:1: hostname: must be a text, not 5"]),
    ("hostname = ''", ["F:1: hostname: '' is no domain"]),
    ("hostname = 'a b'", ["F:1: hostname: 'a b' is no domain"]),
    ("postmaster = 'me'", ["F:1: postmaster: 'me' has no @"]),
    ("state = 'mail'", ["F:1: state: path 'mail' must begin with /"]),
    ("user = 'a:b'", ["F:1: user: 'a:b' must be letters, digits, _ . -"]),
    ("limits = 5", ["F:1: limits: must be a table"]),
    ("listen = 5", ["F:1: listen: must be an array of tables, [[listen]]"]),
    ("[listen]\nname = 'a'", ["F:1: listen: must be an array of tables, [[listen]]"]),
    ("[policy.dnsbl]\nzone = 'a.b'", ["F:1: policy.dnsbl: must be an array of tables, [[policy.dnsbl]]"]),
    ("[tls]\nnames = 5", ["F:2: tls.names: must be a table"]),
    ("[limits]\nrecipients = 0", ["F:2: limits.recipients: must be at least 1, not 0"]),
    ("[limits]\nmessage_bytes = 99999999999999999999", [
        "F:2: limits.message_bytes: must be at most 9_007_199_254_740_992, not 99999999999999999999"
    ]),
    ("[limits]\nsession_s = nan", ["F:2: limits.session_s: must be at least 0.01, not nan"]),
    ("[limits]\nsession_s = inf", ["F:2: limits.session_s: must be at most 1_000_000_000.0, not inf"]),
    ("[limits]\nsession_s = 1979-05-27", [
        "F:2: limits.session_s: must be a number, not datetime.date(1979, 5, 27)"
    ]),
    ("[policy]\nmode = 'enforced'", [
        "F:2: policy.mode: must be enforce, observe or off, not 'enforced'; did you mean 'enforce'?"
    ]),
    ("[policy]\nsoft_reject = 1", ["F:2: policy.soft_reject: must be true or false, not 1"]),
    ("[log]\nformat = 'xml'", ["F:2: log.format: must be logfmt or json, not 'xml'"]),
    ("[log]\nto = 'out.log'", [
        "F:2: log.to: 'out.log' is neither stderr, syslog nor a file (a path that begins with /)"
    ]),
    ("[relay]\nnetworks = ['10.0.0.0/8',\n '192.0.2.1/24',\n 'here']", [
        "F:3: relay.networks: '192.0.2.1/24' has host bits set; the network is '192.0.2.0/24'",
        "F:4: relay.networks: 'here' is neither an address nor a network",
    ]),
    ("[relay]\nnetworks = [1]", ["F:2: relay.networks: must be a text, not 1"]),
    ("[relay]\nnetworks = 1", ["F:2: relay.networks: must be a list of texts, not 1"]),
    ("[relay]\nnetworks = '/networks'", [
        "/networks:2: '192.0.2.1/24' has host bits set; the network is '192.0.2.0/24'",
        "/networks:3: 'foo' is neither an address nor a network",
    ]),
    ("[policy]\nexempt = ['/absent']", ["F:2: policy.exempt: /absent: No such file or directory"]),
    # [[listen]]
    ("listen = []", ["F:1: listen: must not be empty"]),
    ("[[listen]]\naddress = []", ["F:2: listen.address: must not be empty"]),
    ("[[listen]]\naddress = ['127.0.0.1:25',\n '::1:25']", [
        "F:3: listen.address: '::1:25': an IPv6 address stands in brackets, as [::1]:25"
    ]),
    ("[[listen]]\naddress = '127.0.0.1:25'\n[[listen]]\naddress = '127.0.0.1:25'", [
        "F:4: listen.address: is listened on already"
    ]),
    ("[[listen]]\nname = 'a'\naddress = '127.0.0.1:0'\n[[listen]]\nname = 'a'\naddress = '127.0.0.1:0'", [
        "F:5: listen.name: 'a' is another listener's name"
    ]),
    ("[[listen]]\ntls = 'tls'", [
        "F:2: listen.tls: must be off, starttls, required or implicit, not 'tls'"
    ]),
    ("[[listen]]\n[listen.tls]\nmode = 'on'\ncipher = 'x'", [
        "F:3: listen.tls.mode: must be off, starttls, required or implicit, not 'on'",
        "F:4: listen.tls.cipher: no such key; did you mean 'ciphers'?",
    ]),
    ("[[listen]]\n[listen.limits]\nerrors = 0\n[listen.policy]\nmod = 'off'\np0f = []", [
        "F:3: listen.limits.errors: must be at least 1, not 0",
        "F:5: listen.policy.mod: no such key; did you mean 'mode'?",
        "F:6: listen.policy.p0f: must be a table",
    ]),
    ("[[listen]]\ntls_table = {}", ["F:2: listen.tls_table: no such key"]),
    ("[[listen]]\nbare_newline = 'accept'\ngreeting_delay_s = 61", [
        "F:2: listen.bare_newline: must be reject or normalize, not 'accept'",
        "F:3: listen.greeting_delay_s: must be at most 60, not 61.0",
    ]),
    # client certificates
    ("[tls]\nclient_ca = '/no.pem'\nclient_crl = '/key.pem'", [
        "F:2: tls.client_ca: /no.pem: No such file or directory",
        "F:3: tls.client_crl: /key.pem: no PEM revocation list in it",
    ]),
    ("[tls]\nclient_crl = 'crl.pem'", ["F:2: tls.client_crl: path 'crl.pem' must begin with /"]),
    ("[tls]\nclient_crl = '/crl.pem'", [
        "F:2: tls.client_crl: /crl.pem: No such file or directory",
        "F:2: tls.client_crl: is given without its client_ca",
    ]),
    ("[tls]\nciphers = 'é'", ["F:2: tls.ciphers: 'é' is no list of ciphers"]),
    ("[[listen]]\n[listen.tls]\nclient_ca = '/key.pem'", [
        "F:3: listen.tls.client_ca: /key.pem: no PEM certificate in it"
    ]),
    ("[relay]\ncertificates = ['joe', 'a@b c', 'sha256:12', 'md5:12', '/no']\ncertificates_from = 'here'", [
        "F:2: relay.certificates: 'joe' has no @",
        "F:2: relay.certificates: 'b c' is no domain",
        "F:2: relay.certificates: 'sha256:12' is no fingerprint: sha256: and 64 hexadecimal digits",
        "F:2: relay.certificates: 'md5:12' is no fingerprint: sha256: and 64 hexadecimal digits",
        "F:3: relay.certificates_from: 'here' is neither an address nor a network",
    ]),
    # [tls]
    ("[tls]\ncertificate = '/cert.pem'", ["F:2: tls.certificate: /cert.pem: no PEM key in it"]),
    ("[tls]\ncertificate = '/absent'", ["F:2: tls.certificate: /absent: No such file or directory"]),
    ("[tls]\nkey = '/key.pem'", ["F:2: tls.key: is given without its certificate"]),
    ("[[listen]]\n[listen.tls]\nkey = '/key.pem'\n[tls]\ncertificate = '/both.pem'", [
        "F:3: listen.tls.key: is given without its certificate"
    ]),
    ("[[listen]]\n[listen.tls]\ncertificate = '/cert.pem'\n[tls]\ncertificate = '/both.pem'\nkey = '/key.pem'", [
        "F:3: listen.tls.certificate: /cert.pem: no PEM key in it"
    ]),
    ("[tls]\ncertificate = '/absent'\nkey = '/gone'", [
        "F:2: tls.certificate: /absent: No such file or directory",
        "F:3: tls.key: /gone: No such file or directory",
    ]),
    ("[tls]\ncertificate = '/key.pem'\nkey = '/cert.pem'", [
        "F:2: tls.certificate: /key.pem: no PEM certificate in it",
        "F:3: tls.key: /cert.pem: no PEM key in it",
    ]),
    ("[tls]\ncertificate = '/cert.pem'\nkey = '/open.pem'", [
        "F:3: tls.key: /open.pem: others can read or change this private key (mode 0644): chmod 640 /open.pem"
    ]),
    ("[tls.names.'mx 2']\ncertificate = '/both.pem'\nname = 'x'", [
        "F:1: tls.names.mx 2: 'mx 2' is no domain",
        "F:3: tls.names.mx 2.name: no such key",
    ]),
    # [[accept]]
    ("[[accept]]\ndeliver = 'discard'", ["F:1: accept.domain: is missing"]),
    ("[[accept]]\ndomain = 'example.org'", [
        "F:1: accept: has no deliver, and deliver.default is refuse: its mail has no place to go"
    ]),
    ("[[accept]]\ndomain = '*'\ndeliver = 'discard'", [
        "F:2: accept.domain: '*' would take mail for the whole world; name the domains"
    ]),
    ("[[accept]]\ndomain = 'me@example.org'\ndeliver = 'discard'", [
        "F:2: accept.domain: 'me@example.org' is an address, not a domain"
    ]),
    ("[[accept]]\ndomain = '/domains'\ndeliver = 'discard'", ["/domains:3: 'exa mple' is no domain"]),
    ("[[accept]]\ndomain = '/latin1'\ndeliver = 'discard'", ["/latin1:2: not UTF-8"]),
    ("[[accept]]\ndomain = 'example.org'\ndeliver = 'discard'\nrecipients = '/people'", [
        "/people:2: 'postmaster' has no domain",
        "/people:4: 'b@@example.org' is no address (syntax)",
    ]),
    ("[[accept]]\ndomain = 'example.org'\ndeliver = 'discard'\nrecipients = 'all'", [
        "F:4: accept.recipients: 'all' is neither any, ask nor a file of addresses (a path that begins with /)"
    ]),
    ("[[accept]]\ndomain = 'example.org'\ndeliver = 'discard'\npass_client = 'xclient'", [
        "F:4: accept.pass_client: xclient needs an smtp or lmtp next hop, not discard"
    ]),
    ("[[accept]]\ndomain = 'example.org'\ndeliver = 'imap://x'", [
        "F:3: accept.deliver: 'imap://x' is no destination: discard, print, maildir:PATH, "
        "smtp://HOST[:PORT], lmtp://HOST[:PORT], lmtp+unix:PATH, qmail-queue[:PATH], pipe:COMMAND, mx or refuse"
    ]),
    ("[deliver]\ndefault = 'qmail-queue:bin/qmail-queue'", [
        "F:2: deliver.default: path 'bin/qmail-queue' must begin with /"
    ]),
    ("[deliver]\ndefault = 'qmail-queue:/absent'", [
        "F:2: deliver.default: /absent: No such file or directory"
    ]),
    ("[deliver]\ndefault = 'pipe:/absent x'", ["F:2: deliver.default: /absent: No such file or directory"]),
    ("[deliver]\ndefault = 'qmail-queue:/key.pem'", [
        "F:2: deliver.default: /key.pem: is no program that can be run"
    ]),
    ("[[listen]]\naddress = '0.0.0.0:2525'\n[deliver]\ndefault = 'smtp://localhost:2525'", [
        "F:4: deliver.default: smtp://localhost:2525 is this server itself"
    ]),
    ("[[listen]]\naddress = '192.0.2.1:25'\n[[accept]]\ndomain = 'a.example'\ndeliver='smtp://192.0.2.1'", [
        "F:5: accept.deliver: smtp://192.0.2.1 is this server itself"
    ]),
    ("[[listen]]\naddress = '127.0.0.1:2525'\n[deliver]\ndefault = 'lmtp://localhost:2525'", [
        "F:4: deliver.default: lmtp://localhost:2525 is this server itself"
    ]),
    ("[log]\nto = '/var/log/fastsmtp/log'", ["F:2: log.to: there is no directory /var/log/fastsmtp"]),
    # [remote], [[source]], [[route]]
    ("[remote]\nconnections = 0\nkey = '/key.pem'", [
        "F:2: remote.connections: must be at least 1, not 0",
        "F:3: remote.key: is given without its certificate",
    ]),
    ("[remote]\ncertificate = '/cert.pem'\npause_s = 10\npause_max_s = 5\nciphers = ''", [
        "F:4: remote.pause_max_s: must not be less than remote.pause_s",
        "F:5: remote.ciphers: '' is no list of ciphers",
    ]),
    ("[remote]\ncertificate = '/cert.pem'", ["F:2: remote.certificate: /cert.pem: no PEM key in it"]),
    ("[[source]]\nname = 'a'", ["F:1: source: has neither ipv4 nor ipv6"]),
    ("[[source]]\nname = 'a b'\nipv4 = '::1'\nipv6 = '127.0.0.1'\nhelo = 'a b'\non_bind_failure = 'any'", [
        "F:2: source.name: 'a b' must be letters, digits, _ . -",
        "F:3: source.ipv4: '::1' is no IPv4 address",
        "F:4: source.ipv6: '127.0.0.1' is no IPv6 address",
        "F:5: source.helo: 'a b' is no domain",
        "F:6: source.on_bind_failure: must be defer or next, not 'any'",
    ]),
    ("[[source]]\nipv4 = '127.0.0.2'\nconnections = 0\nmessages_per_s = -1", [
        "F:1: source.name: is missing",
        "F:3: source.connections: must be at least 1, not 0",
        "F:4: source.messages_per_s: must be at least 0, not -1.0",
    ]),
    ("[[source]]\nname = 'a'\nipv4 = '127.0.0.2'\n[[source]]\nname = 'a'\nipv4 = '127.0.0.3'", [
        "F:5: source.name: 'a' is another source's name"
    ]),
    ("[[route]]\nsender = ['me', '@exa mple', '<>', '@example.org']\ndestination = 'a@b'\ndeliver = 'mx'", [
        "F:2: route.sender: 'me' is neither an address nor \"@\" and a domain",
        "F:2: route.sender: 'exa mple' is no domain",
        "F:3: route.destination: 'a@b' is an address, not a domain",
    ]),
    ("[[route]]\ndestination = '*'\ndeliver = 'mx'", [
        "F:2: route.destination: '*' would take mail for the whole world; name the domains"
    ]),
    ("[[route]]\ndestination = '/domains'\ndeliver = 'mx'", ["/domains:3: 'exa mple' is no domain"]),
    ("[[route]]\nlistener = 'in'\nsources = { a = 1, b = 0 }\ndeliver = 'mx'", [
        "F:2: route.listener: there is no listener 'in'",
        "F:3: route.sources.b: must be a whole number from 1 to 1_000_000, not 0",
        "F:3: route.sources.a: there is no [[source]] 'a'",
        "F:3: route.sources.b: there is no [[source]] 'b'",
    ]),
    ("[[route]]\nsources = ['a']\ndeliver = 'mx'", ["F:2: route.sources: must be a table, as { a = 1 }"]),
    ("[[route]]\ndestination = 'example.org'", [
        "F:1: route: has no deliver, and deliver.default is refuse: its mail has no place to go"
    ]),
    ("[[route]]\ndeliver = 'mx'\ntls = 'may'", [
        "F:3: route.tls: must be off, opportunistic, required or verified, not 'may'"
    ]),
    ("[[route]]\ndeliver = 'mx'\nca = '/cert.pem'", ["F:3: route.ca: is asked only where tls = \"verified\""]),
    ("[[route]]\ndeliver = 'mx'\ntls = 'verified'\nca = '/key.pem'", [
        "F:4: route.ca: /key.pem: no PEM certificate in it"
    ]),
    ("[[route]]\ndeliver = 'mx'\ntls = 'verified'\nca = '/absent'", [
        "F:4: route.ca: /absent: No such file or directory"
    ]),
    ("[[source]]\nname = 'a'\nipv6 = '::1'\n[[route]]\nsources = { a = 1 }\ndeliver = 'discard'\ntls = 'off'", [
        "F:5: route.sources: there is no address to choose for discard",
        "F:7: route.tls: there is no TLS with discard",
    ]),
    ("[[listen]]\naddress = '127.0.0.1:2525'\n[[route]]\ndeliver = 'smtp://127.0.0.1:2525'", [
        "F:4: route.deliver: smtp://127.0.0.1:2525 is this server itself"
    ]),
    ("[deliver]\nqueue = false\n[[route]]\ndeliver = 'mx'", [
        "F:4: route.deliver: mx needs the queue (queue = true): before the 250 mail goes to one next hop"
    ]),
    ("[deliver]\nqueue = false\n[[source]]\nname = 'a'\nipv4 = '127.0.0.2'\n"
     "[[route]]\nsources = { a = 1 }\ndeliver = 'smtp://127.0.0.9'\n"
     "[[route]]\ndeliver = 'smtp://127.0.0.9'\ntls = 'verified'\nsender = '<>'", [
        "F:7: route.sources: need the queue (queue = true)",
        "F:11: route.tls: verified needs the queue (queue = true)",
    ]),
    ("[[accept]]\ndomain = 'a.example'\nqueue = false\n[[route]]\ndeliver = 'mx'", [
        "F:5: route.deliver: mx needs the queue (queue = true): before the 250 mail goes to one next hop"
    ]),
    ("[[accept]]\ndomain = 'a.example'\ndeliver = 'mx'\nqueue = false", [
        "F:3: accept.deliver: mx needs the queue (queue = true): before the 250 mail goes to one next hop"
    ]),
    ("[policy]\nbadmailfrom = ['@ok.example', 'me',\n'@no host']\ndenymail = ['NOBOUNCES', 'dnscheck']", [
        "F:2: policy.badmailfrom: 'me' is none of user@host, @host, user@, .host",
        "F:3: policy.badmailfrom: 'no host' is no domain",
        "F:4: policy.denymail: must be SPAM, NOBOUNCE, DNSCHECK or SANITY, not 'NOBOUNCES'; did you mean 'NOBOUNCE'?",
        "F:4: policy.denymail: must be SPAM, NOBOUNCE, DNSCHECK or SANITY, not 'dnscheck'",
    ]),
    ("[policy]\nbadrcptto = '/people'", [
        "/people:2: 'postmaster' is none of user@host, @host, user@, .host",
        "/people:4: 'b@@example.org': bad local part",
    ]),
    ("[policy.tarpit]\nafter_recipients = -1\ndelay_s = 300\nmode = 'slow'", [
        "F:2: policy.tarpit.after_recipients: must be at least 0, not -1",
        "F:3: policy.tarpit.delay_s: must be at most 225.0, not 300.0",
        "F:4: policy.tarpit.mode: must be enforce, observe or off, not 'slow'",
    ]),
    ("[[policy.require_tls]]\n[[policy.require_tls]]\nsender = 'bank'", [
        "F:1: policy.require_tls.sender: is missing",
        "F:3: policy.require_tls.sender: 'bank' is none of user@host, @host, user@, .host",
    ]),
    ("[policy.p0f]\nsocket = 'p0f.sock'\ntimeout_s = 0\n[[policy.p0f.match]]\nscore = 1\n"
     "[[policy.p0f.match]]\nos = 'Windows *'\ndelay_s = 300", [
        "F:2: policy.p0f.socket: path 'p0f.sock' must begin with /",
        "F:3: policy.p0f.timeout_s: must be at least 0.01, not 0.0",
        "F:4: policy.p0f.match.os: is missing",
        "F:8: policy.p0f.match.delay_s: must be at most 225.0, not 300.0",
    ]),
    # what isn't built yet
    # the queue
    ("[queue]\nretry_min_s = 900\nretry_max_s = 600", [
        "F:2: queue.retry_min_s: retry_min_s (900) is more than retry_max_s (600)"
    ]),
    ("[queue]\nretry_max_s = 60", [
        "F:2: queue.retry_max_s: retry_min_s (300) is more than retry_max_s (60)"
    ]),
    ("[queue]\nlifetime_h = -1\ndouble_bounce = 'nobody'\nfree_bytes = -5", [
        "F:2: queue.lifetime_h: must be at least 0, not -1.0",
        "F:3: queue.double_bounce: must be postmaster or drop, not 'nobody'",
        "F:4: queue.free_bytes: must be at least 0, not -5",
    ]),
    ("[metrics]\nlisten = '9425'", ["F:2: metrics.listen: '9425' is a port without its host, as in 127.0.0.1:9425"]),
    ("[metrics]\nlisten = 'unix:run'", ["F:2: metrics.listen: path 'run' must begin with /"]),
    ("[metrics]\nlisten = 'unix:/nowhere/m'", ["F:2: metrics.listen: there is no directory /nowhere"]),
    ("[metrics]\nlisten = '127.0.0.1:25'\n[[listen]]\naddress = ['127.0.0.1:25']", [
        "F:2: metrics.listen: is a listener's address",
    ]),
    ("[[accept]]\ndomain = 'a.example'\nrecipients = 'ask'\ndeliver = 'pipe:x'", [
        "F:3: accept.recipients: ask needs an smtp or lmtp next hop that can be asked, not refuse",
        "F:4: accept.deliver: pipe: needs the path of a program that begins with /, and its arguments",
    ]),
    # all at once, in the file's order
    ("workers = -1\n[limits]\nerrors = 0\n[[accept]]\ndomain = 'x y'\ndeliver = 'y'\n[log]\nto = 1", [
        "F:1: workers: must be at least 0, not -1",
        "F:3: limits.errors: must be at least 1, not 0",
        "F:5: accept.domain: 'x y' is no domain",
        "F:6: accept.deliver: 'y' is no destination: discard, print, maildir:PATH, smtp://HOST[:PORT], "
        "lmtp://HOST[:PORT], lmtp+unix:PATH, qmail-queue[:PATH], pipe:COMMAND, mx or refuse",
        "F:8: log.to: must be a text, not 1",
    ]),
]  # fmt: skip


def faults_of(text: str | bytes, **flags: object) -> list[str]:
    files: dict[str, str | bytes] = {**FILES, "/open.pem": KEY, "/f.toml": text}
    host = FakeHost(files, modes={"/open.pem": 0o644, "/key.pem": 0o640})
    with pytest.raises(ConfigError) as raised:
        load(Flags(config="/f.toml", **flags), host=host)  # type: ignore[arg-type]
    assert str(raised.value) == "\n".join(raised.value.faults)
    return [fault.replace("/f.toml:", "F:") for fault in raised.value.faults]


@pytest.mark.parametrize(("text", "faults"), FAULTS, ids=[text for text, _ in FAULTS])
def test_each_fault_is_named_with_its_place(text: str, faults: list[str]) -> None:
    assert faults_of(text) == faults


def test_a_file_that_is_not_utf_8_says_on_which_line() -> None:
    assert faults_of(b"a = 1\nb = '\xff'\n") == ["F:2: not UTF-8"]


def test_a_text_that_ends_too_early_says_on_which_line() -> None:
    assert faults_of("[limits]\nrecipients = [1,\n") == ["F:3: Invalid value"]


@pytest.mark.parametrize(
    ("flags", "faults"),
    [
        ({"workers": "many"}, ["--workers: must be a whole number, not 'many'"]),
        ({"workers": "-1"}, ["--workers: must be a whole number, not '-1'"]),
        ({"hostname": "a b"}, ["--hostname: 'a b' is no domain"]),
        ({"listen": ("25",)}, ["--listen: '25' is a port without its host, as in 127.0.0.1:25"]),
        ({"accept": ("*",), "deliver": "discard"}, [
            "--accept: '*' would take mail for the whole world; name the domains"
        ]),
        ({"accept": ("a.example",)}, [
            "--accept: has no deliver, and deliver.default is refuse: its mail has no place to go"
        ]),
        ({"deliver": "pipe:x"}, ["--deliver: pipe: needs the path of a program that begins with /, and its arguments"]),
        ({"deliver": "mx", "no_queue": True}, [
            "--deliver: mx needs the queue (queue = true): before the 250 mail goes to one next hop"
        ]),
        ({"qmail": "/var/qmail", "tcprules": "/etc/tcp.smtp"}, [
            "/var/qmail/control: No such file or directory: /var/qmail is no qmail home",
            "--tcprules: /etc/tcp.smtp: No such file or directory",
        ]),
        ({"dns": ("127.0.0.1", "ns.example", "[::1]:0")}, [
            "--dns: 'ns.example': a name server is an address, with or without port",
            "--dns: '[::1]:0': a name server is an address, with or without port",
        ]),
        ({"user": "a/b"}, ["--user: 'a/b' must be letters, digits, _ . -"]),
    ],
)  # fmt: skip
def test_a_flag_s_fault_names_the_flag(flags: dict[str, object], faults: list[str]) -> None:
    assert faults_of("", **flags) == faults


def test_a_configuration_file_that_is_not_there_is_a_fault() -> None:
    with pytest.raises(ConfigError, match=r"^/here/x\.toml: No such file or directory$"):
        load(Flags(config="x.toml"), host=FakeHost())


def test_another_loopback_address_is_another_server() -> None:
    text = "[[listen]]\naddress = '127.0.0.1:2525'\n[deliver]\ndefault = 'smtp://127.0.0.2:2525'"
    load(Flags(config="/f.toml"), host=FakeHost({"/f.toml": text}))


def test_without_the_account_root_does_not_open_a_public_port() -> None:
    text = "[[listen]]\naddress = ['127.0.0.1:2525', '0.0.0.0:25']"
    host = FakeHost({"/f.toml": text}, root=True)
    with pytest.raises(ConfigError) as raised:
        load(Flags(config="/f.toml"), host=host)
    assert raised.value.faults == tuple(
        f"{key}: there is no account {name!r}, which /f.toml:2 needs; make it with: "
        f"useradd --system --user-group --no-create-home --shell /usr/sbin/nologin {name}"
        for key, name in (("user", "fastsmtp"), ("queue_user", "fastsmtpq"))
    )
    both = ("fastsmtp", "fastsmtpq")
    load(Flags(config="/f.toml"), host=FakeHost({"/f.toml": text}, root=True, accounts=both))
    # Without a queue nobody needs the second.
    direct = f"{text}\n[deliver]\nqueue = false"
    load(Flags(config="/f.toml"), host=FakeHost({"/f.toml": direct}, root=True, accounts=("fastsmtp",)))
    load(Flags(config="/f.toml"), host=FakeHost({"/f.toml": text}, root=False))


BOX = "[[accept]]\ndomain = ['example.org']\ndeliver = 'maildir:/m/{local}'\n"


@pytest.mark.parametrize(
    ("text", "root", "faults"),
    [
        (BOX + "user = 'joe'", True, []),
        (BOX + "user = 'joe'", False, ["/f.toml:4: accept.user: to become 'joe' the server must be started as root"]),
        (BOX + "user = 'ann'", True, ["/f.toml:4: accept.user: there is no account 'ann'"]),
        (BOX + "user = 'root'", True, ["/f.toml:4: accept.user: 'root' is root: mail is never delivered as root"]),
        (BOX + "user = 'a b'", True, ["/f.toml:4: accept.user: 'a b' must be letters, digits, _ . -"]),
        (BOX + "user = ''", False, []),
        (BOX + "user = 'joe'\nqueue = false", True, [
            "/f.toml:4: accept.user: needs the queue (queue = true): before the 250 nobody becomes another account"
        ]),
        ("[[accept]]\ndomain = ['example.org']\nuser = 'joe'\n[deliver]\ndefault = 'maildir:/m'", True, [
            "/f.toml:3: accept.user: is for a deliver of its own, maildir: or pipe:, not what the routes say"
        ]),
        ("[[route]]\nuser = 'joe'\ndeliver = 'mx'", True, [
            "/f.toml:2: route.user: is for a deliver of its own, maildir: or pipe:, not mx"
        ]),
        ("[[route]]\nuser = 'joe'\n[deliver]\ndefault = 'pipe:/bin/true'", True, []),
        ("[deliver]\ndefault = 'pipe:/bin/true'\nuser = 'joe'", True, []),
        ("[deliver]\ndefault = 'discard'\nuser = 'joe'", True, [
            "/f.toml:3: deliver.user: is for a deliver of its own, maildir: or pipe:, not discard"
        ]),
        ("[deliver]\ndefault = 'maildir:/m'\nuser = 'joe'\nqueue = false", True, [
            "/f.toml:3: deliver.user: needs the queue (queue = true): before the 250 nobody becomes another account"
        ]),
    ],
)  # fmt: skip
def test_who_delivers_as_somebody_else(text: str, root: bool, faults: list[str]) -> None:
    host = FakeHost(
        {"/f.toml": text, "/bin/true": b""},
        modes={"/bin/true": 0o755},
        root=root,
        accounts=("fastsmtp", "joe"),
    )
    if not faults:
        load(Flags(config="/f.toml"), host=host)
        return
    with pytest.raises(ConfigError) as raised:
        load(Flags(config="/f.toml"), host=host)
    assert list(raised.value.faults) == faults


def test_a_flag_s_destination_is_the_server_s_own_whoever_the_file_named() -> None:
    text = BOX + "user = 'joe'\n[deliver]\ndefault = 'maildir:/m'\nuser = 'joe'\n"
    loaded = load(Flags(config="/f.toml", deliver="discard"), host=FakeHost({"/f.toml": text}))
    assert {loaded.config.deliver.user, *(one.user for one in loaded.config.accept)} == {""}


def test_who_only_looks_into_a_configuration_need_not_be_root() -> None:
    loaded = load(Flags(config="/f.toml"), host=FakeHost({"/f.toml": BOX + "user = 'joe'"}), is_served=False)
    assert loaded.config.accept[0].user == "joe"


def test_who_only_looks_at_the_configuration_needs_no_right_to_read_keys() -> None:
    text = "[tls]\ncertificate = '/absent'\nkey = '/absent too'"
    load(Flags(config="/f.toml"), host=FakeHost({"/f.toml": text}), is_served=False)
    with pytest.raises(ConfigError):
        load(Flags(config="/f.toml"), host=FakeHost({"/f.toml": text}))
