"""Writes repo/: a small complete repository, with every form of content that v1 has.

Usage: python repo.py [DIRECTORY]   (default: repo/ beside this file; it must not exist)
Passphrase "correct horse battery staple"; key file = key-file of this folder.
expected.txt beside it says what a reader must find: snapshot, path, BLAKE3 of the content.
"""

import os
import sys

from forge import *  # noqa: F403
from vec import DELTA_BASE, DELTA_FRAME, DELTA_RAW, ZEROS_1000, ZSTD_FRAME

T = 1_700_000_000


def sid(n):
    return KID[:4] + bytes([n]) * 12


def pack_id(n):
    return bytes([n]) * 16


def object_id(n):
    return bytes([n]) * 16


def stamp(seconds=T, ns=0):
    return {"mtime": (seconds, ns), "ctime": (seconds, 0)}


def files(dump, extra):
    """(entries, contents) of the POSIX root; `dump` is the blob of dump.sql."""
    hello = Blob(0, b"hello larder\n")
    zeros = Blob(0, ZEROS_1000, 1, ZSTD_FRAME)
    small = [Blob(0, b"piece %04d of the long file\n" % i) for i in range(2500)]
    long_root, long_height, list_nodes = build_list([(b.id, len(b.raw)) for b in small])
    long_content = b"\2" + long_root + bytes([long_height]) + varint(len(small))
    long_raw = b"".join(b.raw for b in small)
    entries, contents = {}, {}

    def add(path, value, content=None):
        entries[path_key(path)], contents[path] = value, content

    def add_file(path, raw, content, tlvs=b"", **more):
        add(path, file_value(len(raw), content, tlvs, **{**stamp(), **more}), raw)

    add(b"", dir_value(0o750, **stamp(T + 9, 1)))
    add(b"a", dir_value(0o755, **stamp(T + 1, 999_999_999)))
    add_file(b"a/hi.txt", hello.raw, chunk_list([(hello.id, 13)]), mode=0o640, **stamp(T + 2, 5))
    add_file(b"a/in.txt", b"abc", inline(b"abc"), mode=0o600)
    add_file(b"a/empty", b"", inline(b""))
    add_file(b"a/old", b"before 1970", inline(b"before 1970"), **stamp(-1, 500_000_000))
    add(b"a/link", link_value(b"../a/hi.txt", **stamp()))
    add(b"a/fifo", b"\4" + common(mode=0o600, **stamp()))
    add_file(b"a/zeros", ZEROS_1000, chunk_list([(zeros.id, 1000)]))
    add_file(b"a/sparse", hello.raw + bytes(100_000) + hello.raw,
             chunk_list([(hello.id, 13), (bytes(32), 100_000), (hello.id, 13)]))
    add_file(b"a/all-hole", bytes(4096), chunk_list([(bytes(32), 4096)]))
    add_file(b"a/long", long_raw, long_content)
    add_file(b"a/long-with-attribute", b"x", inline(b"x"),
             xattr(b"user.note", b"short") + tlv(3, varint(9) + b"user.long" + varint(1000)
                                                 + chunk_list([(zeros.id, 1000)])))
    add_file(b"a/one", b"twin", inline(b"twin"), tlv(4, varint(7) + varint(2)), ino=77)
    add_file(b"a/two", b"twin", inline(b"twin"), tlv(4, varint(7) + varint(2)), ino=77)
    add_file(b"a/strange \xff\n name", b"s", inline(b"s"))
    add_file(b"a.x", b"sorts after a, before a/b", inline(b"sorts after a, before a/b"))
    add_file(b"dump.sql", dump.raw, chunk_list([(dump.id, len(dump.raw))]), **stamp(T + extra))
    add(b"many", dir_value(0o755, **stamp()))
    for i in range(700):
        text = b"file %d\n" % i
        add_file(b"many/f%06d" % i, text, inline(text), ino=1000 + i)
    return entries, contents, [hello, zeros, *small], list_nodes


def sizes_of(entries, contents):
    return {path_key(p): len(c) for p, c in contents.items() if c is not None}


