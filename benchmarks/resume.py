#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What people see of a fault, and whether their bytes are exact: for each fault one `scp` in each direction and one
session over `coder ssh`, all of which run while it happens. Server (with its relay), agent and client are on hosts of
their own (network namespaces). Needs root.

    benchmarks/resume.py [--bytes N] [--outage SECONDS] [--faults A,B] [--json FILE]
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import session
from lab import Lab, run, wait_for
from session import CODER, digest

# An undisturbed copy lasts this long, so that each fault meets it in the middle.
SECONDS = 20
URL = "http://{}:3000"


class Counter:
    """A session that prints numbers until `flag` exists; notes when each came."""

    def __init__(self, bench, flag):
        self.flag = flag
        script = f"i=0; until [ -e {flag} ]; do echo $i; i=$((i+1)); sleep 0.1; done; echo end"
        self.errors = open(f"{bench.folder}/counter.err", "w+b")
        self.process = subprocess.Popen(
            bench.lab.on("client", [CODER, "ssh", "dev", "--", script]), env=bench.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors)
        self.text, self.silence = b"", 0.0
        self.thread = threading.Thread(target=self.follow)
        self.thread.start()

    def follow(self):
        last = time.monotonic()
        while piece := os.read(self.process.stdout.fileno(), 65536):
            now = time.monotonic()
            if self.text:
                self.silence = max(self.silence, now - last)
            last = now
            self.text += piece

    def finish(self, seconds):
        pathlib.Path(self.flag).touch()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.process.kill()
        self.thread.join()
        lines = self.text.decode().split()
        exact = lines[-1:] == ["end"] and lines[:-1] == [str(i) for i in range(len(lines) - 1)]
        self.errors.seek(0)
        said = [line for line in self.errors.read().decode().splitlines() if line]
        return {"status": self.process.returncode, "exact": exact, "lines": len(lines), "said": said}


