"""What recurrences are for: models over sequences, and the baselines beside them."""

from elman.models.autoencoder import Autoencoder
from elman.models.classifier import Classifier
from elman.models.evaluation import Evaluation, estimate, evaluate, evaluate_cold
from elman.models.find import SHIPPED, find_cell
from elman.models.forecaster import Forecaster
from elman.models.language import LanguageModel
from elman.models.mixture import evaluate_mixture
from elman.models.ngram import NGram
from elman.models.reach import reach
from elman.models.tagger import Tagger

__all__ = [
    "SHIPPED",
    "Autoencoder",
    "Classifier",
    "Evaluation",
    "Forecaster",
    "LanguageModel",
    "NGram",
    "Tagger",
    "estimate",
    "evaluate",
    "evaluate_cold",
    "evaluate_mixture",
    "find_cell",
    "reach",
]
