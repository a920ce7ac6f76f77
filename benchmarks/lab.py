# SPDX-License-Identifier: Apache-2.0
"""Hosts in network namespaces, and processes on them whose CPU time and memory can be read."""

import os
import signal
import subprocess
import time

TICK = os.sysconf("SC_CLK_TCK")


class Lab:
    """A switch and hosts 10.NETWORK.0.2 and up, one namespace each. Use as a context manager."""

    def __init__(self, network, names):
        self.prefix = f"cdr{network}"
        self.names = names
        self.network = network
        self.started = []

    def address(self, name):
        return f"10.{self.network}.0.{self.names.index(name) + 2}"

    def __enter__(self):
        self.demolish()
        run(["ip", "netns", "add", f"{self.prefix}-switch"])
        run(["ip", "-n", f"{self.prefix}-switch", "link", "add", "br0", "type", "bridge"])
        run(["ip", "-n", f"{self.prefix}-switch", "link", "set", "br0", "up"])
        for index, name in enumerate(self.names):
            space = f"{self.prefix}-{name}"
            run(["ip", "netns", "add", space])
            run(["ip", "link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", f"p{index}",
                 "netns", f"{self.prefix}-switch"])
            run(["ip", "-n", f"{self.prefix}-switch", "link", "set", f"p{index}", "master", "br0", "up"])
            run(["ip", "-n", space, "address", "add", f"{self.address(name)}/24", "dev", "eth0"])
            run(["ip", "-n", space, "link", "set", "eth0", "up"])
            run(["ip", "-n", space, "link", "set", "lo", "up"])
        return self

    def __exit__(self, *_):
        for process in reversed(self.started):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
        self.demolish()

    def demolish(self):
        listing = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
        for line in listing.splitlines():
            space = line.split()[0]
            if not space.startswith(f"{self.prefix}-"):
                continue
            for pid in subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout.split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass
            subprocess.run(["ip", "netns", "delete", space])

    def on(self, name, arguments):
        return ["ip", "netns", "exec", f"{self.prefix}-{name}"] + arguments

    def start(self, name, arguments, log, env=None):
        with open(log, "wb") as output:
            process = subprocess.Popen(
                self.on(name, arguments), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, **(env or {})})
        self.started.append(process)
        return process

    def set_udp_blocked(self, a, b, blocked):
        for here, there in ((a, b), (b, a)):
            subprocess.run(self.on(here, ["nft", "delete", "table", "inet", "blocked"]), capture_output=True)
            if blocked:
                rules = f"""table inet blocked {{
                    chain i {{ type filter hook input priority 0; ip saddr {self.address(there)} meta l4proto udp drop; }}
                    chain o {{ type filter hook output priority 0; ip daddr {self.address(there)} meta l4proto udp drop; }}
                }}"""
                run(self.on(here, ["nft", "-f", "-"]), input=rules.encode())


def run(arguments, **options):
    """Runs a command that must succeed; answers its standard output."""
    done = subprocess.run(arguments, capture_output=True, timeout=options.pop("timeout", 60), **options)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)}: {done.returncode}\n{done.stderr.decode()}{done.stdout.decode()}")
    return done.stdout.decode()


def cpu_seconds(pid):
    """User and system time of a process, in seconds."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def rss_megabytes(pid):
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def anonymous_megabytes(pid):
    """What of it is the process's own memory: without the pages of its program, which all copies of it share."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Anonymous:")) * 1024 / 1e6


def wait_for(what, seconds, condition):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise SystemExit(f"no {what} within {seconds} s")
