#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Node to node with TCP in user space, next to kernel TCP over Debian's wireguard-go, in one run: throughput, latency,
connection set-ups, CPU time, memory; directly, through a relay, and over a link with delay and loss. Needs root.

    benchmarks/netstack.py [--seconds N] [--rounds N] [--only WORD,...] [--json FILE]
"""

import argparse
import json
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from lab import Lab, anonymous_megabytes, cpu_seconds, rss_megabytes, run, wait_for

CODER = os.environ.get("CODER") or str(pathlib.Path(__file__).resolve().parent.parent / ".build/release/coder")
ADDRESS = {"a": "fd7a:115c:a1e0::a", "b": "fd7a:115c:a1e0::b"}
PORT = {"a": 41001, "b": 41002}

# Stands between two UDP sockets: delays each datagram, loses some. The kernel here has no netem.
LINK = """
import collections, os, random, select, socket, sys, time
delay, loss, seed = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
ends = [tuple(sys.argv[4].rsplit(':', 1)), tuple(sys.argv[5].rsplit(':', 1))]
ends = [(host, int(port)) for host, port in ends]
chance = random.Random(seed)
sockets = []
for index in range(2):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (32, 33): s.setsockopt(socket.SOL_SOCKET, option, 16 << 20)
    s.bind(('0.0.0.0', int(sys.argv[6]) + index))
    s.setblocking(False)
    sockets.append(s)
# What comes from end 0 arrives at socket 0 and leaves from socket 1 towards end 1.
queues = [collections.deque(), collections.deque()]
print('ready', flush=True)
while True:
    now = time.monotonic()
    wait = None
    for index, queue in enumerate(queues):
        while queue and queue[0][0] <= now:
            try: sockets[1 - index].sendto(queue.popleft()[1], ends[1 - index])
            except OSError: pass
        if queue: wait = min(queue[0][0] - now, wait if wait is not None else 1)
    for s in select.select(sockets, [], [], wait)[0]:
        index = sockets.index(s)
        due = time.monotonic() + delay
        for _ in range(256):
            try: bytes = s.recv(65536)
            except BlockingIOError: break
            if chance.random() >= loss: queues[index].append((due, bytes))
"""

# Kernel TCP for what iperf3 does not measure: questions and answers, connects.
ECHO = """
import socket, sys, threading
server = socket.create_server(('0.0.0.0', int(sys.argv[1])), backlog=1024)
def serve(peer):
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with peer:
        while True:
            got = peer.recv(65536)
            if not got: return
            peer.sendall(got)
while True: threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""
ASK = """
import json, socket, sys, time
host, port, size, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
peer = socket.create_connection((host, port))
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
times, end, question = [], time.monotonic() + seconds, b'x' * size
while time.monotonic() < end:
    begin = time.perf_counter()
    peer.sendall(question)
    got = 0
    while got < size: got += len(peer.recv(size - got))
    times.append((time.perf_counter() - begin) * 1e6)
times.sort()
print(json.dumps({'p50 us': times[len(times) // 2], 'p99 us': times[len(times) * 99 // 100]}))
"""


