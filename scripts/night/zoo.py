#!/usr/bin/env python3
"""Fills a directory with one of everything that a Unix file system can hold.

Shows:  nothing by itself; scripts/night/night backs it up and compares what comes back.
Takes:  under a second.
Needs:  Linux, setfacl, setcap; root for devices, owners, capabilities and trusted attributes.

  zoo.py DIRECTORY              everything that rsync and cp can copy
  zoo.py --beyond DIRECTORY     paths longer than PATH_MAX; compare them with scripts/lib/tree.py
"""

import os
import random
import socket
import stat
import subprocess
import sys

RANDOM = random.Random(20261121)
SECOND = 10**9


def write(path, data=b"x\n"):
    with open(path, "wb") as file:
        file.write(data)




def run(*command):
    subprocess.run(command, check=True)


def attributes(root):
    d = os.path.join(root, "xattr")
    os.mkdir(d)
    for name in ("none", "user", "many", "binary", "large", "trusted"):
        write(os.path.join(d, name))
    os.setxattr(f"{d}/user", "user.comment", b"a plain value")
    os.setxattr(f"{d}/user", "user.empty", b"")
    for n in range(30):
        os.setxattr(f"{d}/many", f"user.key{n:02}", b"v" * n)
    os.setxattr(f"{d}/binary", "user.bytes", bytes(range(256)))
    os.setxattr(f"{d}/large", "user.large", RANDOM.randbytes(3000))
    os.setxattr(f"{d}/trusted", "trusted.secret", b"only root sees it")
    os.setxattr(d, "user.directory", b"directories have them too")
    os.symlink("user", f"{d}/link")
    os.setxattr(f"{d}/link", "trusted.link", b"and symbolic links", follow_symlinks=False)


def acls(root):
    d = os.path.join(root, "acl")
    os.mkdir(d)
    write(f"{d}/file")
    write(f"{d}/masked")
    os.mkdir(f"{d}/inherits")
    run("setfacl", "-m", "u:12345:rw,g:54321:r,m::rw", f"{d}/file")
    run("setfacl", "-m", "u:1:rwx,m::r", f"{d}/masked")
    run("setfacl", "-m", "d:u:12345:rwx,d:g::rx,u:12345:x", f"{d}/inherits")
    write(f"{d}/inherits/child")


def capabilities(root):
    d = os.path.join(root, "caps")
    os.mkdir(d)
    for name, caps in (("net", "cap_net_raw+ep"), ("two", "cap_dac_read_search,cap_chown+eip")):
        write(f"{d}/{name}", b"#!/bin/sh\n")
        os.chmod(f"{d}/{name}", 0o755)
        run("setcap", caps, f"{d}/{name}")
    # A changed owner takes capabilities and set-uid away: the order of restoring matters.
    for name, mode in (("setuid", 0o4755), ("setgid", 0o2755), ("both", 0o6711)):
        write(f"{d}/{name}")
        os.chown(f"{d}/{name}", 1234, 4321)
        os.chmod(f"{d}/{name}", mode)
    write(f"{d}/capable-of-other")
    os.chown(f"{d}/capable-of-other", 1234, 4321)
    run("setcap", "cap_net_bind_service+ep", f"{d}/capable-of-other")


def modes(root):
    d = os.path.join(root, "modes")
    os.mkdir(d)
    for mode in (0o000, 0o400, 0o777, 0o1666, 0o111):
        write(f"{d}/file-{mode:04o}")
        os.chmod(f"{d}/file-{mode:04o}", mode)
        os.mkdir(f"{d}/directory-{mode:04o}")
        write(f"{d}/directory-{mode:04o}/inside")
        os.chmod(f"{d}/directory-{mode:04o}", mode)
    os.mkdir(f"{d}/sticky")
    os.chmod(f"{d}/sticky", 0o3777)
    write(f"{d}/high-ids")
    os.chown(f"{d}/high-ids", 4_000_000_000, 4_000_000_001)


def links(root):
    d = os.path.join(root, "links")
    os.makedirs(f"{d}/a/b")
    write(f"{d}/a/one", RANDOM.randbytes(70_000))
    for name in ("two", "b/three", "../four"):
        os.link(f"{d}/a/one", f"{d}/a/{name}")
    write(f"{d}/empty")
    os.link(f"{d}/empty", f"{d}/empty-too")
    for name, target in (("relative", "a/one"), ("dangling", "nowhere/at all"), ("absolute", "/etc/passwd"), ("loop", "loop"),
                         ("parent", ".."), ("long", "x/" * 2000), (b"bytes", b"\xff\xfe")):
        place = os.path.join(os.fsencode(d), os.fsencode(name))
        os.symlink(os.fsencode(target), place)
    os.symlink("relative", f"{d}/hard-linked-symlink")
    os.link(f"{d}/hard-linked-symlink", f"{d}/hard-linked-symlink-too", follow_symlinks=False)


