"""A mistake of the user and a bug differ by who raised the exception, and how."""

import linecache
import pickle

import pytest

from swinv2_backbone.checkpoints.errors import CheckpointError
from tools.utils.errors import UserError, did_you_mean, first_line, is_user_mistake


def error_of(module, statement, **names):
    """The exception in which a statement of a module ends."""
    source, file = f'def function(number=0):\n    {statement}\n', f'{module}: {statement}'
    linecache.cache[file] = len(source), None, source.splitlines(True), file
    namespace = dict(names, __name__=module, UserError=UserError, CheckpointError=CheckpointError)
    exec(compile(source, file, 'exec'), namespace)
    with pytest.raises(Exception) as caught:  # noqa: PT011  any class
        namespace['function']()
    return caught.value


@pytest.mark.parametrize(
    ('module', 'statement'),
    [
        ('tools.test', "raise UserError('x')"),
        ('swinv2_backbone.checkpoints.state_dicts', "raise CheckpointError('x')"),
        ('tools.anything', "open('no such file')"),
        ('tools.anything', "raise ConnectionError('x')"),
        ('swinv2_backbone.arguments', "raise ValueError('window_size: got 0')"),
        ('swinv2_backbone.arguments', "raise TypeError('window_size: got None')"),
        ('swinv2_backbone.checkpoints.files', "raise ImportError('pip install safetensors')"),
        ('mmengine.registry', "raise KeyError('x is not in the registry')"),
        ('mmengine.registry.build_functions', 'function(nunber=1)'),
        ('mmseg.models.decode_heads', 'function(nunber=1)'),
        ('mmdet.datasets', "assert not 'x', 'got x'"),
        ('torch.serialization', "raise RuntimeError('truncated')"),
    ],
)
def test_mistakes_of_the_user(module, statement):
    assert is_user_mistake(error_of(module, statement))


@pytest.mark.parametrize(
    ('module', 'statement'),
    [
        ('swinv2_backbone.swin_transformer_v2', "{}['x']"),
        ('swinv2_backbone.swin_transformer_v2', "raise KeyError('x')"),
        ('swinv2_backbone.swin_transformer_v2', 'function(nunber=1)'),
        ('swinv2_backbone.swin_transformer_v2', "int('x')"),
        ('swinv2_backbone.swin_transformer_v2', 'a, b = 1, 2, 3'),
        ('swinv2_backbone.swin_transformer_v2', 'None.x'),
        ('swinv2_backbone.swin_transformer_v2', 'assert not number + 1'),
        ('tools.train', "raise ValueError('x')"),
        ('tools.train', 'function(nunber=1)'),
        ('mmengine.runner', "{}['x']"),
        ('mmengine.runner', 'None.x'),
        ('torch.nn.functional', "raise RuntimeError('shapes')"),
    ],
)
def test_bugs(module, statement):
    assert not is_user_mistake(error_of(module, statement))


def test_bug_in_a_function_that_a_registry_calls():
    """The innermost frame decides."""
    inner = dict(__name__='swinv2_backbone.x')
    exec("def build(): return {}['x']", inner)
    assert not is_user_mistake(error_of('mmengine.registry', 'build()', build=inner['build']))


def test_first_line():
    assert first_line(ValueError('\n first \nsecond')) == 'first'
    assert first_line(KeyError("'x' is not\nregistered")) == "'x' is not"
    assert first_line(ValueError()) == 'ValueError'
    advice = first_line(pickle.UnpicklingError('set weights_only=False'))
    assert 'weights_only=True' in advice
    assert 'False' not in advice


def test_did_you_mean():
    assert did_you_mean('train_cgf', ['train_cfg', 'model']) == " (did you mean 'train_cfg'?)"
    assert did_you_mean('x', ['train_cfg', 'model']) == ''
