"""The command line of the benchmark."""

import pytest
import torch

from tools.benchmarking.arguments import cases_of, parse_args
from tools.benchmarking.cases import Case


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
            "argument --implementations/--peers: invalid choice: 'keras' (choose from",
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
