"""One head over one demonstration, and what its sums come to.  The formulas are those of `compiled.attention`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from icl_interp.activations import NEAR_ZERO
from icl_interp.training.compiled.attention import AFFINE, HEADROOM, LINEAR, SOFTMAX, SQUARE
from icl_interp.training.gpu.device import exp2, f4, inner
from icl_interp.training.gpu.shapes import Shape

_NAN = math.nan


def make(shape: Shape) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Of a shape: `attend` takes a demonstration in, `conclude` turns sums into a prediction and two vectors."""
    outputs, model, kind, has_slopes = shape.outputs, shape.model, shape.kind, shape.has_slopes
    softmax, linear, affine, square = kind == SOFTMAX, kind == LINEAR, kind == AFFINE, kind == SQUARE

    @inner
    def attend(h, z, coefs, OV, total, reference, sums, products, slopes):
        """sums += f z, products += f′ u z with u = OV z, and slopes += f′ z; of softmax relative to a reference."""
        score = f4(0)
        for k in range(model):
            score += coefs[h, k] * z[k]
        f, slope = f4(1), f4(1)
        if softmax:
            if score > reference[h] + f4(HEADROOM):
                shrink = exp2(reference[h] - score)
                reference[h] = score
                total[h] *= shrink
                for k in range(model):
                    sums[h, k] *= shrink
                    for n in range(outputs):
                        products[h, n, k] *= shrink
            f = exp2(score - reference[h])
            slope = f
        elif linear:
            f = score
        elif affine:
            f = f4(1) + score
        elif square:
            slope = f4(2) * (f4(1) + score)
            f = (f4(1) + score) * (f4(1) + score)
        else:  # 1 + tanh a = 2/(1 + 2^(−2a)), of scores to base 2; f′ = f(2 − f)
            power = f4(-2) * score
            power = power if power < f4(126) else f4(126)  # a float32 ends there
            power = power if power > f4(-126) else f4(-126)
            f = f4(2) / (f4(1) + exp2(power))
            slope = f * (f4(2) - f)
        total[h] += f
        for k in range(model):
            sums[h, k] += f * z[k]
            if has_slopes:
                slopes[h, k] += slope * z[k]
        for n in range(outputs):
            u = f4(0)
            for k in range(model):
                u += OV[h, n, k] * z[k]
            u *= slope
            for k in range(model):
                products[h, n, k] += u * z[k]

    @inner
    def conclude(h, OV, total, sums, products, slopes, prediction, length):
        """Sums to c = Σf z/F, products to (Σf′ u z − ŷ Σf′ z)/F; ŷ = OV c is added to the prediction."""
        inverse = f4(1)
        if not linear:
            inverse = f4(1) / total[h]
            if not softmax and not abs(total[h]) >= f4(NEAR_ZERO) * f4(length):
                inverse = f4(_NAN)
        for k in range(model):
            sums[h, k] *= inverse
            if has_slopes:
                slopes[h, k] *= inverse
        for n in range(outputs):
            y = f4(0)
            for k in range(model):
                y += OV[h, n, k] * sums[h, k]
            prediction[n] += y
            for k in range(model):
                products[h, n, k] *= inverse
                if has_slopes:
                    products[h, n, k] -= y * slopes[h, k]
                elif softmax:
                    products[h, n, k] -= y * sums[h, k]

    return attend, conclude
