"""Tables are aligned: names to the left, numbers to the right."""

from tools.utils.table import format_number, format_table, markdown_table


def test_format_table():
    rows = [['', 'mIoU', 's/image'], ['model', '91.303', '-'], ['most frequent', '5.1', '0.25']]
    assert format_table(rows).split('\n') == [
        '                 mIoU  s/image',
        'model          91.303        -',
        'most frequent     5.1     0.25',
    ]


def test_format_number():
    assert format_number(1.25, '.1f') == '1.2'
    assert format_number(None, '.1f') == '-'


def test_markdown_table():
    rows = [['name', 'ms'], ['ours', '1.0'], ['timm', '2.0']]
    assert markdown_table(rows).split('\n') == [
        '| name | ms |',
        '|---|---:|',
        '| ours | 1.0 |',
        '| timm | 2.0 |',
    ]
