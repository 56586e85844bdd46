"""A whole message as the text of DATA; see _stuff.pyx."""

def text_of(message: bytes) -> bytes:
    """The text of DATA (RFC 5321 section 4.5.2), with the end of data; a last line without its end gets one.

    Raises ValueError for a bare CR or LF.
    """
