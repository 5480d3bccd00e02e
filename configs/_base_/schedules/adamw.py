# AdamW, and what never decays: norms, biases, and SwinV2's own parameters. The rules of
# mmengine by kind miss the latter: q_bias and v_bias are not called `bias`, logit_scale is 3-D.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(
            q_bias=dict(decay_mult=0.0),
            v_bias=dict(decay_mult=0.0),
            cpb_mlp=dict(decay_mult=0.0),
            logit_scale=dict(decay_mult=0.0),
        ),
    ),
)
