#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`coder wireguard` next to Debian's wireguard-go, in alternation, and the two with each other: TCP, UDP, ping, CPU,
memory, handshakes, a flood of handshakes; and what one core encrypts. Two namespaces joined by a cable; needs root,
wireguard-go, wg, iperf3. CODER_WIREGUARD_AEAD=boringssl (or sodium) measures the tunnel with that back end.

    benchmarks/wireguard.py [--rounds N] [--seconds N] [--peers N] [--only PART,...] [--json FILE]
"""

import argparse
import base64
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import initiations
from lab import cpu_seconds, rss_megabytes, run, wait_for

CODER = os.environ.get("CODER_PROGRAM") or str(
    pathlib.Path(__file__).resolve().parent.parent / ".build/release/coder")
PROGRAMS = {
    "ours": [CODER, "wireguard", "-f"],
    "wireguard-go": ["wireguard-go", "-f"],
}
ENDS = ("a", "b")
# Initiations per second at most: where they would take more than 60 % of its thread, ours asks for cookies, which the
# load does not answer.
HANDSHAKE_RATE = 4_000
# A flood: right MAC1, so that each message costs all that an attacker can make it cost.
FLOOD_RATE = 50_000
FLOOD_SOURCES = [f"10.9.0.{number}" for number in range(10, 18)]
# What is wanted, by title: figure of ours, or its ratio to the peer's.
WANTED = {
    "TCP, 1 stream": [("Gbit/s", "x", ">=", 12), ("tunnel CPU s/GB", "", "<=", 3.4), ("RSS MB", "", "<=", 30)],
    "UDP, 64 bytes": [("delivered k/s", "", ">=", 90)],
    "ping, idle": [("average ms", "", "<=", 0.25)],
    "ping beside 1 TCP stream": [("average ms", "", "<=", 1)],
    "handshakes, 32 at a time": [("CPU us each", "", "<=", 180), ("KB per session", "", "<=", 8)],
    "idle peers": [("KB per idle peer", "", "<=", 4)],
}


def quiet(arguments):
    return subprocess.run(arguments, capture_output=True, text=True)


class Pair:
    """Two namespaces with a tunnel between them; `kinds` says whose program is at which end."""

    def __init__(self, kinds, folder):
        self.kinds, self.folder, self.processes, self.servers = kinds, folder, [], []

    def space(self, end):
        return f"cdrwgb-{end}"

    def on(self, end, arguments):
        return ["ip", "netns", "exec", self.space(end)] + arguments

    def device(self, end, number=0):
        return f"wg{'bc'[number]}{end}"

    def __enter__(self):
        self.demolish()
        for end in ENDS:
            run(["ip", "netns", "add", self.space(end)])
            run(["ip", "-n", self.space(end), "link", "set", "lo", "up"])
        run(["ip", "link", "add", "eth0", "netns", self.space("a"), "type", "veth", "peer", "name", "eth0", "netns",
             self.space("b")])
        for place, end in enumerate(ENDS, 1):
            run(["ip", "-n", self.space(end), "address", "add", f"10.9.0.{place}/24", "dev", "eth0"])
            run(["ip", "-n", self.space(end), "link", "set", "eth0", "up"])
        self.keys = self.connect(0)
        return self

    def connect(self, number):
        """Starts tunnel `number` (0 or 1) at both ends; its addresses are 10.10.0.0/24 or 10.11.0.0/24."""
        keys = {}
        for end in ENDS:
            private = run(["wg", "genkey"]).strip()
            keys[end] = (private, run(["wg", "pubkey"], input=private.encode()).strip())
        for place, end in enumerate(ENDS, 1):
            self.start(end, number)
            device = self.device(end, number)
            path = f"{self.folder}/{device}.key"
            pathlib.Path(path).write_text(keys[end][0])
            os.chmod(path, 0o600)
            run(self.on(end, ["wg", "set", device, "listen-port", str(51820 + number), "private-key", path, "peer",
                              keys[ENDS[2 - place]][1], "allowed-ips", f"10.{10 + number}.0.{3 - place}/32",
                              "endpoint", f"10.9.0.{3 - place}:{51820 + number}"]))
            run(["ip", "-n", self.space(end), "address", "add", f"10.{10 + number}.0.{place}/24", "dev", device])
            run(["ip", "-n", self.space(end), "link", "set", device, "up", "mtu", "1420"])
        ping = self.on("a", ["ping", "-c", "3", "-i", "0.2", "-W", "1", f"10.{10 + number}.0.2"])
        wait_for("tunnel", 10, lambda: quiet(ping).returncode == 0)
        return keys

    def start(self, end, number=0):
        device = self.device(end, number)
        socket = f"/var/run/wireguard/{device}.sock"
        if os.path.exists(socket):
            os.unlink(socket)
        log = open(f"{self.folder}/{device}.log", "wb")
        program = PROGRAMS[self.kinds[ENDS.index(end)]]
        # `ip netns exec` replaces itself, so the process is the tunnel's.
        process = subprocess.Popen(self.on(end, program + [device]), stdin=subprocess.DEVNULL, stdout=log,
                                   stderr=log, env={**os.environ, "WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "error"})
        self.processes.append(process)
        wait_for(f"socket of {device}", 10, lambda: os.path.exists(socket))

    def __exit__(self, *_):
        for process in self.servers + self.processes:
            process.terminate()
        for process in self.servers + self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        self.demolish()

    def demolish(self):
        for end in ENDS:
            for pid in quiet(["ip", "netns", "pids", self.space(end)]).stdout.split():
                quiet(["kill", "-9", pid])
            quiet(["ip", "netns", "delete", self.space(end)])

    def iperf(self, *arguments):
        server = subprocess.Popen(self.on("b", ["iperf3", "-s", "-1"]), stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        wait_for("iperf3", 5, lambda: ":5201" in quiet(self.on("b", ["ss", "-ltn"])).stdout)
        before = [cpu_seconds(p.pid) for p in self.processes]
        result = json.loads(run(self.on("a", ["iperf3", "-J", "-c", "10.10.0.2", *arguments]), timeout=120))
        cpu = [cpu_seconds(p.pid) - b for p, b in zip(self.processes, before)]
        server.wait(10)
        return result["end"], cpu

    def tcp(self, seconds, streams):
        end, cpu = self.iperf("-t", str(seconds), "-P", str(streams))
        gigabytes = end["sum_received"]["bytes"] / 1e9
        return {
            "Gbit/s": end["sum_received"]["bits_per_second"] / 1e9,
            "tunnel CPU s/GB": sum(cpu) / gigabytes,
            "retransmissions": end["sum_sent"].get("retransmits", 0),
            "RSS MB": max(rss_megabytes(p.pid) for p in self.processes),
        }

    def side_by_side(self, seconds):
        """Two streams, each through a tunnel of its own: what engines that share the peers could reach."""
        if len(self.processes) == len(ENDS):
            self.connect(1)
        servers = [subprocess.Popen(self.on("b", ["iperf3", "-s", "-1", "-p", str(5301 + number)]),
                                    stdout=subprocess.DEVNULL) for number in (0, 1)]
        listening = lambda: quiet(self.on("b", ["ss", "-ltn"])).stdout
        wait_for("iperf3", 5, lambda: all(f":{5301 + number}" in listening() for number in (0, 1)))
        before = [cpu_seconds(p.pid) for p in self.processes]
        clients = [subprocess.Popen(self.on("a", ["iperf3", "-J", "-t", str(seconds), "-c", f"10.{10 + number}.0.2",
                                                  "-p", str(5301 + number)]), stdout=subprocess.PIPE)
                   for number in (0, 1)]
        ends = [json.loads(client.communicate(timeout=120)[0])["end"]["sum_received"] for client in clients]
        cpu = sum(cpu_seconds(p.pid) - b for p, b in zip(self.processes, before))
        for server in servers:
            server.wait(10)
        return {"Gbit/s": sum(end["bits_per_second"] for end in ends) / 1e9,
                "tunnel CPU s/GB": cpu / sum(end["bytes"] for end in ends) * 1e9}

    def udp(self, seconds, size):
        end, cpu = self.iperf("-u", "-b", "0", "-l", str(size), "-t", str(seconds))
        total = end["sum"]
        delivered = total["packets"] - total["lost_packets"]
        return {
            "delivered k/s": delivered / total["seconds"] / 1e3,
            "offered k/s": total["packets"] / total["seconds"] / 1e3,
            "tunnel CPU us/packet": sum(cpu) / max(delivered, 1) * 1e6,
        }

    def ping(self, count):
        text = run(self.on("a", ["ping", "-q", "-i", "0.01", "-c", str(count), "10.10.0.2"]), timeout=60)
        low, average, high = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)", text).groups()
        return {"average ms": float(average), "min ms": float(low), "max ms": float(high)}

    def ping_under_load(self, seconds):
        server = subprocess.Popen(self.on("b", ["iperf3", "-s", "-1"]), stdout=subprocess.DEVNULL)
        wait_for("iperf3", 5, lambda: ":5201" in quiet(self.on("b", ["ss", "-ltn"])).stdout)
        client = subprocess.Popen(self.on("a", ["iperf3", "-c", "10.10.0.2", "-t", str(seconds + 2)]),
                                  stdout=subprocess.DEVNULL)
        time.sleep(1)
        result = self.ping(seconds * 90)
        client.wait(30)
        server.wait(10)
        return result


def configure(device, lines):
    """One `set` operation on a device's control socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"/var/run/wireguard/{device}.sock")
        client.sendall(("\n".join(["set=1"] + lines) + "\n\n").encode())
        reply = client.makefile().readline()
    if reply.strip() != "errno=0":
        raise SystemExit(f"{device}: {reply}")


