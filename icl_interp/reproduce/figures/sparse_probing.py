"""What linear probes read after each of three layers on sparse regression (arXiv 2408.04532, section 3 and Figure 1).

The construction preprocesses in the first layer, x̃ = r̂ ∘ x with r̂ = XᵀY/L, and descends on x̃ in the others.  So x̃ of
the query should be there after one layer, and the response as well as after so many steps of gradient descent on x̃.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from icl_interp import passes
from icl_interp.estimators import preprocess
from icl_interp.probing import Estimate, Lines, Table, Text, Threshold, mean_of, ratio_of, rounded
from icl_interp.pruning import Model
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.deep_readings import (
    PLAIN,
    PREPROCESSED,
    descents,
    greatest,
    model_of,
    named,
    noiseless,
)
from icl_interp.reproduce.recipes import Made, recipe
from icl_interp.reproduce.results import Claim, compare
from icl_interp.tasks import Prompt, SparseRegression

PROBED = 8_192  # prompts: a probe is fitted on half of them, and judged on the others
PENALTIES = np.geomspace(1e-3, 1e4, 8)

THERE = Threshold("of the construction the probe reads all, of one whose weights have 2 % of noise 0.999", low=0.9)
SAME = Threshold("a step more or less of gradient descent is a change of a fifth or more", 0.9, 1.1)
LESS = Threshold("a tenth less than gradient descent on x of as many steps as layers", high=0.9)


@recipe(
    "sparse-probing",
    "What can be read after each layer: the preprocessed query, and the response",
    "arXiv 2408.04532, Figure 1",
    runs=["sparse-h*"],
)
def sparse_probing(bench: Bench) -> Made:
    """Ridge probes on the residual stream of the models with most heads."""
    name = f"sparse-h{max(bench.schedule.sparse_heads)}"
    task = bench.schedule.sparse
    prompt = _prompts(bench, task)
    read = [Read.of(prompt, model_of(run, task)) for run in bench.runs(name)]
    judged, known = prompt[PROBED // 2 :], descents(bench, task, range(1, len(read[0].risks)))
    errors = {k: (predict(judged) - judged.y_q).square()[:, 0].numpy() for k, predict in known.items()}
    return _claims(read, errors, bench.schedule.whole_sparse), [
        _table(read, errors),
        _drawn(read[0], errors),
        Text(
            f"Ridge probes (scikit-learn) on the query's residual stream, fitted on {PROBED // 2:,} prompts and judged "
            "on as many others; penalties by cross-validation. R² is over all coordinates. The control is r̂ of another "
            "covariate times x, which no step of the algorithm needs. Gradient descent has its best rate, relative to "
            "1/λ_max of each prompt."
        ),
    ]


@dataclass(frozen=True, eq=False)
class Read:
    """What was read of one model, before the first layer (index 0) and after each.

    Args:
        preprocessed, control: R² of x̃, and of the pairs that are not wanted.
        risks: squared errors of the probe for the response, prompt by prompt.
    """

    preprocessed: tuple[Estimate, ...]
    control: tuple[Estimate, ...]
    risks: tuple[Float[np.ndarray, "prompts"], ...]

    @classmethod
    def of(cls, prompt: Prompt, model: Model) -> Read:
        """Fit on one half of the prompts, judge on the other."""
        streams = [s[:, -1].numpy() for s in passes.residuals(model.weights, model.config, prompt.z)]
        x_q, r = prompt.x_q, (prompt.x * prompt.y).mean(1)
        wanted = preprocess(prompt).x_q.numpy()
        other = (r.roll(x_q.shape[1] // 2, 1) * x_q).numpy()
        return cls(
            tuple(_explained(*_probed(stream, wanted)) for stream in streams),
            tuple(_explained(*_probed(stream, other)) for stream in streams),
            tuple(_probed(stream, prompt.y_q.numpy())[0].sum(1) for stream in streams),
        )


def _prompts(bench: Bench, task: SparseRegression) -> Prompt:
    parts = list(bench.prompts("sparse, probes", noiseless(task), PROBED))
    return Prompt(*(torch.cat([getattr(part, name) for part in parts]) for name in ("x", "y", "x_q", "y_q")))


def _probed(features: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squares, prompt by prompt and coordinate by coordinate: of errors, and of what there was to explain."""
    from sklearn.linear_model import RidgeCV

    half = len(features) // 2
    probe = RidgeCV(alphas=PENALTIES).fit(features[:half], wanted[:half])
    predicted = np.reshape(probe.predict(features[half:]), wanted[half:].shape)
    return (wanted[half:] - predicted) ** 2, (wanted[half:] - wanted[:half].mean(0)) ** 2


