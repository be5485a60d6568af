"""The console scripts: lma-to-torch does what python -m convert.to_torch does, and so on."""

from lma_jax.scripts import script

to_torch = script("convert.to_torch")
to_stablehlo = script("convert.to_stablehlo")
to_jax = script("convert.to_jax")
to_hub = script("convert.to_hub")
verify = script("convert.verify")
flops = script("convert.flops")
fps = script("convert.fps")
table1 = script("convert.table1")
compare = script("convert.compare")
