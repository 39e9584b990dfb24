"""Programs that people use."""

import os
import shutil

from check import Child, Skip, bytes_of, check, eventually, expect, read, run, same, tree, write


def need(program):
    if shutil.which(program) is None:
        raise Skip(f"{program} is not installed")


def source_tree(directory):
    """Some hundred files as in a source tree, with links, modes and old times."""
    for d in range(12):
        sub = os.path.join(directory, f"module{d}", "src")
        os.makedirs(sub)
        for f in range(12):
            path = os.path.join(sub, f"file{f}.c")
            write(path, f"int f{d}_{f}(void) {{ return {d * f}; }}\n" * (1 + (d * 7 + f * 13) % 90))
            os.utime(path, ns=(10**18 + d * 1_000_003, 10**18 + f * 1_000_007))
        os.symlink(f"../src/file{d}.c", os.path.join(sub, "link.c"))
    write(os.path.join(directory, "run.sh"), "#!/bin/sh\necho ran\n")
    os.chmod(os.path.join(directory, "run.sh"), 0o755)
    os.link(os.path.join(directory, "run.sh"), os.path.join(directory, "linked.sh"))
    write(os.path.join(directory, "large.bin"), bytes_of("large.bin", 3_000_000))
    # Innermost first: an entry moves the time of its directory.
    for path, _, _ in os.walk(directory, topdown=False):
        os.utime(path, ns=(10**18, 10**18 + len(path)))


GIT = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example", "GIT_COMMITTER_NAME": "A",
       "GIT_COMMITTER_EMAIL": "a@example", "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_COUNT": "2",
       "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*", "GIT_CONFIG_KEY_1": "gc.auto",
       "GIT_CONFIG_VALUE_1": "0"}


@check(limit=180)
def git(c):
    need("git")
    env = {**GIT, "HOME": c.scratch}
    origin = os.path.join(c.scratch, "origin")
    os.mkdir(origin)
    source_tree(origin)

    def do(*words, at):
        return run("git", *words, cwd=at, env=env, limit=120)

    do("init", "-q", "-b", "main", at=origin)
    do("add", "-A", at=origin)
    do("commit", "-qm", "first", at=origin)
    do("clone", "-q", "--no-hardlinks", origin, c.at("clone"), at=c.here)
    at = c.at("clone")
    same(do("status", "--porcelain", at=at), "")
    for i in range(5):
        write(os.path.join(at, f"new{i}"), f"number {i}\n" * 50)
        do("add", "-A", at=at)
        do("commit", "-qm", f"change {i}", at=at)
    do("checkout", "-qb", "side", "HEAD~3", at=at)
    write(os.path.join(at, "side"), "aside\n")
    do("add", "-A", at=at)
    do("commit", "-qm", "aside", at=at)
    do("checkout", "-q", "main", at=at)
    do("merge", "-q", "-m", "merged", "side", at=at)
    do("mv", "module0", "moved", at=at)
    do("commit", "-qm", "moved", at=at)
    do("gc", "-q", "--prune=now", at=at)
    do("fsck", "--full", "--strict", at=at)
    same(do("status", "--porcelain", at=at), "")
    head = do("rev-parse", "HEAD", at=at)
    # A push into the mount, and the same repository on another node.
    do("clone", "-q", "--bare", origin, c.at("bare.git"), at=c.here)
    do("push", "-q", c.at("bare.git"), "main:pushed", at=at)
    c.settled()
    do("fsck", "--full", at=c.far("clone"))
    same(do("rev-parse", "HEAD", at=c.far("clone")), head)
    same(do("rev-parse", "pushed", at=c.far("bare.git")), head)
    same(do("status", "--porcelain", at=c.far("clone")), "")


