#!/usr/bin/env bash
# Trains on machines that mpirun reaches, one process a machine; docs/clusters.md explains.
#
#   launch/openmpi.sh -n 2 --host node1,node2 -- --config configs/resnet50_lma.py --workdir runs/r50
#
# Start it on the first of the machines. SIGTERM or Ctrl-C stops the run, which is saved (exit code 75). A run that was
# stopped by a signal to one of its processes is saved as well, and started again.

options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    options+=("$1")
    shift
done
if [ $# -eq 0 ]; then
    echo "error: usage: $0 <options of mpirun> -- <options of lma_jax.train>" >&2
    exit 2
fi
shift

# mpirun leaves its processes a second after SIGTERM, too little to save. So the process of this machine is told
# itself, and tells the others.
stop() {
    stopped=true
    interrupted=true
    pkill -TERM --parent "$job" --full lma_jax.train || kill -TERM "$job"
}
stopped=false
trap stop TERM INT

# Not --distributed: JAX recognises Open MPI 4 alone.
process='exec python -m lma_jax.train --coordinator="$0" \
    --num_processes="$OMPI_COMM_WORLD_SIZE" --process_id="$OMPI_COMM_WORLD_RANK" "$@"'
coordinator=$(hostname):$((61440 + $$ % 4096))

code=75
while [ "$code" -eq 75 ] && ! $stopped; do
    # A session of its own keeps Ctrl-C from mpirun. Bound to cores, a process would feed its GPUs with one of them.
    setsid mpirun --bind-to none "${options[@]}" bash -c "$process" "$coordinator" "$@" &
    job=$!
    interrupted=true
    while $interrupted; do # a signal ends `wait` before the job
        interrupted=false
        wait "$job"
        code=$?
    done
done
exit "$code"
