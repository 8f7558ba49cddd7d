# Sourced by dist_train.sh and dist_test.sh.

fail() { echo "error: $1" >&2; exit 2; }

# launch_processes SCRIPT PROCESSES [arguments of the script]
launch_processes() {
    local script=$1 processes=$2
    shift 2
    case $processes in '' | *[!0-9]* | 0) fail "GPUS has to be a positive number, not '$processes'" ;; esac
    local gpus
    gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
    if [ "$processes" -gt "$gpus" ]; then
        echo "$processes processes, $gpus GPUs: running on the CPU with gloo"
        export CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + processes - 1) / processes))}
    fi
    local rendezvous=(--standalone)  # this machine alone, on a free port
    if [ "${NNODES:-1}" -gt 1 ]; then
        rendezvous=(--node-rank "${NODE_RANK:?several nodes need NODE_RANK, 0 to NNODES-1}"
            --master-addr "${MASTER_ADDR:?several nodes need MASTER_ADDR, the address of node 0}"
            --master-port "${PORT:=29500}")
    elif [ -n "${PORT:-}" ]; then
        rendezvous=(--master-addr 127.0.0.1 --master-port "$PORT")
    fi
    [ -z "${PORT:-}" ] || [ "${NODE_RANK:-0}" != 0 ] || check_port "$PORT"
    exec python -m torch.distributed.run --nnodes "${NNODES:-1}" --nproc-per-node "$processes" \
        --max-restarts "${MAX_RESTARTS:-0}" "${rendezvous[@]}" \
        "$(dirname "${BASH_SOURCE[0]}")/$script" "$@" --launcher pytorch
}

# check_port PORT: torchrun answers a busy one with a page of traceback
check_port() {
    case $1 in '' | *[!0-9]*) fail "PORT has to be a number, not '$1'" ;; esac
    python -c 'import socket, sys; socket.create_server(("", int(sys.argv[1])))' "$1" 2>/dev/null ||
        fail "PORT $1 is already in use on this machine, or not allowed: set another"
}
