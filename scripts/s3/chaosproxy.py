#!/usr/bin/env python3
"""An HTTP/1.1 proxy on loopback that does to S3 requests what bad networks and weak stores do, and counts. Python's standard library only.

Shows:  nothing by itself; scripts/bad-network puts it between a backup tool and an S3 server.
Takes:  starts at once, runs until it is killed. Messages are held in memory as a whole.
Needs:  Python 3.9 or newer.

  chaosproxy.py --upstream PORT --log FILE [--listen PORT] [--admin PORT]     the ports are printed as JSON

Where faultproxy.py breaks connections, this one knows requests. What happens to the n-th request of a kind (GET, LIST, PUT, …) depends on
the seed, the kind and n alone, so that a seed means the same for every tool, whatever names its objects have. POST a JSON object to the admin port to set the faults (it replaces all of them and begins to count anew), GET shows the counts.
Chances are in percent of the requests that they can happen to; at most one happens to a request:
  slow_down       503 SlowDown; the server never sees the request
  reset           the connection is reset; half of the time the server never sees the request, half of the time the reply is lost
  truncated       of GETs of objects: the body ends early; half of the time its length is made to agree with that
  flipped         of GETs of objects: one bit is wrong
  error_200       of PUTs: 200 with an error as its body; the server never sees the request
  late_put        of PUTs: the connection is reset, and the server gets the request `late_seconds` later
  lost_reply      of PUTs: the server does it, the connection is reset
  stalled         the reply comes `stall_seconds` late, in the middle
Listings (ListObjectsV2), on top of that:
  hide_seconds    keys that are younger than this are not listed (by the server's times): a listing that lags
  lose            chance for each key to be missing from every listing: a listing that has lost it
  drop            chance for each key to be missing from one listing, and not from the next
  cut             chance that a page is only half of itself and says that it is the last one
  only            faults of listings hit only keys that contain this text

A line of the log: {"method", "kind", "path", "query", "status", "up", "down", "fault", "seconds"}; status 0: the connection was reset.
"""

import argparse
import asyncio
import calendar
import collections
import email.utils
import hashlib
import json
import re
import socket
import struct
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
from countproxy import HEAD_LIMIT, PIECE, Broken, head_from, headers_of  # noqa: E402

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>injected</Message></Error>"
INTERNAL = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>injected</Message></Error>"
CONTENTS = re.compile(rb"<Contents>.*?</Contents>", re.S)
ANY = ("slow_down", "reset", "stalled")
READS = ("truncated", "flipped")
WRITES = ("error_200", "late_put", "lost_reply")


class Reset(Exception):
    """The client's connection is to be reset."""


async def whole_body(reader, fields, bodiless, until_close):
    """A message's body without its framing."""
    if bodiless:
        return b""
    if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
        pieces = []
        while True:
            size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
            if size == 0:
                while await reader.readuntil(b"\r\n") != b"\r\n":
                    pass
                return b"".join(pieces)
            pieces.append((await reader.readexactly(size + 2))[:-2])
    if b"content-length" in fields:
        return await reader.readexactly(int(fields[b"content-length"]))
    return await reader.read(-1) if until_close else b""


def with_length(head, length):
    """A head that says how long the body is, in place of whatever it said."""
    lines = [line for line in head.rstrip(b"\r\n").split(b"\r\n")
             if line.split(b":")[0].lower() not in (b"transfer-encoding", b"content-length", b"trailer")]
    return b"\r\n".join([*lines, b"Content-Length: %d" % length]) + b"\r\n\r\n"


class Request:
    def __init__(self, head, body):
        method, target = head.split(b" ", 2)[:2]
        path, _, query = target.partition(b"?")
        self.head, self.body = head, body
        self.method, self.path, self.query = method.decode(), path.decode(errors="replace"), query.decode(errors="replace")
        parts = self.path.split("/", 2)
        self.is_listing = self.method == "GET" and "list-type=2" in self.query
        self.is_of_object = len(parts) > 2 and parts[2] != "" and not self.is_listing

    @property
    def kind(self):
        if self.is_listing:
            return "LIST"
        return "DELETE" if self.method == "POST" and "delete" in self.query else self.method


