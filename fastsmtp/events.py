"""Every event that is logged and every field that it may carry: the contract behind docs/logs.md.

An event or a field that is not in here does not exist: ListLog, the log of the
tests, refuses it.  `python -m fastsmtp.events docs/logs.md` writes the tables
of the page anew, and a test compares.  Names are never given a second meaning;
fields may be added.

Rank 0: imports nothing of ours.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

# RFC 5424 section 6.2.1 severities; they only matter where lines go to syslog.
ERROR = 3
WARNING = 4
NOTICE = 5
INFO = 6
SEVERITY_NAMES = {ERROR: "error", WARNING: "warning", NOTICE: "notice", INFO: "info"}

# In the order in which fields stand in a line, whatever the order of the caller: what filters look
# for (event, id, client) comes before everything that a peer can choose.
FIELDS: dict[str, str] = {
    "id": "session id, as at the end of each 4xx and 5xx reply; in the queue with the message's number, as in Received",
    "client": "IP address of the client, without port; after PROXY or XCLIENT the address that these gave",
    "listener": "`name` of the `[[listen]]`",
    "address": "address and port that we listen on",
    "worker": "number of the worker, from 0",
    "pid": "process id",
    "stage": "stage of policy that decided",
    "code": "reply code that the client got",
    "enhanced": "enhanced status code of that reply (RFC 3463)",
    "reason": "why, one word or a short sentence of ours",
    "helo": "name that the client gave in HELO or EHLO",
    "name": "reverse name of the client that leads back to its address",
    "from": "reverse path without brackets, empty for the null path",
    "rcpt": "forward path without brackets; of an accepted message, all recipients",
    "rcpts": "number of recipients",
    "deliver": "DEST that took the message",
    "size": "bytes of the body",
    "hops": "Received headers that the message came with",
    "commands": "command lines in the session",
    "bytes_in": "bytes read from the client",
    "tls": "protocol version, for instance TLSv1.3; off without TLS",
    "cipher": "cipher, by OpenSSL's name",
    "server_name": "server name that the client asked for (SNI)",
    "is_resumed": "the TLS session was resumed",
    "cert": "SHA-256 fingerprint of the certificate that the client has shown",
    "cert_fault": "why that certificate does not hold",
    "relay_cert": "what of the client's certificate may relay: an e-mail address, or its fingerprint",
    "rule": "file and line of a tcpserver rule; of a cdb the file alone",
    "limit": "configuration key of the limit",
    "allowed": "value of the limit",
    "found": "value that was found",
    "healed": "how many of the stranded recipients have a next event again",
    "took_ms": "milliseconds since the session, the message, or what the event is about, began",
    "file": "path of a file",
    "signal": "signal that ended a process",
    "status": "exit status of a process",
    "delay_s": "seconds until the next attempt, or until the reply",
    "workers": "number of workers",
    "lines": "number of log lines",
    "version": "version of fastsmtp",
    "score": "sum of the scores of policy",
    "remote": "server that mail was or is to be handed to: its name and [address], or its socket",
    "source": "`name` of the `[[source]]` that we send from",
    "said": "what the server answered",
    "attempt": "attempts so far, this one included",
    "about": "id of the message that a report is about",
    "segments": "segments of the queue",
    "pending": "recipients that are due now",
    "deferred": "recipients that wait for a later attempt",
    "offset": "where in the file, in bytes",
    "quarantine": "path of the copy",
    "what": "what was meant: a file, a list, an address, a sub-system",
    "trace": "last frames of a defect's traceback",
}


class Event(NamedTuple):
    """What one event means, how grave it is, and the fields that it may carry, in any combination."""

    severity: int
    text: str
    fields: tuple[str, ...]


# Of a refusal, and of an attempt to deliver; what one of them may say, all may.
_REFUSED = (
    "id", "client", "listener", "stage", "code", "enhanced", "reason", "helo", "name", "from", "rcpt", "score",
)  # fmt: skip
_ATTEMPT = ("id", "from", "rcpt", "deliver", "remote", "source", "tls", "cipher", "attempt", "took_ms")
_SLOW = ("id", "client", "listener", "code", "enhanced", "helo", "limit")
_ENDED = ("pid", "reason", "took_ms", "signal", "status", "delay_s")

EVENTS: dict[str, Event] = {
    # Mail.
    "message": Event(
        INFO,
        "A message was accepted: 250 was sent",
        (
            "id",
            "client",
            "listener",
            "code",
            "helo",
            "name",
            "from",
            "rcpt",
            "rcpts",
            "size",
            "hops",
            "tls",
            "relay_cert",
            "took_ms",
            "score",
        ),
    ),
    "reject": Event(
        NOTICE,
        "Policy or the next hop said 5xx: to the client, a sender, a recipient or a message",
        _REFUSED,
    ),
    "defer": Event(
        NOTICE,
        "Policy, the next hop or a trouble of ours said 4xx",
        _REFUSED,
    ),
    "observe": Event(
        INFO,
        "A rule in mode observe would have refused, or begun to answer slowly",
        (*_REFUSED, "delay_s"),
    ),
    "held_back": Event(
        INFO,
        "A reply waits (a tarpit, or a Delay of a rule of your own); told once a message",
        ("id", "client", "listener", "helo", "name", "from", "rcpt", "rcpts", "delay_s"),
    ),
    "delivered": Event(
        INFO,
        "A recipient's mail was taken by the next hop, or is in its mailbox",
        (*_ATTEMPT, "said", "size"),
    ),
    "deferred": Event(
        NOTICE,
        "A recipient's mail could not be delivered for now; it is tried again",
        (*_ATTEMPT, "code", "enhanced", "reason", "delay_s"),
    ),
    "bounced": Event(
        NOTICE,
        "A recipient's mail can't be delivered; its sender is told, if there is one",
        (*_ATTEMPT, "code", "enhanced", "reason"),
    ),
    "report": Event(
        INFO,
        "A report about a message (a bounce, a warning of delay) was written for its sender, or can go nowhere",
        ("id", "about", "rcpt", "reason"),
    ),
    # The queue.
    "queue_reading": Event(
        NOTICE,
        "There is much in the queue: mail is taken while it is read, and nothing is delivered until queue_open",
        ("size",),
    ),
    "queue_open": Event(
        NOTICE,
        "The queue was read: so many recipients are due now, so many wait for a later attempt",
        ("segments", "pending", "deferred", "took_ms"),
    ),
    "queue_damaged": Event(
        ERROR,
        "Accepted mail can't be read; what is left of it was copied to quarantine",
        ("file", "offset", "size", "id", "rcpt", "reason", "quarantine"),
    ),
    "queue_torn": Event(
        NOTICE,
        "A crash tore a message that nobody had been told was accepted",
        ("file", "offset", "size", "reason", "quarantine"),
    ),
    "operator": Event(
        NOTICE,
        "The operator changed mail in the queue (`fastsmtp queue`): what was done, to which, to how many recipients",
        ("pid", "what", "found", "reason"),
    ),
    "clock_set_back": Event(
        NOTICE,
        "The wall clock was set back: attempts that would have been far away are made sooner",
        ("found",),
    ),
    "stranded": Event(
        ERROR,
        "A defect of ours: recipients in the queue had no next event; so many have one again (healed), "
        "the others get one with the next start",
        ("found", "healed", "file", "reason"),
    ),
    "queue_failed": Event(
        ERROR, "The disk refuses something that the queue needs; it is tried again", ("reason",)
    ),
    "queue_full": Event(
        ERROR, "Less room than queue.free_bytes: clients get 452 at MAIL until there is more", ("limit",)
    ),
    "queue_full_end": Event(NOTICE, "There is room again, and mail is taken", ("limit",)),
    "queue_caller_refused": Event(
        ERROR,
        "A process that may not, or doesn't speak as ours do, called the queue's owner",
        ("pid", "reason"),
    ),
    "lspawn_refused": Event(
        ERROR,
        "A process that may not, or an errand that isn't one of the configuration's, came to the process that "
        "delivers as other accounts",
        ("pid", "reason"),
    ),
    "lspawn_failed": Event(
        WARNING,
        "A process that delivered as another account died, or hung and was killed; the mail is tried again",
        ("what", "pid", "reason"),
    ),
    # Other servers.
    "source_failed": Event(
        WARNING,
        "An address that we send from could not be bound; it is left alone for a while",
        ("source", "reason", "delay_s"),
    ),
    "source_restored": Event(NOTICE, "An address that we send from works again", ("source",)),
    "site_paused": Event(
        NOTICE,
        "No server of a destination can be reached, or all is put off there; nothing is tried for a while",
        ("reason", "delay_s", "what"),
    ),
    "site_resumed": Event(NOTICE, "A destination takes mail again", ("what",)),
    "next_hop_out_of_step": Event(
        NOTICE,
        "A server lost or refused commands that came behind the end of a message; for a while it gets none there",
        ("remote", "reason", "delay_s"),
    ),
    "next_hop_tls_failed": Event(
        NOTICE,
        "TLS with a server failed; mail goes to it in clear for a while, or waits",
        ("remote", "reason", "what"),
    ),
    # DNS lists.
    "list_quarantined": Event(
        WARNING,
        "A DNS list fails, is silent or answers everything; it is not asked until a test succeeds",
        ("worker", "reason", "found", "took_ms", "what"),
    ),
    "list_restored": Event(
        NOTICE,
        "A DNS list does its work again",
        ("worker", "took_ms", "what"),
    ),
    "list_tested": Event(
        INFO,
        "A DNS list passed its hourly test: how many clients it named since the last one, how fast it answered",
        ("worker", "found", "took_ms", "what"),
    ),
    # p0f.
    "fingerprints_down": Event(
        WARNING,
        "p0f can't be asked; nothing is known of clients' systems until it answers again",
        ("what", "reason"),
    ),
    "fingerprints_up": Event(NOTICE, "p0f answers again", ("what",)),
    # What clients do wrong.
    "violation": Event(
        NOTICE,
        "The client broke the protocol; after a fatal violation the connection is closed",
        ("id", "client", "listener", "code", "enhanced", "reason", "helo"),
    ),
    "timeout": Event(
        INFO,
        "The client was silent for too long and got 421",
        _SLOW,
    ),
    "too_slow": Event(
        NOTICE,
        "The client sent a message more slowly than limits.minimum_bytes_per_s and got 421",
        _SLOW,
    ),
    "proxy_refused": Event(
        NOTICE,
        "A PROXY header was missing, broken, or came from an address that may not send one",
        ("id", "client", "reason"),
    ),
    "rule_denied": Event(
        NOTICE,
        "A rule of tcpserver denies the client: the connection was closed without a word",
        ("id", "client", "listener", "name", "rule"),
    ),
    # The course of a session.
    "disconnect": Event(
        INFO,
        "A session ended",
        ("id", "client", "listener", "helo", "commands", "bytes_in"),
    ),
    "tls": Event(
        INFO,
        "A TLS handshake succeeded",
        ("id", "client", "listener", "tls", "cipher", "server_name", "is_resumed", "cert", "cert_fault"),
    ),
    "tls_failed": Event(
        NOTICE,
        "A TLS handshake failed; the connection is closed",
        ("id", "client", "listener", "reason"),
    ),
    "xclient": Event(
        INFO,
        "A trusted client named another with XCLIENT",
        ("id", "client", "listener", "found", "what"),
    ),
    # Trouble of ours.
    "defect": Event(
        ERROR,
        "An error of the program; the client got 451 4.3.0. Please report it",
        ("id", "client", "listener", "stage", "code", "enhanced", "reason", "what", "trace"),
    ),
    "sink_failed": Event(
        ERROR,
        "A message could not be handed over or stored",
        ("id", "client", "listener", "code", "enhanced", "reason", "deliver", "what"),
    ),
    "delegation_failed": Event(
        WARNING,
        "A request of Postfix's policy delegation was none, or could not be answered; the connection was closed",
        ("client", "reason"),
    ),
    "overload": Event(
        WARNING,
        "New clients get 421, or the listener pauses: connections, memory or open files are used up",
        ("limit", "allowed", "found"),
    ),
    "overload_end": Event(INFO, "The overload is over", ("limit", "found")),
    "log_dropped": Event(
        WARNING, "So many lines were lost here, because nobody took them fast enough", ("lines",)
    ),
    # The server.
    "start": Event(NOTICE, "The server starts", ("version", "pid", "workers")),
    "listening": Event(NOTICE, "A socket is bound and open", ("listener", "address")),
    "ready": Event(
        NOTICE,
        "Every worker accepts connections",
        ("took_ms", "workers"),
    ),
    "notice": Event(
        NOTICE,
        "Something that the operator should know of the configuration",
        ("reason", "what"),
    ),
    "stop": Event(NOTICE, "The server ends", ("pid", "signal")),
    "worker_start": Event(
        INFO,
        "A worker was started",
        ("worker", "pid", "reason"),
    ),
    "worker_ready": Event(
        INFO,
        "A worker accepts connections",
        ("worker", "pid", "took_ms"),
    ),
    "worker_exit": Event(
        WARNING,
        "A worker ended",
        ("worker", *_ENDED),
    ),
    "worker_stalled": Event(
        ERROR,
        "A worker gave no sign of life and was killed",
        ("worker", "pid", "took_ms", "signal"),
    ),
    "aside_start": Event(INFO, "A process beside the workers was started", ("what", "pid")),
    "aside_ready": Event(INFO, "A process beside the workers does its work", ("what", "pid", "took_ms")),
    "aside_exit": Event(
        WARNING,
        "A process beside the workers ended, or could not be started",
        ("what", *_ENDED),
    ),
    "aside_stalled": Event(
        ERROR,
        "A process beside the workers gave no sign of life and was killed",
        ("what", "pid", "took_ms", "signal"),
    ),
    "drain": Event(
        INFO,
        "A worker takes no more connections and ends what is open; or so does a process beside them",
        ("worker", "what", "pid", "reason", "found"),
    ),
    "configuration_changed": Event(
        NOTICE,
        "A file of a qmail home that is part of the configuration changed, came or went: a reload follows",
        ("file",),
    ),
    "reload": Event(NOTICE, "A new configuration is in force", ("workers", "reason", "took_ms")),
    "reload_refused": Event(
        ERROR, "The new configuration has faults; the old one stays in force", ("reason",)
    ),
    "cert_reloaded": Event(NOTICE, "A new certificate is in use", ("file",)),
    "cert_refused": Event(
        ERROR,
        "A new certificate or key is not usable; the old one stays in use",
        ("file", "reason"),
    ),
    "cert_expires": Event(
        WARNING, "A certificate ends soon, or has ended", ("file", "server_name", "reason")
    ),
    "authority_warning": Event(
        WARNING,
        "An authority of client certificates, or a revocation list, grants nothing, or soon no more",
        ("file", "reason"),
    ),
    "lists_reloaded": Event(INFO, "A list was read anew", ("file",)),
    "lists_refused": Event(
        ERROR, "A changed list has faults; the old one stays in use", ("file", "what", "reason")
    ),
}

BEGIN = "<!-- generated by python -m fastsmtp.events: begin -->"
END = "<!-- generated by python -m fastsmtp.events: end -->"


def tables() -> str:
    """Both tables as Markdown."""
    lines = ["## Events", "", "| event | severity | when | fields |", "|---|---|---|---|"]
    for name, event in EVENTS.items():
        ordered = [field for field in FIELDS if field in event.fields]
        fields = " ".join(f"`{field}`" for field in ordered)
        lines.append(f"| `{name}` | {SEVERITY_NAMES[event.severity]} | {event.text} | {fields} |")
    lines += [
        "",
        "## Fields, in the order in which they stand in a line",
        "",
        "| field | what |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {text} |" for name, text in FIELDS.items()]
    return "\n".join(lines)


def renewed(page: str) -> str:
    """The page with the tables between its two marks replaced.  Raises ValueError when it lacks a mark."""
    return put_between(page, BEGIN, END, tables())


def put_between(page: str, begin: str, end: str, text: str) -> str:
    """The page with this text between its two marks.  Raises ValueError when it lacks a mark."""
    head, has_begin, rest = page.partition(begin)
    _, has_end, tail = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError("the page lacks the two marks between which the text stands")
    return f"{head}{begin}\n\n{text}\n\n{end}{tail}"


if __name__ == "__main__":
    from pathlib import Path

    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
