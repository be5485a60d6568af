"""A TensorBoard event file: numbers, pictures, the config as text, and its hyperparameters."""

import contextlib
import socket
import time
from collections.abc import Mapping
from os import getpid
from pathlib import Path
from typing import Any


class Events:
    """An event file that is written synchronously: the queues of summary writers hang on a full disk.

    It uses TensorBoard's own protocol buffers, since its writers import PyTorch or TensorFlow where they are installed.

    Args:
        folder: receives the file.
        purge_step: TensorBoard forgets what earlier files say about this step and later ones.
    """

    def __init__(self, folder: Path, *, purge_step: int):
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{getpid()}"
        self._writer = RecordWriter((folder / name).open("wb"))
        self._add(file_version="brain.Event:2")
        self._add(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes numbers by tag."""
        self._summary(step, *(dict(tag=name, simple_value=value) for name, value in numbers.items()))

    def picture(self, step: int, tag: str, png: bytes) -> None:
        """Writes an encoded picture."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))  # of its header
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._summary(step, dict(tag=tag, image=image))

    def config(self, step: int, config: Mapping[str, Any]) -> None:
        """Writes a config twice: as a table to read, and as the hyperparameters by which runs are compared."""
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        rows = "".join(f"| {name} | `{value!r}` |\n" for name, value in config.items())
        table = make_tensor_proto(f"| key | value |\n| --- | --- |\n{rows}")
        text = dict(tag="config", tensor=table, metadata=create_summary_metadata("config", ""))
        self._summary(step, text)
        start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in config.items():
            kind = {bool: "bool_value", int: "number_value", float: "number_value"}.get(type(value), "string_value")
            setattr(start.hparams[name], kind, str(value) if kind == "string_value" else value)
        self._session(step, metadata.SESSION_START_INFO_TAG, session_start_info=start)

    def finished(self, step: int) -> None:
        """Writes that the run is over, whose metrics are the last numbers."""
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
        self._session(step, metadata.SESSION_END_INFO_TAG, session_end_info=end)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a write has reported it
            self._writer.close()

    def _session(self, step: int, tag: str, **content: Any) -> None:
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2

        described = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
        self._summary(step, dict(tag=tag, tensor=metadata.NULL_TENSOR, metadata=described))

    def _summary(self, step: int, *values: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(step=step, summary=Summary(value=[Summary.Value(**value) for value in values]))

    def _add(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **event).SerializeToString())
        self._writer.flush()
