"""Owners, permissions, times, extended attributes, space."""

import errno
import os
import stat
import time

from check import as_user, check, eventually, expect, read, refused, same, write

ANN, BOB, STAFF = 31001, 31002, 31100


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


@check(root=True)
def owners_and_permissions(c):
    os.chmod(c.here, 0o777)

    def ann():
        os.umask(0o027)
        write(c.at("mine"), "secret")
        os.mkdir(c.at("dir"), 0o777)
        os.chmod(c.at("mine"), 0o600)
        refused(errno.EPERM, os.chown, c.at("mine"), BOB, -1)
        refused(errno.EPERM, os.chown, c.at("mine"), -1, STAFF)

    as_user(ANN, ann)
    st = os.stat(c.at("mine"))
    same((st.st_uid, st.st_gid, mode(c.at("mine")), mode(c.at("dir"))), (ANN, ANN, 0o600, 0o750))

    def bob():
        refused(errno.EACCES, read, c.at("mine"))
        refused(errno.EACCES, write, c.at("mine"), "x")
        refused(errno.EACCES, os.listdir, c.at("dir"))
        refused(errno.EACCES, write, c.at("dir", "x"), "x")
        refused(errno.EPERM, os.chmod, c.at("mine"), 0o777)
        refused(errno.EPERM, os.utime, c.at("mine"), ns=(1, 1))
        expect(not os.access(c.at("mine"), os.R_OK))
        # The directory is open to all: whoever may write there may remove what others own.
        os.rename(c.at("mine"), c.at("taken"))

    as_user(BOB, bob)
    same(as_user(ANN, lambda: read(c.at("taken"))), b"secret")
    os.chown(c.at("taken"), -1, STAFF)
    os.chmod(c.at("taken"), 0o640)
    same(as_user(BOB, lambda: read(c.at("taken")), groups=[STAFF]), b"secret")
    as_user(BOB, lambda: refused(errno.EACCES, write, c.at("taken"), "x"), groups=[STAFF])
    # A mode that shuts out its owner.
    os.chmod(c.at("taken"), 0o077)
    as_user(ANN, lambda: refused(errno.EACCES, read, c.at("taken")))
    c.settled()
    as_user(ANN, lambda: refused(errno.EACCES, read, c.far("taken")))


@check(root=True)
def root_is_root(c):
    """No squashing: what root makes is root's, and root may do everything."""
    write(c.at("f"), "x")
    same((os.stat(c.at("f")).st_uid, os.stat(c.at("f")).st_gid), (0, 0))
    os.chown(c.at("f"), 4242, 2424)
    os.chmod(c.at("f"), 0)
    same(read(c.at("f")), b"x")
    write(c.at("f"), "y")
    os.chown(c.at("f"), 0, -1)
    same((os.stat(c.at("f")).st_uid, os.stat(c.at("f")).st_gid), (0, 2424))
    os.symlink("f", c.at("l"))
    os.chown(c.at("l"), 7, 8, follow_symlinks=False)
    same((os.lstat(c.at("l")).st_uid, os.stat(c.at("f")).st_uid), (7, 0))
    c.settled()


@check(root=True)
def sticky_and_setgid_directories(c):
    os.mkdir(c.at("tmp"))
    os.chmod(c.at("tmp"), 0o1777)
    as_user(ANN, lambda: write(c.at("tmp", "a"), "ann"))
    as_user(BOB, lambda: refused((errno.EPERM, errno.EACCES), os.unlink, c.at("tmp", "a")))
    as_user(BOB, lambda: refused((errno.EPERM, errno.EACCES), os.rename, c.at("tmp", "a"), c.at("tmp", "b")))
    as_user(ANN, lambda: os.unlink(c.at("tmp", "a")))
    os.mkdir(c.at("shared"))
    os.chown(c.at("shared"), 0, STAFF)
    os.chmod(c.at("shared"), 0o2777)
    as_user(ANN, lambda: (write(c.at("shared", "f"), ""), os.mkdir(c.at("shared", "d"))))
    same(os.stat(c.at("shared", "f")).st_gid, STAFF)
    same((os.stat(c.at("shared", "d")).st_gid, mode(c.at("shared", "d")) & 0o2000), (STAFF, 0o2000))
    c.settled()


@check(root=True)
def set_user_id_bits(c):
    write(c.at("f"), "#!/bin/true\n")
    os.chown(c.at("f"), ANN, STAFF)
    os.chmod(c.at("f"), 0o6755)
    same(mode(c.at("f")), 0o6755)

    # Whoever changes the bytes without being root takes the bits away.
    def append():
        write(c.at("f"), "# more\n", "ab")

    as_user(ANN, append)
    same(mode(c.at("f")), 0o755)
    os.chmod(c.at("f"), 0o6755)
    as_user(ANN, lambda: os.truncate(c.at("f"), 3))
    same(mode(c.at("f")), 0o755)
    os.chmod(c.at("f"), 0o6755)
    os.chown(c.at("f"), BOB, STAFF)
    expect(mode(c.at("f")) & 0o4000 == 0 or os.geteuid() == 0, "a change of owner takes the bits away")
    os.chmod(c.at("f"), 0o4755)
    write(c.at("f"), "x", "ab")
    c.settled()