class ResumeBench(session.Bench):
    def __init__(self, lab, folder, size, outage):
        super().__init__(lab, folder, size)
        self.outage = outage
        self.environment = {**os.environ, **self.env}
        self.options = [
            "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o",
            "LogLevel=ERROR", "-o", "BatchMode=yes", "-o", f"ProxyCommand={CODER} ssh --stdio dev"]

    # Parts

    def start_server(self):
        address = self.lab.address("server")
        url = URL.format(address)
        self.server = self.lab.start(
            "server", [CODER, "server", "--http-address", "0.0.0.0:3000", "--access-url", url,
                       "--global-config", f"{self.folder}/server"],
            f"{self.folder}/server.log", {"HOME": self.folder})
        probe = ["python3", "-c", f"import urllib.request as r; r.urlopen('{url}/healthz', timeout=2)"]
        wait_for("server", 60, lambda: subprocess.run(
            self.lab.on("server", probe), capture_output=True).returncode == 0)

    def start_agent(self):
        self.agent = self.lab.start(
            "agent", [CODER, "agent"], f"{self.folder}/agent.log",
            {"CODER_AGENT_URL": URL.format(self.lab.address("server")), "CODER_AGENT_TOKEN": self.agent_token,
             "HOME": self.folder, "CODER_AGENT_LOG_DIR": self.folder})

    def deploy(self):
        self.start_server()
        self.coder("login", URL.format(self.lab.address("server")), "--first-user-username", "ann",
                   "--first-user-email", "ann@example.org", "--first-user-password", "Correct-Horse-7-Battery",
                   "--first-user-trial=false")
        text = self.coder("external-workspaces", "create", "dev", "--yes")
        self.agent_token = text.split("CODER_AGENT_TOKEN=")[1].strip('"')[:36]
        self.start_agent()
        self.settle()

    def settle(self):
        """Until everything is as if nothing had happened."""
        self.lab.set_udp_blocked("agent", "client", False)
        wait_for("agent", 90, lambda: subprocess.run(
            self.lab.on("client", [CODER, "ssh", "dev", "--", "true"]), env=self.environment, timeout=80,
            capture_output=True).returncode == 0)

    @staticmethod
    def end(process, how):
        process.send_signal(how)
        process.wait(30)

    # Faults. Each returns when it is over.

    def nothing(self):
        pass

    def server_restarted(self):
        self.end(self.server, signal.SIGTERM)
        time.sleep(3)
        self.start_server()

    def server_killed(self):
        self.end(self.server, signal.SIGKILL)
        time.sleep(10)
        self.start_server()

    def path_lost(self):
        self.lab.set_udp_blocked("agent", "client", True)

    def address_changed(self):
        """Another address on the client, as after a walk to another network."""
        old = self.lab.address("client")
        new = old.rsplit(".", 1)[0] + ".105"
        if new + "/" in run(self.lab.on("client", ["ip", "-o", "address"])):
            old, new = new, old
        run(self.lab.on("client", ["ip", "address", "del", f"{old}/24", "dev", "eth0"]))
        time.sleep(1)
        run(self.lab.on("client", ["ip", "address", "add", f"{new}/24", "dev", "eth0"]))

    def cable_out(self):
        self.isolate(True)
        time.sleep(self.outage)
        self.isolate(False)

    def asleep(self):
        """The machine neither runs nor answers."""
        processes = [int(pid) for pid in run(["ip", "netns", "pids", f"{self.lab.prefix}-client"]).split()]
        self.isolate(True)
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(self.outage)
        self.isolate(False)
        for pid in processes:
            os.kill(pid, signal.SIGCONT)

    def agent_killed(self):
        self.end(self.agent, signal.SIGKILL)
        time.sleep(3)
        self.start_agent()

    def isolate(self, isolated):
        subprocess.run(self.lab.on("client", ["nft", "delete", "table", "inet", "isolated"]), capture_output=True)
        if isolated:
            run(self.lab.on("client", ["nft", "-f", "-"]), input=b"""table inet isolated {
                chain i { type filter hook input priority 0; iifname eth0 drop; }
                chain o { type filter hook output priority 0; oifname eth0 drop; }
            }""")

    FAULTS = {
        "nothing": ("direct", nothing),
        "server restarted": ("direct", server_restarted),
        "server and relay restarted, relayed": ("relayed", server_restarted),
        "server and relay killed, relayed, back after 10 s": ("relayed", server_killed),
        "direct path lost": ("direct", path_lost),
        "address changed": ("direct", address_changed),
        "address changed, relayed": ("relayed", address_changed),
        "no network for {outage} s": ("direct", cable_out),
        "asleep for {outage} s": ("direct", asleep),
        "asleep for {outage} s, relayed": ("relayed", asleep),
        "agent killed and started": ("direct", agent_killed),
    }

    # One row

    def copy(self, words):
        limit = self.size * 8 // 1000 // SECONDS
        return subprocess.Popen(
            self.lab.on("client", ["scp", "-q", "-l", str(limit), *self.options, *words]), env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def row(self, way, fault):
        if way == "relayed":
            self.lab.set_udp_blocked("agent", "client", True)
        path = self.coder("ping", "dev", "-n", "1").strip()
        down, up = f"{self.folder}/down", f"{self.folder}/up"
        flag = f"{self.folder}/flag"
        pathlib.Path(flag).unlink(missing_ok=True)
        counter = Counter(self, flag)
        copies = {"down": (self.copy([f"x:{self.payload}", down]), down), "up": (self.copy([self.payload, f"x:{up}"]), up)}
        begin = time.monotonic()
        time.sleep(SECONDS / 3)
        fault(self)
        result = {"path": path}
        for name, (process, path) in copies.items():
            said = self.wait(process, SECONDS + 120)
            exact = process.returncode == 0 and digest(path) == self.sum
            result[f"scp {name}"] = {"status": process.returncode, "exact": exact, "said": said}
            pathlib.Path(path).unlink(missing_ok=True)
        result["seconds"] = time.monotonic() - begin
        result["session"] = counter.finish(60)
        result["silence"] = counter.silence
        self.settle()
        return result

    @staticmethod
    def wait(process, seconds):
        try:
            errors = process.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            errors = process.communicate()[1] + b"did not end\n"
        return [line for line in errors.decode().splitlines() if line]


def table(results):
    lines = ["| fault | silence | the session | scp down | scp up | took |", "|---|---|---|---|---|---|"]
    for name, row in results.items():
        def cell(part):
            state = "exact" if part["exact"] else f"ends with {part['status']}"
            return state + "".join(f"; \"{line}\"" for line in part["said"])
        lines.append(f"| {name} | {row['silence']:.1f} s | {cell(row['session'])} | {cell(row['scp down'])} "
                     f"| {cell(row['scp up'])} | {row['seconds']:.0f} s |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=1 << 30)
    parser.add_argument("--outage", type=int, default=65)
    parser.add_argument("--faults", help="those whose names begin with one of these words")
    parser.add_argument("--json")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("network namespaces need root")
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
    results = {}
    with tempfile.TemporaryDirectory(dir=shm) as folder, Lab(81, ["server", "agent", "client"]) as lab:
        os.chmod(folder, 0o755)
        bench = ResumeBench(lab, folder, options.bytes >> 20 << 20, options.outage)
        bench.deploy()
        for name, (way, fault) in bench.FAULTS.items():
            if options.faults and not name.startswith(tuple(options.faults.split(","))):
                continue
            name = name.format(outage=options.outage)
            results[name] = bench.row(way, fault)
            print(name, json.dumps(results[name]), file=sys.stderr, flush=True)
    print(table(results))
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=2) + "\n")
    exact = [row[part]["exact"] for name, row in results.items() if not name.startswith("agent")
             for part in ("session", "scp down", "scp up")]
    sys.exit(0 if all(exact) else "bytes were lost")


if __name__ == "__main__":
    main()