def make():
    """({object name: bytes}, [(snapshot, root, path, content)…])"""
    store, expected = {}, []
    store["config/00000000"] = config_object()
    salt = bytes(range(16))
    keys = f"keys/{KID.hex()}"
    store[f"{keys}/0000"] = protector_object(1, argon2(b"correct horse battery staple", salt),
                                             {0: salt, 1: 65536, 2: 3, 3: 4})
    store[f"{keys}/0001"] = protector_object(4, bytes(range(32)), {})
    name, grant = grant_object()
    store[name] = grant
    base, delta = Blob(0, DELTA_BASE), Blob(0, DELTA_RAW, 2, DELTA_FRAME, data_id(DELTA_BASE))
    stored_nodes, stored_lists, previous = set(), set(), None

    def commit(n, dump, new_data, roots, new_nodes, new_lists, text):
        """One session: packs, run, registration, outcome."""
        nonlocal previous
        s, packs = sid(n), []
        if new_data:
            packs.append(Pack(0, new_data, pack_id(0xD0 + n), s))
        meta = [Blob(1, raw) for raw in new_nodes] + [Blob(2, raw) for raw in new_lists]
        if meta:
            packs.append(Pack(1, meta, pack_id(0xA0 + n), s))
        for pack in packs:
            store[pack.name] = pack.bytes
        accepted = ()
        if packs:
            run_name, run = run_object(packs, s, 0, object_id=object_id(0x40 + n))
            store[run_name] = run
            accepted = ((0, 0),)
        session_name, session = session_object(s, object_id(0x50 + n))
        store[session_name] = session
        manifest = cbor({0: 1, 1: {0: SOURCE, 1: 0, 2: "host", 3: "user", 4: text}, 2: START + n * SECOND,
                         3: START + (n + 1) * SECOND, 4: roots, 5: ["night", text],
                         7: {1000: "user", 70000: "high"}, 8: {1000: "group"}, 15: "forge"})
        out_name, outcome = outcome_object(manifest, s, object_id(0x60 + n), sequence=n, previous=previous,
                                           accepted=accepted)
        store[out_name] = outcome
        previous = h(outcome)

    def fresh(raws, seen):
        new = [r for r in dict.fromkeys(raws) if r not in seen]
        seen.update(new)
        return new

    def posix_root(dump, extra):
        entries, contents, data, lists = files(dump, extra)
        root, height, count, size, nodes = build_tree(entries.items(), sizes_of(entries, contents))
        return {0: b"/srv", 1: 0, 2: root, 3: height, 4: count, 5: size}, contents, data, nodes, lists

    # 0: first backup
    root, contents, data, nodes, lists = posix_root(base, 0)
    commit(0, base, [*data, base], [root], fresh(nodes, stored_nodes), fresh(lists, stored_lists), "first")
    expected += [(0, 0, p, c) for p, c in contents.items()]
    # 1: the dump changed and is stored as a delta
    root, contents, _, nodes, _ = posix_root(delta, 60)
    commit(1, delta, [delta], [root], fresh(nodes, stored_nodes), [], "second")
    expected += [(1, 0, p, c) for p, c in contents.items()]
    # 2: a single file, a stream set and an object map; nothing new in data
    single = node(0, [(b"\0", file_value(3, inline(b"abc"), **stamp()))])
    stream = node(0, [(b"pg/main.sql", file_value(len(DELTA_RAW), chunk_list([(delta.id, len(DELTA_RAW))]), kind=9,
                                                  mode=0, uid=0, gid=0, ino=0, **stamp()))])
    objects = node(0, [(b"a", file_value(0, inline(b""), kind=8, mode=0, uid=0, gid=0, ino=0, **stamp())),
                       (b"a/b", file_value(2, inline(b"ab"), kind=8, mode=0, uid=0, gid=0, ino=0, **stamp()))])
    roots = [{0: b"/etc/hostname", 1: 0, 2: meta_id(single), 3: 0, 4: 1, 5: 3},
             {0: b"stream", 1: 2, 2: meta_id(stream), 3: 0, 4: 1, 5: len(DELTA_RAW)},
             {0: b"s3://bucket", 1: 1, 2: meta_id(objects), 3: 0, 4: 2, 5: 2}]
    commit(2, None, [], roots, [single, stream, objects], [], "third")
    expected += [(2, 0, b"", b"abc"), (2, 1, b"pg/main.sql", DELTA_RAW), (2, 2, b"a", b""), (2, 2, b"a/b", b"ab")]
    # 3: forgotten; 4: a session that gave up
    commit(3, None, [], roots[:1], [], [], "forgotten")
    drop_name = f"drop/{sid(3).hex()}"
    store[drop_name] = envelope("drop", drop_name, [sign({0: 1, 1: KID, 2: START, 3: 1, 4: sid(3)}, drop_name)],
                                object_id(0x70))
    end_name = f"snap/{sid(4).hex()}"
    end = sign({0: 1, 1: KID, 2: START + 9 * SECOND, 3: 5, 4: sid(4), 5: [], 9: 4, 10: previous}, end_name)
    store[end_name] = envelope("outcome", end_name, [end], object_id(0x71))
    session_name, session = session_object(sid(4), object_id(0x54))
    store[session_name] = session
    return store, expected


def describe(expected):
    lines = []
    for n, root, path, content in expected:
        lines.append(f"{sid(n).hex()} {root} {path.hex() or '-'} {h(content).hex() if content is not None else '-'}")
    return "\n".join(lines) + "\n"


def write(directory):
    store, expected = make()
    os.makedirs(directory)
    for name, data in store.items():
        path = os.path.join(directory, *name.split("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as out:
            out.write(data)
    return expected


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    expected = write(sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "repo"))
    if len(sys.argv) == 1:
        with open(os.path.join(here, "expected.txt"), "w") as out:
            out.write("# snapshot, number of the root, path (hex, - for the root itself), BLAKE3 of the content (- if none)\n")
            out.write(describe(expected))
        with open(os.path.join(here, "key-file"), "w") as out:
            out.write(bytes(range(32)).hex() + "\n")


if __name__ == "__main__":
    main()
