"""tools/app.py: the page, by itself and in a browser."""

import argparse
import shutil
import time
import urllib.request
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers.scripts import ROOT, error_line, free_port, isolated, start
from tools.utils import cli

for needed in ('mmcv', 'mmdet', 'mmseg', 'matplotlib'):
    pytest.importorskip(needed)

import cv2

from tools import app
from tools.inference import page
from tools.inference.explorer import Explorer, Found
from tools.inference.listing import list_models

SEGMENTOR, DETECTOR = 'segmentation_shapes/iter_2.pth', 'detection_shapes/iter_2.pth'


@pytest.fixture
def args():
    windows = [cli.window('2'), cli.window('8')]
    return argparse.Namespace(window_size=windows, max_bytes=50_000, max_pixels=200 * 200)


@pytest.fixture(scope='module')
def explorer(work_dirs):
    with isolated():
        yield Explorer(list_models(sorted(work_dirs.iterdir())))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'image.png'
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
    return path


def test_names_are_escaped():
    assert '&lt;b&gt;: 1' in page.legend([Found('<b>', (1, 2, 3), '1')])
    assert 'rgb(1, 2, 3)' in page.legend([Found('x', (1, 2, 3), '1')])
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert page.figures([(pixels, '"<')], 'maps').count('&quot;&lt;') == 2


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(app, 'find_spec', lambda name: None)
    assert "needs gradio: pip install '.[demo]'" in error_line(capsys, app.main)


def test_mistakes_end_in_one_line(monkeypatch, capsys, tmp_path, work_dirs):
    monkeypatch.setattr(app, 'find_spec', lambda name: True)
    monkeypatch.chdir(tmp_path)
    mistakes = {
        (): "'work_dirs': no work dir of a segmentor or detector in it",
        ('--exported', 'x.onnx'): '--exported: name the work dir that the files are of',
        (tmp_path,): 'no config (.py) in it',
        ('--port', 'x'): "--port: got 'x'",
    }
    for arguments, message in mistakes.items():
        assert message in error_line(capsys, app.main, *arguments)
    other = shutil.copytree(work_dirs / 'segmentation_shapes', tmp_path / 'other')
    shutil.copy(work_dirs / DETECTOR, other / 'iter_2.pth')
    assert 'the checkpoint does not fit' in error_line(capsys, app.main, other)


@pytest.mark.parametrize('name', [SEGMENTOR, DETECTOR])
def test_an_answer_comes_in_two_parts(explorer, args, image, name):
    pytest.importorskip('gradio')
    answers = page.Answers(explorer, args)
    first, second = answers.answer(str(image), name, 'torch', page.CONFIGURED, 0.0)
    assert first[0].shape[:2] in ((64, 96), (512, 768))
    assert 'class="found"' in first[1]
    assert first[2:] == (None, None)
    assert second[2].count('<img') == 4
    assert second[3].count('<img') == 1 + 2 + 4 + 8
    assert 'window 2 x 2' in list(answers.answer(str(image), name, 'torch', '2', 0.0))[1][3]


def test_mistakes_of_visitors_are_told_in_one_line(explorer, args, image, tmp_path, caplog):
    gr = pytest.importorskip('gradio')
    text = tmp_path / 'text.png'
    text.write_text('no image')
    answers = page.Answers(explorer, args)
    chosen = str(image), SEGMENTOR, 'torch', page.CONFIGURED
    mistakes = {
        (None, *chosen[1:]): 'Choose an image first.',
        (str(text), *chosen[1:]): 'The file is no image',
        (chosen[0], '../x.pth', *chosen[2:]): 'Choose a checkpoint, runtime and window',
        (*chosen[:2], 'openvino', chosen[3]): 'Choose a checkpoint, runtime and window',
        (*chosen[:3], '100'): 'Choose a checkpoint, runtime and window',
    }
    for each, message in mistakes.items():
        with pytest.raises(gr.Error) as shown:
            list(answers.answer(*each, 0.3))
        assert message in shown.value.message
        assert str(tmp_path) not in shown.value.message
    assert caplog.text == ''


def test_what_fails_is_logged_and_not_told(explorer, args, image, monkeypatch, caplog):
    gr = pytest.importorskip('gradio')

    def fail(*_):
        raise OSError('/a/secret/path')

    monkeypatch.setattr(explorer, 'model', fail)
    answers = page.Answers(explorer, args)
    with pytest.raises(gr.Error) as shown:
        list(answers.answer(str(image), SEGMENTOR, 'torch', page.CONFIGURED, 0.3))
    assert 'secret' not in shown.value.message
    assert '/a/secret/path' in caplog.text


def test_the_page_reports_nothing_queues_and_cleans_up(explorer, args):
    pytest.importorskip('gradio')
    built = page.build_page(explorer, args)
    assert not built.analytics_enabled
    assert built.delete_cache == (60, 600)
    assert built._queue.default_concurrency_limit == 1
    assert built._queue.max_size == 20
    assert {each.api_visibility for each in built.fns.values()} == {'private'}
    assert not list((ROOT / 'tools').glob('*.pyi'))


