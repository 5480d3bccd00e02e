"""Links, paths and commands in the documents lead to files, sections and targets that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md')]
_RULES = re.findall(r'^([\w/ -]+):(?!=)', (ROOT / 'Makefile').read_text(), re.MULTILINE)
TARGETS = ' '.join(_RULES).split()


def anchors(document):
    """What `#...` may name in a document, as GitHub makes it of the headings."""
    headings = re.findall(r'^#+ (.*)$', document.read_text(), re.MULTILINE)
    return [re.sub(r'[^\w\- ]', '', text.lower()).strip().replace(' ', '-') for text in headings]


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request):
    return request.param


def test_links_lead_to_files_and_sections(document):
    for link in re.findall(r'\]\(([^)]+)\)', document.read_text()):
        if '://' not in link:
            path, _, anchor = link.partition('#')
            target = document.parent / path if path else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_paths_exist(document):
    text = document.read_text()
    paths = set(re.findall(r'\b(?:tools|configs|tests|swinv2_backbone)/[\w/]+\.(?:py|sh)\b', text))
    paths -= set(re.findall(r'^```python\n# (\S+)$', text, re.MULTILINE))  # what the reader saves
    inside = set(re.findall(r'`((?:layers|checkpoints)/\w+\.py)`', text))
    missing = [path for path in paths if not (ROOT / path).exists()]
    missing += [path for path in inside if not (ROOT / 'swinv2_backbone' / path).exists()]
    assert missing == []


def test_make_targets_exist(document):
    lines = re.findall(
        r'(?:^    |`)make ([a-z/-]+(?: [a-z/-]+)*)', document.read_text(), re.MULTILINE
    )
    assert {target for line in lines for target in line.split()} <= set(TARGETS)


def test_options_of_tools_exist(document):
    text = document.read_text().replace('\\\n', ' ')
    shared = (ROOT / 'tools/utils/cli.py').read_text()
    shared += (ROOT / 'tools/benchmarking/arguments.py').read_text()
    for tool, rest in re.findall(r'(?<!\w/)\b(tools/[\w/]+\.py)\b([^`#|\n]*)', text):
        source = (ROOT / tool).read_text() + shared
        for option in re.findall(r'(?<=\s)--[a-z][a-z0-9-]*', rest):
            assert option == '--help' or f"'{option}'" in source, f'{tool} {option}'


def test_readme_names_the_two_commands_and_is_complete():
    readme = (ROOT / 'README.md').read_text()
    assert {'demo', 'test'} <= set(re.findall(r'^    make (\w+)', readme, re.MULTILINE))
    assert '@@' not in readme
    assert len(readme.splitlines()) <= 120


def test_every_document_is_in_the_site():
    navigation = (ROOT / 'mkdocs.yml').read_text().partition('\nnav:')[2]
    pages = set(re.findall(r'([\w/-]+\.md)$', navigation, re.MULTILINE))
    documents = {str(path.relative_to(ROOT / 'docs')) for path in ROOT.glob('docs/**/*.md')}
    at_the_top = {'README.md': 'index.md'}
    tops = {at_the_top.get(path.name, path.name.lower()) for path in ROOT.glob('*.md')}
    assert pages == documents | tops


def test_every_tool_is_in_the_reference():
    page = (ROOT / 'docs/reference/tools.md').read_text()
    parts = 'analysis_tools', 'dataset_converters', 'deployment', 'misc', 'model_converters'
    folders = ROOT / 'tools', *(ROOT / 'tools' / part for part in parts)
    tools = {
        path.relative_to(ROOT)
        for folder in folders
        for path in (*folder.glob('*.py'), *folder.glob('*.sh'))
        if path.name != '__init__.py' and not path.match('*_run.sh')
    }
    assert {str(tool) for tool in tools if f'`{tool}`' not in page} == set()
