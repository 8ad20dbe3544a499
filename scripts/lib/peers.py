"""Larder and its peers as one kind of thing, for the scripts that do the same to each of them. Imported, never run.

A tool is a program, a repository (a directory, or a prefix of a bucket), and hosts: each host has a cache and a home of its own, as another
machine would. Commands come back as finished processes, so that a script can look at status and words; nothing is retried here.
"""

import json
import os
import shutil
import subprocess
import urllib.parse

import larder

PASSWORD = "correct horse battery staple"


def program(name):
    """The program of that name that the scripts use, or None."""
    if name == "larder":
        return larder.binary()
    places = [larder.TOOLS / "bin" / name, larder.TOOLS / name / "bin" / name]
    return next((str(p) for p in places if os.access(p, os.X_OK)), None) or shutil.which(name)


class Tool:
    """What follows works on any of them. `place` is a directory, or a bucket's address as (endpoint, bucket, prefix)."""

    name = None
    version_words = ("--version",)

    def __init__(self, home, place):
        self.program, self.home, self.place = program(self.name), home, place
        home.mkdir(parents=True, exist_ok=True)

    @property
    def is_remote(self):
        return isinstance(self.place, tuple)

    def version(self):
        out = subprocess.run([self.program, *self.version_words], stdout=subprocess.PIPE, text=True, check=False).stdout
        return " ".join(out.split()[:2])

    def env(self, host):
        """The environment of a host: its home, its cache."""
        at = self.home / host
        at.mkdir(mode=0o700, parents=True, exist_ok=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("LARDER_", "RESTIC_", "RUSTIC_", "BORG_"))} | {"HOME": str(at)}
        for kind in ("CACHE", "CONFIG", "STATE", "DATA"):
            env[f"XDG_{kind}_HOME"] = str(at / "xdg" / kind.lower())
        return env | self.settings(at)

    def forget_host(self, host):
        """The host's disk has burned: what it knew is gone."""
        larder.remove(self.home / host)

    def start(self, host, words, **more):
        return subprocess.Popen([self.program, *map(str, words)], env=self.env(host), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True, **more)

    def run(self, host, words, timeout=None, **more):
        return subprocess.run([self.program, *map(str, words)], env=self.env(host), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, errors="replace", timeout=timeout, **more)

    def do(self, host, words, **more):
        """A run that has to go well, or the script cannot go on."""
        done = self.run(host, words, **more)
        if done.returncode != 0:
            raise Failure(f"{self.name} {' '.join(map(str, words))} exits {done.returncode}: {said(done)}")
        return done


class Failure(Exception):
    """A tool did not do what a script needs before it can try anything."""


def said(done):
    """The last words of a command."""
    return (done.stdout + done.stderr).strip()[-600:]


class Larder(Tool):
    name = "larder"
    # A key file instead of the password, where many runs would spend their time in its derivation.
    key_file = None

    def settings(self, at):
        where = {"LARDER_CACHE_DIR": str(at / "cache")}
        where |= {"LARDER_KEY_FILE": str(self.key_file)} if self.key_file else {"LARDER_PASSWORD": PASSWORD}
        (at / "cache").mkdir(mode=0o700, exist_ok=True)
        if not self.is_remote:
            return where | {"LARDER_REPO": str(self.place)}
        endpoint, bucket, prefix = self.place
        return where | {"LARDER_REPO": f"s3://{bucket}/{prefix}", "AWS_ENDPOINT_URL_S3": endpoint}

    def init(self):
        return ["repo", "init", *(["--new-key-file", self.key_file] if self.key_file else [])]

    def backup(self, source, _name):
        return ["backup", source]

    def snapshots(self, host):
        """Ids, oldest first; checkpoints are no snapshots here."""
        listed = larder.summary(self.do(host, ["snapshot", "list", "--json"]).stdout)["snapshots"]
        return [s["id"] for s in listed if s["kind"] != "checkpoint"]

    def restore(self, host, snapshot, source, target, timeout=None):
        return self.run(host, ["restore", f"{snapshot}:{source}", "--target", target], timeout=timeout)

    def forget(self, snapshots):
        # What a script names has to go, whatever would be left.
        return [["snapshot", "forget", "--yes-remove-last", "--yes-remove-many", *snapshots]]

    def prune(self, *options):
        return [["repo", "prune", *options]]

    def check(self):
        return ["repo", "check", "--read-data"]


