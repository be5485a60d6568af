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

# Not --distributed: JAX recognises Open MPI 4 alone.
coordinator=$(hostname):$((61440 + $$ % 4096))
saved=$(mktemp)
trap 'rm -f "$saved"' EXIT
# mpirun kills the others when one process fails, and 75 is no failure: process 0, which is on this machine, notes it.
process='
    trap : TERM
    python -m lma_jax.train --coordinator="$1" --num_processes="$OMPI_COMM_WORLD_SIZE" \
        --process_id="$OMPI_COMM_WORLD_RANK" "${@:2}"
    code=$?
    [ "$code" -eq 75 ] || exit "$code"
    [ "$OMPI_COMM_WORLD_RANK" -gt 0 ] || echo 75 > "$0"'

# mpirun leaves its processes a second after SIGTERM, too little to save. So the process of this machine is told
# itself, and tells the others.
stop() {
    stopped=true
    interrupted=true
    pkill -TERM --full "python -m lma_jax.train --coordinator=$coordinator " || kill -TERM "$job"
}
stopped=false
trap stop TERM INT

code=75
while [ "$code" -eq 75 ] && ! $stopped; do
    : > "$saved"
    # A session of its own keeps Ctrl-C from mpirun. Bound to cores, a process would feed its GPUs with one of them.
    setsid mpirun --bind-to none "${options[@]}" bash -c "$process" "$saved" "$coordinator" "$@" &
    job=$!
    interrupted=true
    while $interrupted; do # a signal ends `wait` before the job
        interrupted=false
        wait "$job"
        code=$?
    done
    [ ! -s "$saved" ] || [ "$code" -ne 0 ] || code=75
done
exit "$code"
