"""The rows of docs/performance.md, one function each."""

import os
import random
import time

from benchlib import HERE, Cluster, await_quiet, drop_caches, loopback_bytes, remove, say, sh


class Context:
    """What the rows share: options, scratch space, the clusters that are up."""

    def __init__(self, options, scratch, ops, results):
        self.o, self.scratch, self.ops, self.results = options, scratch, ops, results
        self.clusters = {}
        self.quick = options.quick

    def cluster(self, nodes):
        if nodes not in self.clusters:
            extra = ["--runtime", self.o.runtime]
            self.clusters[nodes] = Cluster(self.o.binary, nodes, f"{self.scratch}/c{nodes}", extra)
            if not self.clusters[nodes].nodes[0]["mount"]:
                say("  (no mount here: measuring the backing directory)")
        return self.clusters[nodes]

    def down(self):
        """Stops all clusters and forgets their files: each row starts afresh."""
        while self.clusters:
            nodes, cluster = self.clusters.popitem()
            cluster.stop()
            remove(f"{self.scratch}/c{nodes}")

    def rest(self, nodes):
        """Stops a cluster and keeps its files: `icecluster dev` takes only directories that it made."""
        self.cluster(nodes)
        self.clusters.pop(nodes).stop()

    def raw(self):
        path = self.scratch + "/raw"
        os.makedirs(path, exist_ok=True)
        return path

    def targets(self, *nodes):
        """Name -> directory: the raw one first, then ours with these numbers of nodes, then the others."""
        found = {"raw": self.raw()}
        for n in nodes:
            found[f"ice{n}"] = self.cluster(n).directory()
        found.update({name: where.split(",")[0] for name, where in self.o.others.items()})
        return found

    def rounds(self, targets):
        """Each round over all targets, each in an empty directory of its own that is removed afterwards."""
        for r in range(self.o.rounds):
            say(f" round {r + 1} of {self.o.rounds}")
            for name, where in targets.items():
                here = f"{where}/bench-{os.getpid()}"
                os.makedirs(here)
                await_quiet(seconds=2 if self.quick else 20)
                try:
                    yield name, here
                finally:
                    sh(f"rm -rf '{here}'")
                    self.settle(name)

    def settle(self, name):
        """Lets replication of one measurement end before the next begins."""
        if not name.startswith("ice"):
            return
        cluster = self.clusters[int(name[3:])]
        end = time.monotonic() + 120
        while not all(cluster.status(i).get("in_sync", True) for i in range(len(cluster.nodes))):
            if time.monotonic() > end:
                raise RuntimeError("the nodes do not come into sync")
            time.sleep(0.02)

    def cpu(self, name):
        return self.clusters[int(name[3:])].cpu() if name.startswith("ice") else 0.0


def read(c):
    size = "64m" if c.quick else "512m"
    for name, here in c.rounds(c.targets(1)):
        c.ops("write", here + "/big", size)
        if drop_caches():
            c.results.add("sequential read, cold", name, c.ops("read", here + "/big")["mb_s"], "MB/s")
        c.ops("read", here + "/big")
        c.results.add("sequential read, warm", name, c.ops("read", here + "/big")["mb_s"], "MB/s")


def write(c):
    mib = 64 if c.quick else 512
    for name, here in c.rounds(c.targets(1, 3)):
        before = c.cpu(name)
        c.results.add("sequential write + fsync", name, c.ops("write", here + "/big", f"{mib}m")["mb_s"], "MB/s")
        if name.startswith("ice"):
            c.settle(name)
            c.results.add("processor time of all nodes per GiB", name, (c.cpu(name) - before) * 1024 / mib, "s")


def source_tree(c):
    """A deterministic tree of text files, as a tar archive and as a bare git repository."""
    base = c.scratch + "/source"
    count = 1000 if c.quick else 8000
    if not os.path.exists(base + "/repo"):
        chance = random.Random(42)
        letters = "abcdefghijklmnopqrstuvwxyz_ \n"
        pool = "".join(chance.choice(letters) for _ in range(1 << 20)).encode()
        for i in range(count):
            folder = f"{base}/tree/m{i % 20:02d}/s{i % 300:03d}"
            os.makedirs(folder, exist_ok=True)
            n = min(int(chance.lognormvariate(8.5, 1.2)), 400_000)
            at = chance.randrange(len(pool) - n)
            with open(f"{folder}/file{i:05d}.c", "wb") as f:
                f.write(pool[at : at + n])
        who = "-c user.name=b -c user.email=b@b -c commit.gpgsign=false"
        sh(f"cd {base}/tree && tar cf ../tree.tar . && git init -q . && git config gc.auto 0 && git config maintenance.auto false && git add -A && git {who} commit -qm x && git gc -q")
        sh(f"cd {base} && git clone -q --bare tree repo && rm -rf tree")
    return base, count


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def untar(c):
    base, count = source_tree(c)
    for name, here in c.rounds(c.targets(1, 3)):
        c.results.add("unpack a source tree", name, count / seconds(lambda: sh(f"tar xf {base}/tree.tar -C {here}")), "files/s")
        c.results.add("rm -rf of it", name, count / seconds(lambda: sh(f"rm -rf {here}/*")), "files/s")


