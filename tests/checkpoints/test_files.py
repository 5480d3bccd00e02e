"""Reading and writing files of weights; what is wrong with a file, test_bad_files.py has."""

import hashlib

import pytest
import torch

from swinv2_backbone.checkpoints.errors import CheckpointError
from swinv2_backbone.checkpoints.files import (
    check_hash,
    hash_in_name,
    read_checkpoint,
    write_checkpoint,
)

STATE = {'a.weight': torch.arange(6.0).view(2, 3), 'b': torch.ones(2, dtype=torch.float16)}


@pytest.mark.parametrize('name', ['w.pth', 'w.bin', 'w.pt', 'w.safetensors', 'no_suffix'])
@pytest.mark.parametrize('safetensors', [False, True], ids=['torch', 'safetensors'])
def test_the_content_tells_the_container(tmp_path, name, safetensors):
    if safetensors:
        pytest.importorskip('safetensors')
    elif name.endswith('.safetensors'):
        pytest.skip('a name that says safetensors is believed')
    write_checkpoint(STATE, tmp_path / name, windows=[(8, 8), (4, 6)], safetensors=safetensors)
    read = read_checkpoint(tmp_path / name)
    assert read.keys() == STATE.keys()
    assert all(
        torch.equal(read[key], value) and read[key].dtype == value.dtype
        for key, value in STATE.items()
    )
    noted = read._metadata['']['pretrained_window_sizes']
    assert [tuple(pair) for pair in noted] == [(8, 8), (4, 6)]


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


def test_right_hashes_pass(tmp_path):
    content = b'weights'
    digest = hashlib.sha256(content).hexdigest()
    path = tmp_path / f'model-{digest[:8]}.pth'
    path.write_bytes(content)
    check_hash(path)
    for wanted in (digest, digest[:8], digest[:20].upper()):
        check_hash(path, wanted)
    other = tmp_path / 'model-0123456f.pth'
    other.write_bytes(content)
    check_hash(other, digest)  # What is asked for counts for more than the name.
    with pytest.raises(CheckpointError, match='its name says 0123456f'):
        check_hash(other)


def test_without_safetensors_one_line_says_what_to_install(tmp_path, monkeypatch):
    from swinv2_backbone.checkpoints import files

    monkeypatch.setattr(files, 'find_spec', lambda name: None)
    (tmp_path / 'w.safetensors').write_bytes(b'')
    with pytest.raises(ImportError, match='safetensors is not installed: run `pip install'):
        read_checkpoint(tmp_path / 'w.safetensors')
    with pytest.raises(ImportError, match='safetensors is not installed: run `pip install'):
        write_checkpoint(STATE, tmp_path / 'x.safetensors', safetensors=True)
    assert not (tmp_path / 'x.safetensors').exists()
