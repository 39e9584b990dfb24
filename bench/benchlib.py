"""Helpers of the benchmarks. Python 3, standard library only."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
TICKS = os.sysconf("SC_CLK_TCK")


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def sh(command, timeout=600):
    """Runs a shell command; an error carries what it said."""
    done = subprocess.run(["bash", "-c", command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.decode(errors='replace')[-400:]}")


class Tools:
    """The compiled file-operation timer, in a scratch directory."""

    def __init__(self, scratch):
        self.program = os.path.join(scratch, "fsops")
        subprocess.run(["rustc", "--edition", "2021", "-O", "-o", self.program, os.path.join(HERE, "fsops.rs")], check=True)

    def __call__(self, *args, timeout=900):
        done = subprocess.run([self.program, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout)
        if done.returncode:
            raise RuntimeError(done.stderr.decode(errors="replace").strip())
        return json.loads(done.stdout)


class Cluster:
    """`icecluster dev` in a directory of its own; ended with everything it started."""

    def __init__(self, binary, nodes, directory, extra=()):
        self.binary, self.dir = binary, directory
        self.log = open(directory + ".out", "ab")
        self.said = os.path.getsize(directory + ".out")
        command = [binary, "dev", "--nodes", str(nodes), "--dir", directory, "--port", "19400", *extra]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        self.restarted = {}
        self.nodes = []
        try:
            self._await_start()
        except BaseException:
            self.stop()
            raise

    def _await_start(self):
        """`cluster.json` of this very process names the nodes; then each must say that it is ready."""
        end = time.monotonic() + 300
        while not self.nodes:
            self._alive(end)
            try:
                with open(self.dir + "/cluster.json") as f:
                    summary = json.load(f)
                if summary["pid"] == self.process.pid:
                    self.nodes = summary["nodes"]
            except FileNotFoundError:
                pass
            time.sleep(0.01)
        for i in range(len(self.nodes)):
            self.await_ready(i, end)
        # Until it says so `dev` takes the end of a node for a start that failed.
        while not self._says(b"Ctrl-C stops all nodes", self.said):
            self._alive(end)
            time.sleep(0.01)

    def _says(self, words, start):
        with open(self.dir + ".out", "rb") as f:
            f.seek(start)
            return words in f.read()

    def _alive(self, end):
        if self.process.poll() is not None or time.monotonic() > end:
            with open(self.dir + ".out", errors="replace") as f:
                raise RuntimeError("the cluster did not start:\n" + f.read()[-2000:])

    def await_ready(self, i, end):
        while True:
            self._alive(end)
            try:
                with urllib.request.urlopen(self.nodes[i]["url"] + "/ready", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.01)

    def status(self, i):
        with urllib.request.urlopen(self.nodes[i]["url"] + "/v1/status", timeout=10) as answer:
            return json.load(answer)

    def directory(self, i=0):
        return self.nodes[i]["mount"] or self.nodes[i]["backing"]

    def pid(self, i):
        return self.restarted[i].pid if i in self.restarted else self.nodes[i]["pid"]

    def cpu(self):
        """Seconds of processor time that all nodes used so far."""
        total = 0.0
        for i in range(len(self.nodes)):
            try:
                with open(f"/proc/{self.pid(i)}/stat") as f:
                    fields = f.read().rsplit(")", 1)[1].split()
                total += (int(fields[11]) + int(fields[12])) / TICKS
            except FileNotFoundError:
                pass
        return total

    def end_node(self, i, how=signal.SIGTERM):
        pid = self.pid(i)
        os.kill(pid, how)
        if i in self.restarted:
            self.restarted[i].wait(30)
        end = time.monotonic() + 30
        while running(pid):
            if time.monotonic() > end:
                raise RuntimeError(f"node {i + 1} does not end")
            time.sleep(0.01)

    def start_node(self, i):
        self.restarted[i] = subprocess.Popen(
            [self.binary, "-config", self.nodes[i]["config"]], stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for process in self.restarted.values():
            process.wait(30)
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def running(pid):
    """A zombie has ended: only its parent has not looked yet."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def drop_caches():
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("3")
        return True
    except OSError:
        return False


def busy_cores():
    """Cores in use over the next second, by anybody."""

    def used():
        with open("/proc/stat") as f:
            fields = [int(x) for x in f.readline().split()[1:]]
        return (fields[0] + fields[1] + fields[2] + fields[5] + fields[6]) / TICKS

    before = used()
    time.sleep(1)
    return used() - before


def await_quiet(limit=0.5, seconds=20):
    """Waits until the machine is quiet; gives up after a while, and says so."""
    end = time.monotonic() + seconds
    while (busy := busy_cores()) >= limit:
        if time.monotonic() > end:
            say(f"  (not quiet: {busy:.2f} cores busy)")
            return


def loopback_bytes():
    """Bytes sent over the loopback interface so far, by all processes of the machine."""
    with open("/proc/net/dev") as f:
        for line in f:
            if line.strip().startswith("lo:"):
                return int(line.split(":")[1].split()[8])
    return 0


class Rows:
    """Measured values: row -> target -> one value a round. Ratios are taken round by round to the first target."""

    def __init__(self):
        self.values, self.notes = {}, {}

    def add(self, row, target, value, unit=""):
        self.values.setdefault((row, unit), {}).setdefault(target, []).append(value)
        say(f"  {row:44s} {target:12s} {value:12.3f} {unit}")

    def table(self, base):
        """A Markdown table: median, range, and the median of the per-round ratios to `base`."""
        lines = ["| measure | system | median | min - max | ratio to " + base + " | rounds |", "|---|---|---|---|---|---|"]
        for (row, unit), targets in self.values.items():
            for target, values in targets.items():
                ratio = "-"
                if target != base and base in targets:
                    ratios = [v / b for v, b in zip(values, targets[base]) if b]
                    if ratios:
                        ratio = f"{statistics.median(ratios):.3f}"
                lines.append(
                    f"| {row} | {target} | {statistics.median(values):.4g} {unit} | "
                    f"{min(values):.4g} - {max(values):.4g} | {ratio} | {len(values)} |")
        return "\n".join(lines)

    def save(self, path):
        rows = [{"row": row, "unit": unit, "values": targets} for (row, unit), targets in self.values.items()]
        with open(path, "w") as f:
            json.dump(rows, f, indent=1)


def scratch_dir(parent):
    return tempfile.mkdtemp(prefix="icecluster-bench-", dir=parent)


def remove(path):
    shutil.rmtree(path, ignore_errors=True)
