# DistributedDataParallel: every process has all parameters, gradients and optimizer state.
# It is what a job of several processes uses anyway; here the gradients are views of the buffers
# that are communicated, which saves a second copy of them. Which to use: docs/training.md.
model_wrapper_cfg = dict(
    type='MMDistributedDataParallel', broadcast_buffers=False, gradient_as_bucket_view=True
)
