"""Suites and programs that are large or have to be installed first; only in the full run."""

import glob
import os
import pwd
import random
import re
import shutil
import signal
import subprocess

import guard
from check import Skip, check, digest, eventually, expect, read, run, same, write

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Where `cargo install` puts what is only needed here.
INSTALLED = os.path.join(TOP, "target", "apps")
CRATES = {"fsx": "0.3.2", "pjdfstest": "0.2.2"}
PACKAGES = {"rsync": "rsync", "git": "git", "sqlite3": "sqlite3", "postgres": "postgresql"}


def tool(name):
    """A program, also where Debian hides those of PostgreSQL; `None`: not installed."""
    hidden = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))
    own = os.path.join(INSTALLED, "bin", name)
    return own if os.path.exists(own) else (hidden[-1] if hidden else shutil.which(name))


def prepare(chosen, top):
    """Installs what the chosen checks need and this machine lacks. What cannot be installed is skipped later."""
    del top
    if not any(c.full for c in chosen):
        return
    missing = [package for program, package in PACKAGES.items() if tool(program) is None]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    if missing and shutil.which("apt-get") and os.geteuid() == 0:
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "-q", "update"], timeout=300, check=False, **quiet)
        subprocess.run(["apt-get", "-q", "-y", "install", "--no-install-recommends", *missing], timeout=900, env=env,
                       check=False, **quiet)
    for crate, version in CRATES.items():
        if tool(crate) is None:
            subprocess.run(["cargo", "install", "-q", "--locked", "--root", INSTALLED, f"{crate}@{version}"], timeout=1800,
                           check=False, **quiet)


def needed(name):
    path = tool(name)
    if path is None:
        raise Skip(f"{name} is not installed")
    return path


FSX = """flen = 262144
[opsize]
max = 65536
[weights]
close_open = 1
read = 10
write = 10
mapread = 10
truncate = 8
invalidate = 1
mapwrite = 10
fsync = 1
fdatasync = 1
posix_fallocate = 3
punch_hole = 5
sendfile = 5
posix_fadvise = 1
copy_file_range = 5
"""


def fsx(c, path, seed, operations, limit=200):
    config = os.path.join(c.scratch, "fsx.toml")
    write(config, FSX)
    run(needed("fsx"), "-q", "-f", config, "-S", str(seed), "-N", str(operations), "-P", c.scratch, path, limit=limit)


@check(full=True, limit=900)
def fsx_on_one_mount(c):
    for seed in range(1, 9):
        fsx(c, c.at("f"), seed, 2500)
    c.settled()
    return "8 seeds of 2,500 operations"


@check(full=True, limit=900)
def fsx_through_two_mounts(c):
    """One shared file, worked on through each mount in turn."""
    for seed in range(1, 9):
        path, other = (c.at("f"), c.far("f")) if seed % 2 else (c.far("f"), c.at("f"))
        fsx(c, path, 100 + seed, 800)
        wanted = digest(path)
        eventually(f"the other node has what turn {seed} left", lambda other=other, wanted=wanted: digest(other) == wanted)
    return "8 turns of 800 operations"


@check(full=True, limit=600)
def a_file_changed_through_all_mounts(c):
    """Random changes by turns on three nodes, each after the last has arrived, against a model in memory."""
    rng, model = random.Random(7), bytearray()
    write(c.at("f"), b"")
    places = (c.here, c.there, c.elsewhere)
    for turn in range(120):
        path = os.path.join(places[rng.randrange(3)], "f")
        eventually(f"turn {turn} sees the last", lambda path=path: read(path) == bytes(model))
        kind, at, size = rng.randrange(4), rng.randrange(300_000), rng.randrange(1, 90_000)
        data = bytes([turn + 1]) * size
        with open(path, "r+b", buffering=0) as f:
            if kind == 0:
                f.truncate(at)
                model = model[:at] + bytes(max(0, at - len(model)))
            elif kind == 1:
                f.seek(0, os.SEEK_END)
                f.write(data)
                model += data
            else:
                model += bytes(max(0, at + size - len(model)))
                model[at:at + size] = data
                f.seek(at)
                f.write(data)
            if kind == 3:
                os.fsync(f.fileno())
    c.settled()
    return "120 turns"


