"""Modules and functions that write a model for other runtimes, and compare it with torch."""

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_backbone import SwinTransformerV2
from tools.utils.errors import UserError
from tools.utils.onnx_operators import ATTENTION_OPSET, BASIC_OPSET, onnx_operators
from tools.utils.runtimes import keep_regions_in_float32, load_exported, set_openvino_precision

# Bytes of the largest constant that is computed for a file: the position bias of a window of 24
# for 24 heads has 32 MB. Those that depend on the size of the image (which token goes where, masks)
# are smaller, or left to the runtime, which computes them when it reads the file.
_LARGEST_CONSTANT = 2**25
# Largest difference of a float32 file, relative to the largest value of an output.
TOLERANCE = 1e-4
# Of int8, relative error in the Euclidean norm: a gross check, as no bound can be derived. At 0.7
# the error has half the energy of the outputs; a segmentor with 0.38 lost 0.1 points of mIoU.
# Whether the accuracy suffices is for a test on data (tools/test.py --runtime).
_INT8_TOLERANCE = 0.7
# They warn that torchvision is missing, and of each operator that is left to the runtime.
_NOISY = ('torch.onnx._internal.exporter._registration', 'onnxscript.optimizer._constant_folding')


class AdaptivePool(nn.Module):
    """nn.AdaptiveAvgPool2d as two matrix products, ``(B, C, H, W) -> (B, C, rows, columns)``.

    torch's exporter writes the bins of the traced image into the file, and would pool other sizes
    wrongly.
    """

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (
            _averages(bins, length).to(x)
            for bins, length in zip(self.size, x.shape[2:], strict=True)
        )
        # (Not `rows @ x`: how torch expands that depends on whether a side is 1.)
        maps = x.flatten(0, 1)
        rows, columns = (each.expand(len(maps), -1, -1) for each in (rows, columns.t()))
        return torch.bmm(rows, torch.bmm(maps, columns)).unflatten(0, x.shape[:2])


def _averages(bins: int, length: int) -> Tensor:
    """The matrix ``(bins, length)`` that averages a line of values over each bin."""
    index, place = torch.arange(bins)[:, None], torch.arange(length)
    after = ((index + 1) * length + bins - 1) // bins
    inside = (place >= index * length // bins) & (place < after)
    return inside / inside.sum(1, keepdim=True)


def replace_adaptive_pools(model: nn.Module) -> nn.Module:
    """A model with its nn.AdaptiveAvgPool2d replaced by AdaptivePool, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                size = child.output_size
                size = (size, size) if isinstance(size, int) else tuple(size)
                module.add_module(name, AdaptivePool(size))
    return model


class Segmentor(nn.Module):
    """Normalized images to logits of their size: ``(B, 3, H, W) -> (B, classes, H, W)``.

    The model is mmseg's EncoderDecoder. Normalizing the images and taking the best class are not
    part of the file.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x, mode='tensor')
        return F.interpolate(
            logits, x.shape[2:], mode='bilinear', align_corners=self.model.align_corners
        )


