"""Nodes that die and come back, and changes behind the mount."""

import os
import signal

import cluster
from check import check, eventually, expect, read, refused, same, write
import errno
import guard


@check()
def direct_edits_of_backing(c):
    write(os.path.join(c.backing, "new"), "made behind the mount")
    eventually("seen in the mount", lambda: read(c.at("new")) == b"made behind the mount")
    c.arrives("new", "made behind the mount")
    write(os.path.join(c.backing, "new"), "changed behind the mount")
    c.arrives("new", "changed behind the mount")
    eventually("seen in the mount", lambda: read(c.at("new")) == b"changed behind the mount")
    os.makedirs(os.path.join(c.backing, "d", "e"))
    write(os.path.join(c.backing, "d", "e", "f"), "deep")
    c.arrives("d/e/f", "deep")
    os.chmod(os.path.join(c.backing, "new"), 0o600)
    eventually("a new mode", lambda: os.stat(c.far("new")).st_mode & 0o777 == 0o600)
    os.rename(os.path.join(c.backing, "new"), os.path.join(c.backing, "d", "moved"))
    c.arrives("d/moved", "changed behind the mount")
    os.unlink(os.path.join(c.backing, "d", "moved"))
    eventually("gone", lambda: not os.path.lexists(c.far("d/moved")) and not os.path.lexists(c.far("new")))
    c.settled()


@check(cluster=True, limit=240)
def a_killed_node_replaces_its_dead_mount(c):
    node = c.nodes[2]
    write(c.at("before"), "one")
    eventually("it arrived", lambda: read(os.path.join(c.elsewhere, "before")) == b"one")
    held = os.open(os.path.join(c.elsewhere, "before"), os.O_RDONLY)
    os.kill(node["pid"], signal.SIGKILL)
    # What the kernel has cached it still shows; space is never cached.
    eventually("the mount is dead", lambda: fails_with(errno.ENOTCONN, os.statvfs, node["mount"]))
    refused((errno.ENOTCONN, errno.ECONNABORTED), os.listdir, c.elsewhere)
    write(c.at("meanwhile"), "two")
    c.arrives("meanwhile", "two")
    process = cluster.restart(c.program, node)
    expect(process.poll() is None, "it goes on")
    mounts = [path for path, _, _ in guard.mounts_below(os.path.dirname(node["mount"])) if path == node["mount"]]
    same(mounts, [node["mount"]], "mounts, one on the other")
    eventually("it caught up", lambda: read(os.path.join(c.elsewhere, "meanwhile")) == b"two")
    same(read(os.path.join(c.elsewhere, "before")), b"one")
    write(os.path.join(c.elsewhere, "after"), "three")
    eventually("it takes part", lambda: read(c.at("after")) == b"three")
    # Closing asks the mount that is dead whether there are locks to give back. It closes all the same.
    try:
        os.close(held)
    except OSError as e:
        same(e.errno, errno.ENOTCONN)
    c.settled()


def fails_with(number, function, *args):
    try:
        function(*args)
    except OSError as e:
        return e.errno == number
    return False
