"""Is each head ω·I in its KQ and a single number in its OV?  (arXiv 2503.12734, Observation 1 and (3.1).)

The pattern: KQ_11 = ω·I, KQ_21 = 0, OV_21 = 0.  What departs from it is measured against the pattern's own size,
‖ω·I‖_F = |ω|√d or |μ|, so that a random matrix, whose ω is near zero, departs by a large factor.  Under covariates with
Σ ≠ I the expected shape is not I but the optimal preconditioner G (section 5.3), and the claim about the diagonal does
not apply.  Overall numbers weigh heads by |ωμ|, what they contribute: a weak head's circuits are only known up to what
stronger heads of its kind make up for.  Weights carry no sampling error: these numbers are exact for the checkpoint at
hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from icl_interp.probing import (
    Block,
    Context,
    Heatmap,
    Need,
    Table,
    Text,
    Threshold,
    Verdict,
    exact,
    judge,
    not_applicable,
    probe,
)
from icl_interp.roles import along
from icl_interp_probes.shown import UNKNOWN, coordinates, head_names, roles_of

SOURCE = "arXiv 2503.12734, Observation 1, (3.1)"
MISS = Threshold("trained heads miss by 0.03 to 0.08, a random 5 × 5 matrix by more than 2", high=0.2)
OV_MISS = Threshold("trained heads miss by 0.005 to 0.03, random ones by about 2", high=0.1)


@dataclass(frozen=True, eq=False)
class CircuitPattern:
    """How far each head is from the pattern, and the three ratios that the paper's authors report.

    Args:
        roles: of each head ("?" where the task is not known).
        weight: |ω μ| of each head as the weights have it: its part in the overall numbers.
        off_diagonal: ‖KQ_11 − diag KQ_11‖_F / |ω|√d.
        from_shape: ‖KQ_11 − ω·G‖ / ‖ω·G‖ in the basis where G is the identity.
        kq_21: ‖KQ_21‖_F / |ω|√d.
        ov_21: ‖OV_21‖ / ‖OV_22‖.
        diagonal_ratio: ‖diag KQ_11‖₂ / ‖KQ_11‖_F; 1 is diagonal.
        relative_variance: Var(diag KQ_11) / mean(diag KQ_11)².
        ov_ratio: |OV_22| / ‖(OV_21, OV_22)‖₂; 1 is last-entry-only.
        KQ, OV: the circuits, NaN where inert.
        isotropic: whether the expected shape G is the identity.
    """

    roles: tuple[str, ...]
    weight: Float[np.ndarray, "heads"]
    off_diagonal: Float[np.ndarray, "heads"]
    from_shape: Float[np.ndarray, "heads"]
    kq_21: Float[np.ndarray, "heads"]
    ov_21: Float[np.ndarray, "heads"]
    diagonal_ratio: Float[np.ndarray, "heads"]
    relative_variance: Float[np.ndarray, "heads"]
    ov_ratio: Float[np.ndarray, "heads"]
    KQ: Float[np.ndarray, "heads d_model d_model"]
    OV: Float[np.ndarray, "heads d_model d_model"]
    dim: int
    isotropic: bool


@probe(
    name="circuit_pattern",
    title="Is every head a multiple of the identity in KQ, and one number in OV?",
    needs=Need.WEIGHTS,
    uses=Need.FORWARD | Need.TASK,
    cost="under a second",
)
class CircuitPatternProbe:
    """Reads each head's KQ and OV circuits off the weights and measures how far they are from KQ_11 = ω·G, KQ_21 = 0
    and OV_21 = 0, relative to the pattern's own size; G is the identity for isotropic covariates.  The numbers are
    exact for this checkpoint; those over all heads weigh each by |ωμ|.
    """

    def run(self, context: Context) -> CircuitPattern:
        """Measure each head."""
        context.one_layer()
        circuits, roles = context.circuits, roles_of(context)
        shape = np.eye(circuits.dim) if UNKNOWN in roles else context.shape

        KQ_11, OV_21, OV_22 = circuits.KQ_11[0], circuits.OV_21[0], circuits.OV_22[0]
        diagonal = np.diagonal(KQ_11, axis1=-2, axis2=-1)
        whitened = along(shape, KQ_11)
        omega = np.abs(np.diagonal(whitened, axis1=-2, axis2=-1).mean(-1)) * np.sqrt(circuits.dim)
        centre = np.einsum("hii->h", whitened)[:, None, None] / circuits.dim * np.eye(circuits.dim)
        KQ, OV = circuits.masked()
        return CircuitPattern(
            roles=roles,
            weight=omega * np.linalg.norm(circuits.mu[0], axis=-1),
            off_diagonal=_ratio(_norm(KQ_11 - diagonal[..., None] * np.eye(circuits.dim)), omega),
            from_shape=_ratio(_norm(whitened - centre), omega),
            kq_21=_ratio(_norm(circuits.KQ_21[0]), omega),
            ov_21=_ratio(_norm(OV_21), _norm(OV_22)),
            diagonal_ratio=_ratio(np.linalg.norm(diagonal, axis=-1), _norm(KQ_11)),
            relative_variance=_ratio(diagonal.var(-1), diagonal.mean(-1) ** 2),
            ov_ratio=_ratio(_norm(OV_22), np.hypot(_norm(OV_21), _norm(OV_22))),
            KQ=KQ[0],
            OV=OV[0],
            dim=circuits.dim,
            isotropic=bool(np.allclose(shape, np.eye(circuits.dim))),
        )

    def blocks(self, result: CircuitPattern) -> list[Block]:
        """The circuits as heat maps, and a table of ratios."""
        names, labels = head_names(result.roles), coordinates(result.dim, result.KQ.shape[-1] - result.dim)
        rows = tuple(
            (h, role, *(float(column[h]) for column in _columns(result).values()))
            for h, role in enumerate(result.roles)
        )
        return [
            Heatmap(
                result.KQ,
                names,
                alt="KQ of every head, keys down and queries across; the pattern is a uniform diagonal.",
                title="KQ",
                row_labels=labels,
                column_labels=labels,
                first_screen=True,
            ),
            Heatmap(
                result.OV,
                names,
                alt="OV of every head, outputs down and inputs across; the pattern is a single entry, from y to y.",
                title="OV",
                row_labels=labels,
                column_labels=labels,
            ),
            Table(
                ("head", "role", *_columns(result)),
                rows,
                alt="Departure from the pattern, a row a head.",
                title="Departure from the pattern",
            ),
            Text(
                "‖KQ_11 − diag‖, ‖KQ_11 − ωG‖ and ‖KQ_21‖ are relative to ‖ωG‖, and ‖OV_21‖ to |OV_22|. The last three "
                "columns are the paper's authors' own. Inert parts, which no prediction sees, are left out."
            ),
        ]

    def judge(self, result: CircuitPattern) -> list[Verdict]:
        """Each claim on all heads together, weighted by |ωμ|."""
        form = "ω·I" if result.isotropic else "ω times the optimal preconditioner's shape"
        claims = (
            ("kq_diagonal", result.off_diagonal, MISS, "KQ_11 is off its diagonal by {:.3f} ‖ωI‖"),
            ("kq_identity", result.from_shape, MISS, "KQ_11 misses " + form + " by {:.3f} of its norm"),
            ("kq_21_zero", result.kq_21, MISS, "KQ_21, labels to scores, has {:.3f} of ‖ωI‖"),
            ("ov_21_zero", result.ov_21, OV_MISS, "OV_21, covariates to predictions, has {:.3f} of |μ|"),
        )
        outputs = result.KQ.shape[-1] - result.dim
        if outputs > 1:
            reason = f"the claim is about one response; this model has {outputs}"
            return [not_applicable(claim, SOURCE, reason) for claim, *_ in claims]
        return [self._judge(result, *claim) for claim in claims]

    def _judge(
        self, result: CircuitPattern, claim: str, miss: np.ndarray, threshold: Threshold, sentence: str
    ) -> Verdict:
        attends = result.weight > 0
        if not attends.any():
            return not_applicable(claim, SOURCE, "no head attends and reads labels: ω or μ is zero in all of them")
        if claim == "kq_diagonal" and not (result.isotropic and result.dim > 1):
            return not_applicable(claim, SOURCE, "a diagonal is expected of isotropic covariates with d > 1 only")
        overall = float(np.sqrt(np.average(miss[attends] ** 2, weights=result.weight[attends] ** 2)))
        worst = int(np.argmax(np.where(attends, miss, 0) * result.weight))
        told = f"{sentence.format(overall)} over all heads; head {worst} contributes most, with {miss[worst]:.3f}."
        return judge(claim, SOURCE, exact(overall), threshold, told)


def _columns(result: CircuitPattern) -> dict[str, np.ndarray]:
    return {
        "‖KQ_11 − diag‖": result.off_diagonal,
        "‖KQ_11 − ωG‖": result.from_shape,
        "‖KQ_21‖": result.kq_21,
        "‖OV_21‖": result.ov_21,
        "diagonal ratio": result.diagonal_ratio,
        "relative variance": result.relative_variance,
        "OV ratio": result.ov_ratio,
    }


def _norm(matrices: Float[np.ndarray, "heads rows columns"]) -> Float[np.ndarray, "heads"]:
    return np.linalg.norm(matrices, axis=(-2, -1))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full_like(top, np.inf), where=bottom > 0)
