"""Checkpoints that describe themselves and are checked when they are read.

A checkpoint is the folder <workdir>/checkpoints/<step>. It holds an Orbax item `state`, with one array for each path
such as "params/layer1/0/conv1/kernel", and a JSON item `record`, with the metadata and a checksum of every array.
Orbax itself has no checksums.
"""
