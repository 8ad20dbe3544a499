"""Shows the reference reader small repositories, whole and damaged. Run: python test_reader.py

The repositories are those of ../vectors/repo.py, made in memory, changed, and written to a temporary folder.
"""

import contextlib
import io
import os
import shutil
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "vectors"))

import larder_reader as reader  # noqa: E402
import repo as sample  # noqa: E402
from forge import *  # noqa: E402,F403

PASSPHRASE = "correct horse battery staple"


def posix_snapshot(n, sequence, previous, entries, data=()):
    """Objects of one more session with a POSIX root of these (path, value) entries."""
    sid, store = sample.sid(n), {}
    leaf = node(0, sorted((path_key(p), v) for p, v in entries))
    packs = [Pack(1, [Blob(1, leaf)], bytes([n]) * 16, sid)]
    if data:
        packs.append(Pack(0, list(data), bytes([n + 1]) * 16, sid))
    for pack in packs:
        store[pack.name] = pack.bytes
    name, store_run = run_object(packs, sid, 0)
    store[name] = store_run
    level, rows = reader.parse_node(leaf, 0)
    size = sum(e.size for _, e in rows)
    manifest = cbor({0: 1, 1: {0: SOURCE, 1: 0}, 2: START + 100 * SECOND, 3: START + 100 * SECOND,
                     4: [{0: b"/x", 1: 0, 2: meta_id(leaf), 3: 0, 4: len(rows), 5: size}]})
    name, outcome = outcome_object(manifest, sid, sequence=sequence, previous=previous)
    store[name] = outcome
    return store


class ReaderTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.store, self.expected = sample.make()
        self.last = f"snap/{sample.sid(4).hex()}"

    def run_reader(self, *arguments, key_file=True, options=()):
        """(exit code, output bytes, errors) of one command on self.store."""
        root = os.path.join(self.folder, "repo")
        shutil.rmtree(root, ignore_errors=True)
        for name, data in self.store.items():
            path = os.path.join(root, *name.split("/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as out:
                out.write(data)
        options = [*options, *(["--key-file", os.path.join(HERE, "..", "vectors", "key-file")] if key_file else [])]
        raw, errors = io.BytesIO(), io.StringIO()
        with io.TextIOWrapper(raw, write_through=True) as out, contextlib.redirect_stdout(out):
            with contextlib.redirect_stderr(errors):
                code = reader.main(["--repo", root, *options, *arguments])
            out.flush()
            return code, raw.getvalue(), errors.getvalue()

    def names(self, start):
        return [n for n in self.store if n.startswith(start)]

    def test_restored_tree_equals_what_was_stored(self):
        for options in ((), ("--from-trailers",)):
            for number in (0, 1):
                target = os.path.join(self.folder, f"out{number}{len(options)}")
                code, _, errors = self.run_reader("restore", sample.sid(number).hex(), target, options=options)
                self.assertEqual((code, errors), (0, ""))
                for n, _, path, content in self.expected:
                    if n != number:
                        continue
                    place = os.path.join(os.fsencode(target), path)
                    self.assertTrue(os.path.lexists(place), path)
                    if content is not None:
                        with open(place, "rb") as file:
                            self.assertEqual(file.read(), content, path)
                look = lambda p: os.lstat(os.path.join(target, p))  # noqa: E731
                self.assertEqual(look("a").st_mtime_ns, (sample.T + 1) * SECOND + 999_999_999)
                self.assertEqual(look("a/old").st_mtime_ns, -SECOND + 500_000_000)
                self.assertEqual(look("a/hi.txt").st_mode & 0o7777, 0o640)
                self.assertEqual(look(".").st_mode & 0o7777, 0o750)
                self.assertEqual(look("a/one").st_ino, look("a/two").st_ino)
                self.assertEqual(os.readlink(os.path.join(target, "a/link")), "../a/hi.txt")
                self.assertLess(look("a/sparse").st_blocks * 512, 100_000)

    def test_passphrase_opens_and_a_wrong_one_does_not(self):
        os.environ["LARDER_PASSWORD"] = PASSPHRASE
        self.assertEqual(self.run_reader("list", key_file=False)[0], 0)
        os.environ["LARDER_PASSWORD"] = PASSPHRASE + " "
        code, _, errors = self.run_reader("list", key_file=False)
        self.assertEqual(code, 1)
        self.assertIn("no protector opens", errors)
        del os.environ["LARDER_PASSWORD"]
        self.assertEqual(self.run_reader("list", key_file=False)[0], 1)

    def test_a_paper_key_opens_and_a_mistyped_one_does_not(self):
        with open(os.path.join(HERE, "..", "vectors", "vectors.txt")) as lines:
            key = next(line.split(" = ")[1].strip() for line in lines if line.startswith("paper key = "))
        sheet = os.path.join(self.folder, "sheet")
        groups = " ".join(key[at:at + 4] for at in range(7, len(key), 4))
        for typed, right in ((key, True), (f"# from the safe\nLARDER1 {groups.upper()}\n", True), (groups, True),
                             (key[:-1] + ("q" if key[-1] != "q" else "p"), False), (key[:-1], False), ("larder1", False)):
            with open(sheet, "w") as out:
                out.write(typed)
            code, _, errors = self.run_reader("list", key_file=False, options=("--key-file", sheet))
            self.assertEqual(code, 0 if right else 1, typed)
            self.assertIn("" if right else "nor a paper key", errors)

    def test_list_ls_and_cat(self):
        code, out, _ = self.run_reader("list")
        self.assertEqual((code, out.count(b"\n")), (0, 3))          # the forgotten one is not shown
        code, out, _ = self.run_reader("ls", sample.sid(0).hex())
        self.assertEqual((code, out.count(b"many/f")), (0, 700))
        self.assertEqual(self.run_reader("cat", sample.sid(0).hex(), "/a/hi.txt")[1], b"hello larder\n")
        self.assertEqual(self.run_reader("cat", sample.sid(1).hex(), "dump.sql")[1], sample.DELTA_RAW)
        self.assertEqual(self.run_reader("cat", "latest", "pg/main.sql")[1], sample.DELTA_RAW)
        self.assertEqual(self.run_reader("cat", "latest", "a/b")[1], b"ab")
        self.assertEqual(self.run_reader("cat", "latest", "a/c")[0], 1)
        self.assertEqual(self.run_reader("cat", sample.sid(3).hex(), "")[0], 1)

    def test_check_is_silent_on_a_good_repository(self):
        code, out, errors = self.run_reader("check")
        self.assertEqual((code, errors), (0, ""))
        self.assertIn(b" 0 errors, 0 warnings", out)

    def test_every_object_damaged_is_noticed(self):
        for name in sorted(self.store):
            if name.startswith(("sess/", "keys/")):                # not needed for reading
                continue
            good = self.store[name]
            self.store[name] = good[:len(good) // 2] + bytes([good[len(good) // 2] ^ 4]) + good[len(good) // 2 + 1:]
            code, _, errors = self.run_reader("check")
            self.assertNotEqual(code, 0, name)
            self.assertNotEqual(errors, "", name)
            self.store[name] = good

    def test_every_object_missing_is_noticed(self):
        for name in sorted(self.store):
            if name.startswith(("sess/", "keys/", "drop/", self.last)):
                continue
            good = self.store.pop(name)
            self.assertNotEqual(self.run_reader("check")[0], 0, name)
            self.store[name] = good

    def test_lost_index_is_replaced_by_trailers(self):
        for name in self.names("idx/"):
            del self.store[name]
        self.assertEqual(self.run_reader("cat", "latest", "pg/main.sql")[0], 1)
        code, out, _ = self.run_reader("cat", "latest", "pg/main.sql", options=("--from-trailers",))
        self.assertEqual((code, out), (0, sample.DELTA_RAW))

    def test_snapshot_under_another_name_is_refused(self):
        self.store[f"snap/{sample.sid(9).hex()}"] = self.store[f"snap/{sample.sid(0).hex()}"]
        code, _, errors = self.run_reader("list")
        self.assertEqual(code, 0)
        self.assertIn("unreadable", errors)

    def test_missing_outcome_is_a_gap_unless_a_floor_covers_it(self):
        digest = h(self.store[f"snap/{sample.sid(3).hex()}"])
        del self.store[f"snap/{sample.sid(3).hex()}"]
        self.assertIn("outcome 3", self.run_reader("list")[2])
        name = f"snap/{sample.sid(5).hex()}"
        body = {0: 1, 1: KID, 2: START, 3: 3, 4: sample.sid(5), 5: [], 9: 5, 10: h(self.store[self.last]),
                16: [[KID, 3, digest]]}
        self.store[name] = envelope("outcome", name, [sign(body, name)])
        self.assertEqual(self.run_reader("list")[2], "")

    def test_fork_of_a_writer_is_reported(self):
        previous = h(self.store[f"snap/{sample.sid(0).hex()}"])
        self.store.update(posix_snapshot(8, 1, previous, [(b"", dir_value())]))
        code, _, errors = self.run_reader("list")
        self.assertEqual(code, 0)
        self.assertIn("two outcomes with number 1", errors)

    def test_void_hides_a_session_and_its_runs(self):
        name = f"drop/{sample.sid(1).hex()}"
        self.store[name] = envelope("drop", name, [sign({0: 1, 1: KID, 2: START, 3: 2, 4: sample.sid(1)}, name)])
        self.assertEqual(self.run_reader("cat", sample.sid(1).hex(), "dump.sql")[0], 1)
        self.assertEqual(self.run_reader("cat", "latest", "pg/main.sql")[0], 1)

    def test_hold_beats_drop_until_it_ends(self):
        for until, shown in ((None, 4), (START, 3)):
            name = f"hold/{sample.sid(3).hex()}/legal"
            body = {0: 1, 1: KID, 2: START, 4: sample.sid(3), 5: until}
            self.store[name] = envelope("hold", name, [sign(body, name)])
            self.assertEqual(self.run_reader("list")[1].count(b"\n"), shown)

    def test_entry_below_a_link_is_refused(self):
        entries = [(b"", dir_value()), (b"a", link_value(b"/tmp")), (b"a/x", file_value(1, inline(b"x")))]
        self.store.update(posix_snapshot(8, 5, h(self.store[self.last]), entries))
        target = os.path.join(self.folder, "out")
        code, _, errors = self.run_reader("restore", sample.sid(8).hex(), target)
        self.assertEqual(code, 1)
        self.assertIn("no parent directory", errors)

    def test_tree_without_its_root_is_refused(self):
        self.store.update(posix_snapshot(8, 5, h(self.store[self.last]), [(b"x", file_value(1, inline(b"x")))]))
        self.assertEqual(self.run_reader("ls", sample.sid(8).hex())[0], 1)

    def test_delta_of_a_delta_does_not_resolve(self):
        first, second = sample.DELTA_RAW, b"second"
        # a raw block after the prefix: a valid frame whose base is itself only a delta
        frame = bytes.fromhex("28b52ffd2006310000") + second
        top = Blob(0, second, 2, frame, data_id(first))
        entries = [(b"", dir_value()), (b"f", file_value(6, chunk_list([(top.id, 6)])))]
        self.store.update(posix_snapshot(8, 5, h(self.store[self.last]), entries, [top]))
        self.assertEqual(self.run_reader("cat", sample.sid(8).hex(), "f")[0], 1)
        base = Blob(0, first)                              # with a full copy of the base it does
        self.store.update(posix_snapshot(8, 5, h(self.store[self.last]), entries, [top, base]))
        self.assertEqual(self.run_reader("cat", sample.sid(8).hex(), "f")[1], second)

    def test_another_copy_is_taken_when_one_is_damaged(self):
        name = next(n for n in self.names("data/d1"))
        self.store[name] = self.store[name][:70] + bytes([self.store[name][70] ^ 1]) + self.store[name][71:]
        self.assertEqual(self.run_reader("cat", "latest", "pg/main.sql")[0], 1)
        copy = Blob(0, sample.DELTA_RAW)
        entries = [(b"", dir_value())]
        self.store.update(posix_snapshot(8, 5, h(self.store[self.last]), entries, [copy]))
        found = self.run_reader("cat", sample.sid(2).hex(), "pg/main.sql")
        self.assertEqual(found[:2], (0, sample.DELTA_RAW))

    def test_config_of_a_stranger_is_refused(self):
        stranger = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
        public = stranger.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        other = bytes([0x55]) * 16
        name = "config/00000001"
        body = {**config_body(1, h(self.store["config/00000000"])), 1: other}
        body[17] = [*body[17], {0: other, 1: public, 2: 0x40, 3: 1}]
        self.store[name] = config_object(body, name, stranger)
        code, _, errors = self.run_reader("list")
        self.assertEqual(code, 1)
        self.assertIn("unknown writer", errors)
        # made an admin by the first admin, then signing the next: trusted through the chain
        body[1] = KID
        self.store[name] = config_object(body, name)
        third = {**body, 1: other, 4: 2, 5: h(self.store[name])}
        self.store["config/00000002"] = config_object(third, "config/00000002", stranger)
        self.assertEqual(self.run_reader("list")[0], 0)
        third[5] = bytes(32)
        self.store["config/00000002"] = config_object(third, "config/00000002", stranger)
        self.assertEqual(self.run_reader("list")[0], 1)

    def test_compacted_run_replaces_its_inputs(self):
        root = os.path.join(self.folder, "repo")
        self.run_reader("list")
        repository = reader.Repository(root, lambda p: bytes(range(32)) if p[3] == 4 else None)
        packs, chunks, slots, deltas, inputs = {}, [], [], [], []
        for n in range(3):
            name = f"idx/0-{sample.sid(n).hex()}-0000"
            run = reader.parse_run(repository.sealed(name, reader.RUN)[1], name)
            for p in run.packs:
                packs[p.id] = (p, run.slots[p.slot_first:p.slot_first + p.slot_count])
            chunks += [(c[0], run.packs[c[1]].id, c[2], c[3]) for c in run.chunks]
            deltas += [(d[0], run.packs[d[1]].id, d[2]) for d in run.deltas]
            del self.store[name]
            inputs.append(name)
        order = sorted(packs)
        rank = {pack_id: i for i, pack_id in enumerate(order)}
        pack_records = []
        for pack_id in order:
            p, own = packs[pack_id]
            pack_records.append(struct.pack("<16s16sIIBBHIQ24s", *p._replace(slot_first=len(slots))))
            slots += own
        records = [chunk_record(i, rank[p], at, x >> 28, x & 0xFFFFFFF) for i, p, at, x in
                   sorted(chunks, key=lambda c: (c[0], rank[c[1]]))]
        delta_records = [i + struct.pack("<I", rank[p]) + base for i, p, base in sorted(deltas)]
        sid, parts = sample.sid(6), []
        half = len(records) // 2
        in_half = lambda rows, d: any(r[:36] == d[:36] for r in rows)  # noqa: E731
        pieces = [("p0000", 1, 0, {6: [0, len(pack_records), 0]}, blocks(pack_records, 512), None),
                  ("s0000", 2, 0, {6: [len(slots), 0, 0]}, blocks(slots, 512), None)]
        for number, rows in enumerate((records[:half], records[half:])):
            mine = [d for d in delta_records if in_half(rows, d)]
            low, high = rows[0][:2].hex(), rows[-1][:2].hex()
            keys = {6: [0, 0, len(rows)]}
            if mine:
                keys.update({12: [len(mine), 0], 13: mine[0][:8]})
            pieces.append((f"c{number:04d}-{low}-{high}", 3, number, keys, blocks(rows, 1024), blocks(mine, 512)))
        for suffix, part, number, keys, sections, more in pieces:
            name = f"idx/1-{sid.hex()}-{suffix}"
            fan = b"".join(s[:8] for s in sections)
            keys = {**keys, **({7: fan, 11: 0} if part == 1 else {11: 0} if part == 2 else {8: fan})}
            sections = sections + (more or [])
            head = {0: 1, 1: KID, 2: START, 3: 1, 4: sid, 5: 0, **keys, 9: part, 10: number, 14: digest(sections)}
            self.store[name] = envelope("run", name, [sign(head, name), *sections])
            parts.append([suffix, len(self.store[name]), h(self.store[name])])
        name = f"snap/{sid.hex()}"
        body = {0: 1, 1: KID, 2: START, 3: 3, 4: sid, 5: [], 6: {0: 1, 1: parts, 2: inputs}, 9: 5, 10: h(self.store[self.last])}
        self.store[name] = envelope("outcome", name, [sign(body, name)])
        code, out, errors = self.run_reader("check")
        self.assertEqual((code, errors), (0, ""))
        self.assertIn(b"5 packs and 2530 blobs verified, 0 errors", out)
        self.assertEqual(self.run_reader("cat", "latest", "pg/main.sql")[1], sample.DELTA_RAW)

    def test_unusable_arguments_are_errors_not_tracebacks(self):
        for arguments in (("cat", "ffff", "x"), ("restore", "latest", os.path.join(self.folder, "repo"))):
            self.assertEqual(self.run_reader(*arguments)[0], 1)
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            self.assertEqual(reader.main(["--repo", self.folder + "/nothing", "list"]), 1)
        self.assertIn("not a larder repository", errors.getvalue())


if __name__ == "__main__":
    unittest.main()
