#!/usr/bin/env python3
"""Real programs and system calls on real mounts of a real cluster. Needs Linux, /dev/fuse and Python 3.9.

    .ci/apps/run.py --quick        installs nothing, about a minute
    .ci/apps/run.py                adds what is large or has to be installed first (apt-get, cargo install)
    .ci/apps/run.py WORD...        only checks whose name contains one of the words
    .ci/apps/run.py --list

Each check runs in three ways: in a plain directory, which judges the check itself; in mounts whose files the kernel reads by
itself (passthrough); and in mounts without that. One line per check, and a last line with the sums. Exit code 0: all passed; 1:
something failed, or something was left behind; 2: it could not be started.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback

sys.dont_write_bytecode = True
import guard  # noqa: E402

WAYS = {"plain": None, "passthrough": {}, "fallback": {"fuse_passthrough": "off"}}
# Seconds for everything; who runs this should allow a minute more.
QUICK_LIMIT, FULL_LIMIT = 600, 5400
SKIPPED = 77
# Begins the last line of a check that has something to tell.
NOTE = "note: "


class Deadline(BaseException):
    """The time for everything is over, or somebody wants this to end."""


def give_up(number, _frame):
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(sig, signal.SIG_IGN)
    raise Deadline("the time is over" if number == signal.SIGALRM else signal.Signals(number).name)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only checks whose name contains one of these")
    parser.add_argument("--quick", action="store_true", help="only what needs nothing installed and little time")
    parser.add_argument("--way", action="append", choices=WAYS, help="only this way; may be repeated")
    parser.add_argument("--program", help="the icecluster program; without this it is built")
    parser.add_argument("--dir", help="where to work (a new directory is made in it)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for the nodes' configuration")
    parser.add_argument("--limit", type=int, help="seconds for everything")
    parser.add_argument("--list", action="store_true", help="only names the checks")
    return parser.parse_args()


def built(top):
    """The program of this working copy."""
    subprocess.run(["cargo", "build", "-q", "-p", "icecluster", "--bins"], cwd=top, check=True, stdin=subprocess.DEVNULL)
    target = subprocess.run(["cargo", "metadata", "--no-deps", "--format-version", "1"], cwd=top, check=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout
    import json
    return os.path.join(json.loads(target)["target_directory"], "debug", "icecluster")


class Run:
    def __init__(self, options, checks, program, mark, directory, janitor):
        self.options, self.checks, self.program = options, checks, program
        self.mark, self.dir, self.janitor = mark, directory, janitor
        self.out = guard.Output()
        self.passed = self.failed = self.skipped = 0

    def say(self, way, name, verdict, seconds, words=""):
        self.out.line(f"{verdict:4} {way:11} {name:44} {seconds:6.2f} s{'  ' + words if words else ''}")

    def all(self):
        for way in self.options.way or WAYS:
            place = os.path.join(self.dir, way)
            os.mkdir(place, 0o755)
            os.mkdir(os.path.join(place, "own"), 0o755)
            self.one_way(way, place)

    def one_way(self, way, place):
        from cluster import Cluster, plain
        cluster, start = None, time.monotonic()
        try:
            if WAYS[way] is None:
                nodes = plain(place)
            else:
                settings = dict(pair.split("=", 1) for pair in self.options.set)
                cluster = Cluster(self.program, os.path.join(place, "nodes"), os.path.join(place, "m"), {**WAYS[way], **settings})
                nodes = cluster.nodes
        except (RuntimeError, OSError) as e:
            self.failed += 1
            return self.say(way, "start", "FAIL", time.monotonic() - start, str(e))
        try:
            for check in self.checks:
                if check.cluster and cluster is None:
                    continue
                self.one(way, place, check, nodes)
        finally:
            if cluster:
                start = time.monotonic()
                troubles = cluster.stop()
                self.failed += bool(troubles)
                self.passed += not troubles
                self.say(way, "stop", "FAIL" if troubles else "ok", time.monotonic() - start, "; ".join(troubles))

    def one(self, way, place, check, nodes):
        start = time.monotonic()
        log = os.path.join(place, f"{check.__name__}.log")
        pid = os.fork()
        if pid == 0:
            self.child(way, place, check, nodes, log)
        status = self.wait(pid, start + check.limit)
        hung = status is None
        if hung:
            status = self.end(pid, place)
        # What the check started and left running must not disturb the next.
        self.kill_group(pid)
        seconds = time.monotonic() - start
        with open(log, errors="replace") as f:
            words = [line.strip() for line in f if line.strip()]
        if not hung and status == 0:
            self.passed += 1
            told = words and words[-1].startswith(NOTE)
            self.say(way, check.title, "ok", seconds, words[-1][len(NOTE):] if told else "")
        elif not hung and os.waitstatus_to_exitcode(status) == SKIPPED:
            self.skipped += 1
            self.say(way, check.title, "skip", seconds, words[-1] if words else "")
        else:
            self.failed += 1
            why = f"not within {check.limit} s" if hung else (words[-1] if words else f"wait status {status}")
            self.say(way, check.title, "FAIL", seconds, why)
            for line in words[-12:-1]:
                self.out.line(f"         | {line[:500]}")

    def child(self, way, place, check, nodes, log):
        """The check itself, in a session of its own and with no descriptor of ours."""
        code = 1
        try:
            guard.die_with_parent(signal.SIGKILL)
            os.setsid()
            os.close(self.janitor.writer)
            for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
                signal.signal(sig, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, 0)
            null, out = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(null, 0)
            os.dup2(out, 1)
            os.dup2(out, 2)
            from check import Context, Skip
            try:
                if check.root and os.geteuid() != 0:
                    raise Skip("needs root")
                context = Context(way, check.__name__, nodes, os.path.join(place, "own"))
                context.program = self.program
                said = check(context)
                if said:
                    print(NOTE + said, flush=True)
                code = 0
            except Skip as why:
                print(f"skipped: {why}", flush=True)
                code = SKIPPED
            except BaseException:
                traceback.print_exc()
        finally:
            os._exit(code)

    @staticmethod
    def wait(pid, until):
        """The wait status; `None`: not within the time."""
        pause = 0.001
        while time.monotonic() < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)
        return None

    def end(self, pid, place):
        """Ends a check that hangs. What waits in a mount dies only once its request is answered: by the end of the connection."""
        self.kill_group(pid)
        status = self.wait(pid, time.monotonic() + 15)
        if status is None:
            guard.abort_connections(place)
            status = self.wait(pid, time.monotonic() + 15)
        return status

    def kill_group(self, pid):
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def main():
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    options = arguments()
    if sys.version_info < (3, 9):
        print("Python 3.9 or newer is needed", file=sys.stderr)
        return 2
    if guard.MARK not in os.environ:
        # Once more, so that this process and all that come from it carry the mark.
        os.environ[guard.MARK] = f"{os.getpid()}.{time.time_ns()}"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    mark = os.environ[guard.MARK]

    import checks
    chosen = [c for c in checks.ALL if not (options.quick and c.full)]
    chosen = [c for c in chosen if not options.words or any(w in c.title for w in options.words)]
    if options.list:
        for c in chosen:
            print(f"{c.title}{'   (full)' if c.full else ''}")
        return 0
    if not chosen:
        print("no check is called so", file=sys.stderr)
        return 2
    os.umask(0o022)
    program = os.path.abspath(options.program) if options.program else built(top)
    if not options.quick:
        checks.prepare(chosen, top)

    limit = options.limit or (QUICK_LIMIT if options.quick else FULL_LIMIT)
    # Short: a socket's path may have 107 bytes, and some checks put several levels below this.
    directory = os.path.realpath(tempfile.mkdtemp(prefix="ice-", dir=options.dir))
    os.chmod(directory, 0o755)  # Other users are let in.
    guard.adopt_orphans()
    janitor = guard.Janitor(mark, directory, limit + 120)
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(sig, give_up)
    signal.setitimer(signal.ITIMER_REAL, limit)
    run, ended = Run(options, chosen, program, mark, directory, janitor), ""
    start = time.monotonic()
    try:
        run.all()
    except Deadline as why:
        ended = f"ended before the last check: {why}"
    except Exception:
        ended = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(sig, signal.SIG_IGN)
        left = guard.clear(mark, directory, {os.getpid(), janitor.pid})
        janitor.dismiss()
    for words in [ended, *left]:
        if words:
            run.failed += 1
            run.out.line(f"FAIL {words}")
    run.out.line(f"{time.monotonic() - start:.0f} s, {run.skipped} skipped")
    run.out.line(f"{run.passed} checks passed, {run.failed} failed")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
