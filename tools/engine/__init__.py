"""What train.py and test.py add to mmengine's Runner: configs, checkpoints, hooks, results."""
