"""Fetching checkpoints: URLs and hf://, against servers on this machine."""

import functools
import hashlib
import http.server
import json
import threading

import pytest
import torch

from swinv2_backbone.checkpoints import FORMATS, CheckpointError, download, from_backbone
from tests.helpers.checkpoint_files import (
    assert_loaded,
    headless_state,
    load,
    random_model,
    save_official,
    windows_of,
)

# --- URLs -----------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine, and an empty torch.hub cache."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def copyfile(self, source, outputfile):
            content = source.read()
            outputfile.write(content[: len(content) // 2] if 'cut' in self.path else content)

    served = tmp_path / 'served'
    served.mkdir()
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    httpd = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Quiet, directory=served)
    )
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield served, f'http://127.0.0.1:{httpd.server_port}'
    httpd.shutdown()


def test_a_url_is_fetched_once(server, tmp_path):
    served, url = server
    original = random_model()
    save_official(original, served / 'swinv2.pth')
    for _ in range(2):
        model = load(f'{url}/swinv2.pth')
        assert_loaded(model, original)
        (served / 'swinv2.pth').unlink(missing_ok=True)
    files = [p for p in (tmp_path / 'hub' / 'checkpoints').rglob('*') if p.is_file()]
    assert [p.name for p in files] == ['swinv2.pth']


def test_a_missing_url_is_an_error_and_leaves_nothing(server, tmp_path):
    with pytest.raises(ConnectionError, match=r'absent\.pth: could not be downloaded .*404'):
        load(f'{server[1]}/absent.pth')
    assert not any((tmp_path / 'hub').rglob('*.pth'))


def test_files_of_the_same_name_are_kept_apart(server):
    served, url = server
    for folder, seed in (('a', 1), ('b', 2)):
        (served / folder).mkdir()
        original = random_model(seed=seed)
        save_official(original, served / folder / 'pytorch_model.bin')
        model = load(f'{url}/{folder}/pytorch_model.bin')
        assert_loaded(model, original)


def test_a_download_that_is_cut_short_is_an_error_and_leaves_nothing(server, tmp_path):
    served, url = server
    save_official(random_model(), served / 'cut.pth')
    with pytest.raises(ConnectionError, match=r'cut\.pth: could not be downloaded \(.*cut short'):
        load(f'{url}/cut.pth')
    assert not [p for p in (tmp_path / 'hub').rglob('*') if p.is_file()]


def test_the_hash_in_the_name_of_a_url_is_checked(server, tmp_path):
    served, url = server
    save_official(random_model(), served / 'swinv2-0123456f.pth')
    with pytest.raises(
        CheckpointError, match=r'its sha256 is .* its name ends in 0123456f.*Nothing'
    ):
        load(f'{url}/swinv2-0123456f.pth')
    assert not [p for p in (tmp_path / 'hub').rglob('*') if p.is_file()]


# --- hf:// ----------------------------------------------------------------------------------------


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    """A folder of repositories that huggingface_hub takes for the hub, and the requests made."""
    constants = pytest.importorskip('huggingface_hub.constants')
    served, requests = tmp_path / 'served', []

    class Hub(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            requests.append(self.path)
            repository, _, rest = self.path.partition('/resolve/')
            revision, _, file = rest.partition('/')
            repository = served / repository.lstrip('/')
            path = repository / file
            if not path.is_file():
                self.send_response(404)
                kind = 'EntryNotFound' if repository.is_dir() else 'RepoNotFound'
                self.send_header('X-Error-Code', kind)
                self.send_header('Content-Length', '0')
                self.end_headers()
                return
            content = path.read_bytes()
            self.send_response(200)
            self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header('X-Repo-Commit', hashlib.sha1(revision.encode()).hexdigest())
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            if self.command == 'GET':
                self.wfile.write(content)

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f'http://127.0.0.1:{server.server_port}'
    use_endpoint(monkeypatch, endpoint)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    yield served, requests
    server.shutdown()


def use_endpoint(monkeypatch, endpoint):
    constants = pytest.importorskip('huggingface_hub.constants')
    # The template is composed when huggingface_hub is imported.
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, 'ENDPOINT', endpoint)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', endpoint + template)


