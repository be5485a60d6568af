"""What the benchmarks measure. The commands beside this package choose the options and print the results."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the code of this checkout is measured, whatever is installed
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX and PyTorch share a GPU
