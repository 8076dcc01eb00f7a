"""The two ends of the latency benchmark, each a process of its own: who commits, and who looks.

``python latency_peers.py commit JSON`` commits one transaction at each moment of a timetable that
does not wait for anything (an open loop). ``python latency_peers.py observe JSON`` notes when each
key became visible. Both note moments on the machine's monotonic clock, in nanoseconds, so that they
can be compared, and leave them in a file.
"""

from __future__ import annotations

import json
import random
import select
import socket
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

KEY_PREFIX = "live:"
TABLE = "bench.live"
_VARIANTS = 1000  # different rows, whose id is put in
_OK = 0  # first byte of the answer's payload
_COM_QUERY = 3


def commit(spec: Mapping[str, Any]) -> None:
    """Commit ``count`` inserts at ``rate`` a second, as soon as a line comes in.

    Each is one autocommitted statement, sent at its own moment on a connection that is free; where
    none is, it waits, but its moment stays what it was. The file has, for each, the moment that it
    was meant for, the one when it was sent, and the one when the server said that it is committed.

    The statements go to sockets that pymysql logged in on: through its own calls each would cost
    this process ten times the CPU time, on a machine where everything else runs too.
    """
    import pymysql

    sys.path[:0] = [str(Path(__file__).resolve().parent)]
    from tables import Orders, literal

    connections = [
        pymysql.connect(
            host=spec["host"],
            port=spec["port"],
            user=spec["user"],
            password=spec["password"],
            autocommit=True,
        )
        for _ in range(spec["connections"])
    ]
    free = deque(connection._sock for connection in connections)
    orders = Orders(random.Random(spec["seed"]), 200)
    tails = [",".join(map(literal, orders.row())) for _ in range(_VARIANTS)]
    count, first, rate = spec["count"], spec["first"], spec["rate"]
    due, sent, done = (array("q", bytes(8 * count)) for _ in range(3))
    print("ready", flush=True)
    sys.stdin.readline()
    start_ns = time.monotonic_ns()
    for number in range(count):
        due[number] = start_ns + number * 1_000_000_000 // rate
    busy: dict[socket.socket, int] = {}
    clock = time.monotonic_ns
    at = finished = 0
    while finished < count:
        now = clock()
        while at < count and due[at] <= now and free:
            wire = free.popleft()
            sql = f"INSERT INTO {TABLE} VALUES ({first + at},1,{tails[at % _VARIANTS]})"
            data = bytes([_COM_QUERY]) + sql.encode()
            sent[at] = clock()
            wire.sendall(len(data).to_bytes(3, "little") + b"\0" + data)
            busy[wire] = at
            at += 1
            now = clock()
        wait_s = max(due[at] - now, 0) / 1e9 if at < count and free else None
        for wire in select.select(list(busy), [], [], wait_s)[0]:
            answer = wire.recv(4096)
            now = clock()
            if len(answer) < 5 or answer[4] != _OK:
                sys.exit(f"the database does not insert, but says {answer!r}")
            done[busy.pop(wire)] = now
            free.append(wire)
            finished += 1
    for connection in connections:
        connection.close()
    with Path(spec["out"]).open("wb") as file:
        for moments in (due, sent, done):
            moments.tofile(file)


def observe(spec: Mapping[str, Any]) -> None:
    """Note when each of ``count`` keys from ``live:FIRST`` on became visible in Redis.

    Redis tells by itself: client-side caching in its broadcasting mode sends the names of the
    changed keys after the ``EXEC`` that changed them, and costs it about as much as one subscriber
    does. Who got that message and asks for the key gets the new value. Prints a line when it is
    ready, and ends when it has seen all, or has seen nothing for ``patience_s``.
    """
    import hiredis

    wire = socket.create_connection((spec["host"], spec["port"]))
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reader = hiredis.Reader()
    commands: tuple[Any, ...] = (
        ("HELLO", "3"),
        ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", KEY_PREFIX),
    )
    for command in commands:
        wire.sendall(hiredis.pack_command(command))
        answer: Any = False
        while answer is False:
            reader.feed(wire.recv(65536))
            answer = reader.gets()
        if isinstance(answer, Exception):
            sys.exit(f"Redis says {answer}: 6.0 or later is wanted")
    print("ready", flush=True)
    first, count = spec["first"], spec["count"]
    seen = array("q", bytes(8 * count))
    left = count
    prefix = len(KEY_PREFIX)
    wire.settimeout(spec["patience_s"])
    try:
        while left:
            data = wire.recv(1 << 20)
            now = time.monotonic_ns()
            if not data:
                sys.exit("Redis closed the connection")
            reader.feed(data)
            while (message := reader.gets()) is not False:
                for key in message[1] or ():
                    number = int(key[prefix:]) - first
                    if 0 <= number < count and not seen[number]:
                        seen[number] = now
                        left -= 1
    except TimeoutError:
        print(f"{left} were not seen", flush=True)
    with Path(spec["out"]).open("wb") as file:
        seen.tofile(file)


PROGRAMS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "commit": commit,
    "observe": observe,
}


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](json.loads(sys.argv[2]))
