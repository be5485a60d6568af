"""Checkpoints that describe themselves and are checked when they are read.

A checkpoint is the folder <workdir>/checkpoints/<step>. It holds `state`, an OCDBT store of TensorStore with one zarr
array for each path such as "params/layer1/0/conv1/kernel", and `record/metadata`, JSON with the metadata and a checksum
of every array. `<step>.tmp` is being written or deleted.
"""
