"""Our backbone, as the parity tests use it."""

from swinv2_backbone import SwinTransformerV2


def ours_from(checkpoint, arch, window, **kwargs):
    """Our backbone, loaded through its init_cfg."""
    model = SwinTransformerV2(
        arch=arch,
        window_size=window,
        drop_path_rate=0.0,
        init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint)),
        **kwargs,
    )
    model.init_weights()
    return model.eval()


def stages_of(model, x):
    """What leaves the blocks of each stage, and the outputs."""
    seen = []
    hooks = [
        stage.register_forward_hook(lambda m, i, out: seen.append(out.permute(0, 3, 1, 2)))
        for stage in model.layers
    ]
    outputs = model(x)
    for hook in hooks:
        hook.remove()
    return seen, outputs