@check(full=True, limit=900, root=True)
def pjdfstest(c):
    """No failure that a plain directory does not have."""
    program = needed("pjdfstest")
    users = [u for u in ("nobody", "daemon", "bin", "games") if has(u)][:2]
    entries = ", ".join(f'["{u}", "{group_of(u)}"]' for u in users)
    config = os.path.join(c.scratch, "pjdfstest.toml")
    write(config, "[features]\nposix_fallocate = {}\nutimensat = {}\nutime_now = {}\nrename_ctime = {}\nstat_st_birthtime = {}\n"
                  f"[settings]\nnaptime = 0.05\nallow_remount = false\n[dummy_auth]\nentries = [{entries}]\n")
    plain = os.path.join(c.scratch, "p")
    os.mkdir(plain)
    os.chmod(c.scratch, 0o755)

    def results(path):
        said = run(program, "-c", config, "-p", path, limit=400, ok=(0, 1, 101))
        write(os.path.join(c.scratch, os.path.basename(path) + ".out"), said.encode(errors="surrogateescape"))
        found = {}
        for line in said.splitlines():
            match = re.match(r"(\S+)\s.*?\b(success|FAILED|failed|ok|skipped|passed)\b", plain_text(line))
            if match:
                found[match.group(1)] = match.group(2).lower()
        last = plain_text(said.strip().splitlines()[-1])
        return {n for n, r in found.items() if r == "failed"}, last

    raw, raw_last = results(plain)
    here, last = results(c.here)
    same(sorted(here - raw), [], f"({last}; raw: {raw_last}) failures that the plain directory does not have")
    return f"{last} (plain directory: {raw_last})"


def plain_text(line):
    return re.sub(r"\x1b\[[0-9;]*m", "", line)


def has(user):
    try:
        pwd.getpwnam(user)
        return True
    except KeyError:
        return False


def group_of(user):
    import grp
    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name


@check(full=True, limit=400)
def cargo_build(c):
    needed("cargo")
    env = {"CARGO_NET_OFFLINE": "true", "CARGO_TERM_COLOR": "never", "CARGO_HOME": os.path.join(c.scratch, "cargo")}
    for name in ("RUSTUP_HOME",):
        env[name] = os.environ.get(name, os.path.expanduser("~/.rustup"))
    os.mkdir(env["CARGO_HOME"])
    for crate in ("lib", "app"):
        os.makedirs(c.at("work", crate, "src"))
    write(c.at("work", "Cargo.toml"), '[workspace]\nresolver = "2"\nmembers = ["lib", "app"]\n')
    write(c.at("work", "lib", "Cargo.toml"), '[package]\nname = "lib"\nversion = "0.1.0"\nedition = "2021"\n')
    modules = 12
    write(c.at("work", "lib", "src", "lib.rs"), "".join(f"pub mod m{i};\n" for i in range(modules)))
    for i in range(modules):
        write(c.at("work", "lib", "src", f"m{i}.rs"),
              f"pub fn f() -> u64 {{ (0..{i + 3}).sum() }}\n#[test]\nfn sums() {{ assert!(f() > 0); }}\n")
    write(c.at("work", "app", "Cargo.toml"),
          '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\nlib = { path = "../lib" }\n')
    total = " + ".join(f"lib::m{i}::f()" for i in range(modules))
    write(c.at("work", "app", "src", "main.rs"), f'fn main() {{ println!("{{}}", {total}); }}\n')

    def cargo(*words):
        return run("cargo", *words, cwd=c.at("work"), env=env, limit=300)

    first = cargo("run", "-q")
    cargo("test", "-q", "--workspace")
    write(c.at("work", "lib", "src", "m3.rs"), "pub fn f() -> u64 { 1_000_000 }\n")
    expect(int(cargo("run", "-q")) > int(first), "the change was not seen")
    same(cargo("build", "-q"), "")
    c.settled()
    same(run(c.far("work", "target", "debug", "app")), cargo("run", "-q"))


