"""Puts each defect of other ports into a copy of the package: the test of it must fail."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Test in test_port_defects.py, file, correct code, defect.
DEFECTS = [
    (
        'drop_path_follows_the_post_norm',
        'layers/blocks.py',
        'self.drop_path(norm(branch), draws)',
        'norm(self.drop_path(branch, draws))',
    ),
    (
        'post_norms_are_zero_initialized',
        'layers/initialization.py',
        '(*module.norm1.parameters(), *module.norm2.parameters())',
        'module.norm1.parameters()',
    ),
    (
        'post_norms_are_zero_initialized',
        'layers/initialization.py',
        '(*module.norm1.parameters(), *module.norm2.parameters())',
        'module.norm2.parameters()',
    ),
    (
        'train_returns_the_model',
        'swin_transformer_v2.py',
        '        return self\n\n    def _freeze_stages',
        '\n    def _freeze_stages',
    ),
    (
        'patch_merging_norm_is_loaded_as_it_is',
        'checkpoints/state_dicts.py',
        'kept = {key: value for',
        "kept = {key: value.flip(0) if 'downsample.norm' in key else value for",
    ),
    (
        'each_stage_has_its_own_pretrained_window',
        'layers/stages.py',
        'pretrained_windows[i],',
        'pretrained_windows,',
    ),
    (
        'padding_precedes_the_roll',
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
        'window_and_shift_follow_the_size_of_the_map',
        'layers/windows.py',
        'if self.shifted and w < s else 0',
        'if self.shifted else 0',
    ),
    (
        'window_and_shift_follow_the_size_of_the_map',
        'layers/windows.py',
        'height, width = (w if w <= s else s for w, s in zip(window, size, strict=True))',
        'height = width = min(*window, *size)',
    ),
    ('padded_tokens_are_masked', 'layers/windows.py', '& valid[..., None, :]', ''),
    (
        'zero_keys_of_padding_stay_finite',
        'layers/reference_attention.py',
        'return x * torch.where(nonzero, squared, 1).rsqrt() * nonzero',
        'return x / squared.sqrt()',
    ),
    (
        'masked_keys_get_no_weight',
        'layers/reference_attention.py',
        'by_image.masked_fill(~attn_mask[:, None], -torch.inf)',
        '(by_image - 100.0 * ~attn_mask[:, None])',
    ),
    (
        'masks_are_built_once_per_size',
        'layers/windows.py',
        '@cache_tensors(_CACHED_GRIDS)\ndef _attention_mask',
        'def _attention_mask',
    ),
    (
        'masks_are_built_once_per_size',
        'layers/windows.py',
        '@cache_tensors(_CACHED_GRIDS)\ndef _groups',
        'def _groups',
    ),
    (
        'position_bias_is_computed_once_in_inference',
        'layers/attention.py',
        'if torch.is_grad_enabled() or',
        'if True or',
    ),
    (
        'norms_biases_and_scales_do_not_decay',
        '../configs/_base_/schedules/adamw.py',
        'logit_scale=dict(decay_mult=0.0),',
        '',
    ),
    (
        'norms_biases_and_scales_do_not_decay',
        '../configs/_base_/schedules/adamw.py',
        'v_bias=dict(decay_mult=0.0),',
        '',
    ),
    (
        'norms_biases_and_scales_do_not_decay',
        '../configs/_base_/schedules/adamw.py',
        'q_bias=dict(decay_mult=0.0),',
        '',
    ),
    (
        'norms_biases_and_scales_do_not_decay',
        '../configs/_base_/schedules/adamw.py',
        'cpb_mlp=dict(decay_mult=0.0),',
        '',
    ),
    (
        'checkpoint_that_does_not_match_is_refused',
        'checkpoints/loading.py',
        'if missing:',
        'if False:',
    ),
    (
        'wrapped_official_file_is_loaded',
        'checkpoints/recognize.py',
        'state = content if wrapper is None else content[wrapper]',
        'state = content',
    ),
    ('window_of_one_token_is_finite', 'layers/position_bias.py', '/ max(p - 1, 1)', '/ (p - 1)'),
    (
        'window_change_does_not_stretch_the_bias',
        'layers/position_bias.py',
        '/ max(p - 1, 1)',
        '/ max(w - 1, 1)',
    ),
]


def failing_tests(copy):
    """The tests of test_port_defects.py that fail in a copy, and the number that pass."""
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
    """A copy of what the tests need: the working tree never has the defect."""
    for name in ('swinv2_backbone', 'tests', 'configs', 'tools'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'pyproject.toml', tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ('test', 'file', 'right', 'wrong'),
    DEFECTS,
    ids=[f'{i}-{defect[0]}' for i, defect in enumerate(DEFECTS)],
)
def test_defect_makes_its_test_fail(copy, test, file, right, wrong):
    path = copy / 'swinv2_backbone' / file
    source = path.read_text()
    assert source.count(right) == 1, f'{file} has {right!r} {source.count(right)} times'
    path.write_text(source.replace(right, wrong))
    failing, passed = failing_tests(copy)
    assert test in failing, f'only {failing} fail'
    # It is the defect, not a crash: other tests pass.
    assert passed >= 5, failing


@pytest.mark.slow
def test_without_a_defect_all_pass(copy):
    assert failing_tests(copy)[0] == set()


def test_every_test_has_a_defect():
    names = {
        line.split('(')[0].removeprefix('def test_')
        for line in (ROOT / 'tests/regressions/test_port_defects.py').read_text().splitlines()
        if line.startswith('def test_')
    }
    assert {defect[0] for defect in DEFECTS} == names
