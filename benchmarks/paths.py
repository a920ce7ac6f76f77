#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Paths between two `coder mesh` nodes in network namespaces, for real: how soon a fresh pair behind easy NATs hears the
first byte and goes directly, how long a stream is silent when the path breaks, and what a flood of bogus packets costs.
Needs root.

    benchmarks/paths.py [--pairs N] [--faults N] [--flood SECONDS] [--json FILE]
"""

import argparse
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time

from lab import Lab, cpu_seconds, rss_megabytes, run, wait_for

CODER = os.environ.get("CODER") or str(pathlib.Path(__file__).resolve().parent.parent / ".build/release/coder")
RATE = 1_500_000

# Sends `rate` datagrams per second out of a file of datagrams, each one length byte and content, in bursts of 1 ms.
SENDER = """
import socket, sys, time
target, rate, seconds, path = (sys.argv[1], int(sys.argv[2])), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
data, packets, at = open(path, 'rb').read(), [], 0
while at < len(data):
    packets.append(data[at + 1:at + 1 + data[at]]); at += 1 + data[at]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
s.connect(target)
begin = time.monotonic(); sent = 0; send = s.send
while True:
    passed = time.monotonic() - begin
    if passed >= seconds: break
    due = int(passed * rate)
    while sent < due:
        try: send(packets[sent % len(packets)])
        except OSError: pass
        sent += 1
    time.sleep(0.0005)
