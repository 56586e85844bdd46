from collections.abc import Iterable, Sequence

def spawn(
    path: bytes,
    arguments: Iterable[bytes],
    environment: Iterable[bytes],
    descriptors: Sequence[tuple[int, int]],
    directory: bytes | None = None,
) -> int:
    """Start the program at path, without a shell and without PATH; its process id.

    arguments    with argv[0]
    environment  b"NAME=value" each
    descriptors  (ours, the child's); each of ours is above 2 and above all of the child's.  Beside them the
                 child has 2
    directory    where the child starts; None: here

    Raises OSError for a fork that failed and for a program that can't be run alike.  The caller waits for the
    child: its process id is its process group's as well.
    """
