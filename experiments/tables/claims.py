"""The paper's claims and what our runs say about each, as the document `docs/claims.md`."""

from collections import Counter
from collections.abc import Sequence

from experiments.tables.evidence import Claim, Evidence
from experiments.tables.few_shot_claims import claims as few_shot_claims
from experiments.tables.markdown import Lines, header, row
from experiments.tables.stream_claims import continual_claims, online_claims
from experiments.tables.verdicts import FAILS, HOLDS, UNDECIDED, verdict

_NOT_RUN = "not run"
_ABOUT = """\
# Claims

What our runs say about the claims of the paper. `python -m experiments.reproduce --claims` writes
this document from the results files in `results/`.

- Few-shot learning has the small settings of
  [experiments/tables/scales.py](../experiments/tables/scales.py), not those of the paper. So a
  claim may fail here and hold at the paper's scale. Continual and online learning have the
  published settings; the pages of [Reproducibility](reproducing/index.md) name the exceptions.
- Ours: mean over seeds and its 95% interval (Student's t), in percent or points. Methods are
  compared seed by seed.
- *holds*: every interval lies inside the wanted range. *does not hold*: one lies outside. One of
  several may do so by chance, so with k intervals each is first widened to 100 - 5/k percent
  (Bonferroni). *undecided*: neither, or there is one seed, or nothing was run. Where only some of
  the shots or datasets were run, the verdict is about these.
- Wanted ranges other than "above 0" are our choice.
- No correction is made for the number of claims: at 95%, one interval in twenty misses by chance.
"""


def document() -> Lines:
    """The lines of `docs/claims.md`."""
    evidence = Evidence()
    parts = {
        "Few-shot learning": few_shot_claims(),
        "Continual learning": continual_claims(),
        "Online learning on a switching stream": online_claims(),
    }
    counts: Counter[str] = Counter()  # of verdicts, and of claims without runs
    body: Lines = []
    for title, claims in parts.items():
        body += ["", f"## {title}", "", *_table(claims, evidence, counts)]
    verdicts = counts.total() - counts[_NOT_RUN]
    total = (
        f"Of {verdicts} claims, {counts[HOLDS]} hold, {counts[FAILS]} do not hold, and"
        f" {counts[UNDECIDED]} are undecided. For {counts[_NOT_RUN]} of the undecided, nothing was"
        " run."
    )
    return [*_ABOUT.splitlines(), "", total, *body]


def _table(claims: Sequence[Claim], evidence: Evidence, counts: "Counter[str]") -> Lines:
    lines = header("claim", "where", "our runs", "compared", "wanted", "ours", "verdict")
    for claim in claims:
        intervals = list(claim.intervals(evidence))
        found = verdict(intervals, claim.wanted)
        counts[found] += 1
        counts[_NOT_RUN] += not intervals
        ours = "<br>".join(map(str, intervals)) or _NOT_RUN
        lines.append(row(
            claim.text, claim.source, claim.runs, claim.measured, str(claim.wanted), ours,
            f"**{found}**",
        ))  # fmt: skip
    return lines
