"""One training step of a one-layer softmax model as compiled code: prompts, forward, backward and optimiser.

How it is fast.  Prompts lie along the fastest axis, in blocks of `LANES`, so that every inner loop is one vector
operation after another.  A prompt is drawn, used and forgotten in tiles of a few demonstrations that stay in the
first-level cache: memory does not grow with L.  One pass over the demonstrations gives forward and backward
(`attention` says how).

How it is safe.  Scores are in base 2 and relative to a reference that is raised, and the sums rescaled, when a score
exceeds it too far: softmax at any scale of the weights, for one comparison a tile.

How it is reproducible.  A prompt is a function of the seed, the step and its index in the batch (`random` says how):
no generator has a state to keep, and neither threads nor other runs can change what a run sees.  Sums over the batch
are taken block by block, in order.

Arrays are flat float32, aligned to 64 bytes; a "row" is LANES numbers, one of each prompt of a block.
"""
