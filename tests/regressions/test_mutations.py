"""Puts each defect of test_port_defects.py into a copy of the package; its test must then fail."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Test, file, the right code, the defect.
DEFECTS = [
    (
        'drop_path_before_the_post_norm',
        'layers/blocks.py',
        'self.drop_path(self.norm1(attended))',
        'self.norm1(self.drop_path(attended))',
    ),
    (
        'post_norms_not_zero_initialized',
        'swin_transformer_v2.py',
        'constant_init(module.norm2, 0)',
        'pass',
    ),
    (
        'post_norms_not_zero_initialized',
        'swin_transformer_v2.py',
        'constant_init(module.norm1, 0)',
        'pass',
    ),
    (
        'train_returns_none',
        'swin_transformer_v2.py',
        '        return self\n\n    def _freeze_stages',
        '\n    def _freeze_stages',
    ),
    (
        'patch_merging_norm_permuted_on_loading',
        'checkpoints/convert.py',
        'kept = {key: value for',
        "kept = {key: value.flip(0) if 'downsample.norm' in key else value for",
    ),
    (
        'whole_pretrained_window_list_handed_to_every_stage',
        'swin_transformer_v2.py',
        'pretrained_windows[i], drop_paths',
        'pretrained_windows, drop_paths',
    ),
    (
        'pads_after_the_roll',
        'layers/windows.py',
        """        if (height, width) != self.size:
            x = F.pad(x, (0, 0, 0, width - self.size[1], 0, height - self.size[0]))
        if any(self.shift):
            x = torch.roll(x, (-self.shift[0], -self.shift[1]), dims=(1, 2))
""",
        """        if any(self.shift):
            x = torch.roll(x, (-self.shift[0], -self.shift[1]), dims=(1, 2))
        if (height, width) != self.size:
            x = F.pad(x, (0, 0, 0, width - self.size[1], 0, height - self.size[0]))
""",
    ),
    (
        'window_and_shift_frozen_in_the_constructor',
        'layers/windows.py',
        'if self.shifted and w < s else 0',
        'if self.shifted else 0',
    ),
    (
        'window_and_shift_frozen_in_the_constructor',
        'layers/windows.py',
        'window = tuple(w if w <= s else s for w, s in zip(window, size, strict=True))',
        'window = (min(*window, *size),) * 2',
    ),
    (
        'padded_tokens_are_attended_to',
        'layers/windows.py',
        'return (same_part | padded_query) & real[:, None, :]',
        'return same_part | padded_query',
    ),
    (
        'zero_keys_of_pads_give_nan',
        'layers/attention.py',
        'return x * torch.where(nonzero, squared, 1).rsqrt() * nonzero',
        'return x / squared.sqrt()',
    ),
    (
        'additive_mask_that_a_masked_key_beats',
        'layers/attention.py',
        'by_image.masked_fill(~visible[:, None], -torch.inf)',
        '(by_image - 100.0 * ~visible[:, None])',
    ),
    (
        'mask_rebuilt_in_every_forward',
        'layers/windows.py',
        '@cache_tensors(_CACHED_MASKS)\ndef _attention_mask',
        'def _attention_mask',
    ),
    (
        'mask_rebuilt_in_every_forward',
        'layers/windows.py',
        '@cache_tensors(_CACHED_MASKS)\ndef _kinds',
        'def _kinds',
    ),
    (
        'position_bias_rerun_in_every_forward',
        'layers/attention.py',
        'if self.training or torch.is_grad_enabled() or',
        'if True or',
    ),
    (
        'weight_decay_on_what_should_not_decay',
        '../configs/_base_/schedules/adamw.py',
        'logit_scale=dict(decay_mult=0.)',
        '',
    ),
    (
        'weight_decay_on_what_should_not_decay',
        '../configs/_base_/schedules/adamw.py',
        'v_bias=dict(decay_mult=0.),',
        '',
    ),
    (
        'weight_decay_on_what_should_not_decay',
        '../configs/_base_/schedules/adamw.py',
        'q_bias=dict(decay_mult=0.),',
        '',
    ),
    (
        'weight_decay_on_what_should_not_decay',
        '../configs/_base_/schedules/adamw.py',
        'cpb_mlp=dict(decay_mult=0.),',
        '',
    ),
    (
        'checkpoint_that_matches_nothing_loads_silently',
        'checkpoints/loading.py',
        'if missing:',
        'if False:',
    ),
    (
        'wrapped_official_file_loads_as_nothing',
        'checkpoints/recognize.py',
        'state = content if wrapper is None else content[wrapper]',
        'state = content',
    ),
    ('window_one_divides_by_zero', 'layers/position_bias.py', '/ max(p - 1, 1)', '/ (p - 1)'),
    (
        'window_change_stretches_the_bias',
        'layers/position_bias.py',
        '/ max(p - 1, 1)',
        '/ max(w - 1, 1)',
    ),
]


def failing_tests(copy):
    """Which tests of test_port_defects.py fail in a copy, and how many pass."""
    result = subprocess.run(
        [
            sys.executable,
            '-m',
            'pytest',
            '-q',
            '-p',
            'no:cacheprovider',
            '--tb=no',
            '-rf',
            'tests/regressions/test_port_defects.py',
        ],
        cwd=copy,
        env={**os.environ, 'PYTHONPATH': str(copy)},
        capture_output=True,
        text=True,
    )
    passed = re.search(r'(\d+) passed', result.stdout)
    assert passed, result.stdout + result.stderr
    return set(re.findall(r'^FAILED .*::test_(\w+)', result.stdout, re.MULTILINE)), int(passed[1])


@pytest.fixture
def copy(tmp_path):
    """A copy of what the tests need, so that the defect is never in the working tree."""
    for name in ('swinv2_backbone', 'tests', 'configs'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'pyproject.toml', tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ('test', 'file', 'right', 'wrong'),
    DEFECTS,
    ids=[f'{i}-{defect[0]}' for i, defect in enumerate(DEFECTS)],
)
def test_defect_is_seen(copy, test, file, right, wrong):
    path = copy / 'swinv2_backbone' / file
    source = path.read_text()
    assert source.count(right) == 1, f'{file} has changed: {right!r} is not there once'
    path.write_text(source.replace(right, wrong))
    failing, passed = failing_tests(copy)
    assert test in failing, f'not noticed; {failing} fail'
    # The defect and not a crash: some of the tests are content.
    assert passed >= 5, failing


@pytest.mark.slow
def test_without_a_defect_all_pass(copy):
    assert failing_tests(copy)[0] == set()


def test_every_port_defect_has_its_defect():
    names = {
        line.split('(')[0].removeprefix('def test_')
        for line in (ROOT / 'tests/regressions/test_port_defects.py').read_text().splitlines()
        if line.startswith('def test_')
    }
    assert {defect[0] for defect in DEFECTS} == names
