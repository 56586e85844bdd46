"""The page of a real server with a queue: what it counts of the journal, the queue and deliveries."""

from __future__ import annotations

import pytest

from tests.integration.daemon import Daemon
from tests.integration.test_metrics_served import address, send, shown

pytestmark = pytest.mark.slow

CONFIG = """
[metrics]
listen = "127.0.0.1:0"
[deliver]
queue = true
[[accept]]
domain = "away.example"
deliver = "smtp://127.0.0.1:1"
recipients = "any"
queue = true
"""


def test_the_queue_and_its_deliveries_are_on_the_page() -> None:
    delivered = 'fastsmtp_delivery_attempts_total{destination="maildir",outcome="delivered",said="2"}'
    with Daemon(CONFIG) as daemon:
        where = address(daemon)
        for _ in range(3):
            send(daemon.port, "joe@example.org")
        send(daemon.port, "joe@away.example")
        shown(where, delivered, 3)
        shown(where, "fastsmtp_queue_messages_total", 4)
        shown(where, 'fastsmtp_queue_indexed{state="deferred"}', 1)
        page = shown(where, 'fastsmtp_queue_pending{state="sent"}', 0)
        assert page['fastsmtp_queue_records_total{journal="mail"}'] == 4
        assert page['fastsmtp_queue_record_bytes_total{journal="mail"}'] > 400
        assert page['fastsmtp_queue_sync_seconds_count{journal="mail"}'] >= 1
        assert page['fastsmtp_queue_sync_seconds_sum{journal="mail"}'] > 0
        assert page['fastsmtp_queue_segments{state="written"}'] >= 1
        assert page['fastsmtp_queue_bytes{what="segments"}'] >= 2_097_152
        assert page["fastsmtp_queue_disk_free_bytes"] > 0
        assert 0 < page["fastsmtp_queue_start_seconds"] < 120
        assert page['fastsmtp_delivery_seconds_count{destination="maildir"}'] == 3
        assert page['fastsmtp_delivery_seconds_bucket{destination="maildir",le="259200.0"}'] == 3
        assert page['fastsmtp_delivery_connection_failures_total{reason="refused",source=""}'] >= 1
        deferred = [
            name
            for name in page
            if name.startswith("fastsmtp_delivery_attempts_total") and "deferred" in name
        ]
        assert [name for name in deferred if 'destination="smtp"' in name]
        assert not [name for name in page if "away.example" in name]
