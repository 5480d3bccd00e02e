#!/usr/bin/env bash
# Build a TensorRT engine from an exported ONNX file. NOT RUN so far: no NVIDIA GPU was available.
# It needs TensorRT's trtexec, and a file of `export.py --opset 20`; see docs/deployment.md.
#
#     tools/deployment/tensorrt.sh model.onnx model.engine [trtexec options, such as --bf16]
#
# For a file of --dynamic, give the range of sizes:
#     --minShapes=image:1x3x64x64 --optShapes=image:1x3x512x512 --maxShapes=image:1x3x1024x1024
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 MODEL.onnx MODEL.engine [trtexec options]" >&2
    exit 2
fi
onnx=$1 engine=$2
shift 2
exec trtexec --onnx="$onnx" --saveEngine="$engine" "$@"
