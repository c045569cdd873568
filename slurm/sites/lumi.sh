#!/bin/bash
# LUMI-G. Sources: the LUMI user guide (GPU binding, PyTorch), the launch scripts of the runs of Poro and of its
# successors (lumi-llm-scaling, Megatron-LM-lumi, poro2-scripts-dev), and nothing of our own invention.

# The 7 cores that are nearest to each GCD, in the order of the GCDs: 49-55, 57-63, 17-23, 25-31, 1-7, 9-15, 33-39,
# 41-47. Core 0 and the first core of each group of eight are the system's.
export PORO_CPU_MASKS=0xfe000000000000,0xfe00000000000000,0xfe0000,0xfe000000,0xfe,0xfe00,0xfe00000000,0xfe0000000000

srun_options=()
if [[ ${SLURM_NTASKS_PER_NODE:-} == 8 ]]; then
    # shellcheck disable=SC2034 # read by the job script
    srun_options=(--cpu-bind="mask_cpu:$PORO_CPU_MASKS")
else
    unset PORO_CPU_MASKS # a part of a node: Slurm chooses its cores
fi

site_setup() {
    # 32 channels per peer gave unstable gradients with pipelines.
    if [[ -n ${NCCL_NCHANNELS_PER_PEER:-} ]]; then
        echo "NCCL_NCHANNELS_PER_PEER=$NCCL_NCHANNELS_PER_PEER is set, which spoils gradients; unset it." >&2
        exit 2
    fi

    # Network. Without the names RCCL picks an interface that it cannot use. aws-ofi-rccl, which makes RCCL use
    # libfabric and not TCP, is part of LUMI's images: NCCL_DEBUG=INFO says "NET/OFI" and "Selected Provider is cxi".
    export NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3
    export GLOO_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3
    export NCCL_NET_GDR_LEVEL=PHB
    export FI_CXI_DEFAULT_CQ_SIZE=262144 # else "Cassini Event Queue overflow" at scale
    export FI_CXI_DISABLE_CQ_HUGETLB=1
    export CXI_FORK_SAFE=1
    export CXI_FORK_SAFE_HP=1

    # Devices. All eight are visible to each task, which takes the one of its LOCAL_RANK.
    export CUDA_DEVICE_MAX_CONNECTIONS=1
    export HSA_ENABLE_SDMA=0
    export HSA_FORCE_FINE_GRAIN_PCIE=1
    export PYTORCH_HIP_ALLOC_CONF=max_split_size_mb:512
    export PYTORCH_ROCM_ARCH=gfx90a

    # Hosts.
    export OMP_NUM_THREADS=1
    export TOKENIZERS_PARALLELISM=false
    export PYTHONUSERBASE="" # ~/.local stays out
    export TORCH_EXTENSIONS_DIR=${PORO_JOB_FOLDER:-$PWD}/torch_extensions
}

site_task() {
    # Lustre lacks the locks that MIOpen's cache needs; /tmp is the node's memory.
    export MIOPEN_USER_DB_PATH=/tmp/$USER-miopen-cache-${SLURM_NODEID:-0}
    export MIOPEN_CUSTOM_CACHE_DIR=$MIOPEN_USER_DB_PATH
    mkdir -p "$MIOPEN_USER_DB_PATH"

    # What a job that was killed left in shared memory, on nodes that are all ours, before the first process uses it.
    local is_alone=0
    [[ ${SLURM_JOB_PARTITION:-} != standard-g ]] || is_alone=1
    if [[ "${1:-} ${2:-}" == "job preflight" && $is_alone == 1 && ${SLURM_LOCALID:-} == 0 ]]; then
        find /dev/shm -mindepth 1 -user "$USER" -delete 2>/dev/null || true
    fi
}