def git(c):
    base, _ = source_tree(c)
    for name, here in c.rounds(c.targets(3)):
        c.results.add("git clone", name, seconds(lambda: sh(f"git clone -q --no-local {base}/repo {here}/g")), "s")
        sh(f"git -C {here}/g status -s")
        c.results.add("git status, warm", name, seconds(lambda: sh(f"git -C {here}/g status -s")), "s")


def create(c):
    many, synced = (500, 100) if c.quick else (10_000, 1_000)
    for name, here in c.rounds(c.targets(1, 3)):
        c.ops("dirs", here + "/a")
        c.ops("dirs", here + "/b")
        c.results.add("create 4 KiB", name, c.ops("create", here + "/a", many, "4k", "nosync")["per_s"], "/s")
        made = c.ops("create", here + "/b", synced, "4k", "sync")
        c.results.add("create 4 KiB + fsync", name, made["per_s"], "/s")
        c.results.add("create 4 KiB + fsync, median", name, made["p50_us"], "us")
        c.results.add("unlink", name, c.ops("unlink", here + "/a", many)["per_s"], "/s")


def scan(c):
    base, count = source_tree(c)
    for name, here in c.rounds(c.targets(3)):
        sh(f"tar xf {base}/tree.tar -C {here}")
        for label, command in (("find", f"find {here} -size +1000000c"), ("ls -lR", f"ls -lR {here}")):
            sh(command)
            c.results.add(f"{label}, warm", name, seconds(lambda: sh(command)), "s")
            if drop_caches():
                c.results.add(f"{label}, cold", name, seconds(lambda: sh(command)), "s")
        sh(f"tar cf - -C {here} . | cat >/dev/null")
        took = seconds(lambda: sh(f"tar cf - -C {here} . | cat >/dev/null"))
        c.results.add("read the tree, warm", name, count / took, "files/s")


def read_calls(pid):
    """read(2) and its relatives that a process has made; each FUSE request costs its daemon one."""
    with open(f"/proc/{pid}/io") as f:
        return int(dict(line.split(": ") for line in f)["syscr"])


def requests(c):
    count = 1000
    cluster = c.cluster(1)
    here = cluster.directory() + "/requests"
    c.ops("dirs", here)
    c.ops("create", here, count, "4k", "nosync")
    files = [f"{here}/d{i % 100:03d}/f{i:07d}" for i in range(count)]

    def opened(f):
        os.close(os.open(f, os.O_RDONLY))

    def contents(fd):
        os.pread(fd, 4096, 0)

    for _ in range(c.o.rounds):
        for f in files:
            with open(f, "rb") as g:
                g.read()
        time.sleep(1)
        # Reading may have outdated the time of the last access.
        for f in files:
            os.stat(f)
        # What the daemon reads when nobody asks for anything.
        idle = read_calls(cluster.pid(0))
        time.sleep(1)
        idle = read_calls(cluster.pid(0)) - idle
        some = [os.open(f, os.O_RDONLY) for f in files[:500]]
        for label, action, on in (("stat", os.stat, files), ("open and close", opened, files), ("read", contents, some)):
            time.sleep(0.2)
            before, start = read_calls(cluster.pid(0)), time.perf_counter()
            for x in on:
                action(x)
            time.sleep(0.2)
            calls = read_calls(cluster.pid(0)) - before - idle * (time.perf_counter() - start)
            c.results.add(f"requests to the daemon per warm {label}", "ice1", max(0.0, calls) / len(on), "")
        for fd in some:
            os.close(fd)


def pairs(c):
    """Name -> two directories that show the same files."""
    cluster = c.cluster(3)
    found = {"ice3": (cluster.directory(0), cluster.directory(1))}
    found.update({n: tuple(w.split(",")) for n, w in c.o.others.items() if "," in w})
    return found


def has(path, data):
    try:
        if os.stat(path).st_size != len(data):
            return False
        with open(path, "rb") as f:
            return f.read() == data
    except FileNotFoundError:
        return False


def until(condition, limit, what):
    end = time.perf_counter() + limit
    while not condition():
        if time.perf_counter() > end:
            raise RuntimeError(f"not after {limit} s: {what}")
        time.sleep(0.0002)


def lag(c):
    for r in range(c.o.rounds):
        say(f" round {r + 1} of {c.o.rounds}")
        for name, (a, b) in pairs(c).items():
            await_quiet(seconds=2 if c.quick else 20)
            for i in range(5 if c.quick else 20):
                for label, size in (("4 KiB", 4096),) + ((("16 MiB", 16 << 20),) if i % 10 == 0 else ()):
                    file, data = f"bench-{os.getpid()}-{r}-{i}-{size}", os.urandom(size)
                    with open(f"{a}/{file}", "wb") as f:
                        f.write(data)
                    closed = time.perf_counter()
                    until(lambda: has(f"{b}/{file}", data), 60, f"{label} on the other side")
                    c.results.add(f"{label} closed here until readable there", name, (time.perf_counter() - closed) * 1e3, "ms")
                    os.unlink(f"{a}/{file}")
                time.sleep(0.05)


