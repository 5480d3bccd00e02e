"""The models of the other implementations: built, filled with random weights, saved as they save.

Each class has ``build(arch, window, size, pretrained)``, ``stages(model, x)`` (what leaves the
blocks of each stage, (B, C, H, W)), ``save(model, folder)`` (the checkpoint to load) and
``format`` (its checkpoint format). The networks themselves are built by
tools/benchmarking/implementations.py.
"""

import importlib
import math
import os
import re
import zlib

import pytest
import torch

from tools.benchmarking import implementations

CLASSES = 10
# The folder of `.venv/implementations` to compare with (`make parity` sets it): what is in it must
# be there. Without it, an implementation that is not installed is left out.
FOLDER = os.environ.get('SWINV2_IMPLEMENTATIONS')


def need(name):
    """Import an implementation; skip the test where it is not installed, or not asked for."""
    implementations.declare_torchvision_operators()
    implementation = implementations.IMPLEMENTATIONS[name]
    module = implementation.packages[0]
    if not FOLDER:
        return pytest.importorskip(module)
    if implementation.folder != FOLDER:
        pytest.skip(f'{name} is in another folder, with which another run compares')
    return importlib.import_module(module)


# How parameters of the last stage are named.
_LAST_STAGE = re.compile(r'\b((layers|stages)[._]3|features\.7)\.')


def noise(shape, seed):
    """Random numbers of mean 0 and variance 1, the same on every CPU.

    Uniform, because torch computes normal ones by other instructions on other CPUs.
    """
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (uniform - 0.5) * math.sqrt(12)


def random_parameter(key, shape, sharp=False):
    """A random value for a parameter of any library, the same for the same key.

    The values make every part of the network matter: post-norms are away from 0 and 1, logit
    scales away from ln 10, the position bias varies by several units, biases are not zero. In the
    last stage every third head's scale is above the clamp ln 100; if `sharp`, in all stages. The
    softmax is then so sharp that it multiplies float32's rounding: each implementation, ours too,
    is some 2e-4 away from itself in float64.
    """
    values = noise(shape, zlib.crc32(key.encode()))
    if key.endswith('logit_scale'):
        scales = math.log(10) + 0.4 * values
        scales[::3] += 2.5 * (sharp or _LAST_STAGE.search(key) is not None)
        return scales
    if 'cpb_mlp' in key or 'position_bias_mlp' in key:
        return values * (1.0 if '.0.' in key[-10:] else 0.1)
    if len(shape) == 1:
        return (0.6 if key.endswith('.weight') else 0.0) + 0.2 * values
    return values * values[0].numel() ** -0.5


def fill(model, sharp=False):
    """Give every parameter of a model its `random_parameter`."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(random_parameter(key, parameter.shape, sharp))
    return model.eval()


class Model:
    """A model of another implementation; `module` is its name in IMPLEMENTATIONS."""

    module: str
    format: str

    def build(self, arch, window, size, pretrained=None, **more):
        build = implementations.IMPLEMENTATIONS[self.module].build
        return build(arch, size, window, pretrained or 0, classes=CLASSES, **more)

    def stages(self, model, x):
        return implementations.IMPLEMENTATIONS[self.module].maps(model, x)

    def final_norm(self, model):
        return model.norm

    def save(self, model, folder):
        torch.save(model.state_dict(), folder / f'{self.module}.pth')
        return folder / f'{self.module}.pth'


class Timm(Model):
    module, format = 'timm', 'timm'


class TimmFeatures(Timm):
    format = 'timm_features'

    def build(self, arch, window, size, pretrained=None):
        return implementations.timm_features(arch, size, window, pretrained or 0)

    def stages(self, model, x):
        return [feature.permute(0, 3, 1, 2) for feature in model(x)]

    def final_norm(self, model):
        return None


class Hf(Model):
    module, format = 'transformers', 'hf'
    class_name = 'Swinv2ForImageClassification'

    def build(self, arch, window, size, pretrained=None):
        return super().build(arch, window, size, pretrained, class_name=self.class_name)

    def stages(self, model, x):
        inner = getattr(model, 'swinv2', model)
        embedded, size = inner.embeddings(x)
        maps = inner.encoder(
            embedded,
            size,
            output_hidden_states=True,
            output_hidden_states_before_downsampling=True,
            return_dict=True,
        ).reshaped_hidden_states
        return maps[1:]

    def final_norm(self, model):
        return getattr(getattr(model, 'swinv2', model), 'layernorm', None)

    def save(self, model, folder):
        model.save_pretrained(folder)
        return folder / 'model.safetensors'


class HfModel(Hf):
    class_name = 'Swinv2Model'


class HfBackbone(Hf):
    class_name = 'Swinv2Backbone'


class Torchvision(Model):
    module, format = 'torchvision', 'torchvision'


class Mmpretrain(Model):
    module, format = 'mmpretrain', 'mmpretrain'

    def stages(self, model, x):
        maps = []
        x, shape = model.backbone.patch_embed(x)
        for stage in model.backbone.stages:
            x, shape = stage(x, shape)
            maps.append(x.unflatten(1, shape).permute(0, 3, 1, 2))
        return maps

    def final_norm(self, model):
        return model.backbone.norm3

    def save(self, model, folder):
        from mmengine.runner import save_checkpoint, weights_to_cpu

        checkpoint = {
            'meta': {'mmpretrain_version': '1.2.0'},
            'state_dict': weights_to_cpu(model.state_dict()),
        }
        save_checkpoint(checkpoint, str(folder / 'mmpretrain.pth'))
        return folder / 'mmpretrain.pth'


MODELS = [Timm(), TimmFeatures(), Hf(), HfModel(), HfBackbone(), Torchvision(), Mmpretrain()]
NAMES = [type(model).__name__ for model in MODELS]