def fold_constants(model: nn.Module, size: tuple[int, int] | None) -> None:
    """Have the backbone use position biases that are computed now, for its present windows.

    Args:
        size: Height and width of the images in pixels, to whose maps windows shrink. None: unknown.
    """
    for backbone in model.modules():
        if not isinstance(backbone, SwinTransformerV2):
            continue
        for stage, stride in zip(backbone.layers, _strides(backbone), strict=True):
            window = stage.window
            if size is not None:
                sides = (-(-pixels // stride) for pixels in size)
                window = tuple(map(min, window, sides))
            with torch.no_grad():
                constants = stage.attention_constants(window)
            stage.attention_constants = _always(constants)


def _strides(backbone: SwinTransformerV2) -> list[int]:
    return [backbone.patch_size * 2**i for i in range(len(backbone.layers))]


def _always(result: object) -> Callable:
    return lambda *_: result


def export_program(model: nn.Module, image: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    """The model as a program of torch.export, for all heights and widths if `dynamic`."""
    sides = None
    if dynamic:
        sides = ({2: torch.export.Dim('height', min=1), 3: torch.export.Dim('width', min=1)},)
    # Sizes of 1 are no special case.
    oblivious = torch.fx.experimental._config.patch(backed_size_oblivious=True)
    with torch.no_grad(), oblivious:
        return torch.export.export(model, (image,), dynamic_shapes=sides)


def write_onnx(
    model: nn.Module, image: Tensor, outputs: list[str], path: Path, dynamic: bool, opset: int
) -> None:
    """Write a model as ONNX, with its weights inside the file."""
    from onnxscript import optimizer

    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    program = torch.onnx.export(
        export_program(model, image, dynamic),
        input_names=['image'],
        output_names=outputs,
        dynamo=True,
        verbose=False,
        optimize=False,
        opset_version=opset,
        custom_translation_table=onnx_operators(opset),
    )
    limits = dict(input_size_limit=_LARGEST_CONSTANT, output_size_limit=_LARGEST_CONSTANT)
    optimizer.optimize_ir(program.model, **limits)
    program.save(path, external_data=False)


def write_openvino(
    onnx: Path, path: Path, precision: str, calibration: Sequence[Tensor] = ()
) -> None:
    """Write an ONNX file as OpenVINO's pair of files, .xml and .bin.

    Args:
        precision: 'fp32', 'int8' (weights and activations, by NNCF), or 'bf16': the weights stay
            float32, and that it is to be computed in bfloat16 is recorded.
        calibration: Images ``(1, 3, H, W)`` from which the ranges of int8 are measured.
    """
    import openvino

    model = openvino.convert_model(onnx)
    if precision == 'int8':
        import nncf

        model = nncf.quantize(
            model,
            nncf.Dataset([image.numpy() for image in calibration]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
        )
    set_openvino_precision(model, precision)
    openvino.save_model(model, path, compress_to_fp16=False)
    keep_regions_in_float32(path)


def write(
    model: nn.Module,
    image: Tensor,
    outputs: list[str],
    path: Path,
    dynamic: bool = False,
    precision: str = 'fp32',
    calibration: Sequence[Tensor] = (),
    opset: int = ATTENTION_OPSET,
) -> None:
    """Write a model in the format of the path's suffix; see ``runtimes.FORMATS``.

    Args:
        model: In eval mode; its constants are folded and its pools replaced.
        image: ``(B, 3, H, W)``; unless `dynamic`, the file takes images of this size only.
        outputs: Names of the outputs.
        precision, calibration: As of :func:`write_openvino`, for OpenVINO only.
        opset: Version of the operators, for ONNX only; of detectors BASIC_OPSET.
    """
    replace_adaptive_pools(model)
    # (A trace takes every size in any case.)
    fold_constants(model, None if dynamic or path.suffix == '.pt' else tuple(image.shape[2:]))
    if path.suffix == '.pt2':
        torch.export.save(export_program(model, image, dynamic), path)
    elif path.suffix == '.pt':
        with torch.no_grad():
            torch.jit.trace(model, image, check_trace=False).save(path)
    elif path.suffix == '.onnx':
        write_onnx(model, image, outputs, path, dynamic, opset)
    else:
        with tempfile.TemporaryDirectory() as folder:
            onnx = Path(folder) / 'model.onnx'
            write_onnx(model, image, outputs, onnx, dynamic, BASIC_OPSET)
            write_openvino(onnx, path, precision, calibration)


@contextmanager
def kept_if_it_passes(path: Path):
    """A path to write to, whose files come to lie at `path` when the block ends without an error.

    Yields:
        A path with the same name in a new folder beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.export') as folder:
        partial = Path(folder) / path.name
        yield partial
        for file in sorted(partial.parent.iterdir()):  # The .bin comes before its .xml.
            os.replace(file, path.parent / file.name)


def compare(model: nn.Module, images: Sequence[Tensor], path: Path, precision: str) -> str:
    """Compare a file with the model that it was made from.

    float32: the largest difference is at most TOLERANCE of the largest value of an output. bf16:
    the relative error of all outputs (Euclidean norm) is at most 4 times that of torch's own
    autocast, as if it had 16 times as many roundings. int8: see _INT8_TOLERANCE.

    Returns:
        What was found, for people.

    Raises:
        UserError: If an output has another shape, or differs by more.
    """
    run, worst, bound = load_exported(path), 0.0, TOLERANCE
    for image in images:
        with torch.no_grad():
            expected = _tuple(model(image))
            if precision == 'bf16':
                with torch.autocast('cpu', torch.bfloat16):
                    bound = 4 * _relative_error(_tuple(model(image)), expected)
        found = run(image)
        shapes = [[tuple(x.shape) for x in each] for each in (found, expected)]
        if shapes[0] != shapes[1]:
            raise UserError(f'{path.name}: outputs of {shapes[0]}, of {shapes[1]} in torch')
        error = _largest_difference if precision == 'fp32' else _relative_error
        bound = _INT8_TOLERANCE if precision == 'int8' else bound
        worst = max(worst, difference := error(found, expected))
        if not difference <= bound:
            size = ' x '.join(map(str, image.shape[2:]))
            raise UserError(
                f'{path.name}: differs from torch by {difference:.1e} at {size}, allowed: '
                f'{bound:.1e}; it was not kept'
            )
    kind = 'of the largest value' if precision == 'fp32' else 'in the Euclidean norm'
    return f'differs from torch by at most {worst:.1e} {kind}'


def _tuple(outputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _largest_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def _relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    ours, theirs = (torch.cat([x.float().flatten() for x in each]) for each in (found, expected))
    return ((ours - theirs).norm() / theirs.norm()).item()