def sqlite(c, journal):
    try:
        import sqlite3
    except ImportError as e:
        raise Skip("this Python has no sqlite3") from e

    def connect(path):
        db = sqlite3.connect(path, timeout=30, isolation_level=None)
        db.execute(f"pragma journal_mode={journal}")
        db.execute("pragma synchronous=normal")
        return db

    db = connect(c.at("db"))
    db.execute("create table t (who integer, n integer, text)")
    for part in range(5):
        db.execute("begin")
        db.executemany("insert into t values (?, ?, ?)", [(9, part * 200 + i, "x" * (i % 300)) for i in range(200)])
        db.execute("commit" if part != 3 else "rollback")
    same(db.execute("select count(*) from t where who = 9").fetchone(), (800,))

    def insert(who):
        mine = connect(c.at("db"))
        for i in range(15):
            mine.execute("insert into t values (?, ?, 'y')", (who, i))
        mine.close()

    children = [Child(lambda who=who: insert(who)) for who in range(3)]
    for child in children:
        child.result(80)
    db.execute("delete from t where n % 3 = 0")
    db.execute("vacuum")
    rows = db.execute("select who, n, length(text) from t order by who, n").fetchall()
    same(db.execute("pragma integrity_check").fetchone(), ("ok",))
    db.close()

    def elsewhere():
        # Read as it is: nobody writes any more.
        far = sqlite3.connect(f"file:{c.far('db')}?immutable=1", uri=True)
        try:
            return (far.execute("pragma integrity_check").fetchone() == ("ok",)
                    and far.execute("select who, n, length(text) from t order by who, n").fetchall() == rows)
        except sqlite3.DatabaseError:
            return False
        finally:
            far.close()

    def names(database):
        return sorted(n for n in os.listdir(os.path.dirname(database)) if n.startswith("db"))

    # The removal of a journal comes after the bytes: a database that is opened in between looks as after a crash.
    def same_names():
        return names(c.at("db")) == names(c.far("db"))

    eventually("the database on another node", lambda: elsewhere() and same_names())
    # There, too, one can go on.
    db = connect(c.far("db"))
    db.execute("insert into t values (77, 1, 'there')")
    db.close()
    eventually("what was inserted there", lambda: read(c.at("db")) == read(c.far("db")) and same_names())
    db = connect(c.at("db"))
    same(db.execute("select text from t where who = 77").fetchall(), [("there",)])
    same(db.execute("pragma integrity_check").fetchone(), ("ok",))
    db.close()


@check(limit=150)
def sqlite_with_a_rollback_journal(c):
    sqlite(c, "delete")


@check(limit=150)
def sqlite_with_a_write_ahead_log(c):
    sqlite(c, "wal")


@check(limit=120)
def tar(c):
    need("tar")
    os.mkdir(os.path.join(c.scratch, "tree"))
    source_tree(os.path.join(c.scratch, "tree"))
    wanted = tree(os.path.join(c.scratch, "tree"), dir_times=True)
    run("tar", "--format=posix", "-C", c.scratch, "-cf", c.at("tree.tar"), "tree")
    run("tar", "-C", c.here, "-xpf", c.at("tree.tar"))
    same(tree(c.at("tree"), dir_times=True) == wanted, True, "unpacked")
    run("tar", "-C", c.here, "-df", c.at("tree.tar"))
    c.settled()
    run("tar", "-C", c.there, "-df", c.far("tree.tar"))
    run("tar", "--format=posix", "-C", c.there, "-cf", c.far("again.tar"), "tree")
    run("rm", "-r", c.at("tree"))
    same(os.listdir(c.here).count("tree"), 0)
    eventually("it is gone everywhere", lambda: not os.path.exists(c.far("tree")))


@check(limit=120)
def cp_and_directory_times(c):
    """What copies a tree with its times finds them on all nodes, also those of directories."""
    os.mkdir(os.path.join(c.scratch, "tree"))
    source_tree(os.path.join(c.scratch, "tree"))
    wanted = tree(os.path.join(c.scratch, "tree"), dir_times=True)
    run("cp", "-a", os.path.join(c.scratch, "tree"), c.here)
    same(tree(c.at("tree"), dir_times=True) == wanted, True, "copied")

    def theirs(place):
        found = tree(os.path.join(place, "tree"), dir_times=True)
        return found == wanted

    for place in (c.there, c.elsewhere):
        try:
            eventually("the copy with all times", lambda place=place: theirs(place), 20)
        except AssertionError:
            found = tree(os.path.join(place, "tree"), dir_times=True)
            lines = [(w, f) for w, f in zip(wanted, found) if w != f][:4]
            raise AssertionError(f"the copy differs on another node: {lines}") from None
    run("cp", "-a", c.far("tree"), c.far("again"))
    run("diff", "-r", c.far("tree"), c.far("again"))
    run("mv", c.far("again"), os.path.join(c.scratch, "out"))
    same(tree(os.path.join(c.scratch, "out"), dir_times=True) == wanted, True, "moved out")


