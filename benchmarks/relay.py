#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A relay under load: `coder relay --standalone`, driven by `coder relay-load`, over loopback. CPU time is that of the
relay's process alone, whatever the load generator costs. Any relay that speaks DERP can be measured: start it, give
its URL and process id.

    benchmarks/relay.py [--quick | --long] [--seconds N] [--rounds N] [--only TEXT] [--json FILE] [--url URL --pid PID]

One round of 2 s per case takes two minutes; `--long` is three rounds of 5 s and takes ten, `--quick` half a minute.
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

CODER = os.environ.get(
    "CODER", str(pathlib.Path(__file__).resolve().parent.parent / ".build/release/coder"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Relay:
    """A relay of our own, with and without TLS; or somebody else's."""

    def __init__(self, folder, url=None, pid=None):
        self.process = None
        if url:
            self.plain, self.secure, self.pid = url, None, pid
            return
        plain, secure = free_port(), free_port()
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem", "-days", "30", "-subj",
             "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
        self.process = subprocess.Popen(
            [CODER, "relay", "--standalone", "--http-address", f"127.0.0.1:{plain}", "--tls-address",
             f"127.0.0.1:{secure}", "--tls-cert-file", f"{folder}/cert.pem", "--tls-key-file",
             f"{folder}/key.pem", "--drain-time", "0s"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.pid = self.process.pid
        self.plain, self.secure = f"http://127.0.0.1:{plain}", f"https://127.0.0.1:{secure}"
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{self.plain}/healthz", timeout=1).read()
                return
            except OSError:
                time.sleep(0.05)
        sys.exit("the relay did not start")

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def load(self, *arguments, tls=False, limit=60):
        """What the load generator found; None when it failed or did not end in time, with the reason on stderr."""
        url = self.secure if tls else self.plain
        command = [CODER, "relay-load", url, "--insecure", "--pid", str(self.pid), *map(str, arguments)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            print(f"{' '.join(command)}: not done after {limit} s", file=sys.stderr)
            return None
        if result.returncode:
            print(f"{' '.join(command)}: {result.stdout} {result.stderr}", file=sys.stderr)
            return None
        return json.loads(result.stdout)

    @property
    def resident(self):
        with open(f"/proc/{self.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cases(seconds, quick):
    """Name, arguments, TLS."""
    load = ["--seconds", f"{seconds}s"]
    pairs = [1, 8] if quick else [1, 8, 20, 100]
    for tls in [False, True]:
        name = "TLS " if tls else ""
        yield f"{name}ping-pong alone", ["--mode", "ping", *load], tls
        for payload in [1400] if quick else [1400, 64]:
            for count in pairs:
                yield (f"{name}window, {count} pairs, {payload} B",
                       ["--pairs", count, "--payload", payload, *load], tls)
        yield f"{name}window, 4 pairs + probe", ["--pairs", 4, "--probe", *load], tls
        for count in pairs:
            yield f"{name}flood, {count} pairs", ["--mode", "flood", "--pairs", count, *load], tls
        yield f"{name}flood, 4 pairs + probe", ["--mode", "flood", "--pairs", 4, "--probe", *load], tls
        yield f"{name}one greedy among 7 polite", ["--pairs", 8, "--greedy", 1, "--probe", *load], tls
        count = 500 if tls else 3000
        yield f"{name}connects", ["--mode", "connect", "--pairs", count, "--threads", 16], tls


def median(results):
    """Of each number that all results have."""
    merged = {}
    for key, value in results[0].items():
        if isinstance(value, dict):
            merged[key] = median([result[key] for result in results])
        elif isinstance(value, (int, float)):
            merged[key] = statistics.median(result[key] for result in results)
    return merged


def line(name, result):
    if "round_trips" in result:
        return f"{name:32} p50 {result['p50_us'] / 1e3:6.3f}  p99 {result['p99_us'] / 1e3:6.3f} ms"
    if "connections" in result:
        memory = result.get("bytes_per_connection")
        memory = f"  {memory / 1024:5.1f} KiB each" if memory is not None else ""
        return (f"{name:32} {result['per_second']:6.0f}/s  {result['cpu_us_per_connection']:6.0f} us CPU each"
                f"{memory}")
    if not result.get("received"):
        return f"{name:32} nothing came through"
    text = (f"{name:32} {result['megabytes_per_second']:7.1f} MB/s  {result['packets_per_second'] / 1e3:6.1f} k/s"
            f"  {result['cpu_seconds_per_gigabyte']:7.2f} s/GB  {result['cpu_us_per_packet']:5.2f} us/packet"
            f"  lost {result['loss'] * 100:6.2f} %  pairs {result['pair_minimum']:.2f}-{result['pair_maximum']:.2f}")
    if result.get("greedy_megabytes_per_second"):
        text += f"  greedy {result['greedy_megabytes_per_second']:.1f} MB/s"
    if "share_of_ceiling" in result:
        text += f"  {result['share_of_ceiling']:.2f} of the ceiling"
    if "one_way_p50_us" in result and result["one_way_p50_us"] is not None:
        text += f"  one way p50 {result['one_way_p50_us'] / 1e3:.2f} p99 {result['one_way_p99_us'] / 1e3:.2f} ms"
    if "probe" in result:
        text += f"  probe p50 {result['probe']['p50_us'] / 1e3:.2f} p99 {result['probe']['p99_us'] / 1e3:.2f} ms"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", default="", help="only cases with this text in their name")
    parser.add_argument("--json")
    parser.add_argument("--url")
    parser.add_argument("--pid", type=int, default=0)
    options = parser.parse_args()
    seconds = options.seconds or (5 if options.long else 1 if options.quick else 2)
    rounds = options.rounds or (3 if options.long else 1)
    limit = 4 * seconds + 30
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        relay = Relay(folder, options.url, options.pid)
        try:
            wanted = [case for case in cases(seconds, options.quick)
                      if options.only in case[0] and (relay.secure or not case[2])]
            for _ in range(rounds):
                for name, arguments, tls in wanted:
                    result = relay.load(*arguments, tls=tls, limit=limit)
                    if result:
                        found.setdefault(name, []).append(result)
            found = {name: median(results) for name, results in found.items()}
            for name, tls in [("", False), ("TLS ", True)]:
                ceiling = found.get(f"{name}flood, 8 pairs", {}).get("megabytes_per_second")
                if not ceiling:
                    continue
                result = relay.load("--mode", "paced", "--rate", int(ceiling * 2.7e6), "--pairs", 8, "--seconds",
                                    f"{seconds}s", tls=tls, limit=limit)
                if result:
                    result["share_of_ceiling"] = result["megabytes_per_second"] / ceiling
                    found[f"{name}offered 2.7 x ceiling, 8 pairs"] = result
        finally:
            relay.stop()
        # Memory needs a process that was not used before.
        for tls in [] if options.url or options.only else [False, True]:
            fresh = Relay(folder)
            try:
                fresh.load("--mode", "connect", "--pairs", 16, "--threads", 4, tls=tls)
                result = fresh.load("--mode", "idle", "--pairs", 1000, "--threads", 8, tls=tls)
                if result:
                    found[f"{'TLS ' if tls else ''}idle"] = result
            finally:
                fresh.stop()
    for name, result in found.items():
        print(line(name, result))
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
