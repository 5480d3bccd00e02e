#!/usr/bin/env bash
# dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]: one process a GPU.
exec bash "$(dirname "$0")/dist_run.sh" test.py "${1:?CONFIG}" "${3:?GPUS}" "${2:?CHECKPOINT}" "${@:4}"
