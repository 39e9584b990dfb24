"""Names, directories, links, special files."""

import ctypes
import errno
import os
import socket
import stat

from check import Child, Skip, check, eventually, expect, read, refused, renameat2, same, syscall, tree, write

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


@check()
def rename_replaces_and_moves(c):
    os.mkdir(c.at("d"))
    write(c.at("a"), "one")
    write(c.at("b"), "two")
    os.rename(c.at("a"), c.at("b"))
    same(read(c.at("b")), b"one")
    refused(errno.ENOENT, os.stat, c.at("a"))
    os.rename(c.at("b"), c.at("d", "b"))
    os.rename(c.at("d"), c.at("e"))
    same(os.listdir(c.here), ["e"])
    refused(errno.EINVAL, os.rename, c.at("e"), c.at("e", "below"))
    os.mkdir(c.at("full"))
    write(c.at("full", "x"), "")
    refused((errno.ENOTEMPTY, errno.EEXIST), os.rename, c.at("e"), c.at("full"))
    refused(errno.EISDIR, os.rename, c.at("full", "x"), c.at("e"))
    refused(errno.ENOTDIR, os.rename, c.at("e"), c.at("full", "x"))
    c.settled()


@check()
def rename_flags(c):
    write(c.at("a"), "one")
    write(c.at("b"), "two")
    refused(errno.EEXIST, renameat2, c.at("a"), c.at("b"), NOREPLACE)
    renameat2(c.at("a"), c.at("c"), NOREPLACE)
    renameat2(c.at("b"), c.at("c"), EXCHANGE)
    same((read(c.at("b")), read(c.at("c"))), (b"one", b"two"))
    os.makedirs(c.at("d", "inner"))
    renameat2(c.at("b"), c.at("d"), EXCHANGE)
    same((read(c.at("d")), os.listdir(c.at("b"))), (b"one", ["inner"]))
    refused(errno.ENOENT, renameat2, c.at("nothing"), c.at("b"), EXCHANGE)
    refused(errno.EINVAL, renameat2, c.at("b"), c.at("c"), NOREPLACE | EXCHANGE)
    if c.way != "plain":
        # Whiteouts belong to overlays; programs that ask for one expect a refusal.
        refused(errno.EINVAL, renameat2, c.at("c"), c.at("w"), WHITEOUT)
    c.settled()


@check()
def hard_links(c):
    write(c.at("a"), "one")
    os.link(c.at("a"), c.at("b"))
    a, b = os.stat(c.at("a")), os.stat(c.at("b"))
    same((a.st_ino, a.st_nlink, b.st_nlink), (b.st_ino, 2, 2))
    write(c.at("b"), " and more", "ab")
    same(read(c.at("a")), b"one and more")
    c.arrives("b", "one and more")

    def linked():
        x, y = os.stat(c.far("a")), os.stat(c.far("b"))
        return (x.st_ino, x.st_nlink) == (y.st_ino, 2)

    eventually("they are one file on another node, too", linked)
    os.unlink(c.at("a"))
    same((os.stat(c.at("b")).st_nlink, read(c.at("b"))), (1, b"one and more"))
    os.mkdir(c.at("d"))
    refused(errno.EPERM, os.link, c.at("d"), c.at("e"))
    refused(errno.EEXIST, os.link, c.at("b"), c.at("d"))
    c.settled()


@check()
def symbolic_links(c):
    os.mkdir(c.at("d"))
    write(c.at("d", "f"), "through")
    os.symlink("d/f", c.at("relative"))
    os.symlink(c.at("d", "f"), c.at("absolute"))
    os.symlink("nowhere", c.at("dangling"))
    os.symlink("loop", c.at("loop"))
    os.symlink("x" * 4000, c.at("long"))
    same((read(c.at("relative")), read(c.at("absolute"))), (b"through", b"through"))
    refused(errno.ENOENT, read, c.at("dangling"))
    refused(errno.ELOOP, read, c.at("loop"))
    same(os.lstat(c.at("long")).st_size, 4000)
    os.utime(c.at("dangling"), ns=(5, 7), follow_symlinks=False)
    same(os.lstat(c.at("dangling")).st_mtime_ns, 7)
    refused(errno.ELOOP, os.open, c.at("relative"), os.O_RDONLY | os.O_NOFOLLOW)
    write(c.at("relative"), "written")
    same(read(c.at("d", "f")), b"written")
    c.settled()
    same(os.readlink(c.far("long")), "x" * 4000)


