"""Trains a network: python -m lma_jax.train --config configs/resnet50_lma.py [--workdir runs/r50]

Any value of the config can be given as --config.<key>=<value>. The same command again resumes a run that was killed,
or stopped by SIGTERM or Ctrl-C (exit code 75). On several machines, start the same command on each, with
--distributed under Slurm, Open MPI or Kubernetes, else with --coordinator, --num_processes and --process_id.
"""

import gc
import os
from pathlib import Path

from absl import flags

from lma_jax import cli
from lma_jax.errors import UserError

CONFIG = cli.define_config_flag()
flags.declare_key_flag("config")  # or else --help leaves it out
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. Default: runs/<name of the config file>.")
CHANGE_CONFIG = flags.DEFINE_bool("change_config", False, "Resume even if the config differs from the checkpoint's.")
PROFILE = flags.DEFINE_bool("profile", False, "Trace five steps into <workdir>/profile, for Perfetto or XProf.")
CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/lma_jax"),
    "Folder that keeps compiled programs for the next start; empty for none.",
)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes that the cluster started.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "Join the others at <host>:<port>, an address of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes in the job.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Rank of this process, from 0.", lower_bound=0)
DETERMINISTIC = flags.DEFINE_bool("deterministic", True, "Have GPUs compute the same bits in every run; off is faster.")


def main() -> None:
    config, name = cli.load_config(CONFIG)
    job = (COORDINATOR, NUM_PROCESSES, PROCESS_ID)
    missing = [f"--{flag.name}" for flag in job if flag.value is None]
    if 0 < len(missing) < len(job) and not DISTRIBUTED.value:
        raise UserError(f"a job of several processes needs {' and '.join(missing)} as well")
    if DETERMINISTIC.value:  # read when JAX starts
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()

    # Tracing makes millions of objects that stay: to look for garbage every 700 takes a tenth of the start. Steps make
    # little of it.
    gc.set_threshold(200_000)

    import jax

    from lma_jax.training.distributed import ending_together, join

    if CACHE.value:
        jax.config.update("jax_compilation_cache_dir", str(Path(CACHE.value).expanduser()))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if DISTRIBUTED.value or COORDINATOR.value:
        join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    with ending_together():
        from lma_jax.training.trainer import Trainer

        workdir = Path(WORKDIR.value or f"runs/{name}")
        Trainer(config, workdir, change_config=CHANGE_CONFIG.value, profile=PROFILE.value).fit()


if __name__ == "__main__":
    cli.run(main)