class Restic(Tool):
    name = "restic"
    version_words = ("version",)

    def settings(self, at):
        repository = str(self.place)
        if self.is_remote:
            endpoint, bucket, prefix = self.place
            repository = f"s3:{endpoint}/{bucket}/{prefix}"
        return {"RESTIC_REPOSITORY": repository, "RESTIC_PASSWORD": PASSWORD, "RESTIC_CACHE_DIR": str(at / "cache")}

    def init(self):
        return ["init"]

    def backup(self, source, _name):
        return ["backup", "-q", source]

    def snapshots(self, host):
        # Without a lock, since an experiment may have left one.
        return [s["id"] for s in json.loads(self.do(host, ["snapshots", "--json", "--no-lock"]).stdout)]

    def restore(self, host, snapshot, source, target, timeout=None):
        return self.run(host, ["restore", "-q", "--no-lock", f"{snapshot}:{source}", "--target", target], timeout=timeout)

    def forget(self, snapshots):
        return [["forget", *snapshots]]

    def prune(self, *options):
        return [["prune", "--max-unused", "0", *options]]

    def check(self):
        return ["check", "-q", "--no-lock", "--read-data"]


class Rustic(Tool):
    name = "rustic"

    def settings(self, at):
        env = {"RUSTIC_REPOSITORY": str(self.place), "RUSTIC_PASSWORD": PASSWORD, "RUSTIC_CACHE_DIR": str(at / "cache"),
               "RUSTIC_NO_PROGRESS": "true", "RUSTIC_LOG_LEVEL": "warn"}
        if self.is_remote:
            endpoint, bucket, prefix = self.place
            profile = at / "s3.toml"
            options = {"bucket": bucket, "root": f"/{prefix}", "endpoint": endpoint, "region": os.environ.get("AWS_REGION", "us-east-1"),
                       "access_key_id": os.environ["AWS_ACCESS_KEY_ID"], "secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"]}
            profile.write_text("[repository.options]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in options.items()), encoding="utf-8")
            profile.chmod(0o600)
            env |= {"RUSTIC_REPOSITORY": "opendal:s3", "RUSTIC_USE_PROFILE": str(profile.with_suffix(""))}
        return env

    def init(self):
        return ["init"]

    def backup(self, source, _name):
        return ["backup", source]

    def snapshots(self, host):
        groups = json.loads(self.do(host, ["snapshots", "--json"]).stdout)
        # Groups are pairs or objects, as the version likes.
        lists = [g["snapshots"] if isinstance(g, dict) else g[1] for g in groups]
        return [s["id"] for s in sorted((s for group in lists for s in group), key=lambda s: s["time"])]

    def restore(self, host, snapshot, source, target, timeout=None):
        return self.run(host, ["restore", f"{snapshot}:{source}", target], timeout=timeout)

    def forget(self, snapshots):
        return [["forget", *snapshots]]

    def prune(self, *options):
        return [["prune", "--max-unused", "0B", *options]]

    def check(self):
        return ["check", "--read-data"]


class Borg(Tool):
    name = "borg"

    def settings(self, at):
        return {"BORG_REPO": str(self.place), "BORG_PASSPHRASE": PASSWORD, "BORG_BASE_DIR": str(at / "base"),
                "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes", "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
                "BORG_CHECK_I_KNOW_WHAT_I_AM_DOING": "YES"}

    def init(self):
        return ["init", "-e", "repokey-blake2"]

    def backup(self, source, name):
        return ["create", "--compression", "zstd,3", f"::{name}", source]

    def snapshots(self, host):
        listed = self.do(host, ["list", "--json", "--bypass-lock"]).stdout
        return [a["name"] for a in json.loads(listed)["archives"]]

    def restore(self, host, snapshot, source, target, timeout=None):
        os.makedirs(target, exist_ok=True)
        parts = str(len(source.parts) - 1)
        return self.run(host, ["extract", "--bypass-lock", "--strip-components", parts, f"::{snapshot}", str(source).lstrip("/")],
                        cwd=target, timeout=timeout)

    def forget(self, snapshots):
        return [["delete", f"::{snapshots[0]}", *snapshots[1:]]] if snapshots else []

    def prune(self, *options):
        return [["compact", "--threshold", "0", *options]]

    def check(self):
        return ["check", "--verify-data", "--bypass-lock"]


TOOLS = {"larder": Larder, "restic": Restic, "rustic": Rustic, "borg": Borg}


def find(names):
    """The tools among the names that are installed; says loudly which are not."""
    found = {}
    for name in names:
        if program(name):
            found[name] = TOOLS[name]
        else:
            print(f"SKIPPED: {name}: not installed (scripts/install-deps {'rustic' if name == 'rustic' else 'peers'})", flush=True)
    return found


def endpoint_of(env):
    """Host and port of an S3 server's environment."""
    url = urllib.parse.urlsplit(env["AWS_ENDPOINT_URL_S3"])
    return url.hostname, url.port


def table(head, rows):
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])