def save_safetensors(state, path):
    pytest.importorskip('safetensors.torch').save_file(state, path)


def save_repository(folder, **files):
    folder.mkdir(parents=True)
    model = random_model()
    state = from_backbone(headless_state(model), {}, FORMATS['hf'])
    for name, write in files.items():
        write(state, folder / name.replace('__', '.'))
    return model


def config(state, path):
    settings = dict(model_type='swinv2', image_size=256, window_size=16)
    path.write_text(json.dumps(settings))


def test_a_repository_gives_the_file_and_its_window_sizes(local_hub):
    served, requests = local_hub
    original = save_repository(
        served / 'owner/name', model__safetensors=save_safetensors, config__json=config
    )
    for address in ('hf://owner/name', 'hf://owner/name/model.safetensors', 'hf://owner/name@v2'):
        model = load(address, 'auto')
        assert torch.equal(
            model.layers[3].blocks[1].mlp.fc2.weight, original.layers[3].blocks[1].mlp.fc2.weight
        )
        assert windows_of(model) == [(16, 16)] * 3 + [(8, 8)]
    assert any('/resolve/v2/' in path for path in requests)


def test_files_of_the_older_name_are_found(local_hub):
    original = save_repository(local_hub[0] / 'owner/name', pytorch_model__bin=torch.save)
    model = load('hf://owner/name', setting=8)
    assert torch.equal(
        model.layers[2].blocks[0].attn.qkv.weight, original.layers[2].blocks[0].attn.qkv.weight
    )


def test_a_file_in_a_folder_comes_with_its_config(local_hub):
    save_repository(
        local_hub[0] / 'owner/name/sub', model__safetensors=save_safetensors, config__json=config
    )
    assert windows_of(load('hf://owner/name/sub/model.safetensors', 'auto'))[0] == (16, 16)


@pytest.mark.parametrize(
    ('address', 'message'),
    [
        ('hf://owner/name', r'model\.safetensors: .*404.*; pytorch_model\.bin: .*404'),
        ('hf://owner/name/absent.bin', r'absent\.bin: .*404'),
        ('hf://owner/nobody', 'model.safetensors: .*40'),
        ('hf://owner/na me', 'na me'),
    ],
)
def test_what_is_missing_on_the_hub_is_an_error(local_hub, address, message):
    save_repository(local_hub[0] / 'owner/name', config__json=config)
    with pytest.raises(
        ConnectionError,
        match=f'checkpoint {address}: could not be fetched from the hub .*{message}',
    ):
        load(address)


def test_without_network_the_error_says_so(local_hub, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # between its attempts
    use_endpoint(monkeypatch, 'http://127.0.0.1:9')
    with pytest.raises(ConnectionError, match='could not be fetched from the hub'):
        load('hf://owner/name')


@pytest.mark.parametrize(
    'address', ['hf://', 'hf://owner', 'hf://owner/', 'hf:///name', 'ftp://host/x.pth']
)
def test_malformed_addresses_are_refused(address):
    pytest.importorskip('huggingface_hub')
    with pytest.raises(ValueError, match=rf"got '{address}', allowed: a path, an http"):
        load(address)


def test_a_url_without_a_file_name_is_refused():
    with pytest.raises(ValueError, match=r"got 'http://host/', allowed: a URL with a file name"):
        load('http://host/')


def test_the_hash_of_a_file_of_the_hub_is_checked(local_hub):
    save_repository(local_hub[0] / 'owner/name', model__safetensors=save_safetensors)
    with pytest.raises(ValueError, match="sha256='01234567' is required"):
        load('hf://owner/name', init_cfg=dict(sha256='01234567'))


def test_without_huggingface_hub_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(download, 'find_spec', lambda name: None)
    with pytest.raises(
        ImportError,
        match=r'checkpoint hf://owner/name: huggingface_hub is not '
        r'installed: run `pip install huggingface_hub safetensors`',
    ):
        load('hf://owner/name')
