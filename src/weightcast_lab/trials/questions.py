"""The questions of the second study, and what each compares."""

from __future__ import annotations

from dataclasses import dataclass

from weightcast_lab.study.studies import HEAVY
from weightcast_lab.trials.workloads import DELAYS


@dataclass(frozen=True)
class Question:
    """Candidates against a reference: one family of comparisons.

    `primary` names the one comparison that the family is about; every other is secondary. One with
    a delay is asked of the workloads with that delay.
    """

    key: str
    text: str
    schedule: str
    reference: str
    candidates: tuple[str, ...]
    primary: str
    delay: int = 0


QUESTIONS = (
    Question(
        "nadamw",
        "Does a forecast of AdamW beat NAdamW with a constant μ?",
        "cosine",
        "nadamw_mu",
        ("adamw-s3", "adamw-s1", "nadamw", "adamw"),
        "adamw-s3",
    ),
    Question(
        "adamw",
        "Does a forecast of AdamW beat AdamW?",
        "cosine",
        "adamw",
        ("adamw-s3", "adamw-s1", "adamw-average"),
        "adamw-s3",
    ),
    Question(
        "muon",
        "Does a forecast of Muon beat Muon-Nesterov whose AdamW part is forecast too?",
        "cosine",
        "muon_nesterov-s3-rest",
        ("muon-s3", "muon-s1", "muon_nesterov", "muon_nadamw", "muon"),
        "muon-s3",
    ),
    Question(
        "place",
        "Muon: does the look-ahead belong inside the orthogonalisation or outside?",
        "cosine",
        "muon-s3-matrices",
        ("muon_inside3", "muon_inside1", "muon_inside8", "muon_nesterov", "muon-s3-rest"),
        "muon_inside3",
    ),
    Question(
        "average",
        "Constant rate: does a forecast of AdamW beat an average of AdamW's weights?",
        "constant",
        "adamw-average",
        ("adamw-s3", "adamw-s1", "nadamw_mu", "nadamw", "adamw"),
        "adamw-s3",
    ),
    *(
        Question(
            f"{key}-{delay}",
            f"D = {delay}: {text}",
            "cosine",
            reference,
            candidates,
            primary,
            delay,
        )
        for delay in DELAYS
        for key, text, reference, candidates, primary in (
            (
                "late",
                "does a forecast help NAdamW with heavy momentum, the strongest published method?",
                f"nadamw_mu-b{HEAVY}",
                (
                    *(f"nadamw_mu-b{HEAVY}-s0.5D", f"nadamw_mu-b{HEAVY}-s1D", "nadamw_mu", "adamw"),
                    *("adamw-s0.5D", "adamw-s1D", "adamw-s2D"),
                ),
                f"nadamw_mu-b{HEAVY}-s0.5D",
            ),
            (
                "late-muon",
                "does a forecast of Muon beat Muon-Nesterov?",
                "muon_nesterov",
                ("muon-s1D", "muon-s0.5D", "muon-s2D", "muon"),
                "muon-s1D",
            ),
            (
                "late-sgd",
                "does a forecast of SGD beat its Nesterov form?",
                "nesterov",
                ("sgd-s1D", "sgd-s0.5D", "sgd-s2D", "sgd"),
                "sgd-s1D",
            ),
        )
    ),
)
