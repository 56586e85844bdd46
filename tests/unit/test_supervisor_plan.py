"""The plan that serves SMTP: what it tells the operator at start."""

from __future__ import annotations

import json
import pathlib

import pytest

from fastsmtp.certificate import make_certificate
from fastsmtp.config.load import load
from fastsmtp.errors import ConfigError
from fastsmtp.supervisor.plan import ServerPlan
from tests.pki import Authority


@pytest.mark.parametrize(
    ("days", "reason"), [(400.0, None), (14.5, None), (10.5, "ends in 10 days"), (0.5, "ends in 0 days")]
)
def test_a_certificate_that_ends_soon_is_told(
    tmp_path: pathlib.Path, days: float, reason: str | None
) -> None:
    certificate, key = make_certificate(["mx.example"], days=days)
    paths = {"certificate": tmp_path / "cert.pem", "key": tmp_path / "key.pem"}
    paths["certificate"].write_bytes(certificate)
    paths["key"].write_bytes(key)
    paths["key"].chmod(0o600)
    values = {
        "hostname": "mx.example",
        "state": str(tmp_path / "state"),
        "accept": [{"domain": ["*"], "deliver": "discard"}],
        "tls": {name: str(path) for name, path in paths.items()},
        "log": {"to": str(tmp_path / "log"), "format": "json"},
    }
    plan = ServerPlan(load(values=values))
    plan.log.close()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    told = [line["reason"] for line in lines if line["event"] == "cert_expires"]
    assert told == ([] if reason is None else [reason])


def test_authorities_are_watched_and_a_renewal_needs_no_file(tmp_path: pathlib.Path) -> None:
    """Each day the contexts are made anew from what is in force, whatever has become of the files."""
    ours, theirs = Authority("Our CA"), Authority("Their CA")
    ca, crl = tmp_path / "ca.pem", tmp_path / "crl.pem"
    ca.write_bytes(ours.pem)
    crl.write_bytes(ours.revoke(days=(-1, 3.5)))
    values = {
        "hostname": "mx.example",
        "state": str(tmp_path / "state"),
        "accept": [{"domain": ["*"], "deliver": "discard"}],
        "relay": {"certificates": ["joe@example.org"]},
        "tls": {"client_ca": str(ca), "client_crl": str(crl)},
        "log": {"to": str(tmp_path / "log"), "format": "json"},
    }
    plan = ServerPlan(load(values=values))
    assert {str(ca), str(crl)} <= set(plan.watched)
    assert plan.kind(str(crl)) == "cert"
    (tls,) = plan.tls_of_listeners()
    assert tls is not None and tls.asking is not None
    with pytest.raises(ConfigError, match="holds no certificate"):
        plan.check({str(ca): b"nothing"})
    fresh = {str(ca): theirs.pem, str(crl): theirs.revoke()}
    plan.check(fresh)
    before = tls.asking
    assert plan.replace(fresh)
    assert tls.asking is not before
    ca.write_bytes(b"broken")
    crl.unlink()
    renewed = plan.renew()
    (tls,) = renewed.tls_of_listeners()
    assert tls is not None and tls.asking is not None
    plan.log.close()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    told = [line["reason"] for line in lines if line["event"] == "authority_warning"]
    assert told == ["line 1: the list of CN=Our CA ends in 3 days"]


def test_without_grants_nobody_is_asked(tmp_path: pathlib.Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(Authority("Our CA").pem)
    values = {
        "hostname": "mx.example",
        "state": str(tmp_path / "state"),
        "accept": [{"domain": ["*"], "deliver": "discard"}],
        "tls": {"client_ca": str(ca)},
        "log": {"to": str(tmp_path / "log")},
    }
    plan = ServerPlan(load(values=values))
    (tls,) = plan.tls_of_listeners()
    assert tls is not None and tls.asking is None
    plan.log.close()
