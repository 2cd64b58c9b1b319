"""Faults on the wire: a byte proxy in front of a real server, which spoils answers on request."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

Fault: TypeAlias = Literal["truncate", "flip", "503", "reset", "stall"]
_KEPT_BYTES = 700  # of a body, before it is cut or stalls; the flipped bit lies there as well
_BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_ANSWER_503 = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(
    _BUSY
)


class FaultProxy:
    """Forwards bytes to `target`; `spoil` makes it hurt the answers to requests that hold a text.

    num_faults: answers spoiled so far. requests: first lines of the requests seen.
    """

    def __init__(self, target: str) -> None:
        address = urlsplit(target)
        self._target = (address.hostname, address.port)
        self._fault: tuple[Fault, bytes, int] | None = None
        self.num_faults = 0
        self.requests: list[str] = []
        self.endpoint = ""

    def spoil(self, fault: Fault, text: str, times: int = 10**9) -> None:
        """Spoil the answers to the next `times` requests whose first line holds `text`."""
        self._fault = (fault, text.encode(), self.num_faults + times)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side ends it or a fault does."""
        with contextlib.suppress(OSError, asyncio.CancelledError):
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            pending: list[Fault] = []
            pumps = [
                asyncio.ensure_future(self._requests(reader, writer, server_writer, pending)),
                asyncio.ensure_future(self._answers(server_reader, writer, pending)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                server_writer.close()
                writer.close()

    def _take(self, data: bytes) -> Fault | None:
        line = data.split(b"\r\n", 1)[0]
        if not line.endswith(b"HTTP/1.1"):
            return None
        self.requests.append(line.decode())
        if self._fault is None or self._fault[1] not in line or self.num_faults >= self._fault[2]:
            return None
        self.num_faults += 1
        return self._fault[0]

    async def _requests(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
        pending: list[Fault],
    ) -> None:
        while data := await reader.read(1 << 16):
            fault = self._take(data)
            if fault == "503":
                writer.write(_ANSWER_503 + _BUSY)
                await writer.drain()
                continue
            if fault:
                pending.append(fault)
            server.write(data)
            await server.drain()

    async def _answers(
        self, server: asyncio.StreamReader, writer: asyncio.StreamWriter, pending: list[Fault]
    ) -> None:
        while data := await server.read(1 << 16):
            if pending:
                fault = pending.pop()
                place, data = await _cut(server, data)
                if fault != "flip":
                    writer.write(data[:place])
                    await writer.drain()
                    if fault == "stall":
                        await asyncio.Event().wait()
                    if fault == "reset":
                        linger = struct.pack("ii", 1, 0)
                        writer.get_extra_info("socket").setsockopt(
                            socket.SOL_SOCKET, socket.SO_LINGER, linger
                        )
                        writer.transport.abort()
                    return
                data = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
            writer.write(data)
            await writer.drain()


async def _cut(server: asyncio.StreamReader, data: bytes) -> tuple[int, bytes]:
    """Read on until enough of the answer is there; return where to spoil it, and what has been read."""
    while b"\r\n\r\n" not in data:
        data += await server.read(1 << 16)
    head, _, _ = data.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    size = int(length[1]) if length else 0
    if size <= _KEPT_BYTES:
        return len(head) // 2, data
    place = len(head) + 4 + _KEPT_BYTES
    while len(data) <= place:
        data += await server.read(1 << 16)
    return place, data


@contextlib.contextmanager
def running_proxy(target: str) -> Iterator[FaultProxy]:
    """Run a proxy to `target` in a thread; its address is `endpoint`."""
    proxy = FaultProxy(target)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy", daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(proxy.serve, "127.0.0.1", 0), loop).result(
        10
    )
    proxy.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(_end(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
