# ZeRO stage 1: DistributedDataParallel whose optimizer state is divided among the processes.
_base_ = './ddp.py'

shard_optimizer = True
