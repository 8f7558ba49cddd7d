# Sourced by dist_train.sh and dist_test.sh.

fail() { echo "error: $1" >&2; exit 2; }

# launch_processes SCRIPT PROCESSES [arguments of the script]
launch_processes() {
    local script=$1 processes=$2
    shift 2
    case $processes in '' | *[!0-9]* | 0) fail "GPUS has to be a positive number, not '$processes'" ;; esac
    # Asking PyTorch takes 2 seconds: only where there is a device of NVIDIA, Jetson, WSL or AMD.
    local gpus=0 device
    for device in /dev/nvidia* /dev/nvhost* /dev/dxg /dev/kfd; do
        [ -e "$device" ] || continue
        gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
        break
    done
    if [ "$processes" -gt "$gpus" ]; then
        echo "$processes processes, $gpus GPUs: running on the CPU with gloo"
        export CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + processes - 1) / processes))}
    fi
    local nodes=${NNODES:-1} node=${NODE_RANK:-0} address=127.0.0.1 rendezvous=()
    if [ "$nodes" -gt 1 ]; then
        node=${NODE_RANK:?several nodes need NODE_RANK, 0 to NNODES-1}
        address=${MASTER_ADDR:?several nodes need MASTER_ADDR, the address of node 0}
        PORT=${PORT:-29500}
    fi
    [ -z "${PORT:-}" ] || [ "$node" != 0 ] || check_port "$PORT"
    if [ "${MAX_RESTARTS:-0}" != 0 ]; then
        # Only this rendezvous gives the restarted processes a store without the addresses of the dead ones, and only
        # when told to (github.com/pytorch/pytorch/issues/135712).
        export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
        rendezvous=(--max-restarts "$MAX_RESTARTS" --rdzv-backend c10d --rdzv-endpoint "$address:${PORT:-0}"
            --rdzv-id deit-detr --rdzv-conf "is_host=$((node == 0))")
        [ "$node" != 0 ] || rendezvous+=(--local-addr "$address")
    elif [ -n "${PORT:-}" ]; then
        rendezvous=(--node-rank "$node" --master-addr "$address" --master-port "$PORT")
    else
        rendezvous=(--standalone)  # this machine alone, on a free port
    fi
    exec python -m torch.distributed.run --nnodes "$nodes" --nproc-per-node "$processes" "${rendezvous[@]}" \
        "$(dirname "${BASH_SOURCE[0]}")/$script" "$@" --launcher pytorch
}

# check_port PORT: torchrun answers a busy one with a page of traceback
check_port() {
    case $1 in '' | *[!0-9]*) fail "PORT has to be a number, not '$1'" ;; esac
    python -c 'import socket, sys; socket.create_server(("", int(sys.argv[1])))' "$1" 2>/dev/null ||
        fail "PORT $1 is already in use on this machine, or not allowed: set another"
}