# In a browser.


@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip('playwright.sync_api')
    pytest.importorskip('gradio')
    with playwright.sync_playwright() as started:
        path = shutil.which('chromium') or started.chromium.executable_path
        try:
            browser = started.chromium.launch(executable_path=path, args=['--no-sandbox'])
        except playwright.Error as error:
            pytest.skip(f'no Chromium: {error}')
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def served(work_dirs, tmp_path_factory):
    """The page, served by a process of its own; `temporary` is its folder for temporary files."""
    port, temporary = free_port(), tmp_path_factory.mktemp('temporary')
    options = '--port', port, '--max-bytes', 100_000, '--window-size', 2, 8
    folders = sorted(work_dirs.iterdir(), reverse=True)  # The segmentor first.
    process = start('demo/app.py', *folders, *options, variables={'TMPDIR': str(temporary)})
    address = f'http://127.0.0.1:{port}'
    for _ in range(300):
        with suppress(OSError), urllib.request.urlopen(address):
            break
        assert process.poll() is None, process.communicate()[0]
        time.sleep(1)
    yield SimpleNamespace(address=address, temporary=temporary)
    process.terminate()
    process.terminate()  # As `timeout` and a service manager may do.
    output = process.communicate(timeout=60)[0]
    assert 'Traceback' not in output, output
    assert list(temporary.glob('swinv2_app_*')) == []


class Visitor:
    """A visitor of the page, with nothing else in the browser."""

    def __init__(self, browser, served):
        self.page = browser.new_context().new_page()
        self.page.set_default_timeout(60_000)
        self.hosts = set()
        self.page.on('request', lambda each: self.hosts.add(each.url.partition('/gradio')[0]))
        self.page.goto(served.address)
        self.button = self.page.get_by_role('button', name='Predict')
        self.button.wait_for()

    def send(self, path):
        with self.page.expect_response(lambda each: each.request.method == 'POST') as response:
            self.page.set_input_files('input[type=file]', path)
        return response.value.status

    def result(self):
        """What was found, and the source of the first feature map."""
        self.tab('Prediction')
        found = self.page.locator('.found')
        found.wait_for()
        self.tab('Features')
        shown = self.page.locator('.maps img').first
        shown.wait_for()
        return found.text_content(), shown.get_attribute('src')

    def tab(self, name):
        self.page.get_by_role('tab', name=name).click()

    def error(self):
        return self.page.locator('.toast-body').first.inner_text()

    def choose(self, label, option):
        self.page.get_by_label(label).click()
        self.page.get_by_role('option', name=option, exact=True).click()


@pytest.fixture
def visitor(browser, served):
    return Visitor(browser, served)


@pytest.mark.slow
def test_an_image_is_predicted_and_the_window_changes_the_result(visitor, image):
    visitor.send(image)
    visitor.button.click()
    found, before = visitor.result()
    assert '% of the pixels' in found
    visitor.tab('Bias')
    visitor.page.get_by_text('stage 1, window 8 x 8:').wait_for()
    visitor.choose('attention window', '2')
    visitor.button.click()
    visitor.tab('Bias')
    visitor.page.get_by_text('stage 1, window 2 x 2:').wait_for()
    assert visitor.result()[1] != before
    assert {each for each in visitor.hosts if '127.0.0.1' not in each} == set()


@pytest.mark.slow
def test_the_task_changes_the_checkpoints(visitor, image):
    visitor.page.get_by_role('radio', name='detection').check()
    visitor.page.get_by_text('smallest score').wait_for()
    visitor.send(image)
    visitor.button.click()
    assert 'scores up to' in visitor.result()[0] or 'Nothing' in visitor.result()[0]


@pytest.mark.slow
def test_other_files_are_refused(visitor, served, tmp_path):
    text, large = tmp_path / 'text.png', tmp_path / 'large.png'
    text.write_text('no image')
    large.write_bytes(bytes(200_000))
    visitor.button.click()
    assert 'Choose an image first.' in visitor.error()
    visitor.page.reload()
    visitor.button.wait_for()
    assert visitor.send(text) == 200
    visitor.button.click()
    assert 'The file is no image' in visitor.error()
    visitor.page.reload()
    visitor.button.wait_for()
    visitor.page.set_input_files('input[type=file]', large)
    assert 'exceed the maximum allowed size' in visitor.error()
    # Nor past the browser.
    form = {'files': dict(name='large.png', mimeType='image/png', buffer=bytes(200_000))}
    upload = f'{served.address}/gradio_api/upload'
    assert visitor.page.request.post(upload, multipart=form).status == 413


@pytest.mark.slow
def test_two_visitors_at_once_are_both_served(browser, served, image, tmp_path):
    other = tmp_path / 'other.png'
    cv2.imwrite(str(other), np.zeros((64, 64, 3), np.uint8))
    visitors = [Visitor(browser, served) for _ in range(2)]
    for visitor, path in zip(visitors, (image, other), strict=True):
        visitor.send(path)
    for visitor in visitors:
        visitor.button.click()
    first, second = (visitor.result() for visitor in visitors)
    assert first[1] != second[1]
