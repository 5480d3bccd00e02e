"""The links of the README lead to files, and its commands name files and targets that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def test_links_lead_to_files():
    links = [link for link in re.findall(r'\]\(([^)#]+)\)', README) if '://' not in link]
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_no_placeholder_is_left():
    assert '@@' not in README


def test_commands_name_files_and_targets_that_exist():
    named = set(re.findall(r'\b(?:tools|configs)/[\w/]+\.(?:py|sh)', README))
    named |= {f'tools/{name}' for name in re.findall(r'\b(?:dist|slurm)_\w+\.sh', README)}
    assert len(named) > 5
    assert [path for path in named if not (ROOT / path).exists()] == []
    targets = re.findall(r'^([\w/-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    wanted = set(re.findall(r'(?:^    |`)make ([\w/-]+)', README, re.MULTILINE))
    assert {'demo', 'test'} <= wanted <= set(targets)