def _explained(errors: np.ndarray, totals: np.ndarray) -> Estimate:
    """R², over all coordinates."""
    return ratio_of(errors.sum(1), totals.sum(1)).map(lambda part: 1 - part)


def _claims(read: list[Read], errors: dict[str, np.ndarray], reached: bool) -> list[Claim]:
    layers = len(read[0].risks) - 1
    first = greatest((each.preprocessed[1] for each in read), -1)
    control = next(each.control[1] for each in read if each.preprocessed[1] is first)
    own, plain = named(PREPROCESSED, layers - 1), named(PLAIN, layers)
    last = np.mean([each.risks[-1] for each in read], 0)
    risks = f"{mean_of(last)} after layer {layers}"
    return [
        compare(
            "x̃ = r̂ ∘ x can be read after the first layer",
            first,
            THERE,
            f"R² {first}, of the control {control}; of all seeds the least.",
            reached=reached,
        ),
        compare(
            "After the later layers the risk is that of gradient descent on x̃, a step a layer",
            ratio_of(last, errors[own]),
            SAME,
            f"Excess risk that a probe reads: {risks}, of {own} {mean_of(errors[own])}. The number is their ratio.",
            reached=reached,
        ),
        compare(
            "It is less than that of gradient descent on x of as many steps as layers",
            ratio_of(last, errors[plain]),
            LESS,
            f"{risks}, of {plain} {mean_of(errors[plain])}. The number is their ratio.",
            reached=reached,
        ),
    ]


def _table(read: Sequence[Read], errors: dict[str, np.ndarray]) -> Table:
    rows = []
    for seed, each in enumerate(read):
        for layer, (own, control, risk) in enumerate(zip(each.preprocessed, each.control, each.risks, strict=True)):
            beside = [errors.get(named(PREPROCESSED, layer - 1)), errors.get(named(PLAIN, layer))]
            numbers = (None if other is None else mean_of(other) for other in beside)
            rows.append((seed, layer or "before the first", own, control, mean_of(risk), *numbers))
    return Table(
        ("seed", "after layer", "R² of x̃", "R² of the control", "excess risk read", "GD on x̃, a step fewer", "GD on x"),
        tuple(rows),
        alt="By seed and layer what probes read: x̃, a control, and the response, beside gradient descent.",
        title="What probes read",
    )


def _drawn(read: Read, errors: dict[str, np.ndarray]) -> Lines:
    layers = range(1, len(read.risks))
    own = [mean_of(read.risks[layer]).value for layer in layers]
    nothing = mean_of(read.risks[0]).value
    curves = [
        own,
        [mean_of(errors[named(PREPROCESSED, layer - 1)]).value if layer > 1 else nothing for layer in layers],
        [mean_of(errors[named(PLAIN, layer)]).value for layer in layers],
    ]
    return Lines(
        np.array(layers, dtype=float),
        rounded(np.array(curves)),
        ("read by a probe, seed 0", "GD on x̃, a step fewer than layers", "GD on x, as many steps as layers"),
        alt="Excess risk read after each layer, beside gradient descent on x̃ and on x after as many steps.",
        title="Excess risk after each layer",
        x_label="layer",
        y_label="excess risk",
    )
