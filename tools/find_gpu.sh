# Find idle GPUs:  . tools/find_gpu.sh NUM MIN_FREE_MIB      (NUM -1: all that have the memory)
# Sets gpu_id (comma-separated indices, most free memory first) and n_gpu_found, for the calling shell.

find_gpu() {
    gpu_id='' n_gpu_found=0
    local wanted=${1:-} min_free=${2:-} free
    case $wanted in -1 | [1-9] | [1-9][0-9]) ;; *) echo "find_gpu: NUM has to be -1 or a number of GPUs, not '$wanted'" >&2; return 2 ;; esac
    case $min_free in '' | *[!0-9]*) echo "find_gpu: MIN_FREE_MIB has to be a number, not '$min_free'" >&2; return 2 ;; esac
    if ! free=$(nvidia-smi --query-gpu=index,memory.free --format=csv,noheader,nounits 2>&1); then
        echo "find_gpu: nvidia-smi failed, is there an NVIDIA driver? $free" >&2
        return 1
    fi
    local ids
    mapfile -t ids < <(tr -d ' ' <<<"$free" | awk -F, -v min="$min_free" '$2 ~ /^[0-9]+$/ && $2 >= min' |
        sort -t, -k2,2nr -k1,1n | cut -d, -f1)
    if [ "$wanted" -eq -1 ]; then wanted=$((${#ids[@]} > 0 ? ${#ids[@]} : 1)); fi
    if [ "${#ids[@]}" -lt "$wanted" ]; then
        echo "find_gpu: ${#ids[@]} GPU(s) with at least $min_free MiB free, $wanted wanted. Free MiB by index:" >&2
        echo "$free" >&2
        return 1
    fi
    n_gpu_found=$wanted
    gpu_id=$(IFS=,; echo "${ids[*]:0:wanted}")
    echo "find_gpu: using GPU $gpu_id"
}

find_gpu "$@"
