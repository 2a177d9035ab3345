"""How neighbouring stages find each other, and on what the messages between them travel."""

from __future__ import annotations

import ipaddress
import json
import os
import platform
import secrets
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from locallearn.engine.replicas import lost_process
from locallearn.errors import RunError, UserError
from locallearn.runtime.wire.line import SocketLine

MEETING = 5  # the tag of what neighbours tell each other before they have a line; see `world.SAVED`
CARD = 512  # bytes of it
MEETING_SECONDS = 60.0
CALLER_SECONDS = 2.0  # for a caller to say its token
LINUX = sys.platform == "linux"


@cache
def host() -> str:
    """Equal for processes that can share memory: the machine since it was started, and the network within it."""
    names = [platform.node()]
    if LINUX:
        names += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/net")]
    return " ".join(names)


def carrier_between(wire: str, here: str, there: str) -> str:
    """What carries messages between two hosts where `runtime.wire` is this. Raises UserError for what cannot be."""
    if wire == "ring" and not (LINUX and here == there):
        where = "two machines" if LINUX else platform.system()
        raise UserError(
            f"runtime.wire=ring is memory that two processes of one Linux machine share, but neighbouring stages are "
            f"on {where}: choose auto or gloo"
        )
    return wire if wire != "auto" else "ring" if LINUX and here == there else "gloo"


def carriers_between(wire: str, hosts: Sequence[str], replicas: int, gpus: int) -> list[str]:
    """The carrier from every process but those of the last stage to the one above it, given the hosts by rank, and the
    GPUs of each. Raises UserError for what cannot be."""
    if wire == "nccl" and (most := max(Counter(hosts).values())) > gpus:
        raise UserError(
            f"runtime.wire=nccl is for processes with a GPU each, but one machine has {most} processes on "
            f"{gpus or 'no'} GPU{'s' if gpus > 1 else ''}: choose auto"
        )
    return [carrier_between(wire, *pair) for pair in zip(hosts, hosts[replicas:], strict=False)]


def meet(below: int | None, above: int | None) -> dict[int, tuple[SocketLine, str]]:
    """A line to each of the ranks below and above, and its host. All neighbours must call it."""
    ranks = [rank for rank in (below, above) if rank is not None]
    lines, told = {}, [_tell(rank, host()) for rank in ranks]
    with lost_process():
        hosts = {rank: _hear(rank) for rank in ranks}
        try:
            if above is not None:
                token = secrets.token_bytes(32)
                server = _listen(hosts[above])
                told.append(_tell(above, [*_address(server), token.hex()]))
            if below is not None:
                lines[below] = SocketLine(_connect(*_hear(below)), "the stage below")
            if above is not None:
                lines[above] = SocketLine(_accept(server, token), "the stage above")
        except OSError as error:
            raise RunError(f"neighbouring stages cannot reach each other: {error}") from error
        for work, _ in told:
            work.wait()
    return {rank: (lines[rank], hosts[rank]) for rank in ranks}


def _tell(rank: int, value: Any) -> tuple[Any, torch.Tensor]:
    text = json.dumps(value).encode().ljust(CARD)
    assert len(text) == CARD, text
    card = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return dist.isend(card, rank, tag=MEETING), card  # which must live as long as it travels


def _hear(rank: int) -> Any:
    card = torch.empty(CARD, dtype=torch.uint8)
    dist.recv(card, rank, tag=MEETING)
    return json.loads(bytes(card.tolist()))


def _listen(there: str) -> socket.socket:
    """Where the stage above calls: within this machine a socket that leaves no file, else any free port."""
    if LINUX and there == host():
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(f"\0locallearn-{secrets.token_hex(16)}")
        server.listen()
    elif socket.has_dualstack_ipv6():
        server = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        server = socket.create_server(("", 0))
    server.settimeout(MEETING_SECONDS)
    return server


def _address(server: socket.socket) -> list[Any]:
    """A name of the abstract socket, or host and port."""
    if server.family == socket.AF_UNIX:
        return [server.getsockname().decode(), 0]
    return [_own_address(), server.getsockname()[1]]


def _own_address() -> str:
    """What other machines call this one, by the way that leads to the machine of rank 0; empty on that machine itself,
    which the others know as MASTER_ADDR."""
    family, kind, _, _, master = socket.getaddrinfo(_master(), 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(master)  # sends nothing
        own = probe.getsockname()[0]
    return "" if own == master[0] or ipaddress.ip_address(own.partition("%")[0]).is_loopback else own


def _master() -> str:
    return os.environ.get("MASTER_ADDR", "127.0.0.1")


def _connect(name: str, port: int, token: str) -> socket.socket:
    if port:
        stream = socket.create_connection((name or _master(), port), MEETING_SECONDS)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.connect(name)
    stream.sendall(bytes.fromhex(token))
    return stream


def _accept(server: socket.socket, token: bytes) -> socket.socket:
    """The one that knows the token: others of the machine, or of the network, may call too, and say nothing."""
    with server:
        while True:
            stream, _ = server.accept()
            if _knows(stream, token):
                stream.settimeout(None)
                if stream.family != socket.AF_UNIX:
                    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return stream
            stream.close()


def _knows(stream: socket.socket, token: bytes) -> bool:
    stream.settimeout(CALLER_SECONDS)
    said = b""
    try:
        while len(said) < len(token) and (more := stream.recv(len(token) - len(said))):
            said += more
    except OSError:
        return False
    return secrets.compare_digest(said, token)
