"""Hooks of mkdocs: the site is made of the documents as they are read in a clone.

The documents at the top of the repository become pages (README.md the first), and links to other
files of the repository lead to pages that show those files.
"""

import os
import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Documents of the repository, and where they are in the site.
TOP = {
    'README.md': 'index.md',
    'CHANGELOG.md': 'changelog.md',
    'CONTRIBUTING.md': 'contributing.md',
    'MODEL_CARD.md': 'model_card.md',
    'SECURITY.md': 'security.md',
}
LANGUAGES = {'.py': 'python', '.sh': 'bash', '.toml': 'toml', '.yml': 'yaml', '.cff': 'yaml'}
# The path of a link, not of an address; its section is left as it is.
LINK = re.compile(r'(?<=\]\()(?!\w+:)[^)\s#]+')


# What pages say that only the site fills.
NOT_HERE = '*In a clone this page is empty: `make docs` fills it from the docstrings.*\n'
# References in docstrings, such as :class:`~.module.Name`.
ROLE = re.compile(r':\w+:`~?\.*([^`]+)`')


class PlainRoles(griffe.Extension):
    """Shows references in docstrings as code: mkdocstrings does not read them."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(r'`\1`', obj.docstring.value)


def page_of(path: str) -> str:
    """Where a file or folder of the repository is in the site."""
    if path in TOP:
        return TOP[path]
    if path.startswith('docs/'):
        return path.removeprefix('docs/')
    return f'source/{path.removeprefix(".")}.md'  # mkdocs leaves out hidden folders


def target_of(link: str, document: str) -> str:
    """The path in the repository that a link in one of its documents leads to."""
    return os.path.normpath(os.path.join(os.path.dirname(document), link))


def show(path: str) -> str:
    """The page that shows a file, or what is in a folder."""
    if (ROOT / path).is_dir():
        names = sorted(child.name for child in (ROOT / path).iterdir() if child.is_file())
        folder = os.path.basename(path)
        body = '\n'.join(f'- [{name}]({folder}/{name}.md)' for name in names)
    else:
        language = LANGUAGES.get(Path(path).suffix, 'text')
        body = f'~~~~~~ {language}\n{(ROOT / path).read_text(encoding="utf-8").rstrip()}\n~~~~~~'
    return f'---\nsearch:\n  exclude: true\n---\n# `{path}`\n\n{body}\n'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents at the top, and a page for each file that a document links to."""
    documents = {f'docs/{file.src_uri}': file for file in files.documentation_pages()}
    for name, page in TOP.items():
        documents[name] = File.generated(config, page, abs_src_path=str(ROOT / name))
        files.append(documents[name])
    shown = set()
    for document, file in documents.items():
        for link in LINK.findall(file.content_string):
            path = target_of(link, document)
            if page_of(path).startswith('source/') and (ROOT / path).exists():
                shown.add(path)
                if (ROOT / path).is_dir():
                    shown |= {f'{path}/{p.name}' for p in (ROOT / path).iterdir() if p.is_file()}
    for path in sorted(shown):
        files.append(File.generated(config, page_of(path), content=show(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Make a document's links those of the site."""
    here = page.file.src_uri
    if here.startswith('source/'):
        return markdown
    markdown = markdown.replace(NOT_HERE, '')
    document = next((name for name, top in TOP.items() if top == here), f'docs/{here}')

    def relative(match: re.Match) -> str:
        target = page_of(target_of(match[0], document))
        return os.path.relpath(target, os.path.dirname(here) or '.')

    return LINK.sub(relative, markdown)
