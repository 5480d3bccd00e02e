#!/usr/bin/env bash
# dist_run.sh SCRIPT CONFIG GPUS [arguments]: what dist_train.sh and dist_test.sh share.
set -euo pipefail
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${MASTER_PORT:-29500}" \
    --nproc_per_node="$3" "$(dirname "$0")/$1" "$2" "${@:4}" --launcher pytorch
