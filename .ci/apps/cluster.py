"""Three nodes in a directory, started by `icecluster dev`."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request

import guard
from check import eventually

START_SECONDS = 90
FIRST_PORT = 21000


def free_port(taken):
    for port in range(FIRST_PORT, FIRST_PORT + 2000):
        if port in taken:
            continue
        with socket.socket() as s:
            # As the daemon does it, so that a connection that still lingers is no obstacle.
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            taken.append(port)
            return port
    raise RuntimeError("no free port")


class Cluster:
    def __init__(self, program, directory, mount, settings):
        self.program, self.dir, self.restarted = program, directory, []
        taken = []
        self.nodes = []
        for i in (1, 2, 3):
            home = os.path.join(directory, f"node{i}")
            node = {"data": os.path.join(home, "data"), "backing": os.path.join(home, "backing"), "mount": f"{mount}{i}"}
            for part in node.values():
                os.makedirs(part)
            node.update(name=f"node{i}", url=f"http://127.0.0.1:{free_port(taken)}", config=os.path.join(home, "config.yml"))
            self.nodes.append(node)
        for node in self.nodes:
            others = [n["url"] for n in self.nodes if n is not node]
            config = {"node_id": node["name"], "bind": node["url"][len("http://"):], "advertise": node["url"],
                      "join": ",".join(others), "data": node["data"], "backing": node["backing"], "mount": node["mount"],
                      "keepalive": "1s", "keepalive_failures": 9, **settings}
            with open(node["config"], "w") as f:
                json.dump(config, f)  # JSON is YAML.
        self.log = open(os.path.join(directory, "dev.log"), "wb")
        self.process = subprocess.Popen([program, "dev", "--dir", directory], stdin=subprocess.DEVNULL, stdout=self.log,
                                        stderr=self.log, start_new_session=True,
                                        preexec_fn=lambda: guard.die_with_parent(signal.SIGTERM))
        end = time.monotonic() + START_SECONDS
        summary = os.path.join(directory, "cluster.json")
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"the cluster did not start: {self.said()}")
            if time.monotonic() > end:
                raise RuntimeError(f"the cluster did not start within {START_SECONDS} s: {self.said()}")
            if os.path.exists(summary) and all(self.ready(n) for n in self.nodes):
                break
            time.sleep(0.05)
        with open(summary) as f:
            for node, known in zip(self.nodes, json.load(f)["nodes"]):
                node["pid"], node["log"] = known["pid"], known["log"]
        mounted = [path for path, _, _ in guard.mounts_below(os.path.dirname(directory))]
        for node in self.nodes:
            if node["mount"] not in mounted:
                raise RuntimeError(f"{node['name']} is not mounted: {self.said()}")

    @staticmethod
    def ready(node):
        try:
            with urllib.request.urlopen(node["url"] + "/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def said(self):
        """The ends of all logs."""
        words = []
        for path in [os.path.join(self.dir, "dev.log")] + [os.path.join(self.dir, f"node{i}", "log") for i in (1, 2, 3)]:
            try:
                with open(path, errors="replace") as f:
                    words.append(f"--- {path}\n{f.read()[-1500:]}")
            except OSError:
                pass
        return "\n".join(words)

    def bugs(self):
        """Lines in which a node says that it has one."""
        found = []
        for node in self.nodes:
            try:
                with open(os.path.join(self.dir, node["name"], "log"), errors="replace") as f:
                    found += [f"{node['name']}: {line.strip()[:300]}" for line in f if "bug: " in line]
            except OSError:
                pass
        return found

    def stop(self):
        """Ends it in order; returns what went wrong, in words."""
        troubles = []
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(guard.STOP_SECONDS)
            if code != 0:
                with open(os.path.join(self.dir, "dev.log"), errors="replace") as f:
                    troubles.append(f"the cluster ended with code {code}: {f.read()[-600:].strip()}")
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            troubles.append(f"the cluster did not stop within {guard.STOP_SECONDS} s")
        self.log.close()
        left = [path for path, _, _ in guard.mounts_below(os.path.dirname(self.dir))]
        if left:
            troubles.append(f"left mounted: {left}")
        return troubles + self.bugs()


def restart(program, node):
    """Starts a node again by hand, as a user would. Whoever runs the cluster ends it with the others."""
    with open(os.path.join(os.path.dirname(node["config"]), "log"), "ab") as log:
        process = subprocess.Popen([program, "-config", node["config"]], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   start_new_session=True)
    eventually(f"{node['name']} is back", lambda: Cluster.ready(node), START_SECONDS)
    return process


def plain(directory):
    """The same shape without anything in it: one directory that is all nodes."""
    path = os.path.join(directory, "plain")
    os.mkdir(path)
    return [{"name": f"node{i}", "mount": path, "backing": path} for i in (1, 2, 3)]
