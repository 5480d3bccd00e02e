# FSDP2: parameters, gradients and optimizer state are divided among the processes. The parameters
# of a unit are gathered for its forward, and again for its backward.
model_wrapper_cfg = dict(
    type='FullyShardedModel',
    units=['SwinTransformerBlock'],
    # The attention's biases and scales are computed for all blocks of a stage together.
    outside=['q_bias', 'v_bias', 'logit_scale', 'cpb_mlp'],
)
