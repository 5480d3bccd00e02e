"""The benchmark: what it counts, what it makes of times, and who is left out. No times are judged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip('matplotlib')

from tools.analysis_tools.benchmark import Race
from tools.benchmarking.arguments import cases_of, parse_args
from tools.benchmarking.cases import IMPLEMENTATIONS, Case
from tools.benchmarking.gemm import Operand, Product, Replay, record
from tools.benchmarking.networks import build_network
from tools.benchmarking.process import Worker, WorkerError
from tools.benchmarking.statistics import summarize
from tools.benchmarking.steps import NetworkStep, check_maps, peak_memory

ROOT = Path(__file__).parents[2]
IMPLEMENTATIONS_FOLDER = ROOT / '.venv/implementations'
STUBS = {
    'timm': 'import os, signal, sys\nprint("farewell", file=sys.stderr, flush=True)\n'
    'os.kill(os.getpid(), signal.SIGKILL)',
    'transformers': 'raise ModuleNotFoundError("No module named \'transformers\'")',
    'torchvision': 'print("{\\"seconds\\": 0}")\nraise ImportError("wrong\\nbuild")',
}


def build_request(implementation):
    return dict(
        implementation=implementation,
        arch='mini',
        drop_path=0.0,
        device='cpu',
        compile=False,
        threads=1,
        case=dict(mode='infer', height=64, width=96, window=8, batch=1, dtype='fp32'),
    )


@pytest.fixture(scope='module')
def run_with_stubs(tmp_path_factory):
    """The script, beside implementations of which each fails in its own way: the process, and its folder."""
    folder = tmp_path_factory.mktemp('benchmark')
    for name, text in STUBS.items():
        (folder / 'implementations/hf' / name).mkdir(parents=True)
        (folder / 'implementations/hf' / name / '__init__.py').write_text(text)
    process = subprocess.run(
        [
            sys.executable,
            ROOT / 'tools/analysis_tools/benchmark.py',
            '--sizes',
            '64',
            '--windows',
            '8',
            '--rounds',
            '3',
            '--arch',
            'mini',
            '--threads',
            '1',
            '--implementations',
            *STUBS,
            '--implementations-folder',
            'implementations',
            '--out',
            'out',
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert process.returncode == 0, process.stderr
    return process, folder / 'out'


def test_who_fails_is_named_and_the_others_go_on(run_with_stubs):
    process, out = run_with_stubs
    (case,) = json.loads((out / 'results.json').read_text())['cases']
    assert case['left_out'] == {
        'timm': 'its process was ended by SIGKILL (out of memory?): farewell',
        'transformers': "not installed (No module named 'transformers')",
        'torchvision': 'ImportError: wrong',
    }
    assert list(case['implementations']) == ['ours', 'gemm']
    assert all(len(each['seconds']) == 3 for each in case['implementations'].values())
    for name, why in case['left_out'].items():
        assert f'{name} is left out: {why}' in process.stdout
        assert f'- {name} is left out: {why}' in (out / 'results.md').read_text()


def test_what_is_written(run_with_stubs):
    process, out = run_with_stubs
    results = json.loads((out / 'results.json').read_text())
    machine, case = results['machine'], results['cases'][0]
    assert machine['threads'] == 1
    assert machine['versions']['torch'] == torch.__version__
    assert '--arch mini' in machine['command']
    assert case['implementations']['ours']['bytes'] > 0
    assert case['multiply_adds'] == case['implementations']['gemm']['recorded'] > 0
    assert case['speed_ratio'] is None, 'there is no implementation'
    assert '| ours |' in (out / 'results.md').read_text()
    assert case['name'] in process.stdout
    assert (out / 'chart.png').read_bytes().startswith(b'\x89PNG')
    assert {path.name for path in out.iterdir()} == {'results.json', 'results.md', 'chart.png'}


def test_peers_take_part():
    """Every library that is installed gives four maps of our shapes, at a rectangular size."""
    if not IMPLEMENTATIONS_FOLDER.is_dir():
        pytest.skip('make .venv/implementations installs the other implementations')
    workers = [
        Worker(implementation, IMPLEMENTATIONS_FOLDER, threads=1)
        for implementation in IMPLEMENTATIONS
    ]
    try:
        for worker in workers:
            worker.ask('build', **build_request(worker.implementation))
            assert worker.ask('run')['seconds'] > 0
    finally:
        for worker in workers:
            worker.close()


def test_death_in_the_middle_of_a_race(monkeypatch):
    """An implementation that dies after some rounds is left out, with its times."""

    class Mortal:
        def __init__(self, implementation, *_):
            self.name, self.lives = implementation, 4 if implementation == 'timm' else 1000

        def ask(self, do, **_):
            self.lives -= do == 'run'
            if not self.lives:
                raise WorkerError('it is gone')
            return {
                'run': dict(seconds=2.0 if self.name == 'ours' else 1.0),
                'memory': dict(bytes=100, how='clear_refs'),
            }.get(do, {})

        def close(self):
            self.lives = None

    monkeypatch.setattr('tools.analysis_tools.benchmark.Worker', Mortal)
    monkeypatch.setattr('tools.analysis_tools.benchmark._CALM', 0)
    args = parse_args(['--rounds', '5'])
    race = Race(cases_of(args)[0], args)
    result = race.run(['ours', 'timm', 'mmpretrain'])
    assert result['left_out'] == {'timm': 'it is gone'}
    assert result['fastest_peer'] == 'mmpretrain'
    assert result['speed_ratio'] == 0.5
    assert [len(each['seconds']) for each in result['implementations'].values()] == [5, 5]


def test_ratios():
    implementations = {
        'ours': dict(seconds=[1.0, 2.0, 3.0, 10.0, 4.0], bytes=50),
        'timm': dict(seconds=[3.0, 6.0, 6.0, 30.0, 8.0], bytes=200),
        'torchvision': dict(seconds=[7.0, 7.0, 7.0, 7.0, 7.0], bytes=100),
        'swin_v1': dict(seconds=[0.5] * 5, bytes=10),
        'gemm': dict(seconds=[1.5] * 5, bytes=10),
    }
    found = summarize(implementations, multiply_adds=3 * 10**9)
    assert found['fastest_peer'] == 'timm', 'V1 is no implementation of V2'
    assert found['smallest_peer'] == 'torchvision'
    assert found['speed_ratio'] == 6 / 3
    assert found['speed_ratio_by_round'] == 3
    assert found['memory_ratio'] == 0.5
    assert found['gemm_gflops'] == pytest.approx(4)
    ours = implementations['ours']
    assert (ours['median'], ours['iqr'], ours['min']) == (3, 2, 1)
    assert ours['limit_fraction'] == 0.5
    assert implementations['swin_v1']['speed'] == 12


def test_ratios_without_ours_or_peers():
    assert summarize({}, None)['speed_ratio'] is None
    alone = {'ours': dict(seconds=[1.0], bytes=1)}
    assert summarize(alone, None)['memory_ratio'] is None
    assert alone['ours']['speed'] is None
    assert summarize({'timm': dict(seconds=[1.0], bytes=1)}, None)['speed_ratio'] is None


@pytest.mark.parametrize('mode', ['infer', 'train'])
def test_multiply_adds(monkeypatch, mode):
    """The published 5.9 G of SwinV2-T; our own record of products agrees with torch's count."""
    monkeypatch.setenv('SWINV2_ATTENTION', 'plain')
    case = Case(mode, 256, 256, 8, 1, 'fp32')
    network = build_network('ours_plain', case, 'tiny', 0.0)
    products, multiply_adds = record(NetworkStep(network, case, 'cpu'))
    assert sum(product.multiply_adds for product in products) == multiply_adds
    if mode == 'infer':
        assert multiply_adds == pytest.approx(5.9e9, rel=0.03)


