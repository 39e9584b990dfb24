"""What a check is, and what it works with."""

import ctypes
import errno
import hashlib
import os
import pickle
import signal
import stat
import subprocess
import time

import guard

CHECKS = []
# What comes by itself (a change on its way to another node) comes within this. Only there to fail instead of hanging.
PATIENCE = 40
# The way in which the judge itself is judged: no mount at all.
PLAIN = "plain"


class Skip(Exception):
    """The check cannot be made here; the reason."""


def check(full=False, limit=90, cluster=False, root=False, name=None):
    """Registers a check. `full`: not with --quick. `limit`: seconds after which it has failed. `cluster`: makes no sense in a
    plain directory. `root`: needs the right to change users and owners."""

    def register(function):
        function.title = name or function.__name__.rstrip("_").replace("_", " ")
        function.full, function.limit, function.cluster, function.root = full, limit, cluster, root
        CHECKS.append(function)
        return function

    return register


def expect(truth, *words):
    if not truth:
        raise AssertionError(" ".join(str(w) for w in words) or "it is not so")


def same(got, wanted, what=""):
    if got != wanted:
        raise AssertionError(f"{what + ': ' if what else ''}{got!r} instead of {wanted!r}"[:2000])


def refused(numbers, function, *args, **kwargs):
    """The call must fail with (one of) these errors."""
    numbers = (numbers,) if isinstance(numbers, int) else numbers
    try:
        function(*args, **kwargs)
    except OSError as e:
        names = [errno.errorcode[n] for n in numbers]
        expect(e.errno in numbers, f"{errno.errorcode.get(e.errno, e.errno)} instead of {names}")
        return
    raise AssertionError(f"not refused ({[errno.errorcode[n] for n in numbers]} expected)")


def eventually(what, test, limit=PATIENCE):
    """Waits until it is true; errors of the system count as "not yet"."""
    end = time.monotonic() + limit
    while True:
        try:
            if test():
                return
            last = ""
        except OSError as e:
            last = f" ({e})"
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit} s: {what}{last}")
        time.sleep(0.02)


def run(*command, cwd=None, limit=60, env=None, data=None, ok=(0,)):
    """Runs a program; an error carries what it said. Returns its standard output."""
    stdin = {"input": data} if data is not None else {"stdin": subprocess.DEVNULL}
    done = subprocess.run(command, cwd=cwd, timeout=limit, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, **stdin)
    if done.returncode not in ok:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-1500:]
        raise AssertionError(f"{' '.join(map(str, command))[:200]}: exit code {done.returncode}: {said}")
    return done.stdout.decode(errors="surrogateescape")


