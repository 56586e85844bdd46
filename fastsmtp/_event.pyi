"""The session's events and terms; _session.pyi describes them."""

from fastsmtp._session import Event as Event
from fastsmtp._session import Terms as Terms
