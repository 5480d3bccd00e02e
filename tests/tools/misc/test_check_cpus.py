"""The runs of `make test-cpus` and their table."""

import pytest

from tools.misc import check_cpus


@pytest.mark.parametrize(
    ('newest', 'expected'),
    [
        ('DEFAULT', ['default']),
        ('AVX2', ['default', 'avx2']),
        ('AVX512', ['default', 'avx2', 'avx512']),
        ('SVE256', ['default']),
    ],
)
def test_capabilities_that_a_cpu_has(newest, expected):
    assert check_cpus.available(newest) == expected


@pytest.mark.parametrize('failing', [None, ('avx2', 4)])
def test_one_failure_fails_the_whole(monkeypatch, capsys, failing):
    def run_tests(capability, threads, tests):
        return (capability, threads) != failing, f'{len(tests)} ran'

    monkeypatch.setattr(check_cpus, 'run_tests', run_tests)
    monkeypatch.setattr(check_cpus.torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX2')
    monkeypatch.setattr('sys.argv', ['', 'tests/layers'])
    with pytest.raises(SystemExit) as caught:
        check_cpus.main()
    assert caught.value.code == (failing is not None)
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 10
    assert table[4].split() == ['avx2,', '1', '1', 'ran']
    assert table[-1].endswith('skipped: this CPU has AVX2')


def test_run_reports_the_summary_of_pytest(tmp_path):
    test = tmp_path / 'test_environment.py'
    test.write_text(
        'import os\n'
        'def test_limit(): assert os.environ["ONEDNN_MAX_CPU_ISA"] == "SSE41"\n'
        'def test_threads(): assert os.environ["OMP_NUM_THREADS"] == "4"\n'
    )
    passed, summary = check_cpus.run_tests('default', 4, [str(test)])
    assert passed
    assert summary.startswith('2 passed in ')
