"""The device mesh of data-parallel training, and how arrays lie on it."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

DATA_AXIS = "data"
SHARDED = PartitionSpec(DATA_AXIS)
REPLICATED = PartitionSpec()


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the one axis "data", over all devices of all processes or over the given ones."""
    count = jax.device_count() if devices is None else len(devices)
    return jax.make_mesh((count,), (DATA_AXIS,), devices=devices, axis_types=(AxisType.Auto,))


def steps_ahead() -> int:
    """How many steps the host may run ahead of the devices: 1, and 0 on CPUs.

    On CPUs, several multi-device programs in flight starve each other of threads and never end.
    """
    return 0 if jax.default_backend() == "cpu" else 1
