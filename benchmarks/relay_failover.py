#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Two nodes that may not connect directly, two relays of one region that mesh, and an end of one relay in the middle of
a transfer: what the stream sees. The nodes list the relays in opposite order, so that packets cross the mesh.

    benchmarks/relay_failover.py [--bytes N] [--json FILE]
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import urllib.request

from relay import CODER, free_port


def wait_for(condition, what, seconds=20):
    for _ in range(seconds * 20):
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise SystemExit(f"{what}: did not happen")


class Scene:
    def __init__(self, folder, relays):
        self.folder = folder
        self.processes = []
        self.ports = [free_port() for _ in range(relays)]
        pathlib.Path(f"{folder}/mesh.key").write_text(os.urandom(16).hex())
        self.relays = [self.relay(port) for port in self.ports]
        for port in self.ports:
            wait_for(lambda: self.metric(port, "connections") is not None, "relay starts")
            wait_for(lambda: self.metric(port, "mesh_links") == relays - 1, "relays mesh")

    def spawn(self, arguments, name):
        with open(f"{self.folder}/{name}.log", "ab") as log:
            process = subprocess.Popen([CODER, *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def relay(self, port):
        mesh = ",".join(f"http://127.0.0.1:{other}" for other in self.ports)
        return self.spawn(
            ["relay", "--standalone", "--http-address", f"127.0.0.1:{port}", "--mesh-key-file",
             f"{self.folder}/mesh.key", "--mesh-with", mesh], f"relay-{port}")

    def metric(self, port, name):
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=1).read().decode()
        for line in text.splitlines():
            if line.startswith(f"coder_derp_{name} "):
                return float(line.split()[1])
        return None

    def node(self, name, ports):
        nodes = [{"Name": f"1{chr(97 + self.ports.index(port))}", "RegionID": 1, "HostName": "127.0.0.1",
                  "DERPPort": port, "ForceHTTP": True, "STUNPort": -1} for port in ports]
        config = {
            "addresses": [f"fd7a:115c:a1e0::{'a' if name == 'a' else 'b'}/128"], "block_direct": True,
            "services": [{"kind": "echo", "port": 7}],
            "derp_map": {"Regions": {"1": {"RegionID": 1, "RegionCode": "x", "RegionName": "X", "Nodes": nodes}}},
        }
        path = f"{self.folder}/{name}.json"
        pathlib.Path(path).write_text(json.dumps(config))
        self.spawn(["mesh", "--config", path, "--control", f"{self.folder}/{name}.sock"], name)
        wait_for(lambda: self.ask(name, "node").get("preferred_derp") == 1, f"node {name} has a home")

    def ask(self, name, *words):
        result = subprocess.run(
            [CODER, "mesh", "--control", f"{self.folder}/{name}.sock", *words], capture_output=True, text=True)
        return json.loads(result.stdout) if result.returncode == 0 else {}

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()


def run(size, relays, what):
    """`what` happens to the last relay after 1 s."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder, relays)
        try:
            scene.node("a", scene.ports)
            scene.node("b", scene.ports[::-1])
            for here, there in (("a", "b"), ("b", "a")):
                scene.ask(here, "peers", "add", json.dumps(scene.ask(there, "node")))
            scene.ask("a", "reach", "fd7a:115c:a1e0::b", "20")
            load = subprocess.Popen(
                [CODER, "mesh", "--control", f"{folder}/a.sock", "load", "both", "[fd7a:115c:a1e0::b]:7",
                 f"bytes={size}", *([] if os.environ.get("NO_RATE") else [f"rate={size // 5}"]), "seconds=60"], stdout=subprocess.PIPE, text=True)
            time.sleep(1)
            victim = scene.relays[-1]
            if what != "nothing":
                victim.send_signal(signal.SIGTERM if what == "drained" else signal.SIGKILL)
            if what == "restarted":
                victim.wait()
                scene.relay(scene.ports[-1])
                wait_for(lambda: scene.metric(scene.ports[-1], "connections") is not None, "relay starts again")
            result = json.loads(load.communicate()[0] or "{}")
            result["forwarded"] = scene.metric(scene.ports[0], "packets_forwarded_out_total") or 0
            return result
        finally:
            scene.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=50_000_000)
    parser.add_argument("--json")
    options = parser.parse_args()
    found = {}
    for relays, what in [(2, "nothing"), (2, "drained"), (2, "killed"), (1, "restarted")]:
        result = run(options.bytes, relays, what)
        name = f"{relays} relay{'s' if relays > 1 else ''}, one {what}" if what != "nothing" else "2 relays"
        found[name] = result
        print(f"{name:26} exact {result.get('exact')}  bytes {result.get('bytes')}  longest gap "
              f"{result.get('longest_gap_seconds', -1):.2f} s  forwarded {result['forwarded']:.0f}  "
              f"{result.get('problems') or ''}")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
