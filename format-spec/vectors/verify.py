"""Checks vectors.txt, cases/ and repo/ with the reference reader. Exit code 0 if all hold; -v names every case.

The reader knows nothing of forge.py, so bytes and rules are looked at from two sides. That the stored files are what
vec.py, cases.py and repo.py make is checked too.
"""

import os
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "reference"))
import larder_reader as reader  # noqa: E402

REPO = bytes(range(0x10, 0x20))
S = {name: bytes([n]) * 32 for n, name in enumerate(("id", "cdc", "split", "idx", "meta", "data", "psk"), 1)}
KEYS = reader.Keys(REPO, {1: reader.Epoch(S["id"], S["idx"], S["meta"], S["data"], None, S["psk"])})
GRANT_KEY = reader.dk("larder v1 grant key", bytes([8]) * 32 + REPO)


def vectors():
    found = {}
    with open(os.path.join(HERE, "vectors.txt")) as lines:
        for line in lines:
            name, _, value = line.rstrip("\n").partition(" = ")
            found[name] = value
    return found


V = vectors()
CONFIG = reader.parse_config(bytes.fromhex(V["object config/00000000"]), "config/00000000")


def envelope(data, kind, name):
    return reader.open_envelope(data, kind, name, KEYS.object_key(reader.CLASS[kind]))


def signed(body, name, roles):
    reader.check_signer(CONFIG, body, name, roles)
    return body


def open_run(data, case):
    run = reader.parse_run(envelope(data, reader.RUN, case["name"]), case["name"])
    signed(run.header, case["name"], reader.WRITE)
    reader.need(run.header[4][:4] == run.header[1][:4], "sid does not carry the signer's tag")


def open_outcome(data, case):
    sections = envelope(data, reader.OUTCOME, case["name"])
    outcome = signed(reader.parse_outcome(sections, case["name"]), case["name"], reader.WRITE)
    if len(sections) == 2:
        section = sections[1]
        reader.need(len(section) > 88, "manifest section too short")
        opened = reader.open_blob(section[88:], [section[:88]], reader.MANIFEST, outcome[7], KEYS)
        reader.need(len(opened.raw) == outcome[8], "manifest length")
        reader.parse_manifest(opened.raw)


def open_session(data, case):
    body = reader.parse_session(envelope(data, reader.SESSION, case["name"]), case["name"])
    any_role = body.get(3, 6) == 6                    # pins only, and what follows a registration
    signed(body, case["name"], 0xFF if any_role else reader.WRITE | reader.MAINTAIN)


def open_drop(data, case):
    reader.parse_drop(envelope(data, reader.DROP, case["name"]), case["name"], CONFIG)


def open_config(data, case):
    reader.verify_config(reader.parse_config(data, case["name"]), case["name"])


def open_grant(data, case):
    grant = reader.open_grant(data, case["name"], GRANT_KEY, REPO)
    issuer = reader.check_signer(CONFIG, grant, case["name"], reader.ADMIN)
    reader.need(issuer[1] in grant[6], "issuer is not among the admin keys")


def open_number(data, case):
    cursor = reader.Cursor(data, "number")
    value = cursor.varint() if case["kind"] == "varint" else cursor.zigzag()
    cursor.end()
    assert "value" not in case or value == int(case["value"]), f"read {value}"


def open_slot(data, case):
    reader.need(len(data) == 88, "slot length")
    KEYS.unwrap_slot(data)


def open_blob(data, case):
    slots = bytes.fromhex(case["slots"])
    base_of = (lambda _: bytes.fromhex(case["base"])) if "base" in case else None
    reader.open_blob(data, [slots[i:i + 88] for i in range(0, len(slots), 88)], int(case["type"]),
                     bytes.fromhex(case["id"]), KEYS, base_of)


def open_pack(data, case):
    known = {}

    def base_of(blob_id):
        reader.need(blob_id in known, "base is not in this pack")
        return known[blob_id]
    for record, opened in reader.open_pack(data, case["name"], KEYS, base_of):
        known[record.id] = opened.raw


def open_entry(data, case):
    entry = reader.parse_entry(data, int(case["root"]))
    assert [case["flag"]] == entry.flags if "flag" in case else not entry.flags, f"flags {entry.flags}"


OPEN = {
    "varint": open_number, "zigzag": open_number, "slot": open_slot, "blob": open_blob, "pack": open_pack,
    "run": open_run, "outcome": open_outcome, "drop": open_drop, "config": open_config, "grant": open_grant,
    "entry": open_entry,
    "cbor": lambda d, c: reader.cbor_decode(d, "cbor"),
    "trailer": lambda d, c: reader.parse_trailer(d, int(c["pack-kind"]), int(c["frames"])),
    "session": open_session,
    "envelope": lambda d, c: envelope(d, reader.SESSION, c["name"]),
    "protector": lambda d, c: reader.parse_protector(d),
    "key-file": lambda d, c: reader.parse_key_file(d),
    "tree-key": lambda d, c: reader.split_key(d, int(c["root"])),
    "node": lambda d, c: reader.parse_node(d, int(c["root"])),
    "list": lambda d, c: reader.parse_list_node(d),
    "manifest": lambda d, c: reader.parse_manifest(d),
}
REFUSED = (reader.Corrupt, reader.Unsupported, reader.Trouble)


