"""Trains a network: python -m lma_jax.train --config configs/resnet50_lma.py [--workdir runs/r50]

Any value of the config can be given as --config.<key>=<value>. The same command again resumes a run that was killed,
or stopped by SIGTERM, SIGHUP or Ctrl-C (exit code 75). On several machines, start the same command on each, with
--distributed under Slurm, Open MPI or Kubernetes, else with --coordinator, --num_processes and --process_id.
"""

import gc
import os
import re

from lma_jax import files
from lma_jax.errors import UserError
from lma_jax.signals import exit_on_signals, ignore_signals


def define_flags() -> None:
    from absl import flags

    from lma_jax import cli

    cli.define_config()
    cli.define_import()
    flags.DEFINE_string("workdir", None, "Folder of the run. Default: runs/<name of the config file>.")
    flags.DEFINE_bool("change_config", False, "Resume even if the config or the data differ from the checkpoint's.")
    flags.DEFINE_bool("profile", False, "Trace five steps into <workdir>/profile, for Perfetto or XProf.")
    flags.DEFINE_string(
        "compilation_cache",
        os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/lma_jax"),
        "Folder that keeps compiled programs for the next start; empty for none.",
    )
    flags.DEFINE_bool("distributed", False, "Join the other processes that the cluster started.")
    flags.DEFINE_string("coordinator", None, "Address of process 0, as <host>:<port>.")
    flags.DEFINE_integer("num_processes", None, "Processes in the job.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Rank of this process, from 0.", lower_bound=0)
    flags.DEFINE_bool(
        "deterministic",
        True,
        "Only GPU operations that give the same bits each time, for exact resumption (with --compilation_cache, which "
        "keeps the program that was tuned; without it, nothing is tuned). --nodeterministic is the fastest.",
    )


# Gradients are summed in parts of this size, so that little is left to send when the backward pass has ended.
ALL_REDUCE_BYTES = 8 * 2**20


def gpu_flags(*, deterministic: bool, kept: bool) -> str:
    """XLA's flags for GPUs; where the user's XLA_FLAGS follow, they win.

    Tuning takes the algorithm that is fastest in a trial, not always the same one: deterministic runs are tuned only if
    their program is `kept` for the next start.
    """
    found = [f"--xla_gpu_all_reduce_combine_threshold_bytes={ALL_REDUCE_BYTES}"]
    if deterministic:
        found.append(f"--xla_gpu_{'exclude_nondeterministic_ops' if kept else 'deterministic_ops'}=true")
    return " ".join(found)


def main() -> None:
    from absl import flags

    from lma_jax import cli

    options = flags.FLAGS
    config, name = cli.load_config()
    job = {key: options[key].value for key in ("coordinator", "num_processes", "process_id")}
    missing = [f"--{key}" for key, value in job.items() if value is None]
    if 0 < len(missing) < len(job) and not options.distributed:
        raise UserError(f"a job of several processes needs {' and '.join(missing)} as well")
    _require_job(**job)
    defaults = gpu_flags(deterministic=options.deterministic, kept=bool(options.compilation_cache))
    os.environ["XLA_FLAGS"] = f"{defaults} {os.environ.get('XLA_FLAGS', '')}".strip()  # read when JAX starts

    if options.distributed or options.coordinator:
        # XLA's pages of text on a lost process; what matters comes as an exception.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    # Tracing allocates millions of long-lived objects; collecting them at the default threshold takes a tenth of the
    # start-up.
    gc.set_threshold(200_000)

    import jax

    from lma_jax.training.distributed import ending_together, join

    if options.compilation_cache:
        cache = files.path_of(options.compilation_cache)
        files.require_utf8(cache, "--compilation_cache")
        jax.config.update("jax_compilation_cache_dir", str(cache))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if options.distributed or options.coordinator:
        join(**job)
        exit_on_signals()  # JAX has taken SIGTERM
    with ending_together():
        from lma_jax.training.trainer import Trainer

        workdir = files.path_of(options.workdir or f"runs/{name}")
        run = dict(change_config=options.change_config, profile=options.profile, replaced=cli.replaced_values())
        try:
            Trainer(config, workdir, **run).fit()
        finally:
            ignore_signals()


def _require_job(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Checks an address and a rank, with which JAX would wait for minutes."""
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not re.fullmatch(r"[^\s:/]+|\[[\da-fA-F:.]+\]", host) or not (port.isascii() and port.isdecimal()):
            raise UserError(f"--coordinator={coordinator} must be <host>:<port>, such as 10.0.0.1:1234")
        if len(port) > 5 or not 0 < int(port) < 2**16:
            raise UserError(f"--coordinator={coordinator}: a port is a number from 1 to {2**16 - 1}")
    if num_processes is not None and process_id is not None and process_id >= num_processes:
        raise UserError(f"--process_id={process_id} must be below --num_processes={num_processes}: ranks start at 0")


if __name__ == "__main__":
    exit_on_signals()  # before anything is imported that takes a while
    from lma_jax import cli

    cli.run(main, define_flags, prints_progress=True)
