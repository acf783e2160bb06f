"""What a statistician predicts from the same prompts: the algorithms that a model is compared with.

Every estimator is a frozen dataclass, called with a `Prompt` and answering (batch, outputs), in the prompt's dtype.
Each response is predicted from the covariates and its own labels, but for Bayes' prediction of responses that share a
signal; what is defined for one response refuses several.  A prompt that is not finite spoils its own prediction only.

One step and one head are those of arXiv 2503.12734; weighing covariates by their correlation with the labels, and steps
from there, are those of arXiv 2408.04532.
"""

from icl_interp.estimators.fitting import Predictor
from icl_interp.estimators.iterations import RATES, GradientSteps, NewtonSteps, best_rate, preprocess
from icl_interp.estimators.one_step import (
    GradientDescent,
    KernelRegressor,
    best_kernel,
    best_step,
    gradient_descent,
)
from icl_interp.estimators.optimal import bayes, best_ridge
from icl_interp.estimators.ridge import Ridge, SupportRidge
from icl_interp.estimators.sparse import PENALTIES, Lasso, OrthogonalMatchingPursuit, best_lasso
from icl_interp.estimators.supports import MOST_SUPPORTS, SparseBayes

__all__ = [
    "MOST_SUPPORTS",
    "PENALTIES",
    "RATES",
    "GradientDescent",
    "GradientSteps",
    "KernelRegressor",
    "Lasso",
    "NewtonSteps",
    "OrthogonalMatchingPursuit",
    "Predictor",
    "Ridge",
    "SparseBayes",
    "SupportRidge",
    "bayes",
    "best_kernel",
    "best_lasso",
    "best_rate",
    "best_ridge",
    "best_step",
    "gradient_descent",
    "preprocess",
]
