"""nsd as an authority and unbound as a resolver in front of it, unprivileged, on ports of 127.0.0.1.

    with authority(tmp_path) as nsd, recursor(tmp_path, nsd) as unbound:
        Resolver([unbound.where])

The zone is ZONE below, served as dns.test.; lame.test. is delegated to nsd, which does not serve it.
"""

from __future__ import annotations

import contextlib
import pathlib
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.peers import path
from tests.ports import free_port

TXT_LINE = " ".join(f'"{"abcdefghij" * 24}"' for _ in range(3))
ZONE = f"""\
$ORIGIN dns.test.
$TTL 300
@        SOA  ns hostmaster 1 3600 600 86400 60
@        NS   ns
ns       A    127.0.0.1
@        MX   10 mx1
@        MX   20 MX2.dns.test.
@        TXT  "v=spf1 " "-all"
mx1      A    192.0.2.1
mx1      AAAA 2001:db8::1
mx2      A    192.0.2.2
null     MX   0 .
alias    CNAME mx1
chain    CNAME alias
dangling CNAME nowhere
1.2.0    PTR  host.example.net.
_25._tcp.mx1 TLSA 3 1 1 {"ab" * 32}
_submission._tcp SRV 0 1 587 mx1
raw      TYPE65280 \\# 4 01020304
caa      CAA  0 issue "ca.example"
b512     TXT  "{"x" * 200}" "{"y" * 250}" "{"z" * 100}"
b1232    TXT  {TXT_LINE}
b1232    TXT  {TXT_LINE.replace("abc", "xyz")}
b4096    TXT  {TXT_LINE}
"""
ZONE += "".join(f'b4096 TXT "{i}" {TXT_LINE}\n' for i in range(6))
ZONE += "".join(f'b50000 TXT "{i}" {TXT_LINE}\n' for i in range(66))


# How long unbound waits for nsd before it asks again.  On loopback nothing is lost; but where every core is busy nsd
# may be late, and by its own measure (376 ms for a server that it doesn't know) unbound gives up on it: SERVFAIL.
PATIENCE_MS = 2_000


@dataclass(frozen=True)
class Running:
    port: int
    process: subprocess.Popen[bytes]

    @property
    def where(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextlib.contextmanager
def running(command: list[str], port: int, log: pathlib.Path) -> Iterator[Running]:
    """Start a daemon in the foreground; ready when it takes TCP connections."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            limit = time.monotonic() + 30.0
            while True:
                if process.poll() is not None or time.monotonic() > limit:
                    raise RuntimeError(f"{command[0]} did not start: {log.read_text()}")
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield Running(port, process)
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def authority(folder: pathlib.Path, more: str = "") -> Iterator[Running]:
    """nsd with ZONE, and more records of the test's own below dns.test."""
    port = free_port()
    (folder / "dns.test.zone").write_text(ZONE + more)
    config = folder / "nsd.conf"
    config.write_text(f"""\
server:
  ip-address: 127.0.0.1@{port}
  username: ""
  chroot: ""
  zonesdir: "{folder}"
  pidfile: "{folder}/nsd.pid"
  zonelistfile: "{folder}/zone.list"
  xfrdfile: "{folder}/xfrd.state"
  xfrdir: "{folder}"
  database: ""
  server-count: 1
  ipv4-edns-size: 4096
  rrl-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: "dns.test."
  zonefile: "dns.test.zone"
""")
    with running([path("nsd"), "-d", "-c", str(config)], port, folder / "nsd.log") as server:
        yield server


@contextlib.contextmanager
def recursor(folder: pathlib.Path, nsd: Running) -> Iterator[Running]:
    port = free_port()
    config = folder / "unbound.conf"
    config.write_text(f"""\
server:
  interface: 127.0.0.1
  port: {port}
  username: ""
  chroot: ""
  directory: "{folder}"
  pidfile: ""
  use-syslog: no
  num-threads: 1
  do-daemonize: no
  do-not-query-localhost: no
  module-config: "iterator"
  qname-minimisation: no
  access-control: 127.0.0.0/8 allow
  local-zone: "test." nodefault
  local-zone: "refused.invalid." refuse
  hide-identity: yes
  so-rcvbuf: 0
  unknown-server-time-limit: {PATIENCE_MS}
  infra-cache-min-rtt: {PATIENCE_MS}
stub-zone:
  name: "dns.test."
  stub-addr: 127.0.0.1@{nsd.port}
stub-zone:
  name: "lame.test."
  stub-addr: 127.0.0.1@{nsd.port}
remote-control:
  control-enable: no
""")
    with running([path("unbound"), "-d", "-c", str(config)], port, folder / "unbound.log") as server:
        yield server