def handshakes(kind, folder, peers, in_flight):
    """Initiations of `peers` peers, ten each, answered by one tunnel."""
    with Pair((kind, "ours"), folder) as pair:
        process = pair.processes[0]
        lines = []
        for number in range(peers):
            public = initiations.public_key(initiations.private_key(number))
            lines += [f"public_key={public.hex()}", f"allowed_ip=10.77.{number >> 8}.{number & 255}/32"]
        configure(pair.device("a"), lines)
        server = base64.b64decode(pair.keys["a"][1]).hex()
        load = subprocess.Popen(
            pair.on("b", [sys.executable, initiations.__file__, "10.9.0.1", "51820", server, str(peers), "10",
                          str(in_flight), str(HANDSHAKE_RATE)]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        load.stdout.readline()
        before, memory_before = cpu_seconds(process.pid), rss_megabytes(process.pid)
        load.stdin.write("go\n")
        load.stdin.close()
        result = json.loads(load.stdout.readline())
        load.wait(10)
        cpu = cpu_seconds(process.pid) - before
        return {"answered/s": result["answered"] / result["seconds"],
                "CPU us each": cpu / max(result["answered"], 1) * 1e6, "answered": result["answered"],
                "cookies": result["cookies"],
                "KB per session": (rss_megabytes(process.pid) - memory_before) * 1e3 / peers}


def memory(kind, folder, peers):
    """Resident memory of one tunnel without and with idle peers, in KB per peer."""
    with Pair((kind, "ours"), folder) as pair:
        pid = pair.processes[0].pid
        before = rss_megabytes(pid)
        lines = []
        for number in range(peers):
            lines += [f"public_key={os.urandom(32).hex()}", "replace_allowed_ips=true",
                      f"allowed_ip=10.77.{number >> 8}.{number & 255}/32"]
        begin = time.monotonic()
        configure(pair.device("a"), lines)
        return {"KB per idle peer": (rss_megabytes(pid) - before) * 1e3 / peers,
                "RSS empty MB": before, "set of all s": time.monotonic() - begin}


def flood(kind, folder, seconds):
    """A TCP stream, and a new session of an honest peer, while valid initiations come in from several addresses."""
    with Pair((kind, "ours"), folder) as pair:
        calm = pair.tcp(seconds, 1)
        for address in FLOOD_SOURCES:
            run(["ip", "-n", pair.space("b"), "address", "add", f"{address}/24", "dev", "eth0"])
        server = base64.b64decode(pair.keys["a"][1]).hex()
        load = subprocess.Popen(
            pair.on("b", [sys.executable, initiations.__file__, "--flood", "10.9.0.1", "51820", server,
                          str(FLOOD_RATE), str(seconds + 14), *FLOOD_SOURCES]), stdout=subprocess.PIPE, text=True)
        load.stdout.readline()
        stormy = pair.tcp(seconds, 1)
        other = pair.keys["a"][1]
        run(pair.on("b", ["wg", "set", pair.device("b"), "peer", other, "remove"]))
        run(pair.on("b", ["wg", "set", pair.device("b"), "peer", other, "allowed-ips", "10.10.0.1/32", "endpoint",
                          "10.9.0.1:51820"]))
        begin = time.monotonic()
        found = quiet(pair.on("b", ["ping", "-c", "1", "-W", "12", "10.10.0.1"])).returncode == 0
        waited = time.monotonic() - begin
        result = json.loads(load.communicate(timeout=60)[0])
        return {"sent k/s": result["sent"] / result["seconds"] / 1e3, "cookies k/s": result["cookies"] /
                result["seconds"] / 1e3, "TCP Gbit/s": stormy["Gbit/s"], "of calm": stormy["Gbit/s"] / calm["Gbit/s"],
                "new session s": waited, "new sessions": float(found)}


def aead_rates():
    """Nanoseconds per packet of each back end: the floor under the tunnel's CPU time."""
    rows = json.loads(run([CODER, "wireguard-aead"]))
    return [(f"AEAD, {row['bytes']} bytes, one core", row["back_end"],
             {"seal ns": row["seal_ns"], "open ns": row["open_ns"], "seal GB/s": row["bytes"] / row["seal_ns"]})
            for row in rows]


def machine():
    """What the figures belong to."""
    folder = pathlib.Path(__file__).resolve().parent
    git = lambda *words: quiet(["git", "-C", str(folder), *words]).stdout.strip()
    names = re.findall(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno")),
            "kernel": " ".join(os.uname()[i] for i in (0, 2, 4)), "processor": names[0] if names else "",
            "cores": os.cpu_count(), "aead": os.environ.get("CODER_WIREGUARD_AEAD", "")}


def verdicts(results):
    """Wanted figures beside those that came out."""
    rows = []
    for title, kinds in results.items():
        for key, unit, relation, limit in WANTED.get(title, WANTED.get(title.lstrip("0123456789 "), [])):
            if "ours" not in kinds or unit == "x" and "wireguard-go" not in kinds:
                continue
            value = kinds["ours"][key] / (kinds["wireguard-go"][key] if unit == "x" else 1)
            reached = value >= limit if relation == ">=" else value <= limit
            rows.append({"title": title, "figure": key + (", ratio" if unit else ""), "is": value,
                         "wanted": f"{relation} {limit}", "reached": reached})
    return rows


def median(rows):
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--only", default="", help="parts of tcp1,tcp4,udp64,udp1392,ping,load,mixed,memory,"
                        "handshakes,flood,aead; only when named: tcp2,beside")
    parser.add_argument("--json")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("network namespaces need root")
    for program in ("wireguard-go", "wg", "iperf3"):
        if not shutil.which(program):
            sys.exit(f"{program} is not installed")
    parts = [part for part in options.only.split(",") if part]
    wanted = lambda part: part in parts or not parts and part not in ("tcp2", "beside")
    measures = {
        "tcp1": ("TCP, 1 stream", lambda pair: pair.tcp(options.seconds, 1)),
        "tcp4": ("TCP, 4 streams", lambda pair: pair.tcp(options.seconds, 4)),
        "udp64": ("UDP, 64 bytes", lambda pair: pair.udp(options.seconds, 64)),
        "udp1392": ("UDP, 1392 bytes", lambda pair: pair.udp(options.seconds, 1392)),
        "ping": ("ping, idle", lambda pair: pair.ping(200)),
        "load": ("ping beside 1 TCP stream", lambda pair: pair.ping_under_load(min(options.seconds, 4))),
        "tcp2": ("TCP, 2 streams", lambda pair: pair.tcp(options.seconds, 2)),
        # Last, as the second tunnel stays.
        "beside": ("TCP, 2 tunnels beside each other", lambda pair: pair.side_by_side(options.seconds)),
    }
    rows = {}

    def note(title, kind, row):
        rows.setdefault(title, {}).setdefault(kind, []).append(row)
        print(f"{title:28}{kind:24}" + "  ".join(f"{key} {value:.2f}" for key, value in row.items()), file=sys.stderr)

    pairs = [(kind, kind) for kind in PROGRAMS]
    if wanted("mixed"):
        pairs += [("ours", "wireguard-go"), ("wireguard-go", "ours")]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            if wanted("aead"):
                for row in aead_rates():
                    note(*row)
            for kinds in pairs:
                mixed = kinds[0] != kinds[1]
                chosen = [m for part, m in measures.items() if wanted(part) or mixed and "mixed" in parts]
                if not chosen:
                    continue
                with Pair(kinds, folder) as pair:
                    for title, measure in chosen:
                        note(title, " to ".join(kinds) if mixed else kinds[0], measure(pair))
            for kind in PROGRAMS:
                if wanted("memory"):
                    note(f"{options.peers} idle peers", kind, memory(kind, folder, options.peers))
                for in_flight in (1, 32) if wanted("handshakes") else ():
                    note(f"handshakes, {in_flight} at a time", kind,
                         handshakes(kind, folder, min(options.peers, 1000), in_flight))
                if wanted("flood"):
                    note(f"flood of {FLOOD_RATE // 1000} k/s", kind, flood(kind, folder, options.seconds))

    results = {title: {kind: median(r) for kind, r in kinds.items()} for title, kinds in rows.items()}
    for title, kinds in results.items():
        print(title)
        for kind, row in kinds.items():
            print(f"    {kind:24}" + "  ".join(f"{key} {value:9.2f}" for key, value in row.items()))
    judged = verdicts(results)
    for row in judged:
        print(f"{row['title']}, {row['figure']}: {row['is']:.2f} (wanted {row['wanted']})"
              + ("" if row["reached"] else "  MISSED"))
    if options.json:
        document = {"machine": machine(), "rounds": options.rounds, "seconds": options.seconds, "wanted": judged,
                    "median": results, "all": rows}
        pathlib.Path(options.json).write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
