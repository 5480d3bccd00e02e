"""docs/model_zoo.md."""

from tools.utils.table import markdown_table
from tools.zoo.facts import CITED, DATA, ROOT, data_key
from tools.zoo.facts import names as all_names
from tools.zoo.measuring import IMAGES, SIDE

PAGE = ROOT / 'docs/model_zoo.md'
_INTRODUCTION = f"""# Model zoo

Every config of this repository. `make zoo` writes this page, `model-index.yml` and the metafiles
from the configs and from [what it measured](benchmarks/model_zoo.json).

## Names

    METHOD_swinv2_ARCH[_wWINDOW][_SIZE][_SCHEDULE]_DATA.py

What is left out has its usual value: window 8; crops of 512 for ADE20K and of 512 x 1024 for
Cityscapes; for COCO the 1x schedule of 12 epochs (Mask2Former: its own 50), for ADE20K 160k
iterations, for Cityscapes 80k. `w16` is the paper's window transfer: window 16 from the checkpoint
that was trained at window 8. Configs of `small` and `base` differ from that of `tiny` in the
backbone, its weights and the channels alone; the drop path is the same, as in mmdet's and mmseg's
configs of Swin. The head of each config, or of that of `tiny`, names the source of its recipe.

## Columns

- **Parameters** of the whole model; **multiply-adds** of its convolutions and matrix products for
  one image of that size (what papers call FLOPs), counted by torch's counter while the model
  predicts: a two-stage detector runs its box head on all proposals and its mask head on 100
  detections. `tools/analysis_tools/get_flops.py` prints these for any config and size. Cityscapes
  is tested with 9 such windows per image.
- **Memory** and **time** of a training step with AdamW, {IMAGES} images of {SIDE} x {SIDE} pixels,
  on a CPU in float32: the peak of weights, gradients, the optimizer's state and activations, and
  the median of three steps. They rank the models; they do not say what a GPU needs at the size of
  the recipe.
- **Published** is a score of the same model in the same setting, by others. **None of these models
  was trained by us on COCO, ADE20K, Cityscapes or ImageNet-1K**: there is no GPU, data or released
  weight here. What was measured on small data is in the [README](../README.md#results).

`-`: not measured, or nothing published.
"""
_SECTIONS = {
    'detection': 'Detection and instance segmentation',
    'segmentation': 'Semantic segmentation',
    'classification': 'Classification',
    'pose': 'Human pose',
}
_HEAD = ('config', 'data', 'parameters', 'multiply-adds', 'at', 'memory', 'time', 'published')


def page(results: dict[str, dict]) -> str:
    """The text of the page, with what was measured by config."""
    parts = [_INTRODUCTION]
    for folder, title in _SECTIONS.items():
        rows = [_row(name, results.get(name)) for name in all_names() if name.startswith(folder)]
        parts.append(f'## {title}\n\n{markdown_table([_HEAD, *rows])}\n')
    sources = dict.fromkeys(source for _, source in CITED.values())
    parts.append('## Sources\n\n' + ''.join(f'- {source}\n' for source in sources))
    machines = sorted({result['machine'] for result in results.values()})
    parts.append('Measured on: ' + '; '.join(machines or ['nothing yet']) + '.\n')
    return '\n'.join(parts)


def _row(name: str, measured: dict | None) -> list[str]:
    numbers = ['-'] * 5
    if measured:
        numbers = [
            f'{measured["parameters"] / 1e6:.1f} M',
            f'{measured["multiply_adds"] / 1e9:.1f} G',
            '{} x {}'.format(*measured['size']),
            f'{measured["megabytes"]} MB',
            '-' if measured['seconds'] is None else f'{measured["seconds"]:.1f} s',
        ]
    scores, _ = CITED.get(name, ({}, None))
    published = ', '.join(f'{value} {metric}' for metric, value in scores.items()) or '-'
    link = f'[{name.partition("/")[2]}](../configs/{name}.py)'
    return [link, DATA[data_key(name)], *numbers, published]
