"""The quick half of log_format.Logfmt; see there."""

def bare_line(
    stamp: bytes, event: bytes, shape: tuple[tuple[bytes, str], ...], fields: dict[str, object]
) -> bytes | None:
    """stamp + event + each prefix with the value of its key, or None when a value can't stand bare.

    shape   ((b" helo=", "helo"), ...): what stands before the value, and its key in fields
    fields  values that can stand bare: bytes and str of up to 1,024 printable ASCII characters but space, quote,
            equals sign and backslash, bool, and int from 0 to 2**63 - 1; None leaves its field out
    """
