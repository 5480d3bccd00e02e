"""Files of weights: read safely, written atomically; broken ones are refused and change nothing."""

import argparse
import hashlib
import json
import os
import pickle

import pytest
import torch

from swinv2_backbone.checkpoints.errors import CheckpointError
from swinv2_backbone.checkpoints.files import (
    check_hash,
    hash_in_name,
    read_checkpoint,
    write_checkpoint,
)
from tests.helpers.checkpoint_files import assert_refused, random_model, save_official
from tests.helpers.models import SMALL_ARCH
from tests.parity.implementations import NAMES
from tests.parity.recorded import load, state_of

STATE = {'a.weight': torch.arange(6.0).view(2, 3), 'b': torch.ones(2, dtype=torch.float16)}


@pytest.mark.parametrize('name', ['w.pth', 'w.bin', 'w.pt', 'w.safetensors', 'no_suffix'])
@pytest.mark.parametrize('safetensors', [False, True], ids=['torch', 'safetensors'])
def test_the_container_is_recognized_by_its_content(tmp_path, name, safetensors):
    if safetensors:
        pytest.importorskip('safetensors')
    elif name.endswith('.safetensors'):
        pytest.skip('a file of this name is always read as safetensors')
    write_checkpoint(
        STATE, tmp_path / name, pretrained_window_sizes=[(8, 8), (4, 6)], safetensors=safetensors
    )
    read = read_checkpoint(tmp_path / name)
    assert read.keys() == STATE.keys()
    assert all(
        torch.equal(read[key], value) and read[key].dtype == value.dtype
        for key, value in STATE.items()
    )
    recorded = read._metadata['']['pretrained_window_sizes']
    assert [tuple(pair) for pair in recorded] == [(8, 8), (4, 6)]


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    pytest.importorskip('safetensors')
    whole = torch.arange(6.0)
    write_checkpoint(
        dict(zip('abc', whole.chunk(3), strict=True)), tmp_path / 'w.safetensors', safetensors=True
    )
    assert torch.equal(read_checkpoint(tmp_path / 'w.safetensors')['b'], whole[2:4])


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / 'w.pth'
    write_checkpoint(STATE, path)
    before = path.read_bytes()
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        write_checkpoint({'a': torch.ones(2), 'b': (lambda: None)}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['w.pth']


@pytest.mark.parametrize(
    ('name', 'digits'),
    [
        ('swinv2-tiny-w8_3rdparty_in1k-256px_20220803-e318968f.pth', 'e318968f'),
        ('swin_v2_t-b137f0e2.pth', 'b137f0e2'),
        ('swinv2_tiny_patch4_window8_256.pth', None),
        ('run-20240101.pth', None),  # a date
        ('job-19283746.pth', None),
        ('model.safetensors', None),
    ],
)
def test_hash_in_name(name, digits):
    assert hash_in_name(name) == digits


def test_hashes_are_checked(tmp_path):
    content = b'weights'
    digest = hashlib.sha256(content).hexdigest()
    path = tmp_path / f'model-{digest[:8]}.pth'
    path.write_bytes(content)
    check_hash(path)
    for sha256 in (digest, digest[:8], digest[:20].upper()):
        check_hash(path, sha256)
    other = tmp_path / 'model-0123456f.pth'
    other.write_bytes(content)
    check_hash(other, digest)  # The argument has precedence over the name.
    with pytest.raises(CheckpointError, match='its name ends in 0123456f'):
        check_hash(other)


def test_without_safetensors_the_error_says_what_to_install(tmp_path, monkeypatch):
    from swinv2_backbone.checkpoints import files

    monkeypatch.setattr(files, 'find_spec', lambda name: None)
    (tmp_path / 'w.safetensors').write_bytes(b'')
    with pytest.raises(ImportError, match='safetensors is not installed: run `pip install'):
        read_checkpoint(tmp_path / 'w.safetensors')
    with pytest.raises(ImportError, match='safetensors is not installed: run `pip install'):
        write_checkpoint(STATE, tmp_path / 'x.safetensors', safetensors=True)
    assert not (tmp_path / 'x.safetensors').exists()


# --- broken files ---------------------------------------------------------------------------------


def save_state(name, state, folder, legacy=False):
    """Write a state dict in the container of its library, or in torch's of before 1.6."""
    path = folder / load(name)['file']
    if legacy:
        path = path.with_suffix('.bin')
        torch.save({'state_dict': state}, path, _use_new_zipfile_serialization=False)
    elif path.suffix == '.safetensors':
        pytest.importorskip('safetensors.torch').save_file(state, path)
    else:
        torch.save({'state_dict': state}, path)
    return path


@pytest.mark.parametrize('part', [0.001, 0.4, 0.9, 0.9999])
@pytest.mark.parametrize('legacy', [False, True], ids=['today', 'legacy'])
@pytest.mark.parametrize('name', NAMES)
def test_truncated_files_are_refused(tmp_path, name, legacy, part):
    path = save_state(name, state_of(load(name)), tmp_path, legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert_refused(path, CheckpointError, 'damaged or cut short|refused by the safe loader')


FILES = {
    'an empty file': (b'', 'damaged or cut short'),
    'a text file': (b'404: not found\n', 'safe loader'),
    'an HTML page': (b'<!DOCTYPE html><html><body>Sign in</body></html>', 'safe loader'),
    'a git-lfs pointer': (
        b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n',
        'safe loader',
    ),
    'zeros': (bytes(5000), 'safe loader|damaged'),
    'a zip of something else': (b'PK\x03\x04' + bytes(300), 'damaged'),
    'JSON': (json.dumps({'state_dict': {}}).encode(), 'safe loader'),
    'a bare tensor': (torch.ones(3), 'holds a Tensor, not a dict'),
    'a list': ([1, 2], 'holds a list, not a dict'),
    'arguments beside the weights': (
        {'state_dict': {}, 'args': argparse.Namespace(lr=1)},
        'it holds argparse.Namespace, which requires code to unpickle$',
    ),
}


@pytest.mark.parametrize(('content', 'message'), FILES.values(), ids=FILES)
def test_files_without_weights_are_refused(tmp_path, content, message):
    path = tmp_path / 'file.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert_refused(path, CheckpointError, message, arch=SMALL_ARCH)


def test_directories_and_missing_files_are_refused(tmp_path):
    assert_refused(tmp_path, FileNotFoundError, 'it is a directory')
    assert_refused(tmp_path / 'absent.pth', FileNotFoundError, 'no such file')


class RunsCode:
    """Unpickling it makes the folder that PICKLE_TRAP names."""

    def __reduce__(self):
        return os.mkdir, (os.environ['PICKLE_TRAP'],)


@pytest.mark.parametrize(
    'wrap',
    [pickle.dumps, lambda obj: pickle.dumps({'model': obj}), lambda obj: pickle.dumps([obj], 0)],
    ids=['bare', 'in a dict', 'protocol 0'],
)
def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch, wrap):
    monkeypatch.setenv('PICKLE_TRAP', str(tmp_path / 'code_has_run'))
    path = tmp_path / 'file.pth'
    path.write_bytes(wrap(RunsCode()))
    assert_refused(path, CheckpointError, 'refused by the safe loader')
    torch.save({'state_dict': state_of(load('Timm')), 'meta': RunsCode()}, path)
    assert_refused(path, CheckpointError, 'refused by the safe loader')
    # An environment variable that turns torch's safe loader off has no effect. (The other, which
    # tests of allow_mmengine_checkpoints set, must not be there with it.)
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    assert_refused(path, CheckpointError, 'refused by the safe loader')
    assert not (tmp_path / 'code_has_run').exists()


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'not safetensors at all',
        b'\xff' * 64,
        (2**40).to_bytes(8, 'little') + b'{}',
        (2).to_bytes(8, 'little') + b'{]',
    ],
    ids=['empty', 'text', 'huge header', 'header beyond the end', 'no JSON'],
)
def test_broken_safetensors_are_refused(tmp_path, content):
    pytest.importorskip('safetensors')
    path = tmp_path / 'model.safetensors'
    path.write_bytes(content)
    assert_refused(path, CheckpointError, 'damaged or cut short, or no safetensors')


@pytest.mark.parametrize('recorded', ['[[8, 8]', '"8"', '[[0, 8]]', '[[8, 8], [8, 8, 8]]', '{}'])
def test_malformed_metadata_of_safetensors_is_refused(tmp_path, recorded):
    path = tmp_path / 'model.safetensors'
    pytest.importorskip('safetensors.torch').save_file(
        state_of(load('Timm')), path, metadata={'pretrained_window_sizes': recorded}
    )
    assert_refused(path, CheckpointError, 'its metadata has pretrained_window_sizes=')


def test_files_with_another_hash_are_refused(tmp_path):
    path = save_official(random_model(), tmp_path / 'swinv2-0123456f.pth')
    assert_refused(
        path,
        CheckpointError,
        'its sha256 is [0-9a-f]{8}, but its name ends in 0123456f: it is damaged',
        arch=SMALL_ARCH,
    )
    path = save_official(random_model(), tmp_path / 'swinv2.pth')
    assert_refused(
        path,
        CheckpointError,
        "sha256='89abcdef89' is required",
        arch=SMALL_ARCH,
        sha256='89abcdef89',
    )