print(sent, time.monotonic() - begin)
"""


class Node:
    """A mesh node on a host: `on` is the command prefix that runs things there."""

    def __init__(self, on, folder, name, config):
        self.name, self.socket, self.output = name, f"{folder}/{name}.sock", f"{folder}/{name}.out"
        path = f"{folder}/{name}.json"
        pathlib.Path(path).write_text(json.dumps(config))
        with open(self.output, "wb") as output, open(f"{folder}/{name}.log", "wb") as log:
            self.process = subprocess.Popen(
                [*on, CODER, "mesh", "-v", "--config", path, "--control", self.socket],
                stdin=subprocess.DEVNULL, stdout=output, stderr=log)

    @property
    def own(self):
        lines = pathlib.Path(self.output).read_text().split("\n")
        return lines[-2] if len(lines) > 1 else None

    def ask(self, words, timeout=60):
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(timeout)
            control.connect(self.socket)
            control.sendall(words.encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                piece = control.recv(1 << 16)
                if not piece:
                    raise SystemExit(f"{self.name}: no answer to {words[:60]}")
                answer += piece
        return json.loads(answer)

    def stop(self):
        self.process.terminate()
        self.process.wait(20)


class Homes:
    """Two hosts behind easy NATs (endpoint-independent mapping, port-restricted filter), a relay and STUN between."""

    def __init__(self, folder):
        self.folder, self.prefix, self.started = folder, f"cdrp{os.getpid()}", []

    def space(self, name):
        return f"{self.prefix}-{name}"

    def on(self, name):
        return ["ip", "netns", "exec", self.space(name)]

    def ip(self, name, *words):
        run(["ip", "-n", self.space(name), *words])

    def __enter__(self):
        try:
            self.build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def build(self):
        for name in ("core", "ra", "rb", "ha", "hb"):
            run(["ip", "netns", "add", self.space(name)])
            self.ip(name, "link", "set", "lo", "up")
        self.ip("core", "link", "add", "br0", "type", "bridge")
        self.ip("core", "link", "set", "br0", "up")
        for address in ("5.5.5.1/24", "5.5.5.2/24"):
            self.ip("core", "address", "add", address, "dev", "br0")
        for number, side in enumerate("ab"):
            router, host = f"r{side}", f"h{side}"
            run(["ip", "link", "add", "wan", "netns", self.space(router), "type", "veth", "peer", "name", f"p{side}",
                 "netns", self.space("core")])
            run(["ip", "link", "add", "eth0", "netns", self.space(host), "type", "veth", "peer", "name", "lan",
                 "netns", self.space(router)])
            self.ip("core", "link", "set", f"p{side}", "master", "br0", "up")
            self.ip(router, "address", "add", f"5.5.5.{10 + number}/24", "dev", "wan")
            self.ip(router, "address", "add", f"10.99.{number}.1/24", "dev", "lan")
            for link in ("wan", "lan"):
                self.ip(router, "link", "set", link, "up")
            run([*self.on(router), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
            rules = """table ip translation {
                chain post { type nat hook postrouting priority 100; oifname wan masquerade persistent; }
            }
            table ip wall {
                chain i { type filter hook input priority 0; iifname wan ct state new drop; }
                chain f { type filter hook forward priority 0; iifname wan ct state new drop; }
            }"""
            run([*self.on(router), "nft", "-f", "-"], input=rules.encode())
            self.plug_in(side, 2)
        relay = [CODER, "relay", "--standalone", "--http-address", "0.0.0.0:3000", "--stun-address", ":3478"]
        with open(f"{self.folder}/relay.log", "wb") as log:
            self.started.append(subprocess.Popen([*self.on("core"), *relay], stdout=log, stderr=log))
        probe = "import urllib.request as r; r.urlopen('http://5.5.5.1:3000/derp/latency-check', timeout=1)"
        wait_for("relay", 20, lambda: subprocess.run(
            [*self.on("core"), "python3", "-c", probe], capture_output=True).returncode == 0)

    def plug_in(self, side, last):
        number = "ab".index(side)
        self.ip(f"h{side}", "link", "set", "eth0", "up")
        self.ip(f"h{side}", "address", "replace", f"10.99.{number}.{last}/24", "dev", "eth0")
        self.ip(f"h{side}", "route", "replace", "default", "via", f"10.99.{number}.1")

    def cut_udp(self, cut):
        rules = ("table inet cut {\nchain f { type filter hook forward priority -10; meta l4proto udp drop; }\n}"
                 if cut else "delete table inet cut")
        run([*self.on("ra"), "nft", "-f", "-"], input=rules.encode())

    def __exit__(self, *_):
        for process in self.started:
            process.terminate()
            process.wait(20)
        for name in ("ha", "hb", "ra", "rb", "core"):
            subprocess.run(["ip", "netns", "delete", self.space(name)])

    def node(self, side, number):
        relay = {"Name": "1a", "RegionID": 1, "HostName": "5.5.5.1", "DERPPort": 3000, "ForceHTTP": True,
                 "STUNPort": 3478}
        second = {"Name": "2a", "RegionID": 2, "HostName": "5.5.5.2", "STUNOnly": True, "STUNPort": 3478}
        return Node(self.on(f"h{side}"), self.folder, f"{side}{number}", {
            "addresses": [f"fd7a:115c:a1e0::{side}/128"], "services": [{"kind": "echo", "port": 7}],
            "derp_map": {"Regions": {
                "1": {"RegionID": 1, "RegionCode": "lab", "RegionName": "Lab", "Nodes": [relay]},
                "2": {"RegionID": 2, "RegionCode": "stun", "RegionName": "STUN", "Nodes": [second]}}}})

    def pair(self, number):
        """Two fresh nodes that know how the world sees them, and each other."""
        nodes = [self.node(side, number) for side in "ab"]
        for node in nodes:
            wait_for("own address", 20, lambda: "5.5.5." in (node.own or ""))
            wait_for("relay", 20, lambda: node.ask("status")["open_relays"] == [1])
        for here, there in ((nodes[1], nodes[0]), (nodes[0], nodes[1])):
            here.ask(f"peers add {there.own}")
        return nodes


def together(*calls):
    results = [None] * len(calls)

    def call(place):
        results[place] = calls[place]()

    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def fresh_pairs(homes, count):
    found = []
    for number in range(count):
        a, b = homes.pair(number)
        begin = a.ask("status")["counters"].get("repeated_handshakes", 0)
        path, load = together(
            lambda: a.ask("wait direct fd7a:115c:a1e0::b 15"),
            lambda: a.ask("load rr [fd7a:115c:a1e0::b]:7 count=1 seconds=40"))
        found.append({
            "connect": load["connect_seconds"], "first_byte": load["first_byte_seconds"],
            "direct": path["seconds"] if path["reached"] else None,
            "repeated": a.ask("status")["counters"].get("repeated_handshakes", 0) - begin})
        for node in (a, b):
            node.stop()
    return found


def cut(homes):
    homes.cut_udp(True)
    time.sleep(2)
    homes.cut_udp(False)


def unplug(homes):
    homes.ip("ha", "link", "set", "eth0", "down")
    time.sleep(1.5)
    homes.plug_in("a", 2)


def readdress(homes):
    homes.ip("ha", "address", "del", "10.99.0.2/24", "dev", "eth0")
    homes.plug_in("a", 77)


FAULTS = {"UDP blocked for 2 s": cut, "interface lost for 1.5 s": unplug, "address changed": readdress}


def faults(homes, count):
    found = {}
    for name, fault in FAULTS.items():
        rows = found[name] = []
        for number in range(count):
            a, b = homes.pair(f"-{len(found)}-{number}")
            a.ask("load rr [fd7a:115c:a1e0::b]:7 count=1 seconds=40")
            if not a.ask("wait direct fd7a:115c:a1e0::b 15")["reached"]:
                raise SystemExit("no direct path to disturb")
            result = {}

            def disturb():
                time.sleep(1)
                fault(homes)
                again = a.ask("wait direct fd7a:115c:a1e0::b 12")
                result["again"] = again["seconds"] if again["reached"] else None

            load, _ = together(
                lambda: a.ask(f"load both [fd7a:115c:a1e0::b]:7 bytes={RATE * 7} rate={RATE} seconds=60", 90), disturb)
            rows.append({"silence": load["longest_gap_seconds"], "exact": load["exact"], **result})
            for node in (a, b):
                node.stop()
            if fault is readdress:
                homes.ip("ha", "address", "del", "10.99.0.77/24", "dev", "eth0")
                homes.plug_in("a", 2)
    return found


def packets(kind, peer_key):
    generator = random.Random(kind)
    magic = b"TS\xf0\x9f\x92\xac"
    make = {
        "discovery of unknown keys": lambda: magic + generator.randbytes(118),
        "discovery in a peer's name": lambda: magic + peer_key + generator.randbytes(86),
        "WireGuard initiations": lambda: b"\1\0\0\0" + generator.randbytes(144),
        "noise": lambda: generator.randbytes(124),
    }[kind]
    return b"".join(bytes([len(packet)]) + packet for packet in (make() for _ in range(4_096)))


FLOODS = ["discovery of unknown keys", "discovery in a peer's name", "WireGuard initiations", "noise"]


def flood(folder, seconds, rate=100_000):
    found = {}
    with Lab(78, ["victim", "source"]) as lab:
        peer = json.loads(run([CODER, "mesh", "genkey"]))
        key = bytes.fromhex(peer["disco"].split(":")[1])
        node = Node(lab.on("victim", []), folder, "victim", {
            "addresses": ["fd7a:115c:a1e0::a/128"], "listen_port": 41_000, "port_mapping": False,
            "peers": [{"id": 2, "key": peer["key"], "disco": peer["disco"], "addresses": ["fd7a:115c:a1e0::b/128"],
                       "allowed_ips": ["fd7a:115c:a1e0::b/128"], "endpoints": []}]})
        wait_for("node", 20, lambda: os.path.exists(node.socket) and node.own)
        pid = int(run(["ip", "netns", "pids", f"{lab.prefix}-victim"]).split()[0])
        for kind in FLOODS:
            path = f"{folder}/packets"
            pathlib.Path(path).write_bytes(packets(kind, key))
            before, cpu, memory = node.ask("status")["counters"], cpu_seconds(pid), rss_megabytes(pid)
            answer = run(lab.on("source", ["python3", "-c", SENDER, lab.address("victim"), "41000", str(rate),
                                           str(seconds), path]), timeout=seconds + 30).split()
            time.sleep(0.2)
            after = node.ask("status")["counters"]
            took = float(answer[1])
            got = after["received_datagrams"] - before["received_datagrams"]
            used = cpu_seconds(pid) - cpu
            found[kind] = {
                "sent_per_second": int(answer[0]) / took, "received_per_second": got / took,
                "cores": used / took, "microseconds_each": used / max(1, got) * 1e6,
                "grown_megabytes": rss_megabytes(pid) - memory}
        node.stop()
    return found


def quantiles(values):
    values = sorted(value for value in values if value is not None)
    if not values:
        return "- | - | -"
    at = [values[min(len(values) - 1, int(len(values) * share))] for share in (0.5, 0.9, 1)]
    return " | ".join(f"{value:.3f}" for value in at)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--faults", type=int, default=3)
    parser.add_argument("--flood", type=float, default=4)
    parser.add_argument("--json")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("needs root")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.pairs or options.faults:
            with Homes(folder) as homes:
                found["pairs"] = fresh_pairs(homes, options.pairs)
                found["faults"] = faults(homes, options.faults)
        if options.flood:
            found["flood"] = flood(folder, options.flood)
    if found.get("pairs"):
        pairs = found["pairs"]
        good = sum(1 for pair in pairs if pair["direct"] is not None and pair["direct"] <= 0.3)
        print(f"\n{len(pairs)} fresh pairs behind easy NATs, {good} direct within 0.3 s\n")
        print("| seconds until | p50 | p90 | max |\n|---|---|---|---|")
        for name in ("connect", "first_byte", "direct"):
            print(f"| {name.replace('_', ' ')} | {quantiles([pair[name] for pair in pairs])} |")
    if found.get("faults"):
        print("\n| fault | silence p50 | p90 | max | direct again p50 | p90 | max | exact |\n|" + "---|" * 8)
        for name, rows in found["faults"].items():
            print(f"| {name} | {quantiles([row['silence'] for row in rows])} "
                  f"| {quantiles([row.get('again') for row in rows])} "
                  f"| {sum(row['exact'] for row in rows)} of {len(rows)} |")
    if found.get("flood"):
        print("\n| flood | sent/s | received/s | cores | µs each | memory grown MB |\n|" + "---|" * 6)
        for name, row in found["flood"].items():
            print(f"| {name} | {row['sent_per_second']:,.0f} | {row['received_per_second']:,.0f} "
                  f"| {row['cores']:.2f} | {row['microseconds_each']:.2f} | {row['grown_megabytes']:.1f} |")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
