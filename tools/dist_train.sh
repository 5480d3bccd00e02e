#!/usr/bin/env bash
# dist_train.sh CONFIG GPUS [options of train.py]: one process a GPU.
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT.
exec bash "$(dirname "$0")/dist_run.sh" train.py "${1:?CONFIG}" "${2:?GPUS}" "${@:3}"
