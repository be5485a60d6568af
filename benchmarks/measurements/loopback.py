"""The all-reduce of a network's gradients and statistics between two processes on this machine. It needs Linux."""

import multiprocessing
import os
import socket
import statistics
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from lma_jax.sharding import DATA_AXIS, REPLICATED, data_mesh
from lma_jax.training.distributed import join
from measurements.collectives import network_shapes, tree_bytes
from measurements.fault_matrix import free_address
from measurements.prediction import wire_bytes

ROUNDS = 9


def loopback_bytes() -> int:
    """The bytes that went over the loopback device since the machine's start."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


def socket_seconds(size: int) -> float:
    """Time to send `size` bytes over a TCP connection of this machine while as many come back."""

    def receive(end: socket.socket) -> None:
        buffer, left = bytearray(1 << 20), size
        while left:
            left -= end.recv_into(buffer, min(left, len(buffer)))

    with socket.create_server(("127.0.0.1", 0)) as server:
        ends = [socket.create_connection(server.getsockname()), server.accept()[0]]
    data = bytes(size)
    threads = [threading.Thread(target=end.sendall, args=(data,)) for end in ends]
    threads += [threading.Thread(target=receive, args=(end,)) for end in ends]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    for end in ends:
        end.close()
    return seconds


def time_all_reduce(model: str, coordinator: str, rank: int) -> dict[str, Any]:
    """One of two processes that average a network's parameters and statistics as the training step does.

    Returns:
        "arrays" and "bytes" of the network, and for its arrays ("tree") and for one array of as many bytes ("flat")
        the "seconds" of each round and the bytes that a process sent per round ("wire").
    """
    join(coordinator, 2, rank)
    shapes = network_shapes(model)
    size = tree_bytes(shapes)
    result: dict[str, Any] = {"arrays": len(jax.tree.leaves(shapes)), "bytes": size}
    for name, kind in {"tree": shapes, "flat": jax.ShapeDtypeStruct((size // 4,), jnp.float32)}.items():
        result[name] = _time_average(kind)
    jax.distributed.shutdown()
    return result


def _time_average(shapes: Any) -> dict[str, Any]:
    """Averages arrays of these shapes over all processes, ROUNDS times."""

    def ones() -> Any:
        return jax.tree.map(lambda shape: jnp.ones(shape.shape, shape.dtype), shapes)

    mesh = data_mesh()
    tree = jax.jit(ones, out_shardings=NamedSharding(mesh, REPLICATED))()
    average = partial(jax.lax.pmean, axis_name=DATA_AXIS)
    sharded = jax.shard_map(average, mesh=mesh, in_specs=REPLICATED, out_specs=REPLICATED, check_vma=False)
    compiled = jax.jit(sharded).lower(tree).compile()
    jax.block_until_ready(compiled(tree))
    seconds, before = [], loopback_bytes()
    for _ in range(ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(tree))
        seconds.append(time.perf_counter() - start)
    # Both processes send over the same loopback device.
    return {"seconds": seconds, "wire": (loopback_bytes() - before) / 2 / ROUNDS}


def report(model: str) -> None:
    """Prints time and bytes of the all-reduce between two processes beside the prediction."""
    os.environ |= {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}  # of the two processes
    coordinator = free_address()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        ranks = [pool.submit(time_all_reduce, model, coordinator, rank) for rank in range(2)]
        result, _ = (rank.result() for rank in ranks)
    predicted = wire_bytes(result["bytes"], 2)
    plain = [socket_seconds(int(predicted)) for _ in range(ROUNDS)]
    print(f"{model}: gradients and statistics, {result['bytes']:,} bytes in {result['arrays']} arrays")
    for name in ("tree", "flat"):
        wire, seconds = result[name]["wire"], result[name]["seconds"]
        off = f"{wire / predicted - 1:+.2%} of the prediction"
        print(f"  {name}: a process sent {wire:,.0f} bytes, {off}; {milliseconds(seconds)}")
    print(f"  the same bytes in both directions over one socket: {milliseconds(plain)}")


def milliseconds(seconds: list[float]) -> str:
    """The shortest and the median of several times."""
    middle = statistics.median(seconds)
    return f"{min(seconds) * 1e3:.0f} ms at best, {middle * 1e3:.0f} ms in the median of {len(seconds)}"
