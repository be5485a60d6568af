"""A Slurm of this machine alone, controller and node, for the length of a test."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.helpers.commands import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol")

# A job that is requeued waits until its credential has expired: 5 seconds are the least that Slurm takes.
CONFIG = """
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
FirstJobId={job}
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=test Nodes=localhost Default=YES
"""


def missing() -> str:
    """Why there can be no Slurm here; empty if there can."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"{', '.join(absent)} are not installed (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "slurmd needs root"


@contextmanager
def running() -> Iterator[dict[str, str]]:
    """Starts Slurm, and yields the environment variables with which its commands find it."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, ExitStack() as stack:
        folder = Path(name)  # of a short name, since a socket lies in it
        folder.chmod(0o755)
        environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        _configure(folder)
        munge = [
            f"--{file}={folder}/munge.{file}" for file in ("socket", "key-file", "pid-file", "log-file", "seed-file")
        ]

        def start(*command: str, until: Callable[[], bool]) -> None:
            log = folder / f"{command[0]}.log"
            with log.open("w") as output:
                daemon = subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=output)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
            while not until():
                assert daemon.poll() is None, log.read_text()
                time.sleep(0.02)

        def call(*command: str) -> str:
            return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True).stdout

        start("munged", "--foreground", "--force", *munge, until=(folder / "munge.socket").exists)
        start("slurmctld", "-D", until=lambda: "is UP" in call("scontrol", "ping"))
        start("slurmd", "-D", "-N", "localhost", until=lambda: "State=IDLE" in call("scontrol", "show", "node"))
        stack.callback(call, "scancel", "--signal=KILL", "--full", "--partition=test")
        yield environment


def _configure(folder: Path) -> None:
    key = folder / "munge.key-file"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    values = dict(folder=folder, host=socket.gethostname().partition(".")[0], controller=free_port(), node=free_port())
    # JAX's coordinator takes its port from the job's number: another one in each test.
    (folder / "slurm.conf").write_text(CONFIG.format(**values, job=free_port()))
