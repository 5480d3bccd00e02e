"""model-index.yml and the metafile of each folder of configs, in OpenMMLab's format."""

from pathlib import Path

import yaml
from mmengine.config import Config

from tools.zoo.facts import CITED, CONFIGS, DATA, FOLDERS, METHODS, ROOT, data_key, load, method_key
from tools.zoo.facts import names as all_names

_HEADER = '# Written by `make zoo` from the configs.\n'
_PAPER = dict(
    Title='Swin Transformer V2: Scaling Up Capacity and Resolution',
    URL='https://arxiv.org/abs/2111.09883',
)
_TASKS = {
    'box AP': 'Object Detection',
    'mask AP': 'Instance Segmentation',
    'mIoU': 'Semantic Segmentation',
    'Top 1 Accuracy': 'Image Classification',
    'Top 5 Accuracy': 'Image Classification',
}


def metafiles(results: dict[str, dict]) -> dict[Path, str]:
    """The text of every file, by its path.

    Args:
        results: What was measured, by config; its complexity is written where it is known.
    """
    texts = {}
    for folder in FOLDERS:
        chosen = [name for name in all_names() if name.startswith(folder)]
        content = dict(
            Collections=[_collection(key) for key in METHODS if key.startswith(folder)],
            Models=[_model(name, load(name), results.get(name)) for name in chosen],
        )
        texts[CONFIGS / folder / 'metafile.yml'] = _yaml(content)
    paths = [path.relative_to(ROOT).as_posix() for path in texts]
    return texts | {ROOT / 'model-index.yml': _yaml(dict(Import=paths))}


def _yaml(content: dict) -> str:
    return _HEADER + yaml.safe_dump(content, sort_keys=False, width=100)


def _collection(key: str) -> dict:
    method = METHODS[key]
    return dict(
        Name=method.collection,
        Metadata={'Training Techniques': ['AdamW'], 'Architecture': [*_architecture(key)]},
        Paper=dict(Title=method.title, URL=method.url),
        README='docs/model_zoo.md',
    )


def _architecture(key: str) -> list[str]:
    method = METHODS[key].collection
    return ['SwinV2'] if method == 'SwinV2' else ['SwinV2', method.partition(' (')[0]]


def _model(name: str, cfg: Config, measured: dict | None) -> dict:
    data = DATA[data_key(name)]
    schedule = (
        {'Epochs': cfg.train_cfg.max_epochs}
        if 'max_epochs' in cfg.train_cfg
        else {'Iterations': cfg.train_cfg.max_iters}
    )
    metadata = {
        'Training Data': data,
        **schedule,
        'Batch Size': cfg.auto_scale_lr.base_batch_size,
        'Architecture': _architecture(method_key(name)),
    }
    if measured:
        metadata |= dict(Parameters=measured['parameters'], FLOPs=measured['multiply_adds'])
    found = {
        'Name': name.partition('/')[2],
        'In Collection': METHODS[method_key(name)].collection,
        'Config': f'configs/{name}.py',
        'Metadata': metadata,
        'Paper': dict(_PAPER),
    }
    if name in CITED:
        scores, source = CITED[name]
        # Of the paper's model, not of weights trained with this repository.
        found['Results'] = [
            dict(Task=task, Dataset=data, Metrics=_of_task(scores, task), Source=source)
            for task in dict.fromkeys(_TASKS[metric] for metric in scores)
        ]
    return found


def _of_task(scores: dict[str, float], task: str) -> dict[str, float]:
    return {metric: value for metric, value in scores.items() if _TASKS[metric] == task}