@check()
def modes_and_umask(c):
    for bits in (0o000, 0o400, 0o644, 0o755, 0o777, 0o1644, 0o4711, 0o2755):
        fd = os.open(c.at(f"{bits:04o}"), os.O_CREAT | os.O_WRONLY, 0o600)
        os.fchmod(fd, bits)
        os.close(fd)
        same(mode(c.at(f"{bits:04o}")), bits)
    old = os.umask(0o077)
    try:
        write(c.at("private"), "")
        os.mkdir(c.at("d"), 0o777)
        os.mkfifo(c.at("p"), 0o666)
    finally:
        os.umask(old)
    same((mode(c.at("private")), mode(c.at("d")), mode(c.at("p"))), (0o600, 0o700, 0o600))
    c.settled()


@check()
def times_to_the_nanosecond(c):
    write(c.at("f"), "x")
    for stamp in (1_234_567_890_123_456_789, 1, 0, -1, -1_500_000_000, 4_102_444_800_999_999_999):
        os.utime(c.at("f"), ns=(stamp, stamp + 1))
        st = os.stat(c.at("f"))
        same((st.st_atime_ns, st.st_mtime_ns), (stamp, stamp + 1))
    eventually("the times arrive", lambda: os.stat(c.far("f")).st_mtime_ns == 4_102_444_801_000_000_000)
    now = time.time()
    os.utime(c.at("f"))
    expect(abs(os.stat(c.at("f")).st_mtime - now) < 30, "the present")
    before = os.stat(c.at("f")).st_ctime_ns
    time.sleep(0.02)
    os.chmod(c.at("f"), 0o600)
    expect(os.stat(c.at("f")).st_ctime_ns > before, "a new mode moves the change time")
    os.utime(c.at("f"), ns=(5, 5))
    time.sleep(0.02)
    with open(c.at("f"), "r+b") as f:
        f.write(b"y")
        f.flush()
        expect(os.fstat(f.fileno()).st_mtime > now - 30, "a write moves the time at once")
    os.utime(c.at("f"), ns=(7, 9))
    same(os.stat(c.at("f")).st_mtime_ns, 9)
    c.settled()


@check()
def extended_attributes(c):
    write(c.at("f"), "x")
    os.mkdir(c.at("d"))
    for name in ("f", "d"):
        path = c.at(name)
        os.setxattr(path, "user.colour", b"green")
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, "user.binary", bytes(range(256)))
        same(os.getxattr(path, "user.binary"), bytes(range(256)))
        same(sorted(a for a in os.listxattr(path) if a.startswith("user.")), ["user.binary", "user.colour", "user.empty"])
        refused(errno.EEXIST, os.setxattr, path, "user.colour", b"", os.XATTR_CREATE)
        refused(errno.ENODATA, os.setxattr, path, "user.none", b"", os.XATTR_REPLACE)
        os.setxattr(path, "user.colour", b"blue", os.XATTR_REPLACE)
        os.removexattr(path, "user.empty")
        refused(errno.ENODATA, os.getxattr, path, "user.empty")
        refused(errno.ENODATA, os.removexattr, path, "user.empty")
    os.setxattr(c.at("f"), "user.large", b"l" * 3000)
    eventually("they arrive", lambda: os.getxattr(c.far("f"), "user.large") == b"l" * 3000)
    same(os.getxattr(c.far("f"), "user.colour"), b"blue")
    eventually("those of a directory, too", lambda: os.getxattr(c.far("d"), "user.colour") == b"blue")
    os.removexattr(c.at("f"), "user.colour")
    eventually("one is gone", lambda: "user.colour" not in os.listxattr(c.far("f")))
    os.symlink("f", c.at("l"))
    refused((errno.EPERM, errno.EOPNOTSUPP), os.setxattr, c.at("l"), "user.x", b"", follow_symlinks=False)
    if os.geteuid() == 0:
        os.setxattr(c.at("f"), "trusted.x", b"root")
        same(os.getxattr(c.at("f"), "trusted.x"), b"root")
    if c.way != "plain":
        # They would be stored, but not obeyed.
        refused(errno.EOPNOTSUPP, os.setxattr, c.at("f"), "system.posix_acl_access", b"")


@check()
def space(c):
    st, below = os.statvfs(c.here), os.statvfs(c.backing)
    same((st.f_blocks * st.f_frsize, st.f_files), (below.f_blocks * below.f_frsize, below.f_files))
    expect(0 < st.f_bavail <= st.f_bfree <= st.f_blocks)
    write(c.at("f"), b"x" * 100_000)
    st = os.stat(c.at("f"))
    expect(st.st_blocks * 512 >= 100_000, "blocks of a file")
