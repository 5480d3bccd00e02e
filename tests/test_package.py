"""What importing the package takes, and how it is installed."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(code, *flags, **kwargs):
    return subprocess.run(
        [sys.executable, *flags, '-c', code], capture_output=True, text=True, cwd=ROOT, **kwargs
    )


def test_importing_needs_no_toolbox():
    result = python("""
import sys
import swinv2_backbone, torch
swinv2_backbone.SwinTransformerV2(dict(embed_dims=8, depths=(1,) * 4, num_heads=(1,) * 4))(
    torch.rand(1, 3, 32, 32))
print([m for m in ("mmcv", "mmdet", "mmseg", "mmpretrain", "torchvision", "timm", "transformers")
       if m in sys.modules])
""")
    assert result.stdout.splitlines()[-1:] == ['[]'], result.stdout + result.stderr


def test_importing_needs_no_opencv():
    """mmengine imports it with its hooks; a server may lack it, or the libGL that it needs."""
    result = python("""
import sys
sys.modules['cv2'] = None  # any import of it raises
import swinv2_backbone
print(swinv2_backbone.SwinTransformerV2.__name__, hasattr(swinv2_backbone, 'ClearCachesHook'))
""")
    assert result.stdout.split() == ['SwinTransformerV2', 'False'], result.stderr


def test_layers_need_torch_alone():
    """As a whole they are imported in an interpreter that has no mmengine."""
    result = python("""
import importlib, pkgutil, sys, types
sys.modules['mmengine'] = None  # any import of it raises
package = types.ModuleType('swinv2_backbone')
package.__path__ = ['swinv2_backbone']
sys.modules['swinv2_backbone'] = package
import swinv2_backbone.layers as layers
for module in pkgutil.iter_modules(layers.__path__):
    importlib.import_module(f'swinv2_backbone.layers.{module.name}')
print(sorted(name for name in sys.modules if name.startswith('swinv2_backbone.layers.')))
""")
    assert 'swinv2_backbone.layers.windows' in result.stdout, result.stderr


def test_without_mmengine_one_line_says_what_to_install():
    result = python("""
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "mmengine" else find_spec(name)
import swinv2_backbone
""")
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError: swinv2_backbone needs mmengine')
    assert 'pip install mmengine' in last


@pytest.mark.parametrize('toolbox', ['mmdet', 'mmseg', 'mmpretrain'])
def test_resolves_from_a_toolbox_without_custom_imports(toolbox):
    pytest.importorskip(toolbox)
    result = python(f'''
from mmengine.registry import init_default_scope
from {toolbox}.registry import MODELS
init_default_scope("{toolbox}")
model = MODELS.build(dict(type="swinv2_backbone.SwinTransformerV2",
                          arch=dict(embed_dims=8, depths=(1,) * 4, num_heads=(1,) * 4)))
print(type(model).__module__)
''')
    assert result.stdout.splitlines()[-1:] == ['swinv2_backbone.swin_transformer_v2'], result.stderr


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """The folder that pip has installed the package into, from a copy of the sources."""
    # pip builds where the sources are.
    copy, target = tmp_path_factory.mktemp('copy'), tmp_path_factory.mktemp('target')
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'NOTICE'):
        shutil.copy(ROOT / name, copy)
    for name in ('swinv2_backbone', 'configs', 'tools'):
        shutil.copytree(ROOT / name, copy / name)
    install = ['install', '--quiet', '--no-deps', '--no-build-isolation', '--target', target, copy]
    subprocess.run([sys.executable, '-m', 'pip', *install], check=True, timeout=120)
    return target


def test_installs_with_the_one_version(installed):
    from swinv2_backbone import __version__

    [metadata] = installed.glob('swinv2_backbone-*.dist-info/METADATA')
    text = metadata.read_text()
    assert f'\nVersion: {__version__}\n' in text
    required = re.findall(r'^Requires-Dist: ([\w-]+)((?:.*extra.*)?)', text, re.MULTILINE)
    assert [name for name, extra in required if not extra] == ['torch']
    assert {'openmmlab', 'dev'} <= set(re.findall(r'^Provides-Extra: (\w+)', text, re.MULTILINE))
    assert {p.name for p in installed.iterdir() if p.is_dir()} == {
        'swinv2_backbone',
        metadata.parent.name,
    }


def test_the_description_has_addresses_where_the_readme_has_paths():
    """On PyPI a path leads nowhere."""
    result = subprocess.run(
        [sys.executable, 'setup.py', '--long-description'],
        cwd=ROOT,
        env={**os.environ, 'REPOSITORY_URL': 'https://host/owner/name/'},
        capture_output=True,
        text=True,
        check=True,
    )
    links = re.findall(r'(!?)\[[^\]]*\]\(([^)]+)\)', result.stdout)
    assert [link for _, link in links if not link.startswith('https://')] == []
    ours = [
        (image, *link.removeprefix('https://host/owner/name/').split('/', 2))
        for image, link in links
        if link.startswith('https://host/owner/name/')
    ]
    assert ours
    for image, view, tag, path in ours:
        assert view == ('raw' if image else 'blob')
        assert f'__version__ = {tag[1:]!r}' in (ROOT / 'swinv2_backbone/version.py').read_text()
        assert (ROOT / path.partition('#')[0]).exists()


def test_an_installed_package_has_the_configs_and_tools(installed):
    for name in ('configs', 'tools'):
        sources = {
            str(path.relative_to(ROOT))
            for path in ROOT.glob(f'{name}/**/*')
            if path.is_file() and path.suffix != '.pyc'
        }
        folder = installed / 'swinv2_backbone' / '.mim'
        assert sources == {
            str(path.relative_to(folder))
            for path in folder.glob(f'{name}/**/*')
            if path.is_file() and path.suffix != '.pyc'
        }


def test_an_sdist_has_what_the_repository_has(tmp_path):
    if not (ROOT / '.git').exists():
        pytest.skip('no clone')
    listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    files = [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    command = [sys.executable, 'setup.py', '--quiet', 'sdist']
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    [archive] = tmp_path.glob('dist/*.tar.gz')
    with tarfile.open(archive) as opened:
        packed = {name.partition('/')[2] for name in opened.getnames()}
    # Those that are of use in a clone alone.
    assert set(files) - packed == {'.ci/run', '.gitignore', '.pre-commit-config.yaml'}


def test_an_installed_package_trains_outside_of_a_clone(installed, tmp_path):
    pytest.importorskip('mmseg')
    environment = {**os.environ, 'PYTHONPATH': str(installed)}

    def command(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True
        )

    shapes = installed / 'swinv2_backbone/.mim/tools/dataset_converters/make_shapes.py'
    command(shapes, '--train', '4', '--val', '2').check_returncode()
    trained = command(
        *['-m', 'swinv2_backbone', 'train', 'upernet_swinv2_tiny_shapes', '--cfg-options'],
        *['train_cfg.max_iters=1', 'train_cfg.val_interval=1', 'train_dataloader.batch_size=2'],
    )
    assert trained.returncode == 0, trained.stderr.decode()
    assert (tmp_path / 'work_dirs/upernet_swinv2_tiny_shapes/iter_1.pth').is_file()
