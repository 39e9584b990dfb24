"""The bytes of files, by every road that leads to them."""

import ctypes
import errno
import mmap
import os
import subprocess

from check import Child, bytes_of, check, digest, eventually, expect, read, refused, run, same, write

PAGE = mmap.PAGESIZE
KEEP_SIZE, PUNCH_HOLE = 1, 2


def fallocate(fd, how, offset, length):
    from guard import libc
    if libc.fallocate64(fd, how, ctypes.c_longlong(offset), ctypes.c_longlong(length)) != 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))


@check()
def written_here_read_there(c):
    for size in (0, 1, PAGE - 1, PAGE, 65537, 1 << 20, 9_000_001):
        write(c.at(f"s{size}"), bytes_of(size, size))
        same(digest(c.at(f"s{size}")), digest(c.at(f"s{size}")))
    for size in (0, 1, PAGE - 1, PAGE, 65537, 1 << 20, 9_000_001):
        c.arrives(f"s{size}", bytes_of(size, size))
    # An open reader on another node sees what its file was; a new one what it is.
    with open(c.far("s65537"), "rb") as old:
        write(c.at("s65537"), b"short")
        c.arrives("s65537", b"short")
        old.read()
    c.settled()


@check()
def all_open_modes(c):
    fd = os.open(c.at("f"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, b"0123456789")
    refused(errno.EBADF, os.read, fd, 1)
    refused(errno.EEXIST, os.open, c.at("f"), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    reader = os.open(c.at("f"), os.O_RDONLY)
    refused(errno.EBADF, os.write, reader, b"x")
    both = os.open(c.at("f"), os.O_RDWR)
    same(os.pread(both, 4, 3), b"3456")
    os.pwrite(both, b"abc", 3)
    same((os.pread(reader, 10, 0), os.pread(both, 10, 0)), (b"012abc6789",) * 2)
    os.ftruncate(fd, 4)
    same(os.pread(reader, 10, 0), b"012a")
    os.ftruncate(fd, PAGE * 3)
    same((os.pread(reader, 10, 2), os.fstat(both).st_size), (b"2a" + b"\0" * 8, PAGE * 3))
    os.close(os.open(c.at("f"), os.O_WRONLY | os.O_TRUNC))
    same((os.fstat(reader).st_size, os.pread(reader, 1, 0)), (0, b""))
    os.writev(fd, [b"one", b"two"])
    same(os.preadv(reader, [bytearray(3), bytearray(3)], 10), 6)
    for each in (fd, reader, both):
        os.close(each)
    for flags in (os.O_SYNC, os.O_DSYNC):
        fd = os.open(c.at("sync"), os.O_WRONLY | os.O_CREAT | flags)
        same(os.write(fd, b"durable"), 7)
        os.close(fd)
    c.settled()


@check()
def direct_io(c):
    area = mmap.mmap(-1, 16 * PAGE)
    area[:] = bytes_of("direct", 16 * PAGE)
    fd = os.open(c.at("f"), os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    same(os.writev(fd, [area]), 16 * PAGE)
    same(read(c.at("f")), bytes_of("direct", 16 * PAGE))
    write(c.at("f"), b"cached", "r+b")
    back = mmap.mmap(-1, PAGE)
    os.preadv(fd, [back], 0)
    same(bytes(back[:6]), b"cached")
    os.close(fd)
    c.settled()


@check()
def appending_processes(c):
    def writer(who):
        with open(c.at("log"), "ab", buffering=0) as f:
            for i in range(150):
                f.write(f"{who} {i} {'x' * (i % 70)}\n".encode())

    children = [Child(lambda who=who: writer(who)) for who in range(4)]
    for child in children:
        child.result()
    lines = read(c.at("log")).decode().splitlines()
    same(len(lines), 600)
    for who in range(4):
        same([int(line.split()[1]) for line in lines if line.startswith(f"{who} ")], list(range(150)))
    c.settled()


@check()
def shared_maps(c):
    write(c.at("f"), b"\0" * (8 * PAGE))
    fd = os.open(c.at("f"), os.O_RDWR)
    area = mmap.mmap(fd, 8 * PAGE)
    reader = os.open(c.at("f"), os.O_RDONLY)
    seen = mmap.mmap(reader, 8 * PAGE, prot=mmap.PROT_READ)
    for i in range(8):
        # Store and read, write and load, by turns: every view agrees at once.
        area[i * PAGE:i * PAGE + 5] = b"store"
        same((os.pread(fd, 5, i * PAGE), os.pread(reader, 5, i * PAGE), seen[i * PAGE:i * PAGE + 5]), (b"store",) * 3)
        os.pwrite(fd, b"write", i * PAGE + 100)
        same((area[i * PAGE + 100:i * PAGE + 105], seen[i * PAGE + 100:i * PAGE + 105]), (b"write",) * 2)
    area.flush()
    c.arrives("f", read(c.at("f")))
    area[7:10] = b"END"
    area.close()
    os.close(fd)
    eventually("stores before the last close arrive", lambda: read(c.far("f"))[:10] == b"store\0\0END")
    seen.close()
    os.close(reader)
    c.settled()


@check()
def a_map_outlives_its_descriptor(c):
    write(c.at("f"), b"a" * PAGE)
    fd = os.open(c.at("f"), os.O_RDWR)
    area = mmap.mmap(fd, PAGE)
    os.close(fd)
    area[0:4] = b"late"
    same(read(c.at("f"))[:5], b"latea")
    area.flush()
    area.close()
    eventually("it arrives", lambda: read(c.far("f"))[:4] == b"late")


@check()
def private_maps(c):
    write(c.at("f"), b"a" * PAGE)
    with open(c.at("f"), "rb") as f:
        area = mmap.mmap(f.fileno(), PAGE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    area[0:4] = b"mine"
    same(read(c.at("f"))[:4], b"aaaa")
    area.close()


@check()
def copies_after_stores(c):
    """What was stored through a map is what is copied: by copy_file_range, sendfile, splice."""
    size = 16 * PAGE
    write(c.at("f"), b"\0" * size)
    fd = os.open(c.at("f"), os.O_RDWR)
    area = mmap.mmap(fd, size)
    for turn in range(6):
        area[turn * PAGE:turn * PAGE + 6] = b"turn %d" % turn
        wanted = bytes(area)
        out = os.open(c.at("copy"), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        done = 0
        while done < size:
            n = os.copy_file_range(fd, out, size - done, done, done) if turn % 2 == 0 else os.sendfile(out, fd, done, size - done)
            expect(n > 0, "nothing was copied")
            done += n
        same(os.pread(out, size, 0) == wanted, True, f"turn {turn}")
        # Within the file itself.
        os.copy_file_range(fd, fd, PAGE, turn * PAGE, (turn + 8) * PAGE)
        same(area[(turn + 8) * PAGE:(turn + 8) * PAGE + 6], b"turn %d" % turn)
        os.close(out)
    area.close()
    os.close(fd)
    c.settled()


@check()
def copy_file_range_(c):
    data = bytes_of("copy", 3_000_000)
    write(c.at("a"), data)
    a, b = os.open(c.at("a"), os.O_RDONLY), os.open(c.at("b"), os.O_RDWR | os.O_CREAT)
    done = 0
    while done < 2_500_000:
        n = os.copy_file_range(a, b, 2_500_000 - done, 1000 + done, 7 + done)
        expect(n > 0)
        done += n
    same(read(c.at("b")), b"\0" * 7 + data[1000:2_501_000])
    same(os.copy_file_range(a, b, 10, len(data), 0), 0, "at the end")
    refused(errno.EBADF, os.copy_file_range, b, a, 10, 0, 0)
    os.close(a)
    os.close(b)
    c.settled()


@check()
def holes(c):
    fd = os.open(c.at("f"), os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"a" * 65536, 0)
    os.pwrite(fd, b"b" * 65536, 4 << 20)
    same((os.lseek(fd, 70_000, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE)), (4 << 20, 65536))
    expect(os.fstat(fd).st_blocks * 512 < 1 << 20, "it is sparse")
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 32768)
    same((os.lseek(fd, 0, os.SEEK_DATA), os.pread(fd, 2, 32767)), (32768, b"\0a"))
    refused(errno.ENXIO, os.lseek, fd, 5 << 20, os.SEEK_DATA)
    fallocate(fd, 0, 5 << 20, 4096)
    same(os.fstat(fd).st_size, (5 << 20) + 4096)
    fallocate(fd, KEEP_SIZE, 6 << 20, 4096)
    same(os.fstat(fd).st_size, (5 << 20) + 4096)
    os.close(fd)
    c.settled()


@check()
def unlinked_but_open(c):
    write(c.at("f"), b"before")
    fd = os.open(c.at("f"), os.O_RDWR)
    os.unlink(c.at("f"))
    same(os.fstat(fd).st_nlink, 0)
    os.pwrite(fd, b"after!", 0)
    same(os.pread(fd, 6, 0), b"after!")
    os.fsync(fd)
    os.ftruncate(fd, 3)
    os.fchmod(fd, 0o600)
    same(os.fstat(fd).st_size, 3)
    write(c.at("f"), b"another")
    same((os.pread(fd, 9, 0), read(c.at("f"))), (b"aft", b"another"))
    expect(os.fstat(fd).st_ino != os.stat(c.at("f")).st_ino, "two files are two inodes")
    os.close(fd)
    # The same for one that a rename replaces.
    fd = os.open(c.at("f"), os.O_RDONLY)
    write(c.at("g"), b"newer")
    os.rename(c.at("g"), c.at("f"))
    same((os.read(fd, 9), read(c.at("f"))), (b"another", b"newer"))
    os.close(fd)
    c.settled()


@check()
def replaced_on_another_node(c):
    """The way editors save, on one node, while another has the file open."""
    write(c.at("f"), b"old" * 1000)
    c.arrives("f", b"old" * 1000)
    with open(c.far("f"), "rb") as held:
        same(held.read(3), b"old")
        write(c.at("new"), b"new" * 2000)
        os.rename(c.at("new"), c.at("f"))
        c.arrives("f", b"new" * 2000)
        same(held.read(3), b"old")
    c.settled()


@check()
def a_program_that_runs_is_not_written(c):
    """ETXTBSY, and a program is replaced while it runs."""
    import shutil
    shutil.copy(shutil.which("sleep"), c.at("program"))
    process = subprocess.Popen([c.at("program"), "30"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        eventually("it runs", lambda: b"program" in read(f"/proc/{process.pid}/cmdline"))
        refused(errno.ETXTBSY, os.open, c.at("program"), os.O_WRONLY)
        refused(errno.ETXTBSY, os.truncate, c.at("program"), 0)
        shutil.copy(shutil.which("true"), c.at("next"))
        os.rename(c.at("next"), c.at("program"))
        run(c.at("program"))
    finally:
        process.kill()
        process.wait()
    # While somebody writes it cannot be run.
    with open(c.at("program"), "ab"):
        refused(errno.ETXTBSY, run, c.at("program"))
    run(c.at("program"))
    eventually("it runs on another node", lambda: run(c.far("program")) == "")


@check()
def large_file(c):
    """64 MiB, changed in places, and cut."""
    block = bytes_of("large", 1 << 20)
    with open(c.at("f"), "wb") as f:
        for _ in range(64):
            f.write(block)
        os.fsync(f.fileno())
    with open(c.at("f"), "r+b") as f:
        for i in range(0, 64, 7):
            f.seek(i * 1_000_003)
            f.write(b"changed")
        f.truncate(50_000_001)
        os.fsync(f.fileno())
    wanted = digest(c.at("f"))
    eventually("it arrives", lambda: digest(c.far("f")) == wanted)
