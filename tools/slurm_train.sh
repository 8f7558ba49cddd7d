#!/usr/bin/env bash
# Train under Slurm:  bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]
# From the environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS.
# In a job that may be preempted or reaches its time limit: it saves, goes back to the queue and continues there, with
#   sbatch --requeue --signal=USR1@120 ... --wrap "bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR"
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-8}
[ "$gpus" -ge "$gpus_per_node" ] || gpus_per_node=$gpus
resume=()
if [ "${SLURM_RESTART_COUNT:-0}" -ne 0 ]; then
    resume=(--resume)
    case " ${*:5} " in *' --resume '[!-]* | *' --resume='*)  # needed again until the job has a checkpoint
        [ -e "$4/last_checkpoint" ] || compgen -G "$4/preempted_iter_*.pth" > /dev/null || resume=() ;;
    esac
fi
trap : TERM USR1  # of the training alone: this script has to outlive it
status=0
# shellcheck disable=SC2086  # SRUN_ARGS is a list of arguments
srun -p "$1" --job-name="$2" --gres="gpu:$gpus_per_node" --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} python -u "$(dirname "$0")/train.py" "$3" --work-dir "$4" --launcher slurm "${@:5}" \
    ${resume[@]+"${resume[@]}"} || status=$?
if [ "$status" -eq 75 ] && [ -n "${SLURM_JOB_ID:-}" ]; then  # saved when asked to stop
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
