#!/usr/bin/env python3
"""Changes a directory tree as a day of work would: edits, additions, deletions, renames, new modes and attributes.

Shows:  nothing by itself; makes the second night of scripts/night/night and scripts/bench-peers.
Takes:  seconds.
Needs:  nothing.

  change.py DIRECTORY SEED [PERCENT]     PERCENT of the files are touched in each way (default 1); prints what was done
"""

import os
import random
import sys


def edit(path, dice):
    """One of: append, overwrite in the middle with the same size, cut, insert in front."""
    with open(path, "rb") as file:
        data = bytearray(file.read())
    way = dice.randrange(4)
    piece = dice.randbytes(dice.randrange(1, 3000))
    if way == 0 or not data:
        data += piece
    elif way == 1:
        spot = dice.randrange(len(data))
        piece = piece[: len(data) - spot]
        data[spot : spot + len(piece)] = piece
    elif way == 2:
        del data[dice.randrange(len(data)) :]
    else:
        data[:0] = piece
    with open(path, "r+b") as file:                     # in place, as editors of large files do
        file.write(data)
        file.truncate()


def same_size_same_time(path, dice):
    """The edit that change detection by size and time alone cannot see."""
    info = os.stat(path)
    if info.st_size == 0:
        return
    with open(path, "r+b") as file:
        file.seek(dice.randrange(info.st_size))
        old = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old[0] ^ 0x20]))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def main():
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    root, dice = os.fsencode(os.path.abspath(sys.argv[1])), random.Random(int(sys.argv[2]))
    percent = float(sys.argv[3]) if len(sys.argv) == 4 else 1.0
    files, directories = [], []
    for place, below, names in os.walk(root):
        below.sort()
        directories.append(place)
        files += [os.path.join(place, n) for n in sorted(names)
                  if os.path.isfile(os.path.join(place, n)) and not os.path.islink(os.path.join(place, n))]
    share = max(3, int(len(files) * percent / 100))
    chosen = dice.sample(files, min(len(files), 5 * share))
    groups = [chosen[n * share : (n + 1) * share] for n in range(5)]
    for path in groups[0]:
        edit(path, dice)
    for path in groups[1]:
        os.unlink(path)
    for path in groups[2]:
        os.rename(path, path[: -1 - len(os.path.basename(path))] + b"/renamed-%08x" % dice.getrandbits(32))
    for path in groups[3]:
        same_size_same_time(path, dice)
    for path in groups[4]:
        what = dice.randrange(3)
        if what == 0:
            os.chmod(path, dice.choice([0o600, 0o640, 0o755]))
        elif what == 1:
            os.utime(path)
        else:
            os.setxattr(path, "user.changed", dice.randbytes(20))
    added = dice.choices(directories, k=share)
    for number, place in enumerate(added):
        with open(os.path.join(place, b"added-%d-%08x" % (number, dice.getrandbits(32))), "wb") as file:
            file.write(dice.randbytes(dice.randrange(20000)))
    # One directory with all that is in it moves, one file becomes a directory and one directory entry a link.
    if len(directories) > 1:
        os.rename(dice.choice(directories[1:]), os.path.join(root, b"moved-%08x" % dice.getrandbits(32)))
    for n, make in enumerate((lambda p: os.mkdir(p), lambda p: os.symlink(b"elsewhere", p))):
        for path in files[n * 7 :: 101]:
            if os.path.lexists(path):
                os.unlink(path)
                make(path)
                break
    print(f"{share} each of: edited, deleted, renamed, edited behind the clock's back, touched, added; of {len(files)} files")


if __name__ == "__main__":
    main()
