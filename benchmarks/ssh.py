#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""SSH as people use it: session start, pipes, scp and sftp of one large and many small files, echo of keystrokes idle
and under load. `coder ssh` and OpenSSH's client over `coder ssh --stdio`, next to OpenSSH's own sshd over the bare
link and over Debian's wireguard-go, between the same namespaces in one run. Needs root.

    benchmarks/ssh.py [--bytes N] [--files N] [--rounds N] [--json FILE]
"""

import argparse
import json
import os
import pathlib
import pty
import select
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import tty

import session
from lab import Lab, cpu_seconds, run, wait_for

SSHD = """
Port 2222
HostKey {folder}/sshd_key
PidFile none
PermitRootLogin yes
StrictModes no
UsePAM no
AuthorizedKeysFile {folder}/id.pub
Subsystem sftp internal-sftp
MaxSessions 100
MaxStartups 100
"""


class Route:
    """One way from the client to the agent's host: how to call ssh, scp and sftp."""

    def __init__(self, name, host, options, processes):
        self.name, self.host, self.options, self.processes = name, host, options, processes

    def ssh(self, *words):
        return ["ssh", *self.options, self.host, *words]


class SSHBench(session.Bench):
    def start_sshd(self):
        for key in ("sshd_key", "id"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{self.folder}/{key}"])
        os.makedirs("/run/sshd", exist_ok=True)
        pathlib.Path(f"{self.folder}/sshd_config").write_text(SSHD.format(folder=self.folder))
        self.sshd = self.lab.start(
            "agent", ["/usr/sbin/sshd", "-D", "-e", "-f", f"{self.folder}/sshd_config"], f"{self.folder}/sshd.log")
        wait_for("sshd", 10, lambda: ":2222" in subprocess.run(
            self.lab.on("agent", ["ss", "-ltn"]), capture_output=True, text=True).stdout)

    def routes(self):
        common = ["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                  "-o", "LogLevel=ERROR", "-o", "BatchMode=yes"]
        plain = common + ["-o", "Port=2222", "-i", f"{self.folder}/id"]
        proxy = f"{session.CODER} ssh --stdio --usage-app=disable dev"
        return {
            "bare": Route("OpenSSH, bare link", f"root@{self.lab.address('agent')}", plain, []),
            "wg": Route("OpenSSH, wireguard-go", "root@10.200.0.2", plain, [p.pid for p in self.tunnels]),
            "stdio": Route("OpenSSH over coder ssh --stdio", "root@dev", common + ["-o", f"ProxyCommand={proxy}"],
                           [self.agent.pid]),
        }

    def client(self, arguments, **options):
        return subprocess.run(self.lab.on("client", arguments), env={**os.environ, **self.env},
                              stderr=subprocess.PIPE, timeout=600, **options)

    def timed(self, arguments, processes, stdin=None, stdout=subprocess.DEVNULL):
        before = {pid: cpu_seconds(pid) for pid in processes}
        children = os.times()
        begin = time.monotonic()
        done = self.client(arguments, stdin=stdin or subprocess.DEVNULL, stdout=stdout)
        seconds = time.monotonic() - begin
        if done.returncode != 0:
            raise SystemExit(f"{shlex.join(arguments)}: {done.returncode}\n{done.stderr.decode()}")
        after = os.times()
        cpu = after.children_user + after.children_system - children.children_user - children.children_system
        cpu += sum(cpu_seconds(pid) - before[pid] for pid in processes)
        return seconds, cpu

    def check(self, path):
        if session.digest(path) != self.sum:
            raise SystemExit(f"{path} holds other bytes than were sent")

    # Starting

    def start_times(self, rounds):
        kinds = {"coder ssh": [session.CODER, "ssh", "dev", "--", "true"]}
        kinds.update({route.name: route.ssh("true") for route in self.routes().values()})
        rows = {name: [] for name in kinds}
        for _ in range(rounds + 1):
            for name, words in kinds.items():
                rows[name].append(self.timed(words, [])[0] * 1e3)
        return {name: {"ms median": statistics.median(row[1:]), "ms max": max(row[1:])}
                for name, row in rows.items()}

    # Bulk

    def bulk(self, rounds):
        results = {}
        gigabytes = self.size / 1e9
        source, copy = self.payload, f"{self.folder}/copy"
        routes = self.routes()

        def note(what, name, seconds, cpu):
            results.setdefault(f"{what}, {name}", []).append((self.size / 1e6 / seconds, cpu / gigabytes))

        for _ in range(rounds):
            note("pipe down", "coder ssh", *self.timed(
                [session.CODER, "ssh", "dev", "--", f"cat {source}"], [self.agent.pid]))
            with open(source, "rb") as file:
                note("pipe up", "coder ssh", *self.timed(
                    [session.CODER, "ssh", "dev", "--", "cat > /dev/null"], [self.agent.pid], stdin=file))
            for route in routes.values():
                note("pipe down", route.name, *self.timed(route.ssh(f"cat {source}"), route.processes))
                with open(source, "rb") as file:
                    note("pipe up", route.name, *self.timed(route.ssh("cat > /dev/null"), route.processes, stdin=file))
                note("scp down", route.name, *self.timed(
                    ["scp", "-q", *route.options, f"{route.host}:{source}", copy], route.processes))
                self.check(copy)
                note("rsync down", route.name, *self.timed(
                    ["rsync", "-e", shlex.join(["ssh", *route.options]), "--inplace", "--whole-file",
                     f"{route.host}:{source}", copy], route.processes))
                self.check(copy)
                note("scp up", route.name, *self.timed(
                    ["scp", "-q", *route.options, source, f"{route.host}:{copy}"], route.processes))
                self.check(copy)
                os.unlink(copy)
        return {name: {"MB/s": statistics.median(r[0] for r in rows), "CPU s/GB": statistics.median(r[1] for r in rows)}
                for name, rows in results.items()}

    def many_files(self, count):
        folder = f"{self.folder}/many"
        os.makedirs(folder)
        for index in range(count):
            os.makedirs(f"{folder}/{index // 500}", exist_ok=True)
            pathlib.Path(f"{folder}/{index // 500}/{index}").write_bytes(os.urandom(200 + index % 4000))
        results = {}
        for route in self.routes().values():
            copy = f"{self.folder}/many-copy"
            batch = f"{self.folder}/batch"
            pathlib.Path(batch).write_text(f"get -R {folder} {copy}\n")
            shell = shlex.join(["ssh", *route.options])
            for what, words in (("rsync down", ["rsync", "-a", "-e", shell, f"{route.host}:{folder}/", copy]),
                                ("scp -r down", ["scp", "-q", "-r", *route.options, f"{route.host}:{folder}", copy]),
                                ("sftp get -R", ["sftp", "-q", *route.options, "-b", batch, route.host])):
                seconds, cpu = self.timed(words, route.processes)
                run(["diff", "-r", folder, copy])
                if what == "rsync down":
                    # Nothing to do: a look at each file.
                    seconds_again, cpu_again = self.timed(words, route.processes)
                    results[f"{count} files, rsync again, {route.name}"] = {
                        "files/s": count / seconds_again, "CPU s": cpu_again}
                run(["rm", "-r", copy])
                results[f"{count} files, {what}, {route.name}"] = {"files/s": count / seconds, "CPU s": cpu}
        return results

    # Echo

    def echo(self, words, presses):
        """Milliseconds from a key to its echo, by a program that echoes without the terminal's help."""
        process, master = self.terminal(words)
        try:
            self.expect(master, b"ready", 30)
            times = []
            for _ in range(presses):
                begin = time.monotonic()
                os.write(master, b"x")
                self.expect(master, b"x", 30)
                times.append((time.monotonic() - begin) * 1e3)
                time.sleep(0.01)
            return times
        finally:
            process.kill()
            process.wait()
            os.close(master)

    def terminal(self, words):
        master, slave = pty.openpty()
        tty.setraw(slave)
        process = subprocess.Popen(self.lab.on("client", words), stdin=slave, stdout=slave, stderr=slave,
                                   env={**os.environ, **self.env, "TERM": "xterm"}, start_new_session=True)
        os.close(slave)
        return process, master

    @staticmethod
    def expect(master, text, seconds):
        seen = b""
        end = time.monotonic() + seconds
        while text not in seen:
            ready, _, _ = select.select([master], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise SystemExit(f"no {text} but {seen[-200:]}")
            seen += os.read(master, 65536)

    def echoes(self, presses):
        program = "stty raw -echo; echo ready; exec cat"
        routes = self.routes()
        kinds = {"coder ssh": ([session.CODER, "ssh", "dev", "--", program],
                               [session.CODER, "ssh", "dev", "--", "cat /dev/zero"])}
        for route in routes.values():
            kinds[route.name] = (route.ssh("-tt", program), route.ssh("cat /dev/zero"))
        results = {}
        for name, (words, load) in kinds.items():
            for state in ("idle", "under load"):
                bulk = None
                if state == "under load":
                    bulk = subprocess.Popen(self.lab.on("client", load), stdout=subprocess.DEVNULL,
                                            stderr=subprocess.DEVNULL, env={**os.environ, **self.env})
                    time.sleep(2)
                times = sorted(self.echo(words, presses))
                if bulk:
                    bulk.terminate()
                    bulk.wait()
                results[f"echo {state}, {name}"] = {
                    "ms median": statistics.median(times), "ms 95 %": times[int(len(times) * 0.95)]}
        return results


def ratios(results):
    lines = []
    for what in ("pipe down", "pipe up", "scp down", "scp up"):
        ours = [name for name in (f"{what}, coder ssh", f"{what}, OpenSSH over coder ssh --stdio") if name in results]
        for name in ours:
            for other in ("OpenSSH, wireguard-go", "OpenSSH, bare link"):
                base = results[f"{what}, {other}"]["MB/s"]
                lines.append(f"{name} / {other}: {results[name]['MB/s'] / base:.2f} x")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=1 << 30)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--presses", type=int, default=100)
    parser.add_argument("--parts", default="start,bulk,files,echo")
    parser.add_argument("--json")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("network namespaces need root")
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
    results = {}
    with tempfile.TemporaryDirectory(dir=shm) as folder, Lab(79, ["server", "agent", "client"]) as lab:
        os.chmod(folder, 0o755)
        bench = SSHBench(lab, folder, options.bytes >> 20 << 20)
        bench.deploy()
        bench.wireguard_go()
        bench.start_sshd()
        parts = options.parts.split(",")
        if "start" in parts:
            for name, row in bench.start_times(20).items():
                results[f"start to exit, {name}"] = row
        if "echo" in parts:
            results.update(bench.echoes(options.presses))
        if "bulk" in parts:
            results.update(bench.bulk(options.rounds))
        if "files" in parts:
            results.update(bench.many_files(options.files))
    for name, row in results.items():
        print(f"{name:55}" + "  ".join(f"{key} {value:9.2f}" for key, value in row.items()))
    if "bulk" in parts:
        print("\n".join(ratios(results)))
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
