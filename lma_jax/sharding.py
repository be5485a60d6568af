"""The device mesh of data-parallel training, and how arrays lie on it."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

DATA_AXIS = "data"


SHARDED = PartitionSpec(DATA_AXIS)


REPLICATED = PartitionSpec()


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Some devices on one axis; by default all, of all processes."""
    count = jax.device_count() if devices is None else len(devices)
    return jax.make_mesh((count,), (DATA_AXIS,), devices=devices, axis_types=(AxisType.Auto,))
