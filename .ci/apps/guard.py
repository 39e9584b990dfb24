"""What a run starts never outlives it, and nothing makes it wait for ever.

Every process that descends from a run carries `ICE_APPS_RUN=<number>` in its environment, so that all of them can be found,
whatever became of their parents. All mounts and files of a run are below one directory. A *janitor*, a process with no
descriptor of ours but the end of a pipe, sees the run end, however it ended, and clears away what it left. Neither the run nor
the janitor ever touches a path inside a mount: a request that nobody answers cannot be given up.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time

MARK = "ICE_APPS_RUN"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
MNT_DETACH = 2
# How long an orderly end of the nodes may take; `icecluster dev` kills what takes longer than 15 s.
STOP_SECONDS = 25

libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(sig):
    """To be called by a child: it gets `sig` when the process that started it has ended."""
    libc.prctl(PR_SET_PDEATHSIG, sig, 0, 0, 0)


def adopt_orphans():
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def unescape(text):
    """The kernel writes blanks and backslashes in paths as octal numbers."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def mounts_below(directory):
    """(path, minor number of its device, type), the topmost last."""
    found = []
    with open("/proc/self/mountinfo", errors="surrogateescape") as table:
        for line in table:
            fields = line.split(" ")
            path = unescape(fields[4])
            if path.startswith(directory + "/"):
                found.append((path, fields[2].split(":")[1], fields[fields.index("-") + 1]))
    return found


def abort_connections(directory):
    """Fails every request of the file systems mounted below, also those that wait for a dead daemon."""
    for _, minor, kind in mounts_below(directory):
        if kind.startswith("fuse"):
            try:
                with open(f"/sys/fs/fuse/connections/{minor}/abort", "w") as knob:
                    knob.write("1")
            except OSError:
                pass  # Not visible in every container: then the end of the daemon does the same.


def unmount_all(directory):
    """Takes away, lazily, what is still mounted; returns what would not go."""
    abort_connections(directory)
    for _ in range(64):
        left = mounts_below(directory)
        if not left:
            return []
        path = left[-1][0]
        if libc.umount2(os.fsencode(path), MNT_DETACH) != 0:
            # Refused: not root. The helper program may.
            try:
                subprocess.run(["fusermount3", "-uz", "--", path], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, timeout=20)
            except (OSError, subprocess.TimeoutExpired):
                break
    return [path for path, _, _ in mounts_below(directory)]


def marked(mark, spare=()):
    """Processes that carry the mark, zombies not counted."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in spare:
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as f:
                if wanted in f.read().split(b"\0"):
                    found.append(int(name))
        except OSError:
            pass  # It has ended, or is not ours.
    return found


def reap():
    """Takes note of all children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def kill_marked(mark, spare, limit=10):
    """Kills all processes that carry the mark; returns those that do not die (they wait in the kernel)."""
    end = time.monotonic() + limit
    left = marked(mark, spare)
    while left and time.monotonic() < end:
        for pid in left:
            try:
                # Looked at again through the descriptor, so that a number given to another process meanwhile is harmless.
                fd = os.pidfd_open(pid)
                try:
                    if pid in marked(mark, spare):
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                finally:
                    os.close(fd)
            except OSError:
                pass  # It has ended.
        time.sleep(0.05)
        reap()
        left = marked(mark, spare)
    return left


def clear(mark, directory, spare):
    """Ends everything and removes everything; returns what could not be, in words."""
    troubles = []
    # `icecluster dev` ends all nodes in order, also those started by hand; whatever else runs here would hold them up. A node must
    # not be told twice: it would end at once.
    for pid in marked(mark, spare):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                words = f.read().split(b"\0")
            node = os.path.basename(words[0]) == b"icecluster"
            if not node:
                os.kill(pid, signal.SIGKILL)
            elif b"dev" in words:
                os.kill(pid, signal.SIGTERM)
        except OSError:
            pass  # It has ended.
    end = time.monotonic() + STOP_SECONDS
    while marked(mark, spare) and time.monotonic() < end:
        time.sleep(0.05)
        reap()
    abort_connections(directory)
    stuck = kill_marked(mark, spare)
    if stuck:
        troubles.append(f"processes {stuck} do not die")
    mounted = unmount_all(directory)
    if mounted:
        return troubles + [f"still mounted: {', '.join(mounted)}"]
    shutil.rmtree(directory, ignore_errors=True)
    return troubles


class Janitor:
    """Clears up after this process if it does not do so itself, and ends it if it is still there after `limit` seconds."""

    def __init__(self, mark, directory, limit):
        reader, self.writer = os.pipe()
        told, tell = os.pipe()
        runner = os.getpid()
        middle = os.fork()
        if middle:
            os.close(reader)
            os.close(tell)
            os.waitpid(middle, 0)
            with os.fdopen(told) as f:
                self.pid = int(f.read())
            return
        # Twice, so that it is nobody's child and in nobody's group: what ends the run must not end it.
        os.setsid()
        if os.fork():
            os._exit(0)
        try:
            os.write(tell, str(os.getpid()).encode())
            self._watch(reader, runner, mark, directory, limit)
        finally:
            os._exit(0)

    def _watch(self, reader, runner, mark, directory, limit):
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(sig, signal.SIG_IGN)
        # No descriptor of the run may stay open here: a reader of its output waits for the last one to be closed.
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        for fd in range(3, 256):
            if fd != reader:
                try:
                    os.close(fd)
                except OSError:
                    pass
        os.chdir("/")
        readable, _, _ = select.select([reader], [], [], limit)
        if readable and os.read(reader, 1):
            return  # It says that it has cleared up by itself.
        if not readable:
            try:
                os.kill(runner, signal.SIGKILL)
            except OSError:
                pass
        clear(mark, directory, {os.getpid()})

    def dismiss(self):
        os.write(self.writer, b".")
        os.close(self.writer)


class Output:
    """Standard output, whose reader may be gone: the run then goes on to its end without it."""

    def __init__(self):
        self.broken = False

    def line(self, text):
        if self.broken:
            return
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except OSError:
            self.broken = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