def special(root):
    d = os.path.join(root, "special")
    os.mkdir(d)
    os.mkfifo(f"{d}/fifo")
    os.link(f"{d}/fifo", f"{d}/fifo-too")
    os.mknod(f"{d}/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(f"{d}/block", 0o660 | stat.S_IFBLK, os.makedev(7, 200))
    os.mknod(f"{d}/large-numbers", 0o600 | stat.S_IFCHR, os.makedev(4000, 1_000_000))
    here = os.getcwd()
    os.chdir(d)                                         # a socket's address is short
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket")
    os.chdir(here)


def sparse(root):
    d = os.path.join(root, "sparse")
    os.mkdir(d)

    def holes(name, size, spots):
        with open(f"{d}/{name}", "wb") as file:
            for offset, length in spots:
                file.seek(offset)
                file.write(RANDOM.randbytes(length))
            file.truncate(size)

    holes("only-hole", 100 << 20, [])
    holes("begins", 64 << 20, [(0, 5000)])
    holes("ends", 64 << 20, [((64 << 20) - 5000, 5000)])
    holes("islands", 200 << 20, [(n * (20 << 20), 4096) for n in range(1, 10)])
    holes("odd-size", (10 << 20) + 7, [(1 << 20, 100)])
    write(f"{d}/zeros-written", bytes(3 << 20))         # the same bytes, but no hole


def sizes(root):
    d = os.path.join(root, "sizes")
    os.mkdir(d)
    for size in (0, 1, 2, 255, 256, 4095, 4096, 4097, 65535, 65536, (512 << 10) - 1, 512 << 10, (1 << 20) + 1, 4 << 20,
                 (4 << 20) + 1, 9_000_001):
        write(f"{d}/random-{size}", RANDOM.randbytes(size))
        write(f"{d}/same-{size}", b"a" * size)


def names(root):
    d = os.path.join(os.fsencode(root), b"names")
    os.mkdir(d)
    odd = [b" ", b"  leading and trailing  ", b"-rf", b"--help", b"*", b"?", b"[a-z]", b"~", b"$HOME", b"`id`", b"$(id)", b"a;b", b"a|b",
           b"a&b", b"'", b'"', b"\\", b"\\n", b"new\nline", b"\n", b"tab\there", b"\x01\x02\x1b[31mred\x7f", b"\xff\xfe\x80", b"caf\xe9",
           "café".encode(), "cafe\u0301".encode(), "日本語".encode(), "😀".encode(), "\u202eexe.txt".encode(), b"a:b", b"a=b", b"a%2Fb",
           b"x" * 255, ("é" * 127).encode(), b".hidden", b"...", b".. ", b"CON", b"nul.txt", b"dot.", b"UPPER", b"upper", b"#", b"!bang",
           b"C:\\x"]
    for name in odd:
        write(os.path.join(d, name), name)
    for name in (b"directory\nwith line", b"\xfe\xff dir", b"-d"):
        os.mkdir(os.path.join(d, name))
        write(os.path.join(d, name, b"inside"))
    # Order by bytes of whole paths differs from order by directory here.
    for name in (b"a", b"a-b", b"a.b"):
        os.mkdir(os.path.join(d, b"order-" + name))
        write(os.path.join(d, b"order-" + name, b"z"))
    write(os.path.join(d, b"order-a!"))


def descend(root, start, name, levels):
    """Directories in each other, with a file here and there, made without ever naming the whole path."""
    here = os.open(".", os.O_RDONLY)
    os.chdir(root)
    os.mkdir(start)
    os.chdir(start)
    for n in range(levels):
        os.mkdir(name)
        os.chdir(name)
        if n % 9 == 0:
            write(f"file{n}")
    write("bottom", b"down here\n")
    os.fchdir(here)
    os.close(here)


def deep(root):
    """As deep as rsync and cp can still follow, with room for the prefix of a restore."""
    descend(root, "deep", "d" * 200, 14)
    descend(root, "levels", "l", 300)


def wide(root):
    d = os.path.join(root, "wide")
    os.mkdir(d)
    for n in range(3000):
        write(f"{d}/{n:05}", b"%d" % (n % 100))
    os.mkdir(os.path.join(root, "empty directory"))


def times(root):
    d = os.path.join(root, "times")
    os.mkdir(d)
    stamps = {"epoch": 0, "first-nanosecond": 1, "before-1970": -SECOND * 86400 * 365 - 1, "year-2100": 4_102_444_800 * SECOND + 999_999_999,
              "past-2038": (1 << 31) * SECOND + 5, "odd": 1_700_000_000 * SECOND + 123_456_789}
    for name, stamp in stamps.items():
        write(f"{d}/{name}")
        os.symlink("odd", f"{d}/link-{name}")
        os.mkdir(f"{d}/directory-{name}")
        os.utime(f"{d}/{name}", ns=(stamp, stamp))
        os.utime(f"{d}/link-{name}", ns=(stamp, stamp), follow_symlinks=False)
        os.utime(f"{d}/directory-{name}", ns=(stamp, stamp))


def main():
    beyond = sys.argv[1:2] == ["--beyond"]
    if len(sys.argv) != 2 + beyond:
        sys.exit(__doc__)
    root = os.path.abspath(sys.argv[-1])
    os.makedirs(root)
    os.umask(0o022)
    if beyond:
        descend(root, "beyond", "b" * 250, 24)
        descend(root, "bottomless", "n", 3000)
        return
    for cage in (attributes, acls, capabilities, modes, links, special, sparse, sizes, names, deep, wide, times):
        try:
            cage(root)
        except (OSError, subprocess.CalledProcessError) as error:
            # A file system without, say, trusted attributes still tests the rest; but nobody should miss it.
            print(f"SKIPPED: zoo: {cage.__name__}: {error}", file=sys.stderr)
    os.utime(root, ns=(1_600_000_000 * SECOND + 7, 1_600_000_000 * SECOND + 7))


if __name__ == "__main__":
    main()
