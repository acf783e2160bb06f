"""What are ω and μ, and is this the solution the theory describes?  (arXiv 2503.12734, Observation 2, (4.2)–(4.8).)

Heads of one layer are kernel regressors with (ω, μ).  The theory: |ω_h| = γ on every head that attends (4.4), Σμ = 0
(4.2), the groups' sums of μ are ±μ_γ (4.6)–(4.7), and η = Σ ωμ is close to η* (4.3).  γ itself is hardly decided by the
loss, so everything is compared at the run's own γ.

Intervals: ω by a t-interval over the diagonal of KQ_11, μ as a function, by regressing the head's output on its ideal
kernel.  A final iterate is noisy (η by about 0.9 %), so where the training was recorded the claims are judged on the
mean iterate of its last fifth, with an error from batch means; else on the checkpoint itself.  Two heads of the same
sign are a basin of their own, which behaves like one head.  Cost: one pass over the budget's prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float

from icl_interp.activations import activation
from icl_interp.circuits import Circuits
from icl_interp.estimators import GradientDescent, best_kernel
from icl_interp.manifold import Groups, manifold_mu, one_head_formula, optimal_step
from icl_interp.probing import (
    Block,
    Cell,
    Context,
    Equation,
    Estimate,
    Need,
    Table,
    Text,
    Threshold,
    Verdict,
    exact,
    judge,
    mean_of,
    not_applicable,
    probe,
    propagate,
    slope_of,
)
from icl_interp.roles import Heads, Role, along
from icl_interp_probes.iterates import BATCHES, Iterates
from icl_interp_probes.shown import around

PAPER = "arXiv 2503.12734"
FITTED = r"\hat y_q = \sum_h \mu_h \sum_\ell p_\ell (\omega_h\, x_\ell^\top G\, x_q)\, y_\ell"
FITTED_IN_WORDS = (
    "The prediction as a sum over heads: μ times the sum of the labels, each with the weight p that attention with {} "
    "gives to ω x_ℓᵀ G x_q among the demonstrations. G is the identity for isotropic covariates."
)
# Activations whose heads gain equally at every ‖x_q‖, so that η* is the step they are led to: by Stein's lemma the gain
# is γ E f′(γs)/E f(γs), which is γ for eˣ and Cγ for 1 + Cx, and shrinks with ‖x_q‖ for the others.
LINEAR_GAIN = ("softmax", "affine")
# Seeds of 256 that end with all heads of one sign after 100,000 steps, by heads (benchmarks/same_sign.py).
SAME_SIGN = {2: 45, 3: 4}  # none with 4 or 8

Kind = Literal["opposite", "same_sign", "single", "unstructured"]

SPREAD = Threshold(
    "|ω| differs by 0.1 to 3 % between the heads of a trained run; read between the curves of planted and unequal",
    high=0.1,
)
ZERO_SUM = Threshold(
    "|Σμ|/Σ|μ| is 0.001 to 0.01 in trained models, 1 where all heads have one sign; read between the curves of "
    "planted and unbalanced",
    high=0.03,
)
STEP = Threshold(
    "η scatters by 0.9 % between iterates, and is within 1 % of η* on average: three times that; read between the"
    " curves of planted and wrong_scale",
    0.97,
    1.03,
)
MANIFOLD = Threshold(
    "trained runs are 0.002 to 0.03 off, a run in the same-sign basin more than 0.5; read between the curves of "
    "planted and unbalanced",
    high=0.05,
)
BOTH_SIGNS = Threshold(
    "at least one head of each sign; the curves of planted and same_sign lie on either side",
    low=1.0,
)
OPTIMUM = Threshold(
    "single heads end within 2 %; (4.12) is 14 % off in the main setting; read between the curves of "
    "planted_alone and wrong_alone",
    high=0.05,
)


@dataclass(frozen=True, eq=False)
class KernelFit:
    """ω and μ with their intervals, and what follows from them.

    Args:
        activation: how the model's scores become weights.
        kind: "opposite" (heads of both signs), "same_sign" (several heads, none of the other sign), "single" (a model
            of one head), or "unstructured".
        roles: of each head.
        stable: whether quarters of the prompts agree about the roles.
        omega, omega_half: ω, and the half-width of its interval over KQ_11's diagonal.
        mu, mu_half: μ as a function, and the half-width of its interval over prompts.
        mu_weights: μ read off OV_22.
        late_omega, late_mu: ω and OV_22, averaged over the last fifth of training; else the checkpoint's own.
        iterate: which of the two the claims are judged on.
        gamma: mean |ω| of attending heads, weighted by |μ|.
        spread: root-mean-square deviation of |ω| from γ, relative to γ and weighted likewise.
        zero_sum: |Σμ| / Σ|μ|.
        eta: C·f′(0)/f(0)·Σ ωμ, (4.3) and (5.2): Σ ωμ for softmax; L times as much for linear attention.
        eta_function: slope of the predictions on debiased GD's direction (1/L) Σ y (x − x̄)ᵀ G x_q.
        eta_star: optimal step; None where it has no closed form (covariates with a mean), or the gain of the model's
            activation depends on ‖x_q‖.
        positive_mu, negative_mu: sums of μ over the positive and the negative heads.
        mu_gamma: what theory wants of them at this γ; None unless covariates are isotropic and centred, and attention
            is softmax.
        manifold: relative distance to the solution manifold at this γ; None likewise.
        optimum_omega, optimum_mu: where the true risk of one head is least; None but for a model of one head.
        formula_omega, formula_mu: where (4.12) says it is.
    """

    activation: str
    kind: Kind
    roles: tuple[Role, ...]
    stable: bool
    omega: Float[np.ndarray, "heads"]
    omega_half: Float[np.ndarray, "heads"]
    mu: Float[np.ndarray, "heads"]
    mu_half: Float[np.ndarray, "heads"]
    mu_weights: Float[np.ndarray, "heads"]
    late_omega: Float[np.ndarray, "heads"]
    late_mu: Float[np.ndarray, "heads"]
    iterate: str
    gamma: Estimate
    spread: Estimate
    zero_sum: Estimate
    eta: Estimate
    eta_function: Estimate
    eta_star: float | None
    positive_mu: Estimate
    negative_mu: Estimate
    mu_gamma: Estimate | None
    manifold: Estimate | None
    optimum_omega: Estimate | None
    optimum_mu: Estimate | None
    formula_omega: float | None
    formula_mu: float | None


@probe(
    name="kernel_fit",
    title="Which (ω, μ) does each head have, and do they solve the problem as theory says?",
    needs=Need.WEIGHTS | Need.FORWARD | Need.TASK | Need.ONE_LAYER,
    uses=Need.DYNAMICS,
    cost="a few seconds",
)
class KernelFitProbe:
    """Fits a kernel regressor to each head, ω from the weights and μ on sampled prompts, and compares what follows from
    ω and μ with theory at the model's own γ.  The comparison is made on the mean iterate of the last fifth of training
    where that was recorded, else on the checkpoint itself.
    """

    def run(self, context: Context) -> KernelFit:
        """Fit, then derive every quantity on the late mean iterate or on the checkpoint."""
        context.single_response()
        heads, task = context.heads, context.task
        groups = Groups(heads.are("positive"), heads.are("negative"))
        kind = kind_of(heads)
        iterates = _iterates(context, heads)
        estimate, (late_omega, late_mu) = partial(iterates.estimate, batched=True), iterates.mean
        softmax = context.config.activation == "softmax"
        mu_of = manifold_mu(task) if softmax and kind in ("opposite", "same_sign") else None
        optimum = _one_head_optimum(context) if softmax and kind == "single" else (None, None)
        slope = context.circuits.slope * (1 if activation(context.config.activation).normalised else task.length)
        formula = one_head_formula(task) if optimum[0] else None
        return KernelFit(
            activation=context.config.activation,
            kind=kind,
            roles=heads.roles,
            stable=heads.stable,
            omega=heads.omega,
            omega_half=heads.omega_half,
            mu=heads.mu[:, 0],
            mu_half=heads.mu_half[:, 0],
            mu_weights=context.circuits.mu[0, :, 0],
            late_omega=late_omega,
            late_mu=late_mu,
            iterate=iterates.name,
            gamma=estimate(groups.gamma),
            spread=estimate(groups.spread, size=True),
            zero_sum=estimate(groups.imbalance, size=True),
            eta=estimate(lambda omega, mu: slope * groups.step(omega, mu)),
            eta_function=_functional_step(context),
            eta_star=optimal_step(task) if context.config.activation in LINEAR_GAIN else None,
            positive_mu=estimate(groups.positive_sum),
            negative_mu=estimate(groups.negative_sum),
            mu_gamma=estimate(lambda omega, mu: groups.target(omega, mu, mu_of)) if mu_of else None,
            manifold=estimate(lambda omega, mu: groups.distance(omega, mu, mu_of), size=True) if mu_of else None,
            optimum_omega=optimum[0],
            optimum_mu=optimum[1],
            formula_omega=formula[0] if formula else None,
            formula_mu=formula[1] if formula else None,
        )

    def blocks(self, result: KernelFit) -> list[Block]:
        """What is fitted; ω and μ a head; then what follows from them beside what theory says."""
        heads = tuple(
            (
                h,
                role,
                around(result.omega[h], result.omega_half[h], "KQ's diagonal"),
                around(result.mu[h], result.mu_half[h], "prompts"),
                float(result.mu_weights[h]),
                float(result.late_omega[h]),
                float(result.late_mu[h]),
            )
            for h, role in enumerate(result.roles)
        )
        mu_gamma = result.mu_gamma
        rows: list[tuple[str, Cell, Cell]] = [
            ("γ, weighted mean |ω| (hardly decided by the loss)", result.gamma, None),
            ("spread of |ω|, relative", result.spread, 0.0),
            ("|Σμ| / Σ|μ|", result.zero_sum, 0.0),
            ("η = C′ Σ ωμ" if result.activation != "softmax" else "η = Σ ωμ", result.eta, result.eta_star),
            ("η as a function", result.eta_function, result.eta_star),
            ("Σμ, positive heads", result.positive_mu, mu_gamma),
            ("Σμ, negative heads", result.negative_mu, mu_gamma and mu_gamma.map(lambda value: -value)),
        ]
        if result.manifold is not None:
            rows.append(("distance to the solution manifold", result.manifold, 0.0))
        if result.optimum_omega is not None:
            rows.append(("one-head optimum of the risk: ω", result.optimum_omega, result.formula_omega))
            rows.append(("one-head optimum of the risk: μ", result.optimum_mu, result.formula_mu))
        return [
            Equation(FITTED, FITTED_IN_WORDS.format(activation(result.activation).formula)),
            Table(
                ("head", "role", "ω", "μ", "OV_22", "ω, late mean", "μ, late mean"),
                heads,
                alt="ω and μ of every head with their intervals.",
                title="ω and μ",
            ),
            Table(
                ("quantity", "measured", "theory"),
                tuple(rows),
                alt="Quantities that theory speaks of.",
                title="Measured and in theory",
            ),
            Text(f"Measured quantities are those of {result.iterate}."),
        ]

    def judge(self, result: KernelFit) -> list[Verdict]:
        """Each claim on the numbers; none of them where heads are unstructured."""
        return [self._judge(result, *claim) for claim in _CLAIMS]

    def _judge(
        self, result: KernelFit, claim: str, where: str, several: bool, conclude: Callable[[KernelFit], _Conclusion]
    ) -> Verdict:
        source = f"{PAPER}, {where}"
        if result.kind == "unstructured":
            return not_applicable(claim, source, "ω and μ do not describe this model: its heads are unstructured")
        if result.activation == "linear":
            return not_applicable(claim, source, "linear attention sees nothing of ω and μ but their products")
        if several and len(result.roles) == 1:
            return not_applicable(claim, source, "the claim is about several heads; this model has one")
        if not result.stable:
            return Verdict(
                claim, source, "inconclusive", "Quarters of the prompts disagree about roles: too few prompts."
            )
        conclusion = conclude(result)
        if isinstance(conclusion, str):
            return not_applicable(claim, source, conclusion)
        estimate, threshold, sentence = conclusion
        return judge(claim, source, estimate, threshold, sentence)


# The number, where it has to lie, and what it means; or why the claim does not apply.
_Conclusion = tuple[Estimate, Threshold, str] | str


def _both_signs(result: KernelFit) -> _Conclusion:
    counts = result.roles.count("positive"), result.roles.count("negative")
    if result.kind == "same_sign":
        sentence = (
            f"No head has the other sign ({sum(counts)} attend): the same-sign basin, which behaves like one head."
        )
        if stuck := SAME_SIGN.get(len(result.roles)):
            sentence += f" Of 256 seeds of the paper's main setting, {stuck} with so many heads end there."
    else:
        sentence = f"{counts[0]} positive and {counts[1]} negative heads."
    return exact(float(min(counts))), BOTH_SIGNS, sentence


def _same_size(result: KernelFit) -> _Conclusion:
    if sum(role in ("positive", "negative") for role in result.roles) < 2:
        return "only one head attends"
    sentence = f"|ω| of attending heads is γ = {result.gamma.value:.4g} up to {result.spread.value:.1%}."
    return result.spread, SPREAD, sentence


def _zero_sum(result: KernelFit) -> _Conclusion:
    return result.zero_sum, ZERO_SUM, f"|Σμ| is {result.zero_sum.value:.2%} of Σ|μ|."


def _step(result: KernelFit) -> _Conclusion:
    star = result.eta_star
    if star is None:
        return (
            "η* has a closed form for linear regression on centred covariates, and attention with eˣ or 1 + Cx is led "
            "to it: others gain less where ‖x_q‖ is large"
        )
    ratio = result.eta.map(lambda eta: eta / star)
    return ratio, STEP, f"η = {result.eta} against η* = {star:.4f}: a ratio of {ratio.value:.4f}."


def _on_manifold(result: KernelFit) -> _Conclusion:
    if result.manifold is None or result.mu_gamma is None:
        return "μ_γ has a closed form for softmax attention on isotropic, centred linear regression only"
    sums = f"{result.positive_mu.value:.4g} and {result.negative_mu.value:.4g}"
    sentence = f"Sums of μ are {sums}, ±μ_γ is ±{result.mu_gamma.value:.4g} at γ = {result.gamma.value:.4g}."
    return result.manifold, MANIFOLD, sentence


def _at_optimum(result: KernelFit) -> _Conclusion:
    if result.optimum_omega is None or result.optimum_mu is None:
        return "the claim is about a model of one softmax head"
    mu = result.positive_mu if "positive" in result.roles else result.negative_mu.map(lambda value: -value)
    estimates = (result.gamma, mu, result.optimum_omega, result.optimum_mu)
    miss = propagate(
        lambda omega, mu, best_omega, best_mu: float(max(abs(omega / best_omega - 1), abs(mu / best_mu - 1))),
        *((np.array(e.value), np.array(e.half)) for e in estimates),
        size=True,
    )
    sentence = (
        f"(|ω|, |μ|) = ({result.gamma.value:.3f}, {mu.value:.3f}); the true risk of one head is least at "
        f"({result.optimum_omega.value:.3f}, {result.optimum_mu.value:.3f})"
    )
    formula = f", not at (4.12)'s ({result.formula_omega:.3f}, {result.formula_mu:.3f})" if result.formula_omega else ""
    return miss, OPTIMUM, f"{sentence}{formula}."


_CLAIMS = (
    ("opposite_heads", "Observation 2", True, _both_signs),
    ("homogeneous_kq", "(4.4)", True, _same_size),
    ("zero_sum_ov", "(4.2)", True, _zero_sum),
    ("optimal_step", "(4.3)", True, _step),
    ("solution_manifold", "(4.6)–(4.7)", True, _on_manifold),
    ("one_head_optimum", "Figure 3 and (4.12)", False, _at_optimum),
)


def _iterates(context: Context, heads: Heads) -> Iterates:
    """What the claims are judged on: ω along G and OV_22."""

    def read(circuits: Circuits) -> tuple[np.ndarray, np.ndarray]:
        KQ_11 = along(context.shape, circuits.KQ_11[0])
        return np.diagonal(KQ_11, axis1=-2, axis2=-1).mean(-1), circuits.mu[0, :, 0]

    return Iterates.of(context, read, (heads.omega, heads.omega_half), (heads.mu[:, 0], heads.mu_half[:, 0]))


def _functional_step(context: Context) -> Estimate:
    """Slope of the predictions on debiased GD's direction."""
    direction = GradientDescent(context.shape, debiased=True)
    pairs = [(context.predict(p).cpu().numpy(), direction(p).cpu().numpy()) for p in context.chunks("step")]
    prediction, gradient = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    return slope_of(prediction, gradient)


def _one_head_optimum(context: Context) -> tuple[Estimate, Estimate]:
    """(ω, μ) of least risk, with the optimum's spread between batches of prompts."""
    size = context.holdable(max(context.budget // BATCHES, 2))
    kernels = [
        best_kernel(context.sample(f"optimum {i}", size), scaled=True, task=context.task) for i in range(BATCHES)
    ]
    return mean_of(np.array([k.omega for k in kernels])), mean_of(np.array([k.mu for k in kernels]))


def kind_of(heads: Heads) -> Kind:
    """Whether attending heads have both signs or one, or are one, or ω and μ do not describe the model."""
    positive, negative = heads.are("positive"), heads.are("negative")
    if not heads.structured or not (positive | negative).any():
        return "unstructured"
    if positive.any() and negative.any():
        return "opposite"
    return "single" if len(heads.roles) == 1 else "same_sign"