@check()
def special_files(c):
    os.mkfifo(c.at("fifo"), 0o640)
    reader = Child(lambda: read(c.at("fifo")))
    write(c.at("fifo"), "through the pipe", "wb")
    same(reader.result(), b"through the pipe")
    old = os.getcwd()
    os.chdir(c.here)
    try:
        # The path of a socket is short by definition.
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
            server.listen(1)

            def client():
                with socket.socket(socket.AF_UNIX) as s:
                    s.connect("socket")
                    s.sendall(b"hello")

            child = Child(client)
            connection, _ = server.accept()
            same(connection.recv(5), b"hello")
            connection.close()
            child.result()
    finally:
        os.chdir(old)
    expect(stat.S_ISSOCK(os.stat(c.at("socket")).st_mode))
    if os.geteuid() == 0:
        os.mknod(c.at("null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(c.at("disk"), stat.S_IFBLK | 0o600, os.makedev(7, 300))
        same(os.stat(c.at("disk")).st_rdev, os.makedev(7, 300))
        if c.way != "plain":
            refused(errno.EACCES, os.open, c.at("null"), os.O_RDONLY)  # nodev
    syscall("mknodat", -100, ctypes.c_char_p(os.fsencode(c.at("regular"))), stat.S_IFREG | 0o600, 0)
    expect(stat.S_ISREG(os.stat(c.at("regular")).st_mode))
    c.settled()


@check()
def long_names(c):
    name = "n" * 255
    write(c.at(name), "x")
    refused(errno.ENAMETOOLONG, write, c.at(name + "n"), "x")
    refused(errno.ENAMETOOLONG, os.mkdir, c.at(name + "n"))
    refused(errno.ENAMETOOLONG, os.stat, c.at(name + "n"))
    wide = "ä" * 127
    os.mkdir(c.at(wide))
    refused(errno.ENAMETOOLONG, os.mkdir, c.at(wide + "ä"))
    same(os.statvfs(c.here).f_namemax, 255)
    c.settled()


@check()
def names_that_are_no_text(c):
    here = os.fsencode(c.here)
    for name in (b"\xff\xfe", b"latin \xe4", b"new\nline", b"tab\there", b"back\\slash", b"*?[", b"-rf", b" ", b"..."):
        write(os.path.join(here, name), name)
    same(len(os.listdir(here)), 9)
    for name in os.listdir(here):
        same(read(os.path.join(here, name)), name)
    os.rename(os.path.join(here, b"\xff\xfe"), os.path.join(here, b"\x80"))
    refused(errno.ENOENT, os.stat, os.path.join(here, b"\xff\xfe"))
    c.settled()


@check()
def deep_trees(c):
    old = os.getcwd()
    os.chdir(c.here)
    try:
        # Deeper than any one path may be long.
        for _ in range(60):
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
        write("deepest", "found")
        same(len(os.getcwd()) > 4096, True)
    except OSError as e:
        # getcwd has its limit in the kernel.
        same(e.errno, errno.ENAMETOOLONG)
    finally:
        os.chdir(old)

    def bottom():
        here = os.getcwd()
        os.chdir(c.there)
        try:
            for _ in range(60):
                os.chdir("d" * 100)
            return read("deepest") == b"found"
        finally:
            os.chdir(here)

    eventually("the deepest file on another node", bottom)


@check()
def directories(c):
    os.mkdir(c.at("d"))
    same(os.stat(c.at("d")).st_nlink, 2)
    os.mkdir(c.at("d", "sub"))
    same(os.stat(c.at("d")).st_nlink, 3)
    refused(errno.EEXIST, os.mkdir, c.at("d"))
    refused((errno.ENOTEMPTY, errno.EEXIST), os.rmdir, c.at("d"))
    write(c.at("f"), "")
    refused(errno.ENOTDIR, os.rmdir, c.at("f"))
    refused(errno.ENOTDIR, os.stat, c.at("f", "x"))
    refused((errno.EISDIR, errno.EPERM), os.unlink, c.at("d"))
    refused(errno.EISDIR, write, c.at("d"), "")
    before = os.stat(c.at("d")).st_mtime_ns
    write(c.at("d", "new"), "")
    expect(os.stat(c.at("d")).st_mtime_ns > before, "a new entry moves the directory's time")
    fd = os.open(c.at("d"), os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    # A directory that is removed while somebody stands in it.
    os.mkdir(c.at("gone"))
    inside = os.open(c.at("gone"), os.O_RDONLY)
    os.rmdir(c.at("gone"))
    same(os.listdir(inside), [])
    refused(errno.ENOENT, os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=inside)
    os.close(inside)
    os.close(fd)
    c.settled()


@check()
def listing_while_it_changes(c):
    stay = {f"stay{i}" for i in range(150)}
    for name in stay:
        write(c.at(name), "")
    for i in range(150):
        write(c.at(f"go{i}"), "")
    seen = []
    with os.scandir(c.here) as entries:
        for n, entry in enumerate(entries):
            seen.append(entry.name)
            if n < 150:
                os.unlink(c.at(f"go{n}"))
                write(c.at(f"new{n}"), "")
    same(len(seen), len(set(seen)), "names listed twice")
    expect(stay <= set(seen), "names that were there all the time are missing")
    same(sorted(os.listdir(c.here)), sorted(stay | {f"new{i}" for i in range(150)}))
    # rm -r lists and removes at once.
    for name in os.listdir(c.here):
        if name.startswith("new"):
            os.unlink(c.at(name))
    same(set(os.listdir(c.here)), stay)
    c.settled()


@check()
def negative_names_become_true(c):
    # Asked for first, so that "there is none" is cached.
    refused(errno.ENOENT, os.stat, c.far("late"))
    refused(errno.ENOENT, os.stat, c.far("dir/late"))
    write(c.at("late"), "here")
    os.mkdir(c.at("dir"))
    write(c.at("dir", "late"), "here")
    c.arrives("late", "here")
    c.arrives("dir/late", "here")
    os.unlink(c.at("late"))
    eventually("it is gone on another node", lambda: not os.path.lexists(c.far("late")))


@check()
def unnamed_files(c):
    flags = os.O_TMPFILE | os.O_RDWR
    if c.way != "plain":
        # The kernel interface has it, fuser 0.18 does not: programs fall back to a name of their own.
        return refused((errno.EOPNOTSUPP, errno.EISDIR, errno.ENOSYS), os.open, c.here, flags, 0o600)
    try:
        fd = os.open(c.here, flags, 0o600)
    except OSError as e:
        if e.errno == errno.EOPNOTSUPP:
            raise Skip("this file system has no unnamed files")
        raise
    os.write(fd, b"x")
    os.close(fd)
    same(tree(c.here)[1:], [])
