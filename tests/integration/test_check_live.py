"""`fastsmtp check --live`: sources and next hops, as the program says them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fastsmtp.config.routes import Source
from fastsmtp.delivery.preflight import look_at_next_hops
from tests.authority import Authority, server_context
from tests.conftest import needs
from tests.delivering import make, route
from tests.fakes.real_dns import authority
from tests.integration.smtp_sink import SmtpSink
from tests.integration.test_deliverer import scenario
from tests.nexthop import NextHop
from tests.ports import free_port


def test_next_hops_are_connected_to_as_mail_would(tmp_path: Path) -> None:
    signer = Authority(tmp_path)
    plain, safe = NextHop(), NextHop(tls=server_context(signer.sign("127.0.0.1")))
    busy = NextHop(answers={b"": b"421 4.3.2 Busy"})
    deliverer = make()

    @scenario(deliverer, plain, safe, busy)
    async def _() -> None:
        routes = [
            route(plain.dest),
            route(plain.dest),
            route(plain.dest, Source("two", "127.0.0.2"), Source("gone", "192.0.2.99")),
            route(plain.dest, tls="required"),
            route(safe.dest, tls="verified", ca=str(signer.file)),
            route(busy.dest),
            route(f"smtp://127.0.0.1:{free_port()}"),
            route("mx"),
            route("discard"),
        ]
        findings = await look_at_next_hops(routes, deliverer)
        said = [(finding.fault, finding.praise) for finding in findings]
        assert [not fault for fault, _ in said] == [True, True, False, False, True, False, False]
        assert "Cannot assign" in said[2][0]
        assert said[3][0] == "does not offer STARTTLS"
        assert said[4][1] == "answers over TLSv1.3, verified"
        assert "421" in said[5][0]
        assert plain.peers[:2] == ["127.0.0.1", "127.0.0.2"]
        assert all(b"MAIL" not in hop.verbs for hop in (plain, safe, busy))


@needs("smtp-sink", "nsd")
def test_check_live_names_each_source_and_each_next_hop(tmp_path: Path) -> None:
    sink = SmtpSink()
    config = tmp_path / "fastsmtp.toml"
    config.write_text(
        'hostname = "mx1.dns.test"\nuser = "nobody"\n'
        f'[deliver]\ndefault = "{sink.dest}"\n'
        '[[source]]\nname = "out"\nipv4 = "127.0.0.2"\nhelo = "out.dns.test"\n'
        f'[[route]]\nsender = "@a.example"\nsources = {{ out = 1 }}\ndeliver = "{sink.dest}"\n'
        f'[[route]]\ndestination = "b.example"\ndeliver = "smtp://127.0.0.1:{free_port()}"\n'
    )
    try:
        with authority(tmp_path, "out A 127.0.0.2\n") as nsd:
            command = [
                sys.executable,
                "-m",
                "fastsmtp",
                "check",
                "--live",
                "--config",
                str(config),
                "--dns",
                nsd.where,
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        sink.stop()
    assert done.returncode == 1, done
    lines = done.stdout.splitlines()
    assert lines[0] == "no lists to ask"
    assert lines[1].startswith("source out, 127.0.0.2: its reverse name can't be looked up")
    assert f"{sink.dest}, [127.0.0.1] from out: answers" in lines
    assert f"{sink.dest}, [127.0.0.1]: answers" in lines
    assert any(line.endswith("Connection refused") for line in lines), lines


def test_check_loads_what_routes_are_verified_against(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    config = tmp_path / "fastsmtp.toml"
    config.write_text(f'[[route]]\ndeliver = "mx"\ntls = "verified"\nca = "{tmp_path}/ca.pem"\n')
    command = [sys.executable, "-m", "fastsmtp", "check", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"{tmp_path}/ca.pem: " in done.stderr
