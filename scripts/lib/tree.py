#!/usr/bin/env python3
"""Describes a directory tree line by line: everything that a restore must bring back. Python's standard library only.

Shows:  equality of trees that rsync and cp cannot enter (paths longer than PATH_MAX), holes of sparse files, and one hash
        that stands for the state of a tree.
Takes:  reads every file once, about 0.6 ns per byte.
Needs:  Linux; root to see everything.

  tree.py DIRECTORY               one line per entry
  tree.py --hash DIRECTORY        one SHA-256 over these lines
  tree.py --compare A B           exits 1 and shows the first differences when they are not equal
  --loose                         without owners, extended attributes and holes (what a user without privileges can restore)

A line: path, type, mode, owner, group, size, modification time in ns, link group, device, target, attributes, SHA-256 of the content.
"""

import argparse
import hashlib
import os
import resource
import stat
import sys

KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket",
         stat.S_IFCHR: "char", stat.S_IFBLK: "block"}


def content_hash(fd):
    digest = hashlib.sha256()
    while piece := os.read(fd, 1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def is_sparse(info):
    """Whether at least 1 MiB of the file takes no space; smaller holes depend on the file system."""
    return info.st_size - info.st_blocks * 512 >= 1 << 20


def attributes(fd_or_path, follow=True):
    pairs = []
    for name in sorted(os.listxattr(fd_or_path, follow_symlinks=follow)):
        pairs.append(f"{name}={os.getxattr(fd_or_path, name, follow_symlinks=follow).hex()}")
    return ",".join(pairs)


def walk(root, loose=False):
    """Yields (path, line) for every entry, the root included, in the order of the paths."""
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        entries = []
        # Depth first with one open descriptor per level, so that no path is ever longer than one name.
        describe(entries, b".", os.fstat(top), top, None, b"", loose)
        descend(entries, b"", top, loose)
        entries.sort()
        # A link group is named after its first path.
        first = {}
        for path, _, group in entries:
            if group is not None:
                first.setdefault(group, path)
        for path, line, group in entries:
            yield path, line + (f"\tlinks:{os.fsdecode(first[group])!r}" if group is not None else "")
    finally:
        os.close(top)


def descend(entries, prefix, directory, loose):
    """An explicit stack: 300 levels and more are nothing unusual here."""
    stack = [(prefix, directory, sorted(map(os.fsencode, os.listdir(directory))), 0)]
    while stack:
        path, fd, names, at = stack.pop()
        if at == len(names):
            if fd != directory:
                os.close(fd)
            continue
        stack.append((path, fd, names, at + 1))
        name = names[at]
        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        below = path + b"/" + name if path else name
        if stat.S_ISDIR(info.st_mode):
            sub = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            describe(entries, below, info, sub, fd, name, loose)
            stack.append((below, sub, sorted(map(os.fsencode, os.listdir(sub))), 0))
        elif stat.S_ISREG(info.st_mode):
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd)
            describe(entries, below, info, file, fd, name, loose)
            os.close(file)
        else:
            describe(entries, below, info, None, fd, name, loose)


def describe(entries, path, info, fd, parent, name, loose):
    kind = KINDS[stat.S_IFMT(info.st_mode)]
    fields = [repr(os.fsdecode(path)), kind, f"{stat.S_IMODE(info.st_mode):04o}"]
    if not loose:
        fields += [str(info.st_uid), str(info.st_gid)]
    fields.append(str(info.st_mtime_ns))
    if kind == "file":
        fields += [str(info.st_size), content_hash(fd)]
        if not loose and is_sparse(info):
            fields.append("sparse")
    elif kind == "link":
        fields.append(repr(os.fsdecode(os.readlink(name, dir_fd=parent))))
    elif kind in ("char", "block"):
        fields.append(f"{os.major(info.st_rdev)},{os.minor(info.st_rdev)}")
    if not loose:
        if fd is not None:
            fields.append(attributes(fd))
        else:
            fields.append(attributes(os.path.join(b"/proc/self/fd", b"%d" % parent, name), follow=False))
    group = (info.st_dev, info.st_ino) if kind != "dir" and info.st_nlink > 1 else None
    entries.append((path, "\t".join(fields), group))


def state(root):
    """What is below a directory, for comparing with what came back, without the directory itself."""
    lines = dict(walk(root, loose=True))
    lines.pop(b".", None)
    return lines


def tree_hash(root, loose=False):
    digest = hashlib.sha256()
    for _, line in walk(root, loose):
        digest.update(line.encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()


def compare(a, b, loose=False):
    """The differences of two trees as lines, at most 20."""
    left, right = dict(walk(a, loose)), dict(walk(b, loose))
    found = []
    for path in sorted(left.keys() | right.keys()):
        one, two = left.get(path), right.get(path)
        if one != two:
            found += [f"- {one}" if one else f"- no {os.fsdecode(path)!r}", f"+ {two}" if two else f"+ no {os.fsdecode(path)!r}"]
            if len(found) >= 20:
                break
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("other", nargs="?")
    parser.add_argument("--hash", action="store_true")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--loose", action="store_true")
    args = parser.parse_args()
    # One descriptor per level: deep trees need more than the usual 1 024.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if args.compare:
        found = compare(args.directory, args.other, args.loose)
        print("\n".join(line.encode(errors="backslashreplace").decode()[:400] for line in found), end="\n" if found else "")
        sys.exit(1 if found else 0)
    if args.hash:
        print(tree_hash(args.directory, args.loose))
    else:
        for _, line in walk(args.directory, args.loose):
            sys.stdout.buffer.write(line.encode(errors="surrogateescape") + b"\n")


if __name__ == "__main__":
    main()