@check(limit=120)
def dd_and_sums(c):
    need("dd")
    need("sha256sum")
    write(os.path.join(c.scratch, "in"), bytes_of("dd", 8 << 20))
    source = os.path.join(c.scratch, "in")
    run("dd", f"if={source}", f"of={c.at('plain')}", "bs=64k", "conv=fsync")
    run("dd", f"if={source}", f"of={c.at('sync')}", "bs=1M", "oflag=dsync")
    run("dd", f"if={source}", f"of={c.at('direct')}", "bs=1M", "oflag=direct")
    run("dd", f"if={source}", f"of={c.at('odd')}", "bs=7777", "conv=fdatasync")
    run("dd", f"if={c.at('direct')}", f"of={c.at('again')}", "bs=1M", "iflag=direct")
    run("dd", f"if={source}", f"of={c.at('sparse')}", "bs=4k", "seek=5000", "count=1", "conv=notrunc")
    names = ("plain", "sync", "direct", "odd", "again", "sparse")
    sums = run("sha256sum", *names, cwd=c.here)
    same({line.split()[0] for line in sums.splitlines()[:5]}, {run("sha256sum", source).split()[0]})
    write(os.path.join(c.scratch, "sums"), sums)
    c.settled()
    run("sha256sum", "--quiet", "-c", os.path.join(c.scratch, "sums"), cwd=c.there)


@check(limit=120)
def shell_and_text_tools(c):
    script = r"""
set -e
seq 1 2000 > numbers
sort -rn numbers > down && sort -n down > up && cmp numbers up
sed -i 's/^7$/seven/' numbers && grep -c seven numbers
for i in $(seq 40); do echo "line $i" >> log; done
[ "$(wc -l < log)" = 40 ]
mkdir -p a/b/c && touch a/b/c/{1..30} 2>/dev/null || touch a/b/c/1
find a -type f -newer numbers | xargs rm -f && rm -r a
tail -n 1 log | tee last >/dev/null && [ "$(cat last)" = "line 40" ]
mv log log.old && ln -s log.old log && [ "$(head -n 1 log)" = "line 1" ]
install -m 640 numbers installed && test -x . && [ -r installed ]
"""
    run("bash", "-c", script, cwd=c.here)
    c.settled()
    same(read(c.far("last")), b"line 40\n")


@check(limit=120)
def many_small_files(c):
    """Made, changed, renamed and removed by several processes at once."""

    def work(who):
        base = c.at(f"w{who}")
        os.mkdir(base)
        for i in range(120):
            write(os.path.join(base, f"f{i}"), f"{who} {i}")
            if i % 3 == 0:
                os.rename(os.path.join(base, f"f{i}"), os.path.join(base, f"g{i}"))
            if i % 5 == 0 and i % 3:
                os.unlink(os.path.join(base, f"f{i}"))
            if i % 7 == 0 and i % 3 == 0:
                write(os.path.join(base, f"g{i}"), "again", "ab")

    children = [Child(lambda who=who: work(who)) for who in range(3)]
    for child in children:
        child.result(60)
    lines = c.settled()
    expect(len(lines) > 3 * 100, "too few are left")
    shutil.rmtree(c.far("w1"))
    eventually("removed on another node", lambda: not os.path.exists(c.at("w1")))
    c.settled()


@check(limit=200, full=True)
def rsync(c):
    need("rsync")
    source = os.path.join(c.scratch, "tree")
    os.mkdir(source)
    source_tree(source)
    flags = ("-aHX", "--checksum", "--numeric-ids")
    run("rsync", *flags, source + "/", c.at("copy/"))
    wanted = tree(source, dir_times=True)

    def unchanged(place):
        told = run("rsync", *flags, "--dry-run", "--itemize-changes", source + "/", place + "/copy/")
        return told == ""

    for place in (c.here, c.there, c.elsewhere):
        eventually("rsync finds nothing to do", lambda place=place: unchanged(place), 30)
    write(os.path.join(source, "module3", "src", "file1.c"), "changed")
    os.unlink(os.path.join(source, "module4", "src", "file1.c"))
    run("rsync", *flags, "--delete", source + "/", c.at("copy/"))
    run("rsync", *flags, "--inplace", "--no-whole-file", source + "/", c.far("copy2/"))
    for place in (c.here, c.there, c.elsewhere):
        eventually("rsync finds nothing to do", lambda place=place: unchanged(place), 30)
    expect(wanted != tree(source, dir_times=True))
