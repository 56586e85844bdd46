"""The plan that serves SMTP: what it tells the operator at start."""

from __future__ import annotations

import json
import pathlib

import pytest

from fastsmtp.certificate import make_certificate
from fastsmtp.config.load import load
from fastsmtp.supervisor.plan import ServerPlan


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
