#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a user feels: the start of `coder ssh`; 1 GiB each way through `coder port-forward`, direct, relayed, and while
the path is switched ten times to the relay and ten times back, next to the same bytes over Debian's wireguard-go and over
the bare link, in one run; 24 sessions at once. Every transfer is compared by SHA-256. Needs root.

    benchmarks/session.py [--bytes N] [--rounds N] [--switches-only] [--json FILE]
"""

import argparse
import hashlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from lab import Lab, cpu_seconds, rss_megabytes, run, wait_for

CODER = str(pathlib.Path(__file__).resolve().parent.parent / ".build/release/coder")

# On the agent's host: gives the file to whoever connects (at most `rate` bytes a second, 0 for all there is).
SOURCE = """
import socket, sys, time
rate = int(sys.argv[4])
server = socket.create_server((sys.argv[2], int(sys.argv[3])))
while True:
    peer, _ = server.accept()
    with peer, open(sys.argv[1], 'rb') as file:
        try:
            if not rate: peer.sendfile(file)
            while rate and (piece := file.read(rate // 20)):
                peer.sendall(piece)
                time.sleep(0.05)
        except OSError: pass
"""
# There too: answers with the SHA-256 of what came.
DRAIN = """
import hashlib, socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
while True:
    peer, _ = server.accept()
    with peer, peer.makefile('rb') as file:
        try: peer.sendall(hashlib.file_digest(file, 'sha256').hexdigest().encode())
        except OSError: pass
"""
# On the client's host: fetches into a file.
SINK = """
import socket, sys, time
begin = time.monotonic()
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
buffer = bytearray(1 << 20)
total = 0
with open(sys.argv[3], 'wb') as file:
    while True:
        count = peer.recv_into(buffer)
        if not count: break
        file.write(memoryview(buffer)[:count])
        total += count
print(total, time.monotonic() - begin)
"""
# There too: sends a file (at most `rate` bytes a second, 0 for all it can) and prints what the other side computed.
GIVE = """
import socket, sys, time
rate = int(sys.argv[4])
begin = time.monotonic()
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
with open(sys.argv[3], 'rb') as file:
    if not rate: peer.sendfile(file)
    while rate and (piece := file.read(rate // 20)):
        peer.sendall(piece)
        time.sleep(0.05)
peer.shutdown(socket.SHUT_WR)
print(peer.makefile().read(), time.monotonic() - begin)
"""
PORTS = {"source": 9000, "slow source": 9001, "drain": 9002}
SESSIONS = 24
SWITCHES = 20
SWITCHING_SECONDS = 60


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Bench:
    def __init__(self, lab, folder, size):
        self.lab, self.folder, self.size = lab, folder, size
        self.payload = f"{folder}/payload"
        with open(self.payload, "wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
        self.sum = digest(self.payload)
        # Bytes a second, with which a transfer outlasts the switches of its path.
        self.slow = size // SWITCHING_SECONDS
        self.env = {"CODER_CONFIG_DIR": f"{folder}/user", "HOME": folder, "NO_COLOR": "1"}

    def coder(self, *arguments):
        return run(self.lab.on("client", [CODER, *arguments]), env={**os.environ, **self.env})

    def deploy(self):
        url = f"http://{self.lab.address('server')}:3000"
        self.server = self.lab.start(
            "server", [CODER, "server", "--http-address", "0.0.0.0:3000", "--access-url", url, "--global-config",
                       f"{self.folder}/server"], f"{self.folder}/server.log", {"HOME": self.folder})
        probe = ["python3", "-c", f"import urllib.request as r; r.urlopen('{url}/healthz', timeout=2)"]
        wait_for("server", 60, lambda: subprocess.run(
            self.lab.on("client", probe), capture_output=True).returncode == 0)
        self.coder("login", url, "--first-user-username", "ann", "--first-user-email", "ann@example.org",
                   "--first-user-password", "Correct-Horse-7-Battery", "--first-user-trial=false")
        text = self.coder("external-workspaces", "create", "dev", "--yes")
        token = text.split("CODER_AGENT_TOKEN=")[1].strip('"')[:36]
        self.agent = self.lab.start(
            "agent", [CODER, "agent"], f"{self.folder}/agent.log",
            {"CODER_AGENT_URL": url, "CODER_AGENT_TOKEN": token, "HOME": self.folder,
             "CODER_AGENT_LOG_DIR": self.folder})
        slow = str(self.slow)
        for name, script, arguments in (
                ("source", SOURCE, [self.payload, "0.0.0.0", "9000", "0"]),
                ("slow source", SOURCE, [self.payload, "0.0.0.0", "9001", slow]), ("drain", DRAIN, ["0.0.0.0", "9002"])):
            self.lab.start("agent", ["python3", "-c", script, *arguments], f"{self.folder}/{name}.log")
        wait_for("agent", 30, lambda: subprocess.run(
            self.lab.on("client", [CODER, "ssh", "dev", "--", "true"]), env={**os.environ, **self.env},
            capture_output=True).returncode == 0)

    def wireguard_go(self):
        """Debian's wireguard-go between the same two hosts: 10.200.0.1 (client) and 10.200.0.2 (agent)."""
        keys = {}
        for name in ("client", "agent"):
            private = run(["wg", "genkey"]).strip()
            keys[name] = (private, run(["wg", "pubkey"], input=private.encode()).strip())
        self.tunnels = []
        for name, other, own in (("client", "agent", 1), ("agent", "client", 2)):
            device = f"wgb{own}"
            process = self.lab.start(name, ["wireguard-go", "-f", device], f"{self.folder}/{device}.log")
            self.tunnels.append(process)
            wait_for(device, 5, lambda: os.path.exists(f"/var/run/wireguard/{device}.sock"))
            path = f"{self.folder}/{device}.key"
            pathlib.Path(path).write_text(keys[name][0])
            run(self.lab.on(name, ["wg", "set", device, "listen-port", "51820", "private-key", path, "peer",
                                   keys[other][1], "allowed-ips", f"10.200.0.{3 - own}/32", "endpoint",
                                   f"{self.lab.address(other)}:51820"]))
            run(self.lab.on(name, ["ip", "address", "add", f"10.200.0.{own}/24", "dev", device]))
            run(self.lab.on(name, ["ip", "link", "set", device, "up", "mtu", "1420"]))

    def fetch(self, host, port, processes):
        """One transfer: MB/s, and CPU seconds per GB of the processes in the way."""
        target = f"{self.folder}/copy"
        before = {pid: cpu_seconds(pid) for pid in processes}
        printed = run(self.lab.on("client", ["python3", "-c", SINK, host, str(port), target]), timeout=600)
        total, seconds = printed.split()
        cpu = sum(cpu_seconds(pid) - before[pid] for pid in processes)
        if int(total) != self.size or digest(target) != self.sum:
            raise SystemExit(f"{host}:{port}: {total} bytes arrived, of {self.size}, or other ones")
        os.unlink(target)
        return {"MB/s": self.size / 1e6 / float(seconds), "CPU s/GB": cpu / (self.size / 1e9)}

    def give(self, host, port, processes, rate=0):
        """The other way."""
        before = {pid: cpu_seconds(pid) for pid in processes}
        printed = run(
            self.lab.on("client", ["python3", "-c", GIVE, host, str(port), self.payload, str(rate)]), timeout=600)
        total, seconds = printed.split()
        cpu = sum(cpu_seconds(pid) - before[pid] for pid in processes)
        if total != self.sum:
            raise SystemExit(f"{host}:{port}: other bytes arrived: {total}")
        return {"MB/s": self.size / 1e6 / float(seconds), "CPU s/GB": cpu / (self.size / 1e9)}

    def forward(self):
        """Starts `coder port-forward`: the ports of the agent's host, with a 1 in front, on the client's."""
        forward = self.lab.start(
            "client", [CODER, "port-forward", "dev", *(f"--tcp=1{port}:{port}" for port in PORTS.values())],
            f"{self.folder}/forward.log", self.env)
        wait_for("forward", 20, lambda: subprocess.run(
            self.lab.on("client", ["ss", "-ltn"]), capture_output=True, text=True).stdout.find(":19002") > 0)
        return forward

    def relay_bytes(self):
        return int(run(self.lab.on("server", ["cat", "/sys/class/net/eth0/statistics/rx_bytes"])))

    def switched(self):
        """A transfer each way, while UDP between the two hosts is blocked and allowed in turn, each time until the
        bytes are seen to go the other way; the longest time that took in each sense."""
        results = {}
        transfers = [
            threading.Thread(target=lambda: results.update(down=self.fetch("127.0.0.1", 19001, []))),
            threading.Thread(target=lambda: results.update(up=self.give("127.0.0.1", 19002, [], self.slow)))]
        for transfer in transfers:
            transfer.start()
        time.sleep(2)
        waits = {True: [], False: []}
        for turn in range(SWITCHES):
            to_relay = turn % 2 == 0
            self.lab.set_udp_blocked("agent", "client", to_relay)
            begin = time.monotonic()
            while time.monotonic() - begin < 15:
                before = self.relay_bytes()
                time.sleep(0.5)
                if (self.relay_bytes() - before > self.slow / 2) == to_relay:
                    waits[to_relay].append(time.monotonic() - begin)
                    time.sleep(1.5)
                    break
        lasted = [transfer.is_alive() for transfer in transfers]
        for transfer in transfers:
            transfer.join()
        if len(results) < 2 or not all(lasted):
            raise SystemExit(f"transfers over changing paths: {results}, outlasted the switches: {lasted}")
        return {"to the relay": len(waits[True]), "seconds": max(waits[True]), "back": len(waits[False]),
                "seconds back": max(waits[False]), **{f"MB/s {way}": row["MB/s"] for way, row in results.items()}}

    def sessions(self):
        """Sessions at once, 20 MiB each, and what the agent's memory is before, during and after."""
        size = min(20 << 20, self.size)
        with open(self.payload, "rb") as file:
            wanted = hashlib.sha256(file.read(size)).hexdigest()
        memory = [rss_megabytes(self.agent.pid)]
        begin = time.monotonic()
        running = [subprocess.Popen(
            self.lab.on("client", ["sh", "-c", f"{CODER} ssh dev -- head -c {size} {self.payload} | sha256sum"]),
            env={**os.environ, **self.env}, stdout=subprocess.PIPE) for _ in range(SESSIONS)]
        while any(process.poll() is None for process in running):
            memory.append(rss_megabytes(self.agent.pid))
            time.sleep(0.05)
        seconds = time.monotonic() - begin
        exact = sum(process.stdout.read().decode().split()[0] == wanted for process in running)
        time.sleep(20)
        return {"exact": exact, "seconds": seconds, "agent RSS MB before": memory[0], "most": max(memory),
                "20 s after": rss_megabytes(self.agent.pid)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=1 << 30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--switches-only", action="store_true", help="only the transfers over changing paths")
    parser.add_argument("--json")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("network namespaces need root")
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
    results = {}
    with tempfile.TemporaryDirectory(dir=shm) as folder, Lab(78, ["server", "agent", "client"]) as lab:
        os.chmod(folder, 0o755)
        bench = Bench(lab, folder, options.bytes >> 20 << 20)
        bench.deploy()
        if options.switches_only:
            bench.forward()
            for key, value in bench.switched().items():
                print(f"{key:20}{value:9.2f}")
            return
        bench.wireguard_go()

        starts = []
        for _ in range(21):
            begin = time.monotonic()
            bench.coder("ssh", "dev", "--", "true")
            starts.append((time.monotonic() - begin) * 1e3)
        results["ssh start to exit, ms"] = {"median": statistics.median(starts[1:]), "max": max(starts[1:])}

        ours = [bench.forward().pid, bench.agent.pid]
        tunnels = [p.pid for p in bench.tunnels]
        kinds = {
            "bare link": lambda: bench.fetch(lab.address("agent"), 9000, []),
            "wireguard-go (Debian), kernel TCP": lambda: bench.fetch("10.200.0.2", 9000, tunnels),
            "the same, up": lambda: bench.give("10.200.0.2", 9002, tunnels),
            "coder port-forward, direct": lambda: bench.fetch("127.0.0.1", 19000, ours),
            "coder port-forward, direct, up": lambda: bench.give("127.0.0.1", 19002, ours),
        }
        rows = {name: [] for name in kinds}
        for _ in range(options.rounds):
            for name, kind in kinds.items():
                rows[name].append(kind())
        rows["coder port-forward, ten switches"] = [bench.switched()]
        results[f"{SESSIONS} sessions of 20 MiB"] = bench.sessions()
        lab.set_udp_blocked("agent", "client", True)
        time.sleep(8)
        relayed = "coder port-forward, relayed"
        ours.append(bench.server.pid)
        rows[relayed] = [bench.fetch("127.0.0.1", 19000, ours) for _ in range(options.rounds)]
        rows[relayed + ", up"] = [bench.give("127.0.0.1", 19002, ours) for _ in range(options.rounds)]
        for name, row in rows.items():
            results[name] = {key: statistics.median(r[key] for r in row) for key in row[0]}

    for name, row in results.items():
        print(f"{name:40}" + "  ".join(f"{key} {value:9.2f}" for key, value in row.items()))
    base = results["wireguard-go (Debian), kernel TCP"]["MB/s"]
    for name in ("coder port-forward, direct", relayed):
        print(f"{name} / wireguard-go: {results[name]['MB/s'] / base:.2f} x")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
