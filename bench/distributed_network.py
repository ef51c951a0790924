"""A network in the kernel for ranks on one machine: each rank behind an interface of its own, counted and slowed down.

    python -m bench.distributed_network '<JSON of bench.distributed_ranks.Task>'      # inside `unshare`, see `inside`

Every rank's process lives in a network namespace with one interface, `eth0`. Where no delay is asked for these are
virtual cables to a bridge; with a delay they are TAP devices, and a thread here carries each frame to its receiver the
delay later (the kernel's own netem is missing on many machines). A rate is a token bucket on the interface, so that
each rank sends at most that fast and receives meanwhile: a network card for each rank. The store of the process group
is a file: nothing but the collectives crosses the network.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import select
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MTU = 9000
HEADERS = 14 + 20 + 20 + 12  # Ethernet, IP, TCP and its timestamps
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 2, 0x1000


class NetworkError(RuntimeError):
    """This machine, or this user, cannot have such a network; one sentence."""


def inside(arguments: list[str], **options) -> subprocess.Popen:
    """Starts a Python command in a network namespace of its own, as root or in a user namespace."""
    reason = missing()
    if reason:
        raise NetworkError(reason)
    return subprocess.Popen([*_unshare(), sys.executable, *arguments], cwd=ROOT, **options)


def missing() -> str | None:
    """Why there can be no such network here, or None."""
    for tool in ("unshare", "ip", "tc"):
        if shutil.which(tool) is None:
            return f"no command {tool!r} on this machine"
    trial = ("ip link add name v0 type veth peer name v1; ip link add name hub type bridge; "
             "tc qdisc add dev v0 root tbf rate 1gbit burst 20kb limit 1mb")  # fmt: skip
    done = subprocess.run([*_unshare(), "sh", "-ec", trial], capture_output=True, text=True)
    if done.returncode:
        return f"no network namespace with veth, bridge and tbf: {done.stderr.strip().splitlines()[-1]}"
    return None


def _unshare() -> list[str]:
    return ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Urn"]


def enter() -> None:
    """Moves this process, and the threads that it starts from now on, into a new network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise NetworkError(f"unshare: {os.strerror(ctypes.get_errno())}")


def configure(rank: int, rate: float | None) -> None:
    """In a rank's namespace, once `eth0` is there: its address, and its rate in bits per second."""
    while "eth0:" not in Path("/proc/thread-self/net/dev").read_text():
        time.sleep(0.01)
    _run(f"ip link set lo up; ip link set eth0 addrgenmode none mtu {MTU} address {_mac(rank)}; "
         f"ip addr add 10.0.0.{rank + 1}/24 dev eth0; ip link set eth0 up")  # fmt: skip
    if rate:
        # What the bucket holds crosses unhindered at the beginning of every exchange; what overflows it while the
        # processors are busy is lost, so that much less makes the link slower than its rate.
        _run(f"tc qdisc add dev eth0 root tbf rate {int(rate)}bit burst {4 * MTU} limit 64mb")


def sent() -> tuple[int, int]:
    """(bytes, packets) that left this rank's interface."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "eth0":
            fields = numbers.split()
            return int(fields[8]), int(fields[9])
    raise NetworkError("no interface eth0 in this namespace")


class Network:
    """The cables between ranks' namespaces, from inside the namespace that `inside` made."""

    def __init__(self, delay: float = 0.0):
        self.delay, self._taps = delay, {}
        if not delay:
            _run(f"ip link add name hub type bridge; ip link set hub addrgenmode none mtu {MTU} up")

    def connect(self, rank: int, pid: int) -> None:
        """Gives the namespace of process `pid` its `eth0`."""
        if self.delay:
            self._taps[rank] = _tap(f"tap{rank}")
            _run(f"ip link set tap{rank} netns {pid} name eth0")
        else:
            _run(f"ip link add name cable{rank} type veth peer name eth0 netns {pid}; "
                 f"ip link set cable{rank} master hub addrgenmode none mtu {MTU} up")  # fmt: skip

    def start(self) -> None:
        """Once all ranks are connected: begins to carry frames."""
        if self.delay:
            threading.Thread(target=self._carry, daemon=True).start()

    def _carry(self) -> None:
        receivers = {_mac_bytes(rank): tap for rank, tap in self._taps.items()}
        under_way: list[tuple[float, int, int, bytes]] = []
        number = 0
        while True:
            patience = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            readable, _, _ = select.select(list(self._taps.values()), [], [], patience)
            arrival = time.monotonic() + self.delay
            for tap in readable:
                frame = os.read(tap, MTU + 100)
                one = receivers.get(frame[:6])
                for receiver in [one] if one is not None else [other for other in self._taps.values() if other != tap]:
                    heapq.heappush(under_way, (arrival, number, receiver, frame))
                    number += 1
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, receiver, frame = heapq.heappop(under_way)
                os.write(receiver, frame)


def _tap(name: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return tap


def _mac(rank: int) -> str:
    return f"02:00:00:00:00:{rank + 1:02x}"


def _mac_bytes(rank: int) -> bytes:
    return bytes.fromhex(_mac(rank).replace(":", ""))


def _run(commands: str) -> None:
    done = subprocess.run(["sh", "-ec", commands], capture_output=True, text=True)
    if done.returncode:
        raise NetworkError(f"{commands}: {done.stderr.strip()}")


if __name__ == "__main__":
    from bench.distributed_ranks import run_task

    print(json.dumps(run_task(json.loads(sys.argv[1]))))
