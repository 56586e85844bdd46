"""What is said to a next hop; see _stuff.pyx."""

def text_of(message: bytes) -> bytes:
    """The text of DATA (RFC 5321 section 4.5.2), with the end of data; a last line without its end gets one.

    Raises ValueError for a bare CR or LF.
    """

def command_of(words: list[bytes]) -> bytes:
    """A command line: the words with a space between them, CR LF behind.

    Raises ValueError for a CR, LF or NUL inside: behind it could stand a command of our client's.
    """