class Proxy:
    def __init__(self, upstream, log):
        self.upstream, self.log = upstream, log
        self.set({})

    def set(self, faults):
        self.faults = faults
        self.seen = collections.Counter()
        self.kinds, self.happened, self.statuses = collections.Counter(), collections.Counter(), collections.Counter()

    def chance(self, *about):
        """A number from 0 to 100 that depends on the seed and `about` alone."""
        digest = hashlib.blake2b(repr((self.faults.get("seed", 0), *about)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / (1 << 64) * 100

    def fate(self, request):
        """The fault of this request, if any, and a second number for its details."""
        self.seen[request.kind] += 1
        about = (request.kind, self.seen[request.kind])
        possible = [*ANY]
        if request.method == "GET" and request.is_of_object:
            possible += READS
        if request.method == "PUT" and request.is_of_object:
            possible += WRITES
        at = self.chance("fate", *about)
        for name in possible:
            at -= self.faults.get(name, 0)
            if at < 0:
                return name, self.chance("detail", *about)
        return None, self.chance("detail", *about)

    # ---- to the server

    async def ask(self, server, request):
        """Sends the request on and returns (head, body) of the reply. `server` is the connection's own, opened when it is needed."""
        for attempt in range(2):
            if not server:
                server[:] = await asyncio.open_connection("127.0.0.1", self.upstream, limit=HEAD_LIMIT)
                server[1].get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reader, writer = server
            try:
                writer.write(request.head + request.body)
                await writer.drain()
                while True:
                    head = await head_from(reader)
                    if head is None:
                        raise Broken
                    status = int(head.split(b" ", 2)[1])
                    if status >= 200:
                        break
                fields = headers_of(head)
                body = await whole_body(reader, fields, request.method == "HEAD" or status in (204, 304), True)
                if fields.get(b"connection", b"").lower() == b"close":
                    writer.close()
                    server.clear()
                return head, body, status
            except (Broken, ConnectionError, asyncio.IncompleteReadError):
                # A connection that the server had closed by then.
                writer.close()
                server.clear()
                if attempt:
                    raise Broken from None
        raise Broken

    async def ask_late(self, request):
        await asyncio.sleep(self.faults.get("late_seconds", 5))
        server = []
        try:
            await self.ask(server, request)
        except (Broken, OSError):
            pass
        if server:
            server[1].close()

    # ---- listings

    def weakened(self, body, now):
        """A listing as a weak store would give it; None if nothing is different."""
        f = self.faults
        if not any(f.get(name) for name in ("hide_seconds", "lose", "drop", "cut")):
            return None
        rows = CONTENTS.findall(body)
        lost = set()
        for row in rows:
            key = re.search(rb"<Key>(.*?)</Key>", row, re.S).group(1).decode(errors="replace")
            if f.get("only", "") not in key:
                continue
            stamp = re.search(rb"<LastModified>(.*?)</LastModified>", row, re.S).group(1).decode()
            age = now - calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"))
            if age < f.get("hide_seconds", 0):
                lost.add(row)
            elif self.chance("lose", key) < f.get("lose", 0):
                lost.add(row)
            else:
                self.seen[("drop", key)] += 1
                if self.chance("drop", key, self.seen[("drop", key)]) < f.get("drop", 0):
                    lost.add(row)
        self.seen["cut"] += 1
        if rows and f.get("only", "") in str(rows[0]) and self.chance("cut", self.seen["cut"]) < f.get("cut", 0):
            lost.update(rows[len(rows) // 2 :])
            body = body.replace(b"<IsTruncated>true", b"<IsTruncated>false")
            body = re.sub(rb"<NextContinuationToken>.*?</NextContinuationToken>", b"", body, flags=re.S)
        if not lost:
            return None
        self.happened["listed less"] += 1
        self.happened["keys not listed"] += len(lost)
        # A store that has lost a key does not count it either; one that counts wrongly is found out at once.
        body = re.sub(rb"<KeyCount>(\d+)<", lambda count: b"<KeyCount>%d<" % (int(count.group(1)) - len(lost)), body)
        return CONTENTS.sub(lambda found: b"" if found.group(0) in lost else found.group(0), body)

    # ---- one exchange

    async def exchange(self, reader, writer, server):
        head = await head_from(reader)
        if head is None:
            return False
        started, fields = time.monotonic(), headers_of(head)
        if b"100-continue" in fields.get(b"expect", b"").lower():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await whole_body(reader, fields, False, False)
        if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
            head = with_length(head, len(body))
        request = Request(head, body)
        fault, detail = self.fate(request)
        status, down = 0, 0
        try:
            if fault == "slow_down":
                status, down = 503, len(SLOW_DOWN)
                writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n"
                             % (0 if request.method == "HEAD" else down) + (b"" if request.method == "HEAD" else SLOW_DOWN))
                await writer.drain()
                return True
            if fault == "reset" and detail < 50:
                raise Reset
            if fault == "late_put":
                asyncio.get_running_loop().create_task(self.ask_late(request))
                raise Reset
            if fault == "error_200":
                status, down = 200, len(INTERNAL)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % down + INTERNAL)
                await writer.drain()
                return True
            reply, content, status = await self.ask(server, request)
            if fault in ("reset", "lost_reply"):
                status = 0
                raise Reset
            if request.is_listing and status == 200:
                date = headers_of(reply).get(b"date", b"").decode()
                now = email.utils.parsedate_to_datetime(date).timestamp() if date else time.time()
                content = self.weakened(content, now) or content
            if fault in READS and status in (200, 206) and content:
                spot = int(detail / 100 * len(content))
                if fault == "flipped":
                    content = content[:spot] + bytes([content[spot] ^ 1 << int(detail * 1000) % 8]) + content[spot + 1 :]
                elif int(detail * 1000) % 2:
                    content = content[:spot]
                else:
                    writer.write(with_length(reply, len(content)) + content[:spot])
                    await writer.drain()
                    down = spot
                    writer.close()
                    return False
            elif fault in READS:
                fault = None
            down = len(content)
            bodiless = request.method == "HEAD" or status in (204, 304)
            message = reply + content if bodiless else with_length(reply, down) + content
            if fault == "stalled":
                writer.write(message[: len(message) // 2])
                await writer.drain()
                await asyncio.sleep(self.faults.get("stall_seconds", 5))
                message = message[len(message) // 2 :]
            for start in range(0, len(message), PIECE):
                writer.write(message[start : start + PIECE])
                await writer.drain()
            return True
        finally:
            self.kinds[request.kind] += 1
            self.statuses[str(status)] += 1
            if fault:
                self.happened[fault] += 1
            line = {"method": request.method, "kind": request.kind, "path": request.path, "query": request.query, "status": status, "up": len(body),
                    "down": down, "fault": fault, "seconds": round(time.monotonic() - started, 4)}
            self.log.write(json.dumps(line) + "\n")
            self.log.flush()

    async def connection(self, reader, writer):
        server = []
        try:
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while await self.exchange(reader, writer, server):
                pass
        except Reset:
            # RST instead of FIN.
            raw = writer.get_extra_info("socket")
            if raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        except (Broken, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            for side in (writer, *server[1:]):
                side.close()

    async def admin(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            self.set(json.loads(await whole_body(reader, headers_of(head), False, False) or b"{}"))
        body = json.dumps({"faults": self.faults, "requests": sum(self.kinds.values()), "kinds": self.kinds, "statuses": self.statuses,
                           "happened": self.happened}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()


async def serve(args):
    with open(args.log, "a", encoding="utf-8") as log:
        proxy = Proxy(args.upstream, log)
        traffic = await asyncio.start_server(proxy.connection, "127.0.0.1", args.listen, limit=HEAD_LIMIT)
        control = await asyncio.start_server(proxy.admin, "127.0.0.1", args.admin)
        print(json.dumps({"port": traffic.sockets[0].getsockname()[1], "admin": control.sockets[0].getsockname()[1]}), flush=True)
        async with traffic, control:
            await asyncio.gather(traffic.serve_forever(), control.serve_forever())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=int, required=True)
    parser.add_argument("--listen", type=int, default=0)
    parser.add_argument("--admin", type=int, default=0)
    parser.add_argument("--log", required=True)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
