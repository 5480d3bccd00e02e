"""hf://: through huggingface_hub, against a hub on this machine."""

import hashlib
import http.server
import json
import threading

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.checkpoints import download
from swinv2_backbone.checkpoints import from_backbone
from swinv2_backbone.checkpoints.formats import FORMATS
from tests.checkpoints.test_pretrained_windows import hf_config, windows_of
from tests.helpers.models import SMALL_ARCH, randomize_parameters

constants = pytest.importorskip('huggingface_hub.constants')
save_file = pytest.importorskip('safetensors.torch').save_file


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    """A folder of repositories that huggingface_hub takes for the hub, and the requests made."""
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
    # The template is composed when huggingface_hub is imported.
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, 'ENDPOINT', endpoint)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', endpoint + template)


def publish(folder, **files):
    folder.mkdir(parents=True)
    model = randomize_parameters(SwinTransformerV2(SMALL_ARCH))
    state = from_backbone(
        {
            key: value
            for key, value in model.state_dict().items()
            if key.startswith(('patch_embed', 'layers', 'norm3'))
        },
        {},
        FORMATS['hf'],
    )
    for name, write in files.items():
        write(state, folder / name.replace('__', '.'))
    return model


def load(checkpoint, setting='auto', **init_cfg):
    model = SwinTransformerV2(
        SMALL_ARCH,
        pretrained_window_sizes=setting,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, **init_cfg),
    )
    model.init_weights()
    return model


def config(state, path):
    path.write_text(json.dumps(hf_config() | dict(window_size=16)))


def test_the_file_and_its_windows_are_found(local_hub):
    served, requests = local_hub
    original = publish(served / 'owner/name', model__safetensors=save_file, config__json=config)
    for address in ('hf://owner/name', 'hf://owner/name/model.safetensors', 'hf://owner/name@v2'):
        model = load(address)
        assert torch.equal(
            model.layers[3].blocks[1].mlp.fc2.weight, original.layers[3].blocks[1].mlp.fc2.weight
        )
        assert windows_of(model) == [(16, 16)] * 3 + [(8, 8)]
    assert any('/resolve/v2/' in path for path in requests)


def test_older_files_are_found(local_hub):
    original = publish(local_hub[0] / 'owner/name', pytorch_model__bin=torch.save)
    model = load('hf://owner/name', setting=8)
    assert torch.equal(
        model.layers[2].blocks[0].attn.qkv.weight, original.layers[2].blocks[0].attn.qkv.weight
    )


def test_a_file_in_a_folder_with_its_config(local_hub):
    publish(local_hub[0] / 'owner/name/sub', model__safetensors=save_file, config__json=config)
    assert windows_of(load('hf://owner/name/sub/model.safetensors'))[0] == (16, 16)


@pytest.mark.parametrize(
    ('address', 'message'),
    [
        ('hf://owner/name', r'model\.safetensors: .*404.*; pytorch_model\.bin: .*404'),
        ('hf://owner/name/absent.bin', r'absent\.bin: .*404'),
        ('hf://owner/nobody', 'model.safetensors: .*40'),
        ('hf://owner/na me', 'na me'),
    ],
)
def test_what_is_not_there(local_hub, address, message):
    publish(local_hub[0] / 'owner/name', config__json=config)
    with pytest.raises(
        ConnectionError,
        match=f'checkpoint {address}: could not be fetched from the hub .*{message}',
    ):
        load(address)


def test_no_network(local_hub, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # between its attempts
    use_endpoint(monkeypatch, 'http://127.0.0.1:9')
    with pytest.raises(ConnectionError, match='could not be fetched from the hub'):
        load('hf://owner/name')


@pytest.mark.parametrize('address', ['hf://', 'hf://owner', 'hf://owner/', 'hf:///name'])
def test_what_is_no_address(address):
    with pytest.raises(ValueError, match=rf"got '{address}', allowed: a path, an http"):
        load(address)


def test_a_wrong_hash(local_hub):
    publish(local_hub[0] / 'owner/name', model__safetensors=save_file)
    with pytest.raises(ValueError, match="sha256='01234567' was asked for"):
        load('hf://owner/name', sha256='01234567')


def test_without_huggingface_hub_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(download, 'find_spec', lambda name: None)
    with pytest.raises(
        ImportError,
        match=r'checkpoint hf://owner/name: huggingface_hub is not '
        r'installed: run `pip install huggingface_hub safetensors`',
    ):
        load('hf://owner/name')