class Child:
    """A forked process that runs a function."""

    def __init__(self, function, uid=None, gid=None, groups=()):
        self.reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(writer)
            return
        try:
            guard.die_with_parent(signal.SIGKILL)
            os.close(self.reader)
            for sig in (signal.SIGINT, signal.SIGTERM):
                signal.signal(sig, signal.SIG_DFL)
            if uid is not None:
                os.setgroups(list(groups))
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
                guard.die_with_parent(signal.SIGKILL)  # Forgotten with the change of user.
            try:
                answer = (True, function())
            except BaseException as e:  # noqa: B902: whatever it is, the parent gets it
                answer = (False, e)
            os.write(writer, pickle.dumps(answer))
        finally:
            os._exit(0)

    def ended(self):
        """The wait status once it has ended, else None."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return status if pid else None

    def result(self, limit=PATIENCE):
        """What the function returned, or its error."""
        status = None
        end = time.monotonic() + limit
        while status is None:
            status = self.ended()
            if status is None and time.monotonic() > end:
                self.kill()
                raise AssertionError(f"a child did not end within {limit} s")
            time.sleep(0.002)
        with os.fdopen(self.reader, "rb") as f:
            answer = f.read()
        if not answer:
            raise AssertionError(f"a child ended without an answer: wait status {status}")
        fine, value = pickle.loads(answer)
        if not fine:
            raise value
        return value

    def kill(self, sig=signal.SIGKILL):
        os.kill(self.pid, sig)


def as_user(uid, function, gid=None, groups=()):
    """Runs a function as another user."""
    return Child(function, uid, uid if gid is None else gid, groups).result()


# renameat2(2) and others that Python lacks; numbers of x86-64 and of the generic table.
def syscall(name, *args):
    table = {"x86_64": {"renameat2": 316, "mknodat": 259}, "aarch64": {"renameat2": 276, "mknodat": 33}}
    machine = os.uname().machine
    if machine not in table:
        raise Skip(f"no system call numbers for {machine}")
    if guard.libc.syscall(table[machine][name], *args) < 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))


def renameat2(old, new, flags):
    syscall("renameat2", -100, ctypes.c_char_p(os.fsencode(old)), -100, ctypes.c_char_p(os.fsencode(new)),
            ctypes.c_uint(flags))


def write(path, data, mode="wb"):
    with open(path, mode) as f:
        f.write(data if isinstance(data, bytes) else data.encode())


def read(path):
    with open(path, "rb") as f:
        return f.read()


def digest(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def bytes_of(seed, size):
    """Bytes that look random and are always the same."""
    return hashlib.shake_128(str(seed).encode()).digest(size)


def tree(directory, dir_times=False):
    """All that can be seen below a directory, in order, so that two can be compared. Directories' times only on demand: each node
    keeps its own, of when an entry was made there."""
    root, lines = os.fsencode(directory), []
    for path, dirs, files in os.walk(root):
        dirs.sort()
        for name in sorted(dirs + files) + ([b"."] if path == root else []):
            full = os.path.join(path, name)
            st = os.lstat(full)
            line = [os.path.relpath(full, root), oct(st.st_mode), st.st_uid, st.st_gid]
            if dir_times or not stat.S_ISDIR(st.st_mode):
                line.append(st.st_mtime_ns)
            if stat.S_ISLNK(st.st_mode):
                line.append(os.readlink(full))
            elif stat.S_ISREG(st.st_mode):
                line += [st.st_size, st.st_nlink, digest(full)]
            elif stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
                line.append(st.st_rdev)
            lines.append(line)
    return lines


def difference(one, other):
    only = [line for line in one if line not in other][:4]
    also = [line for line in other if line not in one][:4]
    return f"only here: {only}; only there: {also}"


class Context:
    """Where one check works: a directory of its own, which all nodes show."""

    def __init__(self, way, name, nodes, scratch):
        self.way, self.nodes = way, nodes
        self.roots = [n["mount"] for n in nodes]
        self.name = name.replace(" ", "-")
        # On three nodes. In the plain way all three are the same.
        self.here, self.there, self.elsewhere = (os.path.join(r, self.name) for r in self.roots)
        self.backing = os.path.join(nodes[0]["backing"], self.name)
        # Not in a mount.
        self.scratch = os.path.join(scratch, self.name)
        os.mkdir(self.here, 0o755)
        os.mkdir(self.scratch)

    def at(self, *names):
        return os.path.join(self.here, *names)

    def far(self, *names):
        return os.path.join(self.there, *names)

    def arrives(self, name, data=None):
        """Waits until another node shows a file, with these bytes if they are given."""
        if data is None:
            eventually(f"{name} on another node", lambda: os.path.lexists(self.far(name)))
        else:
            data = data if isinstance(data, bytes) else data.encode()
            eventually(f"{name} with its bytes on another node", lambda: read(self.far(name)) == data)

    def settled(self, dir_times=False, limit=PATIENCE):
        """Waits until all nodes show the same below the check's directory."""
        end = time.monotonic() + limit
        mine = tree(self.here, dir_times)
        for other in (self.there, self.elsewhere):
            while True:
                try:
                    theirs = tree(other, dir_times)
                except OSError as e:
                    theirs = [[str(e)]]
                if theirs == mine:
                    break
                if time.monotonic() > end:
                    raise AssertionError(f"the nodes differ: {difference(mine, theirs)}")
                time.sleep(0.05)
        return mine
