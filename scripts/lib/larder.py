"""What the Python scripts share: the binary, a private environment, measured runs, claims. Imported, never run."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPTS = CHECKOUT / "scripts"
TOOLS = Path(os.environ.get("LARDER_TOOLS") or Path.home() / ".cache" / "larder-tools")


def binary():
    """The release binary: LARDER_BIN, or the one of this checkout, built when it is missing."""
    named = os.environ.get("LARDER_BIN")
    if named:
        if not os.access(named, os.X_OK):
            sys.exit(f"error: LARDER_BIN={named} is not a program")
        return os.path.realpath(named)
    built = Path(os.environ.get("CARGO_TARGET_DIR") or CHECKOUT / "target") / "release" / "larder"
    if not built.exists() or os.environ.get("LARDER_REBUILD"):
        build = ["cargo", "build", "--release", "--locked", "--bin", "larder"]
        if subprocess.run(build, cwd=CHECKOUT, stdout=sys.stderr).returncode != 0:
            sys.exit("error: the release build failed")
    return os.path.realpath(built)


def work_dir(name):
    """A directory below /var/tmp: /tmp may live in memory."""
    base = os.environ.get("LARDER_WORK_DIR") or "/var/tmp"
    os.makedirs(base, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"larder-{name}.", dir=base))


def remove(path):
    """Removes a tree, also one deeper than Python's own rmtree likes."""
    if os.path.lexists(path):
        subprocess.run(["rm", "-rf", "--", str(path)], check=True)


def private_environment(work):
    """An environment in which nothing of the caller's configuration, caches or state takes part."""
    unwanted = ("LARDER_REPO", "LARDER_CONFIG", "LARDER_PROFILE", "LARDER_KEY_FILE", "LARDER_PASSWORD_FILE", "LARDER_PASSWORD_COMMAND")
    env = {k: v for k, v in os.environ.items() if k not in unwanted}
    env["LARDER_PASSWORD"] = secrets.token_urlsafe(24)
    env["LARDER_CACHE_DIR"] = str(work / "cache")
    for name in ("CACHE", "CONFIG", "STATE", "DATA"):
        env[f"XDG_{name}_HOME"] = str(work / "xdg" / name.lower())
    for directory in (work / "cache", work / "xdg"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return env


def start_server(name):
    """Starts an S3 server of its own; returns its environment. Stop it with stop_server."""
    text = subprocess.run([SCRIPTS / "s3" / "servers", "start", name], stdout=subprocess.PIPE, check=True, text=True).stdout
    return dict(line.removeprefix("export ").split("=", 1) for line in text.splitlines() if "=" in line)


def stop_server(name, env):
    subprocess.run([SCRIPTS / "s3" / "servers", "stop", name], env=env, check=False)


def summary(output):
    """The last JSON object of a command's standard output."""
    lines = [line for line in output.splitlines() if line.strip()]
    return json.loads(lines[-1]) if lines else {}


def stored_bytes(directory):
    """Sum of the sizes of the files below a directory."""
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                pass
    return total


class Measured:
    """What GNU time saw of one run: wall and CPU seconds, peak memory in bytes, exit status, standard output."""

    def __init__(self, status, wall, cpu, rss, output):
        self.status, self.wall, self.cpu, self.rss, self.output = status, wall, cpu, rss, output


def measured(command, env=None, cwd=None, stdin=None):
    """Runs a command under GNU time: a small parent, so that no memory of Python is counted as the child's."""
    gnu_time = shutil.which("time") or sys.exit("error: GNU time is missing; run scripts/install-deps test")
    with tempfile.NamedTemporaryFile("r") as report, tempfile.TemporaryFile("w+", errors="replace") as output:
        full = [gnu_time, "-q", "-o", report.name, "-f", "%e %U %S %M", *map(str, command)]
        status = subprocess.run(full, env=env, cwd=cwd, stdin=stdin or subprocess.DEVNULL, stdout=output,
                                stderr=subprocess.STDOUT).returncode
        wall, user, system, kib = report.read().split()[-4:]
        output.seek(0)
        return Measured(status, float(wall), float(user) + float(system), int(kib) << 10, output.read())


class Claims:
    """Prints PASS and FAIL lines and counts them."""

    def __init__(self):
        self.passed = self.failed = 0

    def say(self, text, holds, why=""):
        print(f"{'PASS' if holds else 'FAIL'}  {text}" + (f": {why}" if why and not holds else ""), flush=True)
        if holds:
            self.passed += 1
        else:
            self.failed += 1
        return holds

    def verdict(self):
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        return 0 if self.passed and not self.failed else 1
