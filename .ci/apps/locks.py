"""Locks between the processes of one node, and processes that wait."""

import errno
import fcntl
import os
import signal
import struct
import time

from check import Child, check, eventually, expect, refused, same, write


@check()
def flock(c):
    write(c.at("f"), "")
    mine = os.open(c.at("f"), os.O_RDWR)
    fcntl.flock(mine, fcntl.LOCK_EX)

    def other(how):
        fd = os.open(c.at("f"), os.O_RDWR)
        fcntl.flock(fd, how)

    refused(errno.EWOULDBLOCK, Child(lambda: other(fcntl.LOCK_SH | fcntl.LOCK_NB)).result)
    waiting = Child(lambda: other(fcntl.LOCK_EX))
    time.sleep(0.1)
    same(waiting.ended(), None)
    fcntl.flock(mine, fcntl.LOCK_UN)
    waiting.result()
    fcntl.flock(mine, fcntl.LOCK_SH)
    Child(lambda: other(fcntl.LOCK_SH | fcntl.LOCK_NB)).result()
    refused(errno.EWOULDBLOCK, Child(lambda: other(fcntl.LOCK_EX | fcntl.LOCK_NB)).result)
    os.close(mine)
    Child(lambda: other(fcntl.LOCK_EX | fcntl.LOCK_NB)).result()


@check()
def fcntl_locks(c):
    write(c.at("f"), "0" * 100)
    mine = os.open(c.at("f"), os.O_RDWR)
    fcntl.lockf(mine, fcntl.LOCK_EX, 10, 20)

    def other(start, length, how=fcntl.LOCK_EX | fcntl.LOCK_NB):
        fd = os.open(c.at("f"), os.O_RDWR)
        fcntl.lockf(fd, how, length, start)

    Child(lambda: other(0, 20)).result()
    Child(lambda: other(30, 5)).result()
    refused((errno.EAGAIN, errno.EACCES), Child(lambda: other(29, 5)).result)

    def who():
        fd = os.open(c.at("f"), os.O_RDWR)
        question = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, question))

    same(Child(who).result()[0:5], (fcntl.F_WRLCK, os.SEEK_SET, 20, 10, os.getpid()))
    # Closing any descriptor of the file gives them up.
    os.close(os.open(c.at("f"), os.O_RDONLY))
    Child(lambda: other(0, 100)).result()

    # One holder dies: the next has it.
    def hold():
        other(0, 0)
        write(c.at("held"), "")
        time.sleep(60)

    holder = Child(hold)
    eventually("the other holds it", lambda: os.path.exists(c.at("held")))
    refused((errno.EAGAIN, errno.EACCES), fcntl.lockf, mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
    holder.kill()
    eventually("it is dead", lambda: holder.ended() is not None)
    fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)


@check()
def two_lock_steps(c):
    """Two processes count in one file under a lock: no step is lost."""
    write(c.at("n"), "0")

    def count():
        for _ in range(100):
            fd = os.open(c.at("n"), os.O_RDWR)
            fcntl.lockf(fd, fcntl.LOCK_EX)
            n = int(os.pread(fd, 20, 0))
            os.pwrite(fd, str(n + 1).encode(), 0)
            os.close(fd)

    children = [Child(count) for _ in range(3)]
    for child in children:
        child.result(60)
    with open(c.at("n")) as f:
        same(f.read(), "300")


@check()
def lock_waiters_can_be_killed(c):
    write(c.at("f"), "")
    mine = os.open(c.at("f"), os.O_RDWR)
    fcntl.flock(mine, fcntl.LOCK_EX)
    fcntl.lockf(mine, fcntl.LOCK_EX)

    def wait(lock):
        fd = os.open(c.at("f"), os.O_RDWR)
        lock(fd, fcntl.LOCK_EX)

    for lock in (fcntl.flock, fcntl.lockf):
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            child = Child(lambda lock=lock: wait(lock))
            eventually("it waits", lambda: blocked(child.pid))
            child.kill(sig)
            eventually(f"it ends by signal {sig}", lambda: child.ended() is not None, 10)


def blocked(pid):
    with open(f"/proc/{pid}/stat") as f:
        return f.read().rsplit(")", 1)[1].split()[0] in "SD"


@check(cluster=True, limit=120)
def a_waiting_process_can_be_killed(c):
    """fsync waits for a majority that does not answer: whoever waits there can still be ended."""
    others = [n["pid"] for n in c.nodes[1:]]
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    try:
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            name = c.at(f"f{sig}")

            def wait():
                fd = os.open(name, os.O_WRONLY | os.O_CREAT)
                os.write(fd, b"x")
                write(os.path.join(c.scratch, f"s{sig}"), "")
                os.fsync(fd)

            child = Child(wait)
            eventually("it has written", lambda: os.path.exists(os.path.join(c.scratch, f"s{sig}")))
            time.sleep(0.3)
            expect(child.ended() is None, "fsync returned without a majority")
            start = time.monotonic()
            child.kill(sig)
            eventually(f"it ends by signal {sig}", lambda: child.ended() is not None, 8)
            expect(time.monotonic() - start < 8, "only when the request's own time was over")
        # What was written stands here all the same, and others can work.
        same(os.path.getsize(c.at("f9")), 1)
    finally:
        for pid in others:
            os.kill(pid, signal.SIGCONT)
    eventually("it goes on", lambda: os.path.exists(c.far("f9")))


@check(cluster=True, limit=120, full=True)
def fsync_without_a_majority_fails(c):
    others = [n["pid"] for n in c.nodes[1:]]
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    try:
        fd = os.open(c.at("f"), os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"kept")
        refused((errno.EIO, errno.ETIMEDOUT, errno.EAGAIN), os.fsync, fd)
    finally:
        for pid in others:
            os.kill(pid, signal.SIGCONT)
    os.close(fd)
    c.arrives("f", "kept")
    fd = os.open(c.at("f"), os.O_WRONLY)

    def again():
        os.write(fd, b"more")
        os.fsync(fd)
        return True

    eventually("fsync works again", again)


