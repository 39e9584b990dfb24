#!/usr/bin/env python3
"""Shows that run.py ends and leaves nothing, whatever happens to it: killed, its cluster killed, its reader gone.

    .ci/apps/prove.py PROGRAM     about two minutes
"""

import os
import signal
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
import guard  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
# A pipe's reader that waits for its end must see it within this, also after a SIGKILL.
LIMIT = 120


def ours(directory):
    """Processes whose command line or working directory names the directory, or that carry a mark of a run in it."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                line = f.read()
            with open(f"/proc/{pid}/environ", "rb") as f:
                env = f.read()
        except OSError:
            continue
        if (os.fsencode(directory) in line or f"ICE_APPS_PROOF={directory}".encode() in env) and int(pid) != os.getpid():
            found.append((int(pid), line.replace(b"\0", b" ").decode(errors="replace")[:80]))
    return found


def pids(directory, word):
    return [pid for pid, line in ours(directory) if word in line]


def case(name, program, disturb, words=(), stdin=subprocess.DEVNULL):
    with tempfile.TemporaryDirectory(prefix="icecluster-prove-") as directory:
        directory = os.path.realpath(directory)
        os.chmod(directory, 0o755)
        env = {k: v for k, v in os.environ.items() if k != guard.MARK}
        env["ICE_APPS_PROOF"] = directory
        runner = subprocess.Popen([sys.executable, os.path.join(HERE, "run.py"), "--quick", "--way", "passthrough", "--program",
                                   program, "--dir", directory, *words], stdin=stdin, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, env=env, start_new_session=True)
        # As in a pipeline: this one ends only when the last process that holds the pipe has closed it.
        reader = subprocess.Popen(["cat"], stdin=runner.stdout, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        runner.stdout.close()
        start = time.monotonic()
        disturb(runner, reader, directory)
        try:
            said = reader.communicate(timeout=LIMIT)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            print(f"FAIL {name}: the reader still waits after {LIMIT} s; running: {ours(directory)}", flush=True)
            os.killpg(runner.pid, signal.SIGKILL)
            reader.kill()
            return False
        seconds = time.monotonic() - start
        runner.wait(LIMIT)
        # After a SIGKILL the janitor, which holds no pipe, still has to clear up.
        end = time.monotonic() + LIMIT
        while (ours(directory) or guard.mounts_below(directory) or os.listdir(directory)) and time.monotonic() < end:
            time.sleep(0.1)
        left = [ours(directory), guard.mounts_below(directory), os.listdir(directory)]
        fine = not any(left)
        last = (said.strip().splitlines() or ["nothing was said"])[-1]
        print(f"{'ok  ' if fine else 'FAIL'} {name}: the reader's end after {seconds:.1f} s, all gone after "
              f"{time.monotonic() - start:.1f} s, code {runner.returncode}; {last}{'' if fine else f' LEFT: {left}'}", flush=True)
        for line in said.splitlines():
            if line.startswith("FAIL") and disturb is nothing:
                print("     " + line, flush=True)
        return fine


def wait_for(directory, word, limit=60):
    end = time.monotonic() + limit
    while not pids(directory, word):
        if time.monotonic() > end:
            raise SystemExit(f"nothing called {word} was started")
        time.sleep(0.05)


def underway(directory):
    wait_for(directory, "-config")
    end = time.monotonic() + 60
    while not guard.mounts_below(directory) and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(4)


def nothing(_runner, _reader, _directory):
    pass


def kill_runner(sig):
    def disturb(runner, _reader, directory):
        underway(directory)
        os.kill(runner.pid, sig)
    return disturb


def kill_nodes(runner, _reader, directory):
    underway(directory)
    for pid in pids(directory, "icecluster"):
        if pid != runner.pid and "run.py" not in dict(ours(directory)).get(pid, ""):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def stop_nodes(_runner, _reader, directory):
    """They are there but do not answer: every request waits."""
    underway(directory)
    for pid in pids(directory, "-config"):
        os.kill(pid, signal.SIGSTOP)


def reader_gone(_runner, reader, directory):
    underway(directory)
    reader.kill()


def main():
    program = os.path.abspath(sys.argv[1])
    short = ("owners", "rename", "maps", "many", "listing")
    fine = [
        case("undisturbed", program, nothing, short),
        case("SIGTERM", program, kill_runner(signal.SIGTERM)),
        case("SIGINT", program, kill_runner(signal.SIGINT)),
        case("SIGKILL", program, kill_runner(signal.SIGKILL)),
        case("all nodes killed", program, kill_nodes, ("many", "git", "stop")),
        case("all nodes stopped", program, stop_nodes, ("many", "git", "--limit", "40")),
        case("its reader gone", program, reader_gone, short),
    ]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