def test_recorded_products():
    """A convolution of patches and a linear layer, forward and backward, counted by hand."""
    layers = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Linear(6, 5))
    image = torch.randn(2, 3, 8, 12)
    products, multiply_adds = record(lambda: layers(image).sum().backward())
    patches, linear = 2 * 6 * 48 * 8, 16 * 6 * 5
    assert [product.multiply_adds for product in products] == [
        patches,
        linear,
        linear,
        linear,
        patches,
    ]
    assert multiply_adds == 2 * patches + 3 * linear
    assert [product.bias for product in products] == [True, True, False, False, False]
    assert products[1].b.transposed, 'a weight is (out, in)'


@pytest.mark.parametrize('threshold', [0, 2**25])
def test_replay(monkeypatch, threshold):
    """Buffers have the shapes and layouts asked for, and hold the products afterwards."""
    monkeypatch.setattr('tools.benchmarking.gemm._CACHED_BYTES', threshold)
    for product in (
        Product(Operand((6, 4), torch.float32), Operand((4, 5), torch.float32, True)),
        Product(Operand((6, 4), torch.bfloat16, True), Operand((4, 5), torch.bfloat16), bias=True),
        Product(Operand((2, 6, 4), torch.float32, True), Operand((2, 4, 5), torch.float32)),
    ):
        replay = Replay([product, product], 'cpu')
        replay()
        (_, operands, out), _ = replay.calls
        *bias, a, b = operands
        assert (Operand.like(a), Operand.like(b)) == (product.a, product.b)
        torch.testing.assert_close(out, a @ b + (bias[0] if bias else 0))


