#!/usr/bin/env python3
"""Writes real texts of the system as rows for PostgreSQL's COPY … FROM stdin (text format).

Shows:  nothing by itself; scripts/night/night and scripts/bench-peers fill their documents table with it.
Takes:  about 100 MB/s.
Needs:  files under /usr.

  documents.py BYTES [DIRECTORY…]      columns: id, path, part, body; at least BYTES of bodies
"""

import os
import sys

PART = 64 << 10


def texts(directories):
    """Every readable UTF-8 file without NUL, in a fixed order, in parts that end at a line."""
    for directory in directories:
        for place, below, names in os.walk(directory):
            below.sort()
            for name in sorted(names):
                path = os.path.join(place, name)
                try:
                    if os.path.islink(path) or not 200 <= os.path.getsize(path) <= 4 << 20:
                        continue
                    with open(path, "rb") as file:
                        data = file.read()
                    if b"\0" in data:
                        continue
                    text = data.decode()
                    path.encode()
                except (OSError, UnicodeError):
                    continue
                part = 0
                while text:
                    cut = len(text) if len(text) <= PART else text.rfind("\n", 1, PART) + 1 or PART
                    yield path, part, text[:cut]
                    text, part = text[cut:], part + 1


def escape(text):
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    wanted, directories = int(sys.argv[1]), sys.argv[2:] or ["/usr/share", "/usr/include", "/usr/lib", "/usr/local"]
    written = number = turn = 0
    out = sys.stdout
    out.reconfigure(encoding="utf-8", newline="\n")
    while written < wanted:
        before = number
        for path, part, text in texts(directories):
            number += 1
            # A machine with little text gives it several times, each time a little different.
            body = text if turn == 0 else text.replace("e", f"e{turn}", 200)
            out.write(f"{number}\t{escape(path)}\t{part}\t{escape(body)}\n")
            written += len(body)
            if written >= wanted:
                break
        if number == before:
            sys.exit("documents: no texts found")
        turn += 1


if __name__ == "__main__":
    main()
