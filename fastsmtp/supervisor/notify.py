"""Telling systemd: the sd_notify(3) protocol, a datagram to $NOTIFY_SOCKET."""

from __future__ import annotations

import socket
import time
from collections.abc import MutableMapping
from typing import Final

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"


class Notifier:
    """Sends states; without $NOTIFY_SOCKET, or when nobody listens there, it does nothing."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """The variable is removed: what we start has nothing to say to systemd."""
        path = environment.pop("NOTIFY_SOCKET", "")
        # "@" stands for the zero byte of the abstract namespace, unix(7).
        self._address = "\0" + path[1:] if path.startswith("@") else path

    def send(self, *states: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.connect(self._address)
                sock.send("\n".join(states).encode())
            except OSError:
                # Whoever waited for us has gone; serving goes on.
                return

    def reloading(self) -> None:
        """Type=notify-reload wants the moment with it, in microseconds of the monotonic clock."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def status(self, text: str) -> None:
        self.send(f"STATUS={text}")
