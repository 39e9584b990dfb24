#!/usr/bin/env python3
"""Measures icecluster on this machine, beside the raw directory and any other directories.

bench/run.py                          all rows, 5 rounds, binaries from target/release
bench/run.py --quick read write       some rows, one round, small sizes: does everything work?
bench/run.py untar gluster=/mnt/g     another mounted directory, measured in the same rounds
bench/run.py lag  gluster=/mnt/a,/mnt/b   a pair of directories that show the same files, for lag and burst

Rows: read write untar git create scan requests lag burst rejoin memory. Every round goes over all targets in turn; the ratio is the
median of the rounds' ratios to `raw`, a plain directory on the same disk. Everything happens in a scratch directory (--scratch, by
default the system's temporary directory) and on 127.0.0.1, and is removed at the end.
"""

import argparse
import os
import sys
import time

import rows as R
from benchlib import Rows, Tools, remove, say, scratch_dir

ALL = ["read", "write", "untar", "git", "create", "scan", "requests", "lag", "burst", "rejoin", "memory"]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", nargs="*", help="rows, and NAME=DIR or NAME=DIR_A,DIR_B")
    p.add_argument("--quick", action="store_true", help="one round, small sizes")
    p.add_argument("--rounds", type=int, help="default 5")
    p.add_argument("--bin", default=os.path.join(os.path.dirname(R.HERE), "target", "release"), help="directory of the binaries")
    p.add_argument("--scratch", help="where to work; must be on the disk to measure")
    p.add_argument("--files", type=int, help="files of the rejoin and memory rows (default 100000 and 1000000)")
    p.add_argument("--runtime", default="tokio", choices=["tokio", "smol", "mixed"])
    p.add_argument("--out", help="also write PREFIX.json and PREFIX.md")
    a = p.parse_args()
    a.others = dict(w.split("=", 1) for w in a.what if "=" in w)
    a.rows = [w for w in a.what if "=" not in w] or ALL
    for row in a.rows:
        if row not in ALL:
            p.error(f"unknown row {row}: one of {' '.join(ALL)}")
    a.rounds = a.rounds or (1 if a.quick else 5)
    a.binary = os.path.join(os.path.abspath(a.bin), "icecluster")
    if not os.path.exists(a.binary):
        p.error(f"{a.binary} is missing: cargo build --release, or name its directory with --bin")
    return a


def main():
    a = arguments()
    scratch = scratch_dir(a.scratch)
    results = Rows()
    failed = []
    try:
        context = R.Context(a, scratch, Tools(scratch), results)
        for row in a.rows:
            say(f"{row}:")
            started = time.monotonic()
            try:
                getattr(R, row)(context)
            except Exception as error:  # one row that fails must not lose the others
                say(f"  FAILED: {error}")
                failed.append(row)
            context.down()
            say(f"  ({time.monotonic() - started:.0f} s)")
    finally:
        remove(scratch)
    table = results.table("raw")
    print(table)
    if a.out:
        results.save(a.out + ".json")
        with open(a.out + ".md", "w") as f:
            f.write(table + "\n")
    if failed:
        sys.exit("failed: " + " ".join(failed))


if __name__ == "__main__":
    main()
