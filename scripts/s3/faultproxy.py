#!/usr/bin/env python3
"""A TCP proxy on loopback that injects faults between a client and a server. Python's standard library only.

Shows:  nothing by itself; the fault tests put it between larder and an S3 server.
Takes:  starts at once, runs until it is killed.
Needs:  Python 3.9 or newer.

  faultproxy.py LISTEN_PORT UPSTREAM_PORT ADMIN_PORT      a port 0 is chosen freely; the ports are printed as JSON

POST a JSON object to the admin port to set the faults (it replaces all of them), GET shows them and the counts. All optional:
  latency_ms, jitter_ms   delay before each forwarded piece, both directions
  rate_kib                bandwidth per connection and direction, KiB/s
  reset_up, reset_down    resets the connection after that many bytes to the server / to the client
  reset_pct               chance in % that a new connection is reset at once
  hang_down               swallows everything to the client after that many bytes, so that the client must time out
  corrupt_down            flips one bit of the byte at that offset to the client
  http503_pct             chance in % that the first request of a connection gets '503 SlowDown'
  lost_reply_pct          chance in % that a connection is reset when the first reply byte arrives: the request was executed!
  refuse                  true: closes every new connection
  seed                    seeds the random generator anew
"""

import asyncio
import json
import random
import socket
import struct
import sys

PIECE = 65536
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>injected</Message></Error>"




class Proxy:
    def __init__(self, upstream):
        self.upstream = upstream
        self.faults = {}
        self.counts = {"connections": 0, "resets": 0, "slow_downs": 0, "lost_replies": 0}
        self.random = random.Random(1)

    def happens(self, name):
        return self.random.random() * 100 < self.faults.get(name, 0)

    def reset(self, writer):
        """Closes with RST instead of FIN."""
        raw = writer.get_extra_info("socket")
        if raw is not None:
            try:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                pass
        writer.transport.abort()
        self.counts["resets"] += 1

    async def delay(self, length):
        f = self.faults
        if f.get("latency_ms") or f.get("jitter_ms"):
            await asyncio.sleep((f.get("latency_ms", 0) + self.random.random() * f.get("jitter_ms", 0)) / 1000)
        if f.get("rate_kib"):
            await asyncio.sleep(length / 1024 / f["rate_kib"])

    async def pump(self, reader, writer, client, down):
        """Forwards one direction until it ends; `writer` is the other side, `client` the client's side in both cases."""
        sent = 0
        lose_reply = down and self.happens("lost_reply_pct")
        try:
            while piece := await reader.read(PIECE):
                if lose_reply and not piece.startswith(b"HTTP/1.1 100"):
                    self.counts["lost_replies"] += 1
                    self.reset(client)
                    writer.transport.abort()
                    return
                await self.delay(len(piece))
                limit = self.faults.get("reset_down" if down else "reset_up")
                if limit is not None and sent + len(piece) > limit:
                    writer.write(piece[: max(0, limit - sent)])
                    await writer.drain()
                    self.reset(client)
                    writer.transport.abort()
                    return
                spot = self.faults.get("corrupt_down") if down else None
                if spot is not None and sent <= spot < sent + len(piece):
                    piece = bytearray(piece)
                    piece[spot - sent] ^= 1
                hang = self.faults.get("hang_down") if down else None
                if hang is not None and sent + len(piece) > hang:
                    writer.write(piece[: max(0, hang - sent)])
                    await writer.drain()
                    while await reader.read(PIECE):
                        pass
                    await asyncio.sleep(3600)
                sent += len(piece)
                writer.write(piece)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except (ConnectionError, asyncio.CancelledError):
            writer.transport.abort()

    async def slow_down(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        self.counts["slow_downs"] += 1
        remaining = content_length(head)
        if b"100-continue" not in head.lower():
            while remaining > 0:
                piece = await reader.read(min(remaining, PIECE))
                if not piece:
                    break
                remaining -= len(piece)
        writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
                     b"Content-Length: %d\r\n\r\n" % len(SLOW_DOWN) + SLOW_DOWN)
        await writer.drain()
        writer.close()

    async def connection(self, reader, writer):
        self.counts["connections"] += 1
        if self.faults.get("refuse") or self.happens("reset_pct"):
            return self.reset(writer)
        if self.happens("http503_pct"):
            return await self.slow_down(reader, writer)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            return self.reset(writer)
        for side in (writer, up_writer):
            side.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(self.pump(reader, up_writer, writer, False), self.pump(up_reader, writer, writer, True))
        writer.close()
        up_writer.close()

    async def admin(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            self.faults = json.loads(await reader.readexactly(content_length(head)) or b"{}")
            if "seed" in self.faults:
                self.random.seed(self.faults["seed"])
        body = json.dumps({"faults": self.faults, "stats": self.counts}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()


def content_length(head):
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


async def main():
    listen, upstream, admin = map(int, sys.argv[1:4])
    proxy = Proxy(upstream)
    traffic = await asyncio.start_server(proxy.connection, "127.0.0.1", listen, limit=1 << 20)
    control = await asyncio.start_server(proxy.admin, "127.0.0.1", admin)
    print(json.dumps({"port": traffic.sockets[0].getsockname()[1], "admin": control.sockets[0].getsockname()[1]}), flush=True)
    async with traffic, control:
        await asyncio.gather(traffic.serve_forever(), control.serve_forever())


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    asyncio.run(main())
