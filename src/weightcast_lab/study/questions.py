"""The questions of a study, and what each compares."""

from __future__ import annotations

from dataclasses import dataclass, replace

from weightcast_lab.methods.optimizers import OPTIMIZERS
from weightcast_lab.study.studies import HEAVY, STUDIES
from weightcast_lab.study.workloads import DELAYS


@dataclass(frozen=True)
class Question:
    """Methods against one that they are compared with, by name.

    A question is one family of comparisons: Holm's correction is over all its methods and
    workloads. Questions whose rows stand in one table name one `family`, and are corrected
    together, so that all rows of a column face the same bar. One with a delay is asked of the
    workloads of all series that have this delay.
    """

    key: str
    text: str
    reference: str
    methods: tuple[str, ...]
    delay: int | None = None
    family: str = ""

    @property
    def reference_label(self) -> str:
        """The label of what is compared with."""
        return UNDELAYED_LABEL if self.reference == UNDELAYED else METHODS[self.reference].label

    def at(self, delay: int) -> Question:
        """The question, asked of the workloads with this delay."""
        text = self.text.replace("D steps", f"{delay} step{'s' if delay > 1 else ''}")
        return replace(self, key=f"{self.key}-{delay}", text=text, delay=delay)


UNDELAYED, UNDELAYED_LABEL = "undelayed", "AdamW without delay"
"""Plain AdamW on the workload of the same series whose delay is 0."""


METHODS = {m.name: m for study in STUDIES.values() for m in study.methods}
"""All methods of all studies, by name."""


FORWARD = tuple(
    m.name
    for m in sorted(STUDIES["core"].methods, key=lambda m: (m.decaying, m.steps or 0.0))
    if m.optimizer == "adamw" and (m.steps or 0.0) > 0
)
"""AdamW predicted so many steps ahead."""


AGAINST_ADAMW = "against AdamW"
"""The family of the one table that says most: AdamW's forecasts, the control, and NAdamW."""


QUESTIONS = (
    Question("adamw", "Does a forecast improve AdamW?", "adamw", FORWARD, family=AGAINST_ADAMW),
    Question(
        "control",
        "Does a step backwards (s = −1) do the same, as a control?",
        "adamw",
        ("adamw-s-1",),
        family=AGAINST_ADAMW,
    ),
    Question(
        "nadamw",
        "Is a forecast of AdamW more than NAdamW, which looks ahead at no cost?",
        "nadamw",
        FORWARD,
    ),
    Question(
        "look-ahead", "Does NAdamW improve AdamW?", "adamw", ("nadamw",), family=AGAINST_ADAMW
    ),
    Question("on-nadamw", "Does a forecast improve NAdamW?", "nadamw", ("nadamw-s1",)),
    *(
        Question(
            name,
            f"Does a forecast improve {OPTIMIZERS[name][0]}?",
            name,
            (f"{name}-s1", f"{name}-s3"),
        )
        for name in ("sgd", "rmsprop", "radam", "muon", "lion", "adagrad")
    ),
    *(
        Question(
            f"{name}-nesterov",
            f"Is a forecast of {OPTIMIZERS[name][0]} more than its own Nesterov form?",
            nesterov,
            (f"{name}-s1", f"{name}-s3"),
        )
        for name, nesterov in (("sgd", "nesterov"), ("muon", "muon_nesterov"))
    ),
    Question(
        "others",
        "Do other optimizers, plain, do better than AdamW?",
        "adamw",
        (
            *("schedule_free", "lookahead", "muon", "muon_nesterov", "lion", "radam"),
            *("rmsprop", "adagrad", "sgd", "nesterov"),
        ),
    ),
)


VARIANTS = Question(
    "variants",
    "Does it depend on β₁, β₂ or the batch size?",
    "adamw",
    tuple(m.name for m in STUDIES["betas"].methods if m.name != "adamw"),
)
"""Asked of one workload and its variants."""


UNTUNED = Question(
    "untuned",
    "I add one line and retune nothing: what does it change at AdamW's own learning rate?",
    "adamw",
    (*FORWARD, "nadamw"),
)
"""Asked of the search's runs at the rate that was chosen for AdamW."""


def _either(*names: str) -> tuple[str, ...]:
    """Each with the usual momentum, and with heavy momentum."""
    parts = [name.partition("-") for name in names]
    return tuple(
        f"{optimizer}{momentum}{dash}{rest}"
        for optimizer, dash, rest in parts
        for momentum in ("", f"-b{HEAVY}")
    )


def _all_ahead(optimizer: str) -> tuple[str, ...]:
    """An optimizer's forecasts under delay, however far."""
    methods = STUDIES["delay"].methods
    return tuple(m.name for m in methods if m.optimizer == optimizer and m.in_delays)


AT_EVERY_DELAY = (
    Question(
        "delay-restored",
        "D steps late: what does it cost, and what restores it?",
        UNDELAYED,
        _either("adamw", "nadamw", "adamw-s1D", "nadamw-s1D"),
    ),
    Question(
        "delay-adamw",
        "D steps late: does a forecast improve AdamW?",
        "adamw",
        _all_ahead("adamw"),
    ),
    Question(
        "delay-nadamw",
        "D steps late: is a forecast of AdamW more than NAdamW with heavy momentum?",
        f"nadamw-b{HEAVY}",
        _all_ahead("adamw"),
    ),
    Question(
        "delay-on-nadamw",
        "D steps late: does a forecast improve NAdamW with heavy momentum?",
        f"nadamw-b{HEAVY}",
        _all_ahead("nadamw"),
    ),
    Question(
        "delay-plain",
        "D steps late: does heavy momentum or NAdamW, plain, improve AdamW?",
        "adamw",
        (f"adamw-b{HEAVY}", "nadamw", f"nadamw-b{HEAVY}"),
    ),
    Question(
        "delay-sgd",
        "D steps late: does a forecast or heavy momentum improve SGD?",
        "sgd",
        (f"sgd-b{HEAVY}", *_all_ahead("sgd")),
    ),
)
"""Asked once for every delay, each time a family of its own."""


DELAY_QUESTIONS = tuple(q.at(delay) for delay in DELAYS if delay for q in AT_EVERY_DELAY)


AGAINST_DELAY = (
    ("delay", "AdamW and NAdamW", _either("adamw", "nadamw", "adamw-s0.5D", "adamw-s1D")),
    *(
        (
            f"delay-{name}",
            f"{OPTIMIZERS[name][0]} and its forecasts",
            _either(name, f"{name}-s0.5D", f"{name}-s1D", f"{name}-s1D-decaying"),
        )
        for name in ("nadamw", "sgd")
    ),
)
"""Figures of the final loss against the delay: file, whose, and the methods that are its lines."""
