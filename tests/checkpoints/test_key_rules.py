"""The notation of the tables, and what `translate` does with it."""

import pytest
import torch

from swinv2_backbone.checkpoints.errors import CheckpointError
from swinv2_backbone.checkpoints.key_rules import Format, Template, Unfolded, translate


@pytest.mark.parametrize(
    ('template', 'key', 'expected'),
    [
        ('norm{n}.{p}', 'norm3.weight', ('', (('n', '3'), ('p', 'weight')))),
        ('norm{n}.{p}', 'a.b.norm0.bias', ('a.b.', (('n', '0'), ('p', 'bias')))),
        ('features.{2i+1}.{j}.x', 'features.5.0.x', ('', (('i', '2'), ('j', '0')))),
        ('layers.{d+1}.y', 'layers.3.y', ('', (('d', '2'),))),
        ('norm{n}.{p}', 'norm4.weight', None),  # there are four stages
        ('norm{n}.{p}', 'norm3.scale', None),
        ('norm{n}.{p}', 'prenorm3.weight', None),  # a prefix ends in a dot
        ('features.{2i+1}.{j}.x', 'features.4.0.x', None),  # even: a merging
        ('layers.{d+1}.y', 'layers.0.y', None),
        ('cpb_mlp.{c}.w', 'cpb_mlp.1.w', None),  # a ReLU
        ('norm{n}.{p}', 'norm03.weight', None),
        ('norm{n}.{p}', 'norm\u0663.weight', None),  # a digit, but not an ASCII one
    ],
)
def test_template_matches_a_key_and_is_filled_in_again(template, key, expected):
    matched = Template(template).match(key)
    assert matched == expected
    if matched:
        assert matched[0] + Template(template).fill(matched[1]) == key


def format_of(names, **kwargs):
    return Format('test', names, 'head.{p}', **kwargs)


JOINED = format_of({'a.{i}': ('q.{i}', None, 'v.{i}')})
REORDERED = format_of({'w': Unfolded('w')})


def test_a_tensor_is_cut_into_named_parts_and_joined_with_zeros():
    theirs, unknown = translate({'a.1': torch.arange(6.0)}, JOINED, to_ours=False)
    assert unknown == []
    assert {key: value.tolist() for key, value in theirs.items()} == {'q.1': [0, 1], 'v.1': [4, 5]}
    ours, _ = translate(theirs, JOINED, to_ours=True)
    assert ours['a.1'].tolist() == [0, 1, 0, 0, 4, 5]


def test_columns_are_reordered_both_ways():
    weight = torch.arange(16.0).view(2, 8)
    theirs, _ = translate({'w': weight}, REORDERED, to_ours=False)
    order = [0, 4, 2, 6, 1, 5, 3, 7]  # From (column, row, channel) to (channel, row, column).
    assert theirs['w'].tolist() == [order, [8 + i for i in order]]
    assert torch.equal(translate(theirs, REORDERED, to_ours=True)[0]['w'], weight)


def test_keys_without_a_rule_are_returned():
    ours, unknown = translate({'a.1': torch.ones(3), 'x.q.1': torch.ones(1)}, JOINED, to_ours=True)
    assert (ours, unknown) == ({}, ['a.1', 'x.q.1'])


def test_older_names_are_read_but_not_written():
    fmt = format_of({'a': 'new'}, older_names={'a': 'old'})
    assert list(translate({'old': torch.ones(1)}, fmt, to_ours=True)[0]) == ['a']
    assert list(translate({'a': torch.ones(1)}, fmt, to_ours=False)[0]) == ['new']
    with pytest.raises(CheckpointError, match='has a twice, once as old'):
        translate({'new': torch.ones(1), 'old': torch.ones(1)}, fmt, to_ours=True)


@pytest.mark.parametrize(
    ('state', 'fmt', 'to_ours', 'message'),
    [
        ({'q.0': torch.ones(2)}, JOINED, True, 'has q.0, but lacks v.0'),
        (
            {'q.0': torch.ones(2), 'v.0': torch.ones(3)},
            JOINED,
            True,
            r'q.0, v.0 have different shapes: \(2,\), \(3,\)',
        ),
        (
            {'a.0': torch.ones(4)},
            JOINED,
            False,
            r'a.0 has shape \(4,\), which has no 3 equal parts',
        ),
        ({'w': torch.ones(8)}, REORDERED, True, r'w has shape \(8,\), allowed: \(2C, 4C\)'),
    ],
)
def test_shapes_that_do_not_fit_are_refused(state, fmt, to_ours, message):
    with pytest.raises(CheckpointError, match=message):
        translate(state, fmt, to_ours)
