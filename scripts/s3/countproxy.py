#!/usr/bin/env python3
"""An HTTP/1.1 proxy on loopback that counts: one line of JSON per request. Python's standard library only.

Shows:  how many requests a run makes, of which kind, and how many bytes travel, seen from outside of larder.
Takes:  starts at once, runs until it is killed.
Needs:  Python 3.9 or newer.

  countproxy.py --upstream PORT --log FILE [--listen PORT] [--delay MS]    prints the port that it listens on
  countproxy.py --sum FILE [--from BYTE]                      sums a log up, from a byte offset on, as one JSON object

With a delay, each reply begins so many milliseconds late, as if the server were that far away (what a connection costs to set up is not delayed).
The request goes on unchanged, with its Host header, so that signatures stay right. A line:
  {"method", "path", "query", "status", "up", "down", "seconds"}     up, down: bytes of the bodies
A request whose connection broke before the reply has status 0.
"""

import argparse
import asyncio
import json
import socket
import time

PIECE = 65536
HEAD_LIMIT = 1 << 20


class Broken(Exception):
    """A peer went away in the middle of a message."""


def headers_of(head):
    fields = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name:
            fields[name.strip().lower()] = value.strip()
    return fields


async def head_from(reader):
    """The next message's head, or None at the end of the connection."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise Broken from error
        return None


async def body(reader, writer, head, bodiless, until_close):
    """Forwards the body that belongs to `head`; returns its length."""
    fields, total = headers_of(head), 0
    if bodiless:
        return 0
    if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            writer.write(line)
            total += size
            if size == 0:
                while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
                    writer.write(line)
                writer.write(b"\r\n")
                await writer.drain()
                return total
            await exactly(reader, writer, size + 2)
    if b"content-length" in fields:
        total = int(fields[b"content-length"])
        await exactly(reader, writer, total)
    elif until_close:
        while piece := await reader.read(PIECE):
            total += len(piece)
            writer.write(piece)
            await writer.drain()
    return total


async def exactly(reader, writer, count):
    while count > 0:
        piece = await reader.read(min(count, PIECE))
        if not piece:
            raise Broken
        count -= len(piece)
        writer.write(piece)
        await writer.drain()


class Proxy:
    def __init__(self, upstream, log, delay=0):
        self.upstream = upstream
        self.log = log
        self.delay = delay

    def record(self, head, status, up, down, started):
        method, target = head.split(b" ", 2)[:2]
        path, _, query = target.partition(b"?")
        line = {"method": method.decode(), "path": path.decode(errors="replace"), "query": query.decode(errors="replace"),
                "status": status, "up": up, "down": down, "seconds": round(time.monotonic() - started, 4)}
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()

    async def exchange(self, client, server):
        """One request and its reply; returns whether the connection may go on."""
        (from_client, to_client), (from_server, to_server) = client, server
        request = await head_from(from_client)
        if request is None:
            return False
        started, status, down = time.monotonic(), 0, 0
        upload = None
        try:
            to_server.write(request)
            # The reply is read at the same time: it may be "100 Continue", or come before the body is through.
            upload = asyncio.create_task(body(from_client, to_server, request, False, False))
            while True:
                reply = await head_from(from_server)
                if reply is None:
                    raise Broken
                status = int(reply.split(b" ", 2)[1])
                if status >= 200:
                    if self.delay:
                        await asyncio.sleep(self.delay)
                    to_client.write(reply)
                    break
                to_client.write(reply)
            bodiless = request.startswith(b"HEAD ") or status in (204, 304)
            down = await body(from_server, to_client, reply, bodiless, True)
            await to_client.drain()
            fields = headers_of(reply)
            framed = bodiless or b"content-length" in fields or b"chunked" in fields.get(b"transfer-encoding", b"")
            early = not upload.done()
            if early:
                await asyncio.wait([upload], timeout=0.05)
            return framed and upload.done() and fields.get(b"connection", b"").lower() != b"close"
        finally:
            up = 0
            if upload is not None:
                if upload.done() and not upload.cancelled() and upload.exception() is None:
                    up = upload.result()
                else:
                    upload.cancel()
            self.record(request, status, up, down, started)

    async def connection(self, reader, writer):
        to_server = None
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.upstream, limit=HEAD_LIMIT)
            for side in (writer, to_server):
                side.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while await self.exchange((reader, writer), (from_server, to_server)):
                pass
        except (Broken, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            for side in (writer, to_server):
                if side is not None:
                    side.close()


async def serve(args):
    with open(args.log, "a", encoding="utf-8") as log:
        proxy = Proxy(args.upstream, log, args.delay / 1000)
        server = await asyncio.start_server(proxy.connection, "127.0.0.1", args.listen, limit=HEAD_LIMIT)
        print(server.sockets[0].getsockname()[1], flush=True)
        async with server:
            await server.serve_forever()


def summary(path, start):
    total = {"requests": 0, "up": 0, "down": 0, "failed": 0, "methods": {}, "puts": []}
    with open(path, encoding="utf-8") as log:
        log.seek(start)
        for line in log:
            request = json.loads(line)
            method = request["method"]
            total["requests"] += 1
            total["up"] += request["up"]
            total["down"] += request["down"]
            total["failed"] += request["status"] == 0 or request["status"] >= 500
            total["methods"][method] = total["methods"].get(method, 0) + 1
            if method == "PUT":
                total["puts"].append([request["path"], request["up"]])
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=int)
    parser.add_argument("--listen", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0)
    parser.add_argument("--log")
    parser.add_argument("--sum")
    parser.add_argument("--from", dest="start", type=int, default=0)
    args = parser.parse_args()
    if args.sum:
        print(json.dumps(summary(args.sum, args.start)))
    elif args.upstream and args.log:
        asyncio.run(serve(args))
    else:
        parser.error("give --upstream and --log, or --sum")


if __name__ == "__main__":
    main()
