"""The table of published checkpoints, and how addresses are looked up in it."""

import re
from pathlib import Path

import pytest

from swinv2_backbone.arguments import ARCHITECTURES
from swinv2_backbone.checkpoints.files import hash_in_name
from swinv2_backbone.checkpoints.formats import FORMATS
from swinv2_backbone.checkpoints.releases import RELEASES, find_release, resolve

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('release', RELEASES.values(), ids=RELEASES)
def test_a_row_agrees_with_its_name(release):
    assert release.arch in ARCHITECTURES
    assert release.format in FORMATS
    assert re.match(r'(https|hf)://[\w./-]+$', release.url)
    assert release.arch in release.name or release.format == 'torchvision'
    # The name has the windows: window8_256, window12to16-192to256, w16 ... 256px.
    found = re.search(r'(?:window|-w)(\d+)(?:to(\d+))?\D.*?(?:(\d+)to)?(192|256|384)', release.name)
    if found:
        pretrained = int(found[1])
        assert int(found[4]) == release.image_size
        if 'in21k-pre' in release.name:  # mmpretrain names the window of the fine-tuning
            pretrained = 12
        last = {8: 8, 16: 8, 12: 6}[pretrained]
        assert [w for w, _ in release.pretrained_window_sizes] == [pretrained] * 3 + [last]
    else:
        assert release.format == 'torchvision'
    ran = re.search(r'window\d+to(\d+)|-w(\d+)_in21k-pre|window(\d+)|-w(\d+)_', release.name)
    if ran:
        assert release.window_size == int(next(filter(None, ran.groups())))
    if release.format in ('mmpretrain', 'torchvision'):
        assert hash_in_name(release.url.rpartition('/')[2])
    assert (release.top1 is None) == (release.top5 is None)
    assert release.top1 is None or 80 < release.top1 < release.top5 < 100


def test_urls_are_different():
    assert len({release.url for release in RELEASES.values()}) == len(RELEASES) > 45


@pytest.mark.parametrize(
    ('source', 'name'),
    [
        ('swinv2://swin_v2_t-b137f0e2', 'swin_v2_t-b137f0e2'),
        (
            'https://elsewhere.org/mirror/swinv2_tiny_patch4_window16_256.pth?download=1',
            'swinv2_tiny_patch4_window16_256',
        ),
        ('/data/swinv2_tiny_patch4_window16_256.pth', 'swinv2_tiny_patch4_window16_256'),
        ('swinv2_tiny_window8_256.ms_in1k.safetensors', 'timm/swinv2_tiny_window8_256.ms_in1k'),
        (
            'hf://timm/swinv2_tiny_window8_256.ms_in1k@main/model.safetensors',
            'timm/swinv2_tiny_window8_256.ms_in1k',
        ),
        (
            'hf://microsoft/swinv2-tiny-patch4-window8-256',
            'microsoft/swinv2-tiny-patch4-window8-256',
        ),
        ('hf://someone/swinv2-tiny-patch4-window8-256', None),
        ('my_swinv2_tiny_patch4_window16_256.pth', None),
        ('model.safetensors', None),
    ],
)
def test_find_release(source, name):
    assert find_release(source) is RELEASES.get(name)


def test_resolve():
    assert resolve('swinv2://swin_v2_t-b137f0e2') == RELEASES['swin_v2_t-b137f0e2'].url
    for address in ('x.pth', 'https://host/x.pth', 'hf://a/b'):
        assert resolve(address) == address
    with pytest.raises(
        ValueError,
        match=r"got 'swinv2://swinv2_tiny_w8_256', allowed after .* "
        'such as .*swinv2_tiny_patch4_window8_256',
    ):
        resolve('swinv2://swinv2_tiny_w8_256')


def test_addresses_stand_in_the_table_alone():
    """In the package, configs, tools and README; the table composes its own."""
    texts = [
        path.read_text()
        for folder in ('swinv2_backbone', 'configs', 'tools')
        for path in (ROOT / folder).rglob('*.py')
    ] + [(ROOT / 'README.md').read_text()]
    for release in RELEASES.values():
        assert not any(release.url in text for text in texts), release.url
    table = (ROOT / 'swinv2_backbone/checkpoints/releases.py').read_text()
    for folder in {
        release.url.rpartition('/')[0].removesuffix('/pretrain') for release in RELEASES.values()
    }:
        assert table.count(folder + '/{}') == 1, folder
