"""The payload of a message read into objects."""

from fastsmtp.queue.model import QueuedMessage

def decode(payload: bytes, start: int = 0) -> QueuedMessage:
    """The message whose payload begins at `start` and goes on to the end; its body is one chunk, or a reference.

    Raises errors.QueueTooNew for a later layout, errors.QueueDamaged for what is no message.
    """
