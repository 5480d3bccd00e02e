"""Exported models: read a file and run it, whatever its format."""

from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from tools.utils.errors import UserError


class Exported(NamedTuple):
    """An exported model, a function from images ``(B, 3, H, W)`` to its outputs.

    Attributes:
        outputs: Their names; () where the format has none.
        sides: H and W of the images that it takes, None for any.
    """

    run: Callable[[Tensor], tuple[Tensor, ...]]
    outputs: tuple[str, ...] = ()
    sides: tuple[int | None, int | None] = (None, None)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.run(x)


# The precision of an OpenVINO file, in its own metadata: without it, OpenVINO computes in
# bfloat16 wherever the CPU has it.
_PRECISION_KEY = ['swinv2_backbone', 'INFERENCE_PRECISION_HINT']
FORMATS = {'onnx': '.onnx', 'openvino': '.xml', 'torchscript': '.pt', 'torch_export': '.pt2'}
_RUNTIMES = {'onnxruntime': ('.onnx',), 'openvino': ('.xml', '.onnx')}
RUNTIMES = tuple(_RUNTIMES)
# Layers at which the search for those that compute coordinates ends.
_NO_COORDINATES = {'Convolution', 'MatMul', 'Parameter', 'Const'}
EXTRA = "pip install '.[deploy]'"


def files_for(path: Path) -> list[str]:
    """The runtimes that an exported file is for, by its suffix."""
    return [name for name, suffixes in _RUNTIMES.items() if path.suffix in suffixes]


def require(*packages: str) -> None:
    """Raise UserError if a package is missing."""
    missing = [name for name in packages if not find_spec(name)]
    if missing:
        raise UserError(f'needs {" ".join(missing)}: {EXTRA}')


def load_exported(path: Path, runtime: str | None = None) -> Exported:
    """Read an exported model.

    As many threads run as torch has.

    Args:
        runtime: 'onnxruntime' or 'openvino'; None: the one that is for the file's suffix.

    Raises:
        UserError: If there is no such file, it is not for this runtime, or a package is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"file '{path}' does not exist; tools/deployment/export.py writes one")
    if runtime and runtime not in files_for(path):
        allowed = ' or '.join(_RUNTIMES[runtime])
        raise UserError(f"--runtime: got {runtime} with '{path}', allowed: a {allowed} file")
    readers = {'.onnx': _onnxruntime, '.xml': _openvino, '.pt': _torchscript, '.pt2': _program}
    if path.suffix not in readers:
        raise UserError(f"file '{path}': allowed: {', '.join(readers)}")
    return (_openvino if runtime == 'openvino' else readers[path.suffix])(path)


def _onnxruntime(path: Path) -> Exported:
    require('onnxruntime')
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    (image,) = session.get_inputs()
    height, width = (side if isinstance(side, int) else None for side in image.shape[2:])

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {image.name: _array(x)})))

    return Exported(run, tuple(each.name for each in session.get_outputs()), (height, width))


def _openvino(path: Path) -> Exported:
    require('openvino')
    import openvino

    model = openvino.Core().read_model(path)
    known = model.has_rt_info(_PRECISION_KEY)
    settings = {
        'INFERENCE_PRECISION_HINT': model.get_rt_info(_PRECISION_KEY).value if known else 'f32',
        'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        'PERFORMANCE_HINT': 'LATENCY',
    }
    request = openvino.compile_model(model, 'CPU', settings).create_infer_request()

    def run(x: Tensor) -> tuple[Tensor, ...]:
        # (`infer` copies them: the next call writes into the same memory.)
        return tuple(map(torch.from_numpy, request.infer([_array(x)]).values()))

    height, width = (
        side.get_length() if side.is_static else None
        for side in list(model.input().partial_shape)[2:]
    )
    return Exported(run, tuple(each.get_any_name() for each in model.outputs), (height, width))


def set_openvino_precision(model: object, precision: str) -> None:
    """Record in an OpenVINO model the precision in which it is to be computed."""
    model.set_rt_info({'bf16': 'bf16'}.get(precision, 'f32'), _PRECISION_KEY)


def keep_regions_in_float32(path: Path) -> None:
    """Have OpenVINO compute regions of ROIAlign in float32 in any case, by marks in an .xml file.

    With the hint bf16 it would round their coordinates as well: at 300 pixels, by up to one.
    Marked are ROIAlign and what leads to its regions, back to the convolutions and matrix products.
    """
    tree = ElementTree.parse(path)
    layers = {layer.get('id'): layer for layer in tree.iterfind('layers/layer')}
    regions = defaultdict(list)  # What a layer is computed from; for ROIAlign without the map.
    for edge in tree.iterfind('edges/edge'):
        to = edge.get('to-layer')
        if layers[to].get('type') != 'ROIAlign' or edge.get('to-port') != '0':
            regions[to].append(edge.get('from-layer'))
    left = [name for name, layer in layers.items() if layer.get('type') == 'ROIAlign']
    marked = set()
    while left:
        name = left.pop()
        if name not in marked and layers[name].get('type') not in _NO_COORDINATES:
            marked.add(name)
            left += regions[name]
            info = layers[name].find('rt_info')
            info = ElementTree.SubElement(layers[name], 'rt_info') if info is None else info
            # Named so by OpenVINO's class DisableFP16Compression, which Python cannot set.
            ElementTree.SubElement(info, 'attribute', name='precise', version='0')
    tree.write(path)


def _torchscript(path: Path) -> Exported:
    return _without_gradients(torch.jit.load(path, map_location='cpu'))


def _program(path: Path) -> Exported:
    return _without_gradients(torch.export.load(path).module())


def _without_gradients(model: Callable) -> Exported:
    def run(x: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found = model(x)
        return tuple(found) if isinstance(found, tuple | list) else (found,)

    return Exported(run)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().contiguous().numpy()