class Postgres:
    """A server whose data are in a mount; nobody but its socket's directory knows it."""

    def __init__(self, c, data, user):
        self.user, self.data = user, data
        self.log = os.path.join(c.scratch, "server.log")
        self.sockets = os.path.join("/tmp", f"ice-pg-{os.getpid()}")
        os.makedirs(self.sockets, exist_ok=True)
        shutil.chown(self.sockets, user)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [needed("postgres"), "-D", data, "-k", self.sockets, "-c", "listen_addresses=", "-c", "shared_buffers=32MB",
                 "-c", "fsync=on", "-c", "logging_collector=off"], user=user, group=user, extra_groups=[],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                preexec_fn=lambda: guard.die_with_parent(signal.SIGQUIT))
        try:
            eventually("the server answers", lambda: self.sql("select 1") == "1", 120)
        except BaseException:
            self.stop(signal.SIGQUIT)
            raise

    def sql(self, text):
        done = subprocess.run([needed("psql"), "-h", self.sockets, "-U", self.user, "-d", "postgres", "-Atc", text],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
        if done.returncode and self.process.poll() is not None:
            raise AssertionError(f"the server ended: {read(self.log)[-600:].decode(errors='replace')}")
        return done.stdout.decode().strip()

    def stop(self, sig=signal.SIGINT):
        """SIGINT: disconnects everybody and ends in order."""
        self.process.send_signal(sig)
        try:
            code = self.process.wait(90)
        finally:
            self.process.kill()
            self.process.wait()
            shutil.rmtree(self.sockets, ignore_errors=True)
        return code


def postgres(c, *initdb):
    for name in ("initdb", "postgres", "psql", "pgbench", "pg_checksums"):
        needed(name)
    user = next((u for u in ("postgres", "nobody") if has(u)), None)
    if os.geteuid() != 0 or user is None:
        raise Skip("needs root, to be another user")
    os.chmod(c.scratch, 0o777)
    os.mkdir(c.at("pg"))
    shutil.chown(c.at("pg"), user, pwd.getpwnam(user).pw_gid)

    def as_user(*command, limit=300):
        done = subprocess.run([needed(command[0]), *command[1:]], user=user, group=pwd.getpwnam(user).pw_gid, extra_groups=[],
                              cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit)
        said = done.stdout.decode(errors="replace")
        expect(done.returncode == 0, f"{command[0]}: {said[-900:]}")
        return said

    as_user("initdb", "-D", c.at("pg"), "-A", "trust", "-k", "-U", user, *initdb)
    server = Postgres(c, c.at("pg"), user)
    try:
        as_user("pgbench", "-h", server.sockets, "-U", user, "-i", "-q", "-s", "2", "postgres")
        said = as_user("pgbench", "-h", server.sockets, "-U", user, "-c", "4", "-j", "2", "-T", "15", "postgres")
        tps = float(re.search(r"tps = ([0-9.]+)", said).group(1))
        failed = re.search(r"number of failed transactions: (\d+)", said)
        same(failed.group(1) if failed else "0", "0", "failed transactions")
        # The bench's own books: what was added to the branches is what the history says.
        books = "select (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)"
        same(server.sql(books), "t")
        rows = server.sql("select count(*) from pgbench_history")
        # The hard way: no checkpoint, recovery from the log in the mount.
        server.stop(signal.SIGQUIT)
        server = Postgres(c, c.at("pg"), user)
        same((server.sql("select count(*) from pgbench_history"), server.sql(books)), (rows, "t"), "after a crash of the server")
        same(server.stop(), 0, "the server's exit code")
    except BaseException:
        server.stop(signal.SIGQUIT)
        raise
    as_user("pg_checksums", "--check", "-D", c.at("pg"))
    c.settled(limit=120)
    # The same database on another node.
    server = Postgres(c, c.far("pg"), user)
    try:
        same((server.sql("select count(*) from pgbench_history"), server.sql(books)), (rows, "t"), "on another node")
    finally:
        server.stop()
    return f"{tps:.0f} transactions per second"


@check(full=True, limit=900, root=True)
def postgresql(c):
    return postgres(c)


@check(full=True, limit=900, root=True)
def postgresql_with_small_log_segments(c):
    """A version of a file is sent whole to whom it is news: small segments make small news."""
    return postgres(c, "--wal-segsize=1")


