"""How things are started: the `shardclip` command, training under Accelerate, the demo."""
