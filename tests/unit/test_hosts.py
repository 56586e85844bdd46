"""Host names of the configuration: literals at once, the hosts file, and the three ways to fail."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fastsmtp.errors import HostUnknown, TemporaryError
from fastsmtp.resolver import Hosts


class OneAnswer(asyncio.DatagramProtocol):
    """A name server that answers every question with one rcode, or with 192.0.2.7 to A."""

    def __init__(self, rcode: int | None) -> None:
        self.rcode = rcode

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self.rcode is None:
            return
        name_end = data.index(b"\0", 12)
        question = data[12 : name_end + 5]
        is_a = data[name_end + 1 : name_end + 3] == b"\0\1"
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\7" if is_a and not self.rcode else b""
        header = (
            data[:2] + bytes((0x81, 0x80 | self.rcode)) + bytes((0, 1, 0, 1 if answer else 0, 0, 0, 0, 0))
        )
        self.transport.sendto(header + question + answer, addr)


@asynccontextmanager
async def hosts(rcode: int | None = 0) -> AsyncIterator[Hosts]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: OneAnswer(rcode), local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("socket").getsockname()[1]
    it = Hosts((f"127.0.0.1:{port}",))
    try:
        yield it
    finally:
        it.close()
        transport.close()


@pytest.mark.parametrize("literal", ["127.0.0.1", "::1", "fe80::1%lo", "2001:db8::25"])
def test_an_address_is_its_own_answer_and_makes_no_channel(literal: str) -> None:
    async def main() -> None:
        it = Hosts()
        assert await it.addresses(literal) == (literal,)
        it.close()

    asyncio.run(main())


def test_a_name_is_resolved() -> None:
    async def main() -> None:
        async with hosts() as it:
            assert await it.addresses("mail.example.org.") == ("192.0.2.7",)
            both = await asyncio.gather(it.addresses("a.example.org."), it.addresses("b.example.org."))
            assert list(both) == [("192.0.2.7",)] * 2

    asyncio.run(main())


def test_the_hosts_file_answers_first() -> None:
    async def main() -> None:
        async with hosts(rcode=3) as it:
            assert set(await it.addresses("localhost")) <= {"127.0.0.1", "::1"}

    asyncio.run(main())


@pytest.mark.parametrize(("rcode", "error"), [(3, HostUnknown), (2, TemporaryError), (5, TemporaryError)])
def test_a_refusal_says_whether_to_try_again(rcode: int, error: type[Exception]) -> None:
    async def main() -> None:
        async with hosts(rcode) as it:
            with pytest.raises(error) as caught:
                await it.addresses("nowhere.example.org.")
            assert type(caught.value) is error

    asyncio.run(main())


def test_silence_is_a_temporary_error_after_the_time_that_was_given() -> None:
    async def main() -> None:
        async with hosts(rcode=None) as it:
            with pytest.raises(TemporaryError, match="no answer in"):
                await it.addresses("silent.example.org.", timeout_s=0.1)

    asyncio.run(main())


def test_a_closed_one_answers_no_more() -> None:
    async def main() -> None:
        it = Hosts()
        it.close()
        with pytest.raises(TemporaryError):
            await it.addresses("mail.example.org.")

    asyncio.run(main())


def test_no_loop_descriptor_outlives_it() -> None:
    async def main() -> None:
        async with hosts(rcode=None) as it:
            question = asyncio.ensure_future(it.addresses("silent.example.org.", timeout_s=30.0))
            await asyncio.sleep(0)
            it.close()
            with pytest.raises(TemporaryError):
                await question
        with socket.socket() as probe:
            assert probe.fileno() > 0

    asyncio.run(main())