def check_cases():
    wrong, folder = [], os.path.join(HERE, "cases")
    names = sorted(n for n in os.listdir(folder) if n.endswith(".vec"))
    for name in names:
        with open(os.path.join(folder, name)) as lines:
            case = dict(line.rstrip("\n").split(": ", 1) if ": " in line else (line.rstrip(":\n"), "") for line in lines)
        try:
            OPEN[case["kind"]](bytes.fromhex(case["bytes"]), case)
            result = "ok"
        except REFUSED as error:
            result = f"fail ({error})"
        except Exception as error:                    # a traceback is a defect of the reader
            result = f"crash {error!r}"
        if "-v" in sys.argv:
            print(f"{name[:-4]} | {case['why']} | {result}")
        if result.split()[0] != case["expect"]:
            wrong.append(f"{name}: expected {case['expect']}, got {result}")
    print(f"{len(names)} cases")
    return wrong


def check_vectors():
    """Values that the reader can derive or open by itself."""
    wrong = []

    def same(name, value):
        if V[name] != (value.hex() if isinstance(value, bytes) else value):
            wrong.append(f"vectors.txt: {name}")

    unhex = lambda name: bytes.fromhex(V[name])  # noqa: E731
    same("K_id_data", KEYS.id_key(1, reader.DATA_BLOB))
    same("K_id_meta", KEYS.id_key(1, reader.TREE_NODE))
    same('id(data,"hello larder\\n")', reader.kh(KEYS.id_key(1, 0), b"hello larder\n"))
    same("blob_key(data)", KEYS.unwrap_slot(unhex("slot(method=1,domain=data,epoch=1)"))[2])
    same("slot_id", reader.h(unhex("slot(method=1,domain=data,epoch=1)"))[:16])
    slots = [unhex("slot(method=1,domain=data,epoch=1)")]
    base = reader.blake3.blake3(b"larder delta base").digest(length=512)
    raw = base[:256] + b"one changed row\n" + base[256:]
    for name in ("delta blob frame", "delta blob frame with 7 bytes of padding"):
        opened = reader.open_blob(unhex(name), slots, 0, unhex("delta id"), KEYS, lambda i: base)
        if (opened.raw, opened.base_id) != (raw, unhex("delta base id")):
            wrong.append(f"vectors.txt: {name}")
    if reader.open_blob(unhex("zstd blob frame"), slots, 0, unhex("zstd id"), KEYS).raw != bytes(1000):
        wrong.append("vectors.txt: zstd blob frame")
    name = f"idx/0-{V['pack with a delta name'][-32:]}-0000"
    run = reader.parse_run(envelope(unhex(f"object {name}"), reader.RUN, name), name)
    if run.deltas != [(unhex("delta id"), 0, unhex("delta base id"))]:
        wrong.append(f"vectors.txt: object {name}")
    for path, parts in (("/a", [b"a"]), ("/a.x", [b"a.x"]), ("/a/b", [b"a", b"b"]), ("/a/b/d", [b"a", b"b", b"d"])):
        same(f"key {path}", reader.path_key(parts))
        if reader.split_key(unhex(f"key {path}"), 0) != tuple(parts):
            wrong.append(f"vectors.txt: key {path}")
    same("leaf node id", reader.kh(KEYS.id_key(1, 1), unhex("leaf node bytes")))
    reader.parse_node(unhex("leaf node bytes"), 0)
    reader.parse_node(unhex("inner node bytes"), 0)
    reader.parse_list_node(unhex("list node level 0 (data, hole, data)"))
    for name, root in (("entry with every TLV of v1", 0), ("entry symlink", 0), ("entry block device", 0),
                       ("entry stream", 2), ("entry file with a list", 0)):
        reader.parse_entry(unhex(name), root)
    kid = V["kid"]
    if reader.parse_paper_key(V["paper key"].upper().encode()) != bytes(range(32)):
        wrong.append("vectors.txt: paper key")
    for number, ikm in ((0, unhex('argon2id(m=65536KiB,t=3,p=4,salt=000102..0f,"correct horse battery staple")')),
                        (1, reader.parse_key_file(V["key file"].replace("\\n", "\n").encode()))):
        body = reader.parse_protector(unhex(f"object keys/{kid}/{number:04d}"))
        if reader.open_protector(body, REPO, ikm) != bytes([8]) * 32:
            wrong.append(f"vectors.txt: protector {number}")
    same("K_g", GRANT_KEY)
    open_grant(unhex(f"object grants/{kid}/00000000"), {"name": f"grants/{kid}/00000000"})
    same("config hash (next key 5)", reader.h(unhex("object config/00000000")))
    same("outcome hash (next prev)", reader.h(unhex(f"object snap/{'11' * 16}")))
    print(f"{len(V)} vectors")
    return wrong


