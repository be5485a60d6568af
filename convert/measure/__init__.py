"""Measurements of the networks: time, multiply-accumulates (MACs), and the paper's Table 1."""
