#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Minutes of traffic through `coder wireguard` and Debian's wireguard-go, both ways: how often the session was renewed,
the longest silence, datagrams lost, memory. Needs root, wireguard-go, wg, iperf3.

    benchmarks/wireguard_soak.py [--seconds N] [--rate MBIT] [--ends ours,wireguard-go] [--json FILE]
"""

import argparse
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import time

from lab import cpu_seconds, rss_megabytes, wait_for
from wireguard import ENDS, PROGRAMS, Pair, machine, quiet

PROBE_SECONDS = 0.02
SAMPLE_SECONDS = 10
SELF = [sys.executable, __file__]


def echo(address):
    """Sends back every datagram."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((address, 7))
        while True:
            udp.sendto(*udp.recvfrom(2048))


def probe(address, seconds):
    """A datagram every 20 ms to the echo; prints the longest time without an answer, when it began, and what was lost.
    (Not ping: a busy kernel leaves echoes unanswered.)"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect((address, 7))
        begin = time.monotonic()
        heard, longest, at, sent, received = begin, 0.0, 0.0, 0, 0
        while (now := time.monotonic()) < begin + seconds + 1:
            if now < begin + seconds and now >= begin + sent * PROBE_SECONDS:
                udp.send(struct.pack(">I", sent))
                sent += 1
            udp.settimeout(max(0.001, begin + sent * PROBE_SECONDS - now))
            try:
                udp.recv(64)
            except (socket.timeout, ConnectionRefusedError):
                continue
            received, now = received + 1, time.monotonic()
            if now - heard > longest:
                longest, at = now - heard, heard - begin
            heard = now
    print(json.dumps({"longest silence s": longest, "at s": at, "sent": sent, "lost": sent - received}))


def sample(pair, begin):
    handshakes = {}
    for end in ENDS:
        words = quiet(pair.on(end, ["wg", "show", pair.device(end), "latest-handshakes"])).stdout.split()
        handshakes[end] = int(words[-1]) if words else 0
    return {"s": round(time.monotonic() - begin, 1), "latest handshakes": handshakes,
            "RSS MB": {end: rss_megabytes(p.pid) for end, p in zip(ENDS, pair.processes)}}


def soak(kinds, seconds, rate, folder):
    with Pair(kinds, folder) as pair:
        server = subprocess.Popen(pair.on("b", ["iperf3", "-s", "-1"]), stdout=subprocess.DEVNULL)
        pair.servers.append(server)
        wait_for("iperf3", 5, lambda: ":5201" in quiet(pair.on("b", ["ss", "-ltn"])).stdout)
        for number, end in enumerate(ENDS, 1):
            pair.servers.append(subprocess.Popen(pair.on(end, [*SELF, "--echo", f"10.10.0.{number}"])))
        time.sleep(1)
        probes = [subprocess.Popen(pair.on(end, [*SELF, "--probe", f"10.10.0.{3 - number}", str(seconds)]),
                                   stdout=subprocess.PIPE, text=True) for number, end in enumerate(ENDS, 1)]
        load = subprocess.Popen(
            pair.on("a", ["iperf3", "-J", "--bidir", "-b", f"{rate}M", "-t", str(seconds), "-c", "10.10.0.2"]),
            stdout=open(f"{folder}/iperf.json", "w"))
        begin = time.monotonic()
        samples = [sample(pair, begin)]
        while time.monotonic() - begin < seconds:
            time.sleep(min(SAMPLE_SECONDS, max(0.1, begin + seconds - time.monotonic())))
            samples.append(sample(pair, begin))
            print(samples[-1], file=sys.stderr)
        silences = {end: json.loads(process.communicate(timeout=60)[0]) for end, process in zip(ENDS, probes)}
        load.wait(60)
        end = json.loads(pathlib.Path(f"{folder}/iperf.json").read_text())["end"]
        moments = {e: sorted({s["latest handshakes"][e] for s in samples} - {0}) for e in ENDS}
        return {
            "ends": kinds, "seconds": seconds,
            "handshakes": {e: len(m) for e, m in moments.items()},
            "between handshakes s": {e: [b - a for a, b in zip(m, m[1:])] for e, m in moments.items()},
            "datagrams and their answers": silences,
            "TCP Mbit/s, each way": [end[k]["bits_per_second"] / 1e6 for k in
                                     ("sum_received", "sum_received_bidir_reverse")],
            "CPU s": {e: cpu_seconds(p.pid) for e, p in zip(ENDS, pair.processes)},
            "RSS MB, after a sixth and at the end": {
                e: [samples[len(samples) // 6]["RSS MB"][e], samples[-1]["RSS MB"][e]] for e in ENDS},
            "samples": samples,
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--rate", type=int, default=50, help="Mbit/s each way")
    parser.add_argument("--ends", default="ours,wireguard-go")
    parser.add_argument("--json")
    parser.add_argument("--echo", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--probe", nargs=2, metavar=("ADDRESS", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo:
        return echo(options.echo)
    if options.probe:
        return probe(options.probe[0], float(options.probe[1]))
    kinds = tuple(options.ends.split(","))
    if len(kinds) != 2 or not set(kinds) <= set(PROGRAMS):
        sys.exit(f"--ends takes two of {', '.join(PROGRAMS)}")
    if os.geteuid() != 0:
        sys.exit("network namespaces need root")
    with tempfile.TemporaryDirectory() as folder:
        result = soak(kinds, options.seconds, options.rate, folder)
    for key, value in result.items():
        if key != "samples":
            print(f"{key}: {value}")
    if options.json:
        document = {"machine": machine(), **result}
        pathlib.Path(options.json).write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