def check_made_again():
    """The stored files are what their makers make."""
    import cases
    import repo
    import vec
    wrong = []
    vec.make()
    if "\n".join(vec.LINES) + "\n" != open(os.path.join(HERE, "vectors.txt")).read():
        wrong.append("vectors.txt is not what vec.py makes")
    cases.make_all()
    folder = os.path.join(HERE, "cases")
    if {n: open(os.path.join(folder, n)).read() for n in os.listdir(folder)} != {f"{n}.vec": t for n, t in cases.CASES.items()}:
        wrong.append("cases/ is not what cases.py makes")
    store, expected = repo.make()
    stored = {}
    for base, _, files in os.walk(os.path.join(HERE, "repo")):
        for file in files:
            path = os.path.join(base, file)
            stored[os.path.relpath(path, os.path.join(HERE, "repo")).replace(os.sep, "/")] = open(path, "rb").read()
    if stored != store or repo.describe(expected) not in open(os.path.join(HERE, "expected.txt")).read():
        wrong.append("repo/ or expected.txt is not what repo.py makes")
    return wrong


def refuses(open_it, data, name, kind):
    try:
        open_it(data, {"name": name, "kind": kind})
        return False
    except REFUSED:
        return True


def check_damage():
    """Every single-bit flip, every truncation and a wrong name of the named objects must be refused."""
    wrong, count = [], 0
    sid = "11" * 16
    objects = [("session", f"sess/{sid}/0000", OPEN["session"]), ("outcome", f"snap/{sid}", open_outcome),
               ("run", f"idx/0-{sid}-0000", open_run), ("config", "config/00000000", open_config)]
    objects = [(k, n, o, bytes.fromhex(V[f"object {n}"])) for k, n, o in objects]
    pack = bytes.fromhex(V["pack with a delta"])
    objects.append(("pack", V["pack with a delta name"], open_pack, pack))
    for kind, name, open_it, data in objects:
        open_it(data, {"name": name, "kind": kind})
        damaged = [data[:n] for n in range(len(data))]
        damaged += [data[:i // 8] + bytes([data[i // 8] ^ 1 << i % 8]) + data[i // 8 + 1:] for i in range(8 * len(data))]
        count += len(damaged)
        wrong += [f"{name}: accepted damage {i}" for i, d in enumerate(damaged) if not refuses(open_it, d, name, kind)]
        other = name[:-1] + ("1" if name[-1] != "1" else "2")
        if not refuses(open_it, data, other, kind):
            wrong.append(f"{name}: opened as {other}")
    print(f"{count} damaged objects")
    return wrong


def check_repository():
    wrong, count = [], 0
    with open(os.path.join(HERE, "expected.txt")) as lines:
        expected = [line.split() for line in lines if not line.startswith("#")]
    os.environ["LARDER_PASSWORD"] = "correct horse battery staple"
    for from_trailers in (False, True):
        ikm = lambda p: bytes(range(32)) if p[3] == 4 else None  # noqa: E731
        repo = reader.Repository(os.path.join(HERE, "repo"), ikm, from_trailers)
        wrong += repo.warnings
        found = set()
        for snapshot in repo.snapshots():
            for number, root in enumerate(snapshot.manifest[4]):
                for parts, entry in () if snapshot.dropped else repo.walk(root):
                    content = "-"
                    if entry.content:
                        pieces = (p if isinstance(p, bytes) else bytes(p) for p in repo.content(entry))
                        content = reader.h(b"".join(pieces)).hex()
                    found.add((snapshot.sid.hex(), str(number), b"/".join(parts).hex() or "-", content))
        count += len(found)
        if found != {tuple(e) for e in expected}:
            wrong.append(f"repo/: {len(found ^ {tuple(e) for e in expected})} entries differ from expected.txt")
    with tempfile.TemporaryDirectory() as target:
        arguments = ["--repo", os.path.join(HERE, "repo"), "--key-file", os.path.join(HERE, "key-file"), "restore"]
        for number, snapshot in enumerate(sorted({e[0] for e in expected})):
            if reader.main([*arguments, snapshot, f"{target}/{number}"]):
                wrong.append(f"restore of {snapshot} failed")
        for sid, root, path, content in expected:
            number = sorted({e[0] for e in expected}).index(sid)
            file = os.path.join(os.fsencode(f"{target}/{number}"), bytes.fromhex(path) if path != "-" else b"")
            if content != "-" and number < 2:
                with open(file, "rb") as restored:
                    if reader.h(restored.read()).hex() != content:
                        wrong.append(f"restored {file!r} differs")
    print(f"{count} entries of repo/ read")
    return wrong


def main():
    wrong = check_vectors() + check_cases() + check_damage() + check_repository() + check_made_again()
    for line in wrong:
        print(f"WRONG {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
