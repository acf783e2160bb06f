"""The CUDA engine's kernel: a run a block, a prompt a thread, thousands of steps a launch.

    shapes.py     what is fixed when a kernel is compiled, and where things lie in shared memory
    device.py     how functions are compiled; the few instructions that have no name in Python
    prompts.py    random numbers, and prompts from them, demonstration by demonstration
    attention.py  one head over one demonstration, and what its sums come to
    weights.py    from weights to what a step sees of them, back to their gradient, and the update
    step.py       the kernel: all of it in turn, and the sums over a block

Nothing goes back to the host between the steps of a launch, and no prompt is ever in memory: a thread draws a
demonstration into registers, all heads take it in, and it is forgotten.  What a thread has in the end, for each head
two vectors whose outer products with x_q and with the errors are the gradient, goes through shared memory, where the
block adds it up in an order of its own; so a run depends neither on the others nor on how steps are divided over
launches.  The formulas are `compiled.attention`'s, the random numbers `compiled.random`'s: the prompts of a seed are
those of the numba engine, but for rounding.
"""