def burst(c):
    count = 100 if c.quick else 1000
    data = b"%08d" % 7 * 512
    for r in range(c.o.rounds):
        say(f" round {r + 1} of {c.o.rounds}")
        for name, (a, b) in pairs(c).items():
            await_quiet(seconds=2 if c.quick else 20)
            folder = f"bench-{os.getpid()}-{r}"
            start = time.perf_counter()
            os.mkdir(f"{a}/{folder}")
            for i in range(count):
                with open(f"{a}/{folder}/{i:05d}", "wb") as f:
                    f.write(data)
            written = time.perf_counter()
            for i in range(count):
                until(lambda: has(f"{b}/{folder}/{i:05d}", data), 120, "all files on the other side")
            now = time.perf_counter()
            c.results.add(f"{count} files of 4 KiB, until all are readable there", name, now - start, "s")
            c.results.add("of this after the last close", name, now - written, "s")
            sh(f"rm -rf '{a}/{folder}'")


def tree_of(directory, count, size=100):
    """Many small files, a thousand in a directory."""
    data = os.urandom(size)
    for i in range(count):
        folder = f"{directory}/t{i // 1000:05d}"
        if i % 1000 == 0:
            os.makedirs(folder, exist_ok=True)
        fd = os.open(f"{folder}/f{i:07d}", os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, data)
        os.close(fd)


def rejoin(c):
    count = c.o.files or (2_000 if c.quick else 100_000)
    # All three start with the same tree, so that only the ten changes are news.
    home = c.scratch + "/c3"
    tree_of(c.scratch + "/seed", count)
    c.rest(3)
    for i in (1, 2, 3):
        sh(f"cp -a {c.scratch}/seed/. {home}/node{i}/backing/", 1800)
    cluster = c.cluster(3)
    c.settle("ice3")
    a, b = cluster.directory(0), cluster.directory(2)
    for r in range(c.o.rounds):
        say(f" round {r + 1} of {c.o.rounds}")
        # First an absence without any change: what it costs to find out that nothing is missing.
        for label, changes in (("no", 0), ("10", 10)):
            cluster.end_node(2)
            fresh = [f"t00000/new-{r}-{i}" for i in range(changes)]
            for file in fresh:
                with open(f"{a}/{file}", "wb") as f:
                    f.write(file.encode() * 50)
            before, start = loopback_bytes(), time.perf_counter()
            cluster.start_node(2)
            cluster.await_ready(2, time.monotonic() + 300)
            ready = time.perf_counter()
            for file in fresh:
                until(lambda: has(f"{b}/{file}", file.encode() * 50), 300, "missed changes")
            c.settle("ice3")
            now = time.perf_counter()
            c.results.add(f"start and rejoin after {label} missed changes of {count} files", "ice3", now - start, "s")
            c.results.add("of this after it was ready", "ice3", now - ready, "s")
            c.results.add(f"bytes on the network for {label} missed changes", "ice3", (loopback_bytes() - before) / 1024, "KiB")
    remove(c.scratch + "/seed")


def resident(pid):
    """Resident bytes that are the process's own, not pages of files."""
    with open(f"/proc/{pid}/status") as f:
        fields = dict(line.split(":", 1) for line in f)
    return int(fields["RssAnon"].split()[0]) * 1024


def memory(c):
    count = c.o.files or (5_000 if c.quick else 1_000_000)
    cluster = c.cluster(1)
    empty = resident(cluster.pid(0))
    c.rest(1)
    say(f"  making {count} files")
    tree_of(f"{c.scratch}/c1/node1/backing", count)
    start = time.perf_counter()
    cluster = c.cluster(1)
    # It serves before it has looked at everything.
    until(lambda: cluster.status(0)["inodes"] >= count, 3600, "all files adopted")
    c.results.add(f"first start: {count} files are adopted", "ice1", time.perf_counter() - start, "s")
    for _ in range(c.o.rounds):
        cluster.end_node(0)
        drop_caches()
        start = time.perf_counter()
        cluster.start_node(0)
        cluster.await_ready(0, time.monotonic() + 600)
        until(lambda: cluster.status(0)["inodes"] >= count, 600, "all files known")
        c.results.add(f"start with {count} files", "ice1", time.perf_counter() - start, "s")
        held = resident(cluster.pid(0))
        c.results.add("memory per file", "ice1", (held - empty) / count, "bytes")
        sh(f"find {cluster.directory()} -size +1000000c", 1800)
        c.results.add("memory per file after a find over all", "ice1", (resident(cluster.pid(0)) - empty) / count, "bytes")
        c.results.add("open descriptors after it", "ice1", len(os.listdir(f"/proc/{cluster.pid(0)}/fd")), "")