def test_maps_are_checked():
    shapes = Case('infer', 72, 100, 8, 2, 'fp32').map_shapes(16)
    assert shapes == [(2, 16, 18, 25), (2, 32, 9, 13), (2, 64, 5, 7), (2, 128, 3, 4)]
    maps = [torch.zeros(shape) for shape in shapes]
    check_maps(maps, shapes)
    with pytest.raises(ValueError, match='of shapes'):
        check_maps(maps[:3], shapes)
    maps[2][0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match='not finite'):
        check_maps(maps, shapes)


def test_peak_memory_is_that_of_the_step():
    class Step:
        def clear(self):
            pass

        def __call__(self):
            torch.ones(2**24)  # 64 MiB
            return torch.ones(2**22)

    step = Step()
    step()
    count, _ = peak_memory(step, 'cpu')
    assert 0.9 * 2**26 < count < 1.5 * 2**26


def cases(options):
    return cases_of(parse_args(options.split()))


def test_cases():
    product = cases(
        '--sizes 64 96x128 --windows 8 16 --modes infer train --dtype fp32 bf16 --batch 3'
    )
    assert len(product) == 16
    assert str(product[2]) == 'infer 96x128, window 8, batch 3, fp32'
    assert cases('--cases infer:512:8:1 train:800x1344:16:2 infer:512:8:1 --sizes 64') == [
        Case('infer', 512, 512, 8, 1, 'fp32'),
        Case('train', 800, 1344, 16, 2, 'fp32'),
    ]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--sizes 0', "--sizes: got '0', allowed: a side as 512"),
        ('--sizes 64x', "--sizes: got '64x', allowed"),
        ('--sizes 1x2x3', "--sizes: got '1x2x3', allowed"),
        ('--cases infer:512:8', "--cases: got 'infer:512:8', allowed: MODE:SIZE:WINDOW:BATCH"),
        ('--cases learn:512:8:1', "--cases: got 'learn:512:8:1', allowed"),
        ('--cases infer:512:8:0', "--cases: got 'infer:512:8:0', allowed"),
        ('--dtype fp8', "argument --dtype: invalid choice: 'fp8' (choose from"),
        (
            '--implementations keras',
            "argument --implementations: invalid choice: 'keras' (choose from",
        ),
        ('--rounds 0', "--rounds: got '0', allowed: an integer of at least 1"),
        ('--drop-path 1', "--drop-path: got '1', allowed: a number from 0 to below 1"),
        ('--round-s 1', "unknown option '--round-s' (did you mean '--rounds'?)"),
    ],
)
def test_bad_options(capsys, options, message):
    with pytest.raises(SystemExit) as error:
        parse_args(options.split())
    assert error.value.code == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count('\n') == 1


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(Exception, match="--device: got 'cuda', allowed: cpu"):
        parse_args(['--device', 'cuda'])