class Node:
    """`coder mesh` on one host of the lab."""

    def __init__(self, bench, name, config):
        self.bench, self.name = bench, name
        self.socket = f"{bench.folder}/{name}.sock"
        config = {"addresses": [ADDRESS[name]], "node_key": bench.keys[name]["node_key"], **config}
        path = f"{bench.folder}/{name}.json"
        pathlib.Path(path).write_text(json.dumps(config))
        self.process = bench.lab.start(
            name, [CODER, "mesh", "--config", path, "--control", self.socket], f"{bench.folder}/{name}.log")
        wait_for(f"node {name}", 20, lambda: os.path.exists(self.socket))

    def ask(self, *words, timeout=120):
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(timeout)
            control.connect(self.socket)
            control.sendall(" ".join(words).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                part = control.recv(1 << 20)
                if not part:
                    break
                answer += part
        result = json.loads(answer)
        if isinstance(result, dict) and "error" in result:
            raise SystemExit(f"{self.name}: {' '.join(words)}: {result['error']}")
        return result

    def stop(self):
        self.process.terminate()
        self.process.wait(20)


class Bench:
    def __init__(self, lab, folder, options):
        self.lab, self.folder, self.options = lab, folder, options
        self.keys = {name: json.loads(run([CODER, "mesh", "genkey"])) for name in ADDRESS}
        self.rows = {}

    def note(self, name, **values):
        self.rows.setdefault(name, []).append(values)
        print(f"{name:52}" + "  ".join(f"{k} {v:.2f}" for k, v in values.items()), file=sys.stderr)

    # Ours

    def nodes(self, endpoint=None, **extra):
        """Two static peers, each knowing where the other is, or both only the link between them."""
        services = [{"kind": kind, "port": port} for kind, port in (("echo", 7), ("discard", 9), ("zero", 19))]
        pair = []
        for own, other in (("a", "b"), ("b", "a")):
            place = (endpoint or {}).get(own) or f"{self.lab.address(other)}:{PORT[other]}"
            peer = {"key": self.keys[other]["key"], "addresses": [ADDRESS[other]], "endpoints": [place]}
            pair.append(Node(self, own, {"listen_port": PORT[own], "peers": [peer], "services": services, **extra}))
        pair[0].ask("reach", ADDRESS["b"], "20")
        return pair

    def load(self, pair, kind, port, *words, helpers=()):
        processes = [node.process.pid for node in pair] + [p.pid for p in helpers]
        before = [cpu_seconds(pid) for pid in processes]
        result = pair[0].ask("load", kind, f"[{ADDRESS['b']}]:{port}", *words)
        result["cpu"] = [cpu_seconds(pid) - start for pid, start in zip(processes, before)]
        # A test that is ended by its time says so.
        if result["problems"] and not any(word.startswith("seconds=") for word in words):
            raise SystemExit(f"{kind}: {result['problems']}")
        return result

    def throughput(self, pair, name, streams, up, size, helpers=()):
        result = self.load(
            pair, "up" if up else "down", 9 if up else 19, f"streams={streams}", f"bytes={size}", "check=false",
            helpers=helpers)
        total = result["bytes"]
        values = {"Mbit/s": result["megabytes_per_second"] * 8, "CPU s/GB": sum(result["cpu"][:2]) / total * 1e9}
        if helpers:
            values["relay CPU s/GB"] = sum(result["cpu"][2:]) / total * 1e9
        self.note(name, **values)

    def questions(self, pair, name, size):
        result = self.load(pair, "rr", 7, f"size={size}", "count=10000000", f"seconds={self.options.seconds}")
        latency = result["latency_ms"]
        self.note(name, **{"p50 us": latency["p50"] * 1e3, "p99 us": latency["p99"] * 1e3})

    def direct(self):
        size = self.options.bytes
        pair = self.nodes()
        for _ in range(self.options.rounds):
            for streams in (1, 4, 64):
                self.throughput(pair, f"ours, {streams} up", streams, True, size)
                self.throughput(pair, f"ours, {streams} down", streams, False, size)
            self.questions(pair, "ours, 1 byte there and back", 1)
            self.questions(pair, "ours, 4 KiB there and back", 4096)
            # /dev/null ends at once, so the server closes first; the echo closes last, and the dialler keeps the port.
            for port, closer in ((9, "server"), (7, "dialler")):
                result = self.load(pair, "connects", port, "streams=16", f"seconds={self.options.seconds}")
                self.note(f"ours, connects, the {closer} closes first", **{
                    "per s": result["per_second"], "p50 ms": result["latency_ms"]["p50"]})
            self.kernel_round()
        self.keystrokes(pair)
        # The load has its threads in a; all of b's streams end inside its engine.
        for measure, of in ((rss_megabytes, "RSS"), (anonymous_megabytes, "memory of their own")):
            self.note(f"ours, {of} of busy nodes", **{f"{n.name} MB": measure(n.process.pid) for n in pair})
        for node in pair:
            node.stop()

    def keystrokes(self, pair):
        """One byte there and back while a bulk stream fills the path."""
        with_control = subprocess.Popen(
            [CODER, "mesh", "--control", pair[0].socket, "load", "up", f"[{ADDRESS['b']}]:9", "streams=1",
             f"bytes={16 << 30}", f"seconds={self.options.seconds + 2}", "check=false"], stdout=subprocess.DEVNULL)
        time.sleep(1)
        self.questions(pair, "ours, 1 byte beside a bulk stream", 1)
        with_control.wait(60)

    def idle(self):
        pair = self.nodes()
        count = self.options.idle
        pair[0].ask("load", "connects", f"[{ADDRESS['b']}]:7", "streams=16", "seconds=1")
        time.sleep(1)
        before = [rss_megabytes(n.process.pid) for n in pair]
        result = pair[0].ask("load", "idle", f"[{ADDRESS['b']}]:{self.idle_port(pair)}", f"count={count}", "seconds=4")
        self.note(f"ours, {count} idle connections", **{
            "client KB each": result["grown_bytes"] / count / 1e3,
            "server MB": rss_megabytes(pair[1].process.pid) - before[1], "per s": result["per_second"]})
        for node in pair:
            node.stop()

    def idle_port(self, pair):
        pair[1].ask("serve", "hold", "17")
        return 17

    def relayed(self):
        server, config = self.relay()
        extra = {"block_direct": True, "derp_map": config}
        services = [{"kind": kind, "port": port} for kind, port in (("echo", 7), ("discard", 9), ("zero", 19))]
        pair = [Node(self, name, {"services": services, **extra}) for name in ("a", "b")]
        for node, other in ((pair[1], pair[0]), (pair[0], pair[1])):
            wait_for("home relay", 20, lambda: other.ask("node")["preferred_derp"] != 0)
            node.ask("peers", "add", json.dumps(other.ask("node")))
        pair[0].ask("reach", ADDRESS["b"], "20")
        for _ in range(self.options.rounds):
            self.throughput(pair, "ours, relayed, 1 up", 1, True, self.options.bytes // 2, [server])
            self.throughput(pair, "ours, relayed, 1 down", 1, False, self.options.bytes // 2, [server])
            self.questions(pair, "ours, relayed, 1 byte there and back", 1)
        for node in pair:
            node.stop()
        server.terminate()

    def relay(self):
        """A relay on its own."""
        address, port = self.lab.address("relay"), 3340
        arguments = [CODER, "relay", "--standalone", "--http-address", f"{address}:{port}", "--drain-time", "0s"]
        process = self.lab.start("relay", arguments, f"{self.folder}/relay.log", {"HOME": self.folder})
        probe = f"import socket; socket.create_connection(('{address}', {port}), 1)"
        wait_for("relay", 60, lambda: subprocess.run(
            self.lab.on("a", ["python3", "-c", probe]), capture_output=True).returncode == 0)
        node = {"Name": "1a", "RegionID": 1, "HostName": address, "IPv4": address, "DERPPort": port, "ForceHTTP": True,
                "STUNPort": -1}
        region = {"RegionID": 1, "RegionCode": "bench", "RegionName": "Bench", "Nodes": [node]}
        return process, {"Regions": {"1": region}}

    def lossy(self):
        """RTT 50 ms and random loss: ours, then kernel CUBIC over wireguard-go, over the same kind of link."""
        for loss in (0, 0.001, 0.01):
            for seed in range(self.options.rounds):
                name = f"RTT 50 ms, {loss:.1%} loss"
                link = self.link(0.025, loss, seed, PORT["a"], PORT["b"])
                at = self.lab.address("relay")
                pair = self.nodes({"a": f"{at}:42000", "b": f"{at}:42001"})
                # Down: what was received counts, not what some buffer took.
                result = self.load(pair, "down", 19, "streams=1", f"bytes={8 << 30}", "check=false",
                                   f"seconds={self.options.long}")
                self.note(f"ours, {name}", **{"Mbit/s": result["megabytes_per_second"] * 8})
                for node in pair:
                    node.stop()
                link.terminate()
                link.wait(10)
                link = self.link(0.025, loss, seed, 51820, 51820)
                self.set_endpoints({"a": f"{at}:42000", "b": f"{at}:42001"})
                value = self.iperf(1, True, self.options.long)
                self.note(f"kernel CUBIC over wireguard-go, {name}", **{"Mbit/s": value})
                link.terminate()
                link.wait(10)
                self.set_endpoints({})

    def link(self, delay, loss, seed, port_a, port_b):
        a, b = f"{self.lab.address('a')}:{port_a}", f"{self.lab.address('b')}:{port_b}"
        log = f"{self.folder}/link.log"
        process = self.lab.start("relay", ["python3", "-c", LINK, str(delay), str(loss), str(seed), a, b, "42000"], log)
        wait_for("link", 10, lambda: "ready" in pathlib.Path(log).read_text())
        return process

    # Debian's wireguard-go, kernel TCP

    def wireguard_go(self):
        self.tunnels, keys = [], {}
        for name in ADDRESS:
            private = run(["wg", "genkey"]).strip()
            keys[name] = (private, run(["wg", "pubkey"], input=private.encode()).strip())
        self.public = {name: keys[name][1] for name in keys}
        for own, other, number in (("a", "b", 1), ("b", "a", 2)):
            device = f"wgn{number}"
            self.tunnels.append(self.lab.start(own, ["wireguard-go", "-f", device], f"{self.folder}/{device}.log"))
            wait_for(device, 5, lambda: os.path.exists(f"/var/run/wireguard/{device}.sock"))
            path = f"{self.folder}/{device}.key"
            pathlib.Path(path).write_text(keys[own][0])
            run(self.lab.on(own, ["wg", "set", device, "listen-port", "51820", "private-key", path, "peer",
                                  keys[other][1], "allowed-ips", f"10.201.0.{3 - number}/32", "endpoint",
                                  f"{self.lab.address(other)}:51820"]))
            run(self.lab.on(own, ["ip", "address", "add", f"10.201.0.{number}/24", "dev", device]))
            run(self.lab.on(own, ["ip", "link", "set", device, "up", "mtu", "1280"]))
        self.lab.start("b", ["iperf3", "-s"], f"{self.folder}/iperf.log")
        self.lab.start("b", ["python3", "-c", ECHO, "7"], f"{self.folder}/echo.log")
        time.sleep(0.5)

    def set_endpoints(self, ends):
        for own, other, number in (("a", "b", 1), ("b", "a", 2)):
            place = ends.get(own) or f"{self.lab.address(other)}:51820"
            run(self.lab.on(own, ["wg", "set", f"wgn{number}", "peer", self.public[other], "endpoint", place]))

    def iperf(self, streams, down, seconds):
        arguments = ["iperf3", "-c", "10.201.0.2", "-C", "cubic", "-P", str(streams), "-t", str(seconds), "-J"]
        printed = run(self.lab.on("a", arguments + (["-R"] if down else [])), timeout=seconds + 60)
        return json.loads(printed)["end"]["sum_received"]["bits_per_second"] / 1e6

    def kernel_round(self):
        for streams, down in ((1, False), (1, True), (4, False), (4, True), (64, False), (64, True)):
            before = sum(cpu_seconds(p.pid) for p in self.tunnels)
            value = self.iperf(streams, down, self.options.seconds)
            cpu = sum(cpu_seconds(p.pid) for p in self.tunnels) - before
            self.note(f"kernel TCP over wireguard-go, {streams} {'down' if down else 'up'}", **{
                "Mbit/s": value, "CPU s/GB": cpu / (value * 1e6 / 8 * self.options.seconds) * 1e9})
        for size, label in ((1, "1 byte"), (4096, "4 KiB")):
            printed = run(self.lab.on(
                "a", ["python3", "-c", ASK, "10.201.0.2", "7", str(size), str(self.options.seconds)]))
            self.note(f"kernel TCP over wireguard-go, {label} there and back", **json.loads(printed))

    def aead(self):
        """What one core of this machine seals with OpenSSL, for scale."""
        printed = subprocess.run(
            ["openssl", "speed", "-seconds", "1", "-bytes", "1280", "-evp", "chacha20-poly1305"],
            capture_output=True, text=True).stdout
        found = re.search(r"ChaCha20-Poly1305\s+([\d.]+)k", printed, re.IGNORECASE)
        if found:
            self.note("openssl speed, ChaCha20-Poly1305, 1,280 B", **{"MB/s": float(found.group(1)) / 1e3})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement that is bounded by time")
    parser.add_argument("--long", type=int, default=15, help="seconds over the link with delay")
    parser.add_argument("--bytes", type=int, default=1 << 30, help="of each transfer")
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="aead,direct,idle,relayed,lossy")
    parser.add_argument("--json")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("network namespaces need root")
    with tempfile.TemporaryDirectory() as folder, Lab(79, ["a", "b", "relay"]) as lab:
        os.chmod(folder, 0o755)
        bench = Bench(lab, folder, options)
        bench.wireguard_go()
        for word in options.only.split(","):
            getattr(bench, word)()
    results = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for name, rows in bench.rows.items()}
    print(f"\nmedians of {options.rounds} rounds, both ends on {os.cpu_count()} cores")
    for name, row in results.items():
        print(f"{name:52}" + "  ".join(f"{key} {value:9.2f}" for key, value in row.items()))
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
