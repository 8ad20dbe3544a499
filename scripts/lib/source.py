"""Sources for the scripts that kill and those that compare. Imported, never run."""

import os
import shutil
from pathlib import Path

import tree

MIB = 1 << 20


def real_files(root, size_mib, dice):
    """Copies of files of this machine, up to a size, in directories of fifty."""
    found = [p for base in ("/usr/share", "/usr/lib", "/usr/bin") for p in sorted(Path(base).rglob("*"))
             if p.is_file() and not p.is_symlink() and p.stat().st_size < 16 * MIB]
    dice.shuffle(found)
    left = size_mib * MIB
    for number, path in enumerate(found):
        if left <= 0:
            break
        place = root / f"d{number // 50}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / f"{number}-{path.name}")
        left -= path.stat().st_size


class Source:
    """A small tree with one larger file, changed by a seeded generator."""

    def __init__(self, root, dice, large=24 * MIB):
        self.root, self.dice, self.round, self.large = root, dice, 0, large
        for n in range(12):
            (root / f"dir{n}" / "sub").mkdir(parents=True)
        for n in range(300):
            self.write(f"dir{n % 12}/sub/file{n}", dice.randrange(40_000))
        self.write("large", large)
        os.symlink("large", root / "link")
        os.link(root / "large", root / "dir0" / "large-too")

    def write(self, name, size):
        with open(self.root / name, "wb") as file:
            while size > 0:
                file.write(self.dice.randbytes(min(size, 8 * MIB)))
                size -= 8 * MIB

    def change(self, new_bytes):
        """One round's changes; `new_bytes` of them in one new file."""
        self.round += 1
        for _ in range(5):
            self.write(f"dir{self.dice.randrange(12)}/sub/file{self.dice.randrange(300)}", self.dice.randrange(40_000))
        with open(self.root / "large", "r+b") as file:
            file.seek(self.dice.randrange(self.large - MIB))
            file.write(self.dice.randbytes(1000))
        for old in self.root.glob("new-*"):
            old.unlink()
        self.write(f"new-{self.round}", new_bytes)

    def state(self):
        """Path to line for every entry. The root's own times do not take part: restoring its contents does not set them."""
        lines = dict(tree.walk(self.root))
        lines.pop(b".", None)
        return lines
