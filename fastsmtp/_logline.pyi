"""The quick half of log_format.Logfmt; see there."""

def plain_line(
    stamp: bytes, event: bytes, shape: tuple[tuple[bytes, str], ...], fields: dict[str, object]
) -> bytes | None:
    """stamp + event + each prefix with the value of its key, or None when a value can't be written simply.

    shape   ((b" helo=", "helo"), ...): what stands before the value, and its key in fields
    fields  values that are written simply: bytes and str of up to 1,024 printable ASCII characters but quote and
            backslash, bool, and int from 0 to 2**63 - 1; None leaves its field out
    """
