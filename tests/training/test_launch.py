"""The files of launch/: what they do by themselves, and two processes that each of them starts, stops and resumes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lma_jax.training.reporting.metrics import read_metrics
from tests.helpers import slurm
from tests.helpers.commands import ROOT, TINIEST, free_port, start, with_devices
from tests.helpers.runs import assert_same_bits, deterministic

OPENMPI, SLURM, MANIFEST = (ROOT / "launch" / name for name in ("openmpi.sh", "slurm.sbatch", "jobset.yaml"))


def job_of_manifest() -> dict:
    return yaml.safe_load(MANIFEST.read_text())["spec"]["replicatedJobs"][0]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The workdir of two processes that ran to the end, started as the manifest starts them."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    [container] = job_of_manifest()["template"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "lma_jax.train"]
    here = f"--coordinator=127.0.0.1:{free_port()}"
    pair = []
    for index in range(2):
        given = [argument.replace("$(JOB_COMPLETION_INDEX)", str(index)) for argument in container["args"]]
        job = [argument for argument in given if argument.startswith(("--num_processes", "--process_id"))]
        pair.append(start("lma_jax.train", *job, here, *TINIEST, f"--workdir={workdir}"))
    results = [command.finish() for command in pair]
    assert [result.code for result in results] == [0, 0], results
    return workdir


def assert_undisturbed(workdir: Path, undisturbed: Path) -> None:
    assert_same_bits(workdir, undisturbed)
    assert deterministic(read_metrics(workdir)) == deterministic(read_metrics(undisturbed))


def environment(first_on_path: Path | str, **variables: str) -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": with_devices(1), **variables, "PATH": f"{first_on_path}:{os.environ['PATH']}"}


def program(folder: Path, name: str, body: str) -> None:
    """A stand-in for a program of a cluster; it appends its arguments to the file <name>.calls first."""
    path = folder / name
    path.write_text(f"#!/bin/bash\necho ${{*//$'\\n'/ }} >> {path}.calls\n{body}\n")
    path.chmod(0o755)


def calls(folder: Path, name: str) -> list[str]:
    path = folder / f"{name}.calls"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(path: Path, text: str) -> None:
    """Waits for a line of a file; the test fails if it does not come within two minutes."""
    end = time.monotonic() + 120
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < end, path.read_text() if path.exists() else f"no {path}"
        time.sleep(0.005)


def test_the_manifest_is_a_jobset():
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed")
    manifest = yaml.safe_load(MANIFEST.read_text())
    # A name that the models do not know is lost on the way, and a value that is missing is added.
    assert models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict() == manifest


def test_the_manifest_agrees_with_itself():
    manifest, job = yaml.safe_load(MANIFEST.read_text()), job_of_manifest()
    spec = job["template"]["spec"]
    [container] = spec["template"]["spec"]["containers"]
    values = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    assert {spec["completions"], spec["parallelism"], int(values["num_processes"])} == {spec["completions"]}
    name = manifest["metadata"]["name"]
    assert values["coordinator"].partition(":")[0] == f"{name}-{job['name']}-0-0.{name}"
    assert (ROOT / values["config"]).is_file()
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    written = [values["workdir"], *(variable["value"] for variable in container["env"])]
    assert all(path.startswith(tuple(mounts)) for path in [*written, values["config.data_dir"]])


def test_the_manifest_tells_a_stop_from_a_mistake():
    spec = yaml.safe_load(MANIFEST.read_text())["spec"]
    rules = job_of_manifest()["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [2, 75]
    message = "Container lma for pod default/lma-train-0-1-x failed with exit code {} matching FailJob rule at index 0"
    [pattern] = spec["failurePolicy"]["rules"][0]["onJobFailureMessagePatterns"]
    assert [pattern in message.format(code) for code in (2, 75)] == [True, False]


@pytest.mark.parametrize(("code", "requeued"), [(0, []), (1, []), (2, []), (75, ["requeue 7"]), (137, [])])
def test_slurm_requeues_only_what_was_saved(tmp_path, code, requeued):
    program(tmp_path, "srun", f"exit {code}")
    program(tmp_path, "scontrol", "exit 0")
    job = environment(tmp_path, SLURM_JOB_ID="7", SLURM_CPUS_PER_TASK="3")
    done = subprocess.run(["bash", SLURM, "--config=a b.py"], env=job)
    assert done.returncode == code
    assert calls(tmp_path, "scontrol") == requeued
    [call] = calls(tmp_path, "srun")
    assert "--cpus-per-task=3" in call
    assert call.endswith("python -m lma_jax.train --distributed --config=a b.py")


def test_openmpi_needs_its_separator():
    done = subprocess.run(["bash", OPENMPI, "-n", "2"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: usage: {OPENMPI} <options of mpirun> -- <options of lma_jax.train>\n"


# An mpirun of one process.
MPIRUN = 'until [ "$1" = bash ]; do shift; done; OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_RANK=0 "$@"'


@pytest.mark.parametrize(("first", "code", "starts"), [(75, 0, 2), (0, 0, 1), (2, 2, 1), (137, 137, 1)])
def test_openmpi_starts_again_what_was_saved(tmp_path, first, code, starts):
    program(tmp_path, "mpirun", MPIRUN)
    program(tmp_path, "python", f"[ $(wc -l < {tmp_path}/python.calls) -gt 1 ] || exit {first}")
    done = subprocess.run(["bash", OPENMPI, "--host", "a,b", "--", "--config=c.py"], env=environment(tmp_path))
    assert done.returncode == code
    for call in calls(tmp_path, "mpirun"):
        assert call.startswith("--bind-to none --host a,b bash -c ")
    called = calls(tmp_path, "python")
    assert len(called) == starts
    for call in called:
        assert call.startswith(f"-m lma_jax.train --coordinator={socket.gethostname()}:")
        assert call.endswith(" --num_processes=1 --process_id=0 --config=c.py")


def test_openmpi_passes_a_stop_on_and_keeps_the_exit_code(tmp_path):
    program(tmp_path, "mpirun", MPIRUN)
    program(tmp_path, "python", f"trap 'exit 75' TERM; touch {tmp_path}/ready; while :; do sleep 0.01; done")
    launcher = subprocess.Popen(["bash", OPENMPI, "--", "--config=c.py"], env=environment(tmp_path))
    wait_for(tmp_path / "ready", "")
    launcher.terminate()
    assert launcher.wait() == 75
    assert len(calls(tmp_path, "python")) == 1


@pytest.mark.process
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed (Debian: openmpi-bin)")
def test_openmpi_starts_a_stopped_run_again_and_ends_with_the_same_bits(tmp_path, undisturbed):
    workdir, log = tmp_path / "run", tmp_path / "log"
    options = ["-n", "2", "--oversubscribe", "--allow-run-as-root", "--", *TINIEST, f"--workdir={workdir}"]
    with log.open("w") as output:
        variables = environment(Path(sys.executable).parent)
        launcher = subprocess.Popen(["bash", OPENMPI, *options], cwd=ROOT, env=variables, stdout=output, stderr=output)
        wait_for(log, "step 8/")
        process = subprocess.check_output(["pgrep", "--full", f"^python .*--process_id=1 .*{workdir}"], text=True)
        os.kill(int(process), signal.SIGTERM)
        assert launcher.wait() == 0, log.read_text()
    assert "stopped by SIGTERM" in log.read_text()
    assert "resuming after step" in log.read_text()
    assert_undisturbed(workdir, undisturbed)


@pytest.mark.process
@pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing())
def test_slurm_stops_requeues_and_ends_with_the_same_bits(tmp_path, undisturbed):
    workdir, log = tmp_path / "run", tmp_path / "log"
    size = ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0", f"--output={log}"]
    with slurm.running() as cluster:
        variables = environment(Path(sys.executable).parent, **cluster)
        submit: list[str | Path] = ["sbatch", "--parsable", *size, SLURM, *TINIEST, f"--workdir={workdir}"]
        job = subprocess.check_output(submit, cwd=ROOT, env=variables, text=True).strip()
        wait_for(log, "step 8/")
        subprocess.run(["scancel", "--signal=TERM", job], env=variables, check=True)
        wait_for(log, "trained tiny_lma for 18 steps")
        state = ""
        while "JobState=COMPLETED" not in state:
            state = subprocess.check_output(["scontrol", "show", "job", job], env=variables, text=True)
            assert "FAILED" not in state, log.read_text()
            time.sleep(0.05)
    assert "Restarts=1 " in state
    assert "stopped by SIGTERM" in log.read_text()
    assert "resuming after step" in log.read_text()
    assert_undisturbed(workdir, undisturbed)
