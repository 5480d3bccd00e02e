"""How operators of torch, and those of detectors, are written in ONNX."""

from collections.abc import Callable, Sequence

import torch

from tools.utils.detectors import LEFT_OUT

# The first opset with the operator Attention.
ATTENTION_OPSET = 23
# Without Attention: for older runtimes; for detectors, since onnxruntime (1.32) does not have the
# RoiAlign of opset 22; for OpenVINO (2026.4.1), which makes one operator of the single ones by
# itself, and whose bfloat16 was 2 to 5 % slower with Attention.
BASIC_OPSET = 20


def onnx_operators(opset: int) -> dict[Callable, Callable]:
    """The functions that write operators of torch, for ``torch.onnx.export``.

    Args:
        opset: Version of the ONNX operators.
    """
    ours = torch.ops.swinv2_tools
    table = {ours.nms.default: _nms, ours.roi_align.default: _roi_align}
    if opset >= ATTENTION_OPSET:
        table[torch.ops.aten.scaled_dot_product_attention.default] = _attention
    return table


def _nms(boxes, scores, iou: float, count: int):
    from onnxscript import opset20 as op

    def constant(value: float, dtype: torch.dtype) -> object:
        return op.Constant(value=_onnx_tensor(torch.tensor([value], dtype=dtype)))

    found = op.NonMaxSuppression(
        op.Unsqueeze(boxes, constant(0, torch.long)),
        op.Unsqueeze(op.Unsqueeze(scores, constant(0, torch.long)), constant(0, torch.long)),
        constant(count, torch.long),
        constant(iou, torch.float32),
        constant(LEFT_OUT / 2, torch.float32),
    )
    # Rows of image, class and box.
    return op.Gather(found, op.Constant(value_int=2), axis=1)


def _onnx_tensor(x: torch.Tensor) -> object:
    import onnx

    return onnx.numpy_helper.from_array(x.numpy())


def _roi_align(maps, rois, size: Sequence[int], scale: float, samples: int, aligned: bool):
    from onnxscript import opset20 as op

    image = op.Cast(op.Gather(rois, op.Constant(value_int=0), axis=1), to=7)
    return op.RoiAlign(
        maps,
        op.Gather(rois, op.Constant(value_ints=[1, 2, 3, 4]), axis=1),
        image,
        output_height=size[0],
        output_width=size[1],
        spatial_scale=scale,
        sampling_ratio=samples,
        coordinate_transformation_mode='half_pixel' if aligned else 'output_half_pixel',
    )


def _attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
):
    """torch's SDPA of ``(B, heads, tokens, channels)`` as Attention of ``(B, tokens, -1)``.

    In the latter form, onnxruntime needs no copies that move the heads. A file computes without
    dropout, and from the numbers of heads follows whether keys are shared.
    """
    from onnxscript import opset23 as op

    by_token = [op.Transpose(x, perm=[0, 2, 1, 3]) for x in (query, key, value)]
    q, k, v = (op.Reshape(x, op.Constant(value_ints=[0, 0, -1])) for x in by_token)
    heads = dict(q_num_heads=query.shape[1], kv_num_heads=key.shape[1])
    options = {} if scale is None else {'scale': scale}
    attended, *_ = op.Attention(q, k, v, attn_mask, is_causal=int(is_causal), **heads, **options)
    by_head = op.Reshape(attended, op.Constant(value_ints=[0, 0, query.shape[1], -1]))
    return op.Transpose(by_head, perm=[0, 2, 1, 3])
