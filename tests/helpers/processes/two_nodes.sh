#!/usr/bin/env bash
# Rehearse a training on two nodes: two network namespaces of this machine, joined by a virtual cable, one CPU process
# each:  bash tests/helpers/processes/two_nodes.sh WORK_DIR [arguments of train.py]
# MINI_SCANNET_ROOT has the data. Needs root; where namespaces are not allowed it says so and ends with 0.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
repo=$(cd "$(dirname "$0")/../../.." && pwd)
config=$repo/projects/deit_detr/configs/lw-detr_deit-tiny_1xb4-16e_mini-scannet.py
work_dir=$1
shift
nodes=("rehearsal$$-0" "rehearsal$$-1")

remove_nodes() { for node in "${nodes[@]}"; do ip netns del "$node" 2>/dev/null || true; done; }
trap remove_nodes EXIT
if ! why=$({ ip netns add "${nodes[0]}" && ip netns add "${nodes[1]}" &&
    ip -n "${nodes[0]}" link add cable type veth peer name cable netns "${nodes[1]}"; } 2>&1); then
    echo "skipped: no network namespaces here (${why//$'\n'/; })"
    exit 0
fi
for rank in 0 1; do
    ip -n "${nodes[rank]}" addr add "10.99.0.$((rank + 1))/24" dev cable
    ip -n "${nodes[rank]}" link set cable up
    ip -n "${nodes[rank]}" link set lo up
done

mkdir -p "$work_dir"
export MASTER_ADDR=10.99.0.1 PORT=29500 NNODES=2 GLOO_SOCKET_IFNAME=cable OMP_NUM_THREADS=1
for rank in 0 1; do
    NODE_RANK=$rank ip netns exec "${nodes[rank]}" bash "$repo/tools/dist_train.sh" "$config" 1 \
        --work-dir "$work_dir" --cfg-options model.backbone.init_cfg=None train_dataloader.batch_size=2 \
        train_dataloader.num_workers=0 train_dataloader.persistent_workers=False train_cfg.max_epochs=1 \
        train_cfg.val_interval=9 default_hooks.logger.interval=1 "$@" >"$work_dir/node$rank.log" 2>&1 &
    pids[rank]=$!
done
status=0
for rank in 0 1; do
    wait "${pids[rank]}" && ended=0 || { ended=$?; status=$ended; tail -n 20 "$work_dir/node$rank.log"; }
    grep -E 'gloo|Epoch\(train\)' "$work_dir/node$rank.log" | cut -c 1-160 || true
    echo "node $rank: status $ended"
done
sent=$(ip netns exec "${nodes[0]}" cat /sys/class/net/cable/statistics/tx_bytes)
echo "node 0 sent $sent bytes"
exit "$status"
