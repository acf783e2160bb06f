"""What a head is for, by cause: put something else in its place, and see what that does to the predictions.

    with zero_ablation(model, 1):  # a context: inside it, everything runs on the altered model
        prediction, cache = model.run_with_cache(prompt)

    zero_ablation(model, 1).risk_change(task.sample(8192))  # a number: the change in risk, with its error

Every intervention is made of hooks on a model, for one head or a set of them.  An ablation takes away what the heads
say of this prompt: all of it, or all but the mean over other prompts, or it puts another prompt's in its place.  A
replacement puts another circuit there, which reads the same residual stream: the head's ideal self, a step of debiased
gradient descent, a head of another checkpoint.

Cost: the full hooked pass, twice for a change in risk; at 4 heads and L = 40 some 0.2 ms a prompt on one core.
"""

from icl_interp.interventions.ablations import mean_ablation, resample_ablation, zero_ablation
from icl_interp.interventions.intervention import Head, HeadSet, Intervention
from icl_interp.interventions.replacements import gradient_step, idealisation, transplant

__all__ = [
    "Head",
    "HeadSet",
    "Intervention",
    "gradient_step",
    "idealisation",
    "mean_ablation",
    "resample_ablation",
    "transplant",
    "zero_ablation",
]
