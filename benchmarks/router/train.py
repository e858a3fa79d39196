"""Train the router's scorer, calibrate its confidence, and report how good it is.

    python benchmarks/router/train.py            train, write the model, report
    python benchmarks/router/train.py --check    report on the model that ships

Needs scikit-learn (extra `sklearn`). One tenth of the utterances, chosen by a hash of the text,
is held back: nothing is trained, calibrated or tuned on it. Calibration is fitted on answers to
utterances that neither part of the scorer had seen; `encoder.py` comes first, whenever the corpus
changes.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import plots
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression

from fairlead.router import features
from fairlead.router.confidence import signals_of
from fairlead.router.corpus import Utterance, load_corpus
from fairlead.router.decision import decide
from fairlead.router.encoder import Heard
from fairlead.router.ordering import SHORT
from fairlead.router.scene import observe
from fairlead.router.scorer import LENGTH, Weights, load_weights

DATA = Path(features.__file__).parent / "data"
REPORT = Path(__file__).parent / "report.json"
UNSEEN = Path(__file__).parent / "unseen.npz"
PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "router.md"
NAMES = {skill: name for name, skill in SHORT.items()}
REGULARISATION = 5.0
FOLDS = 4
OUTSIDE = 0.7
"""Log odds added to `out-of-scope`: what people ask elsewhere is more varied than any corpus."""


def matrix(scenes):
    """Return the raw features of many texts, shape (n_texts, n_features)."""
    places, values, starts = [], [], [0]
    for scene in scenes:
        buckets, weights = features.features_of(scene)
        places.extend(buckets.tolist())
        values.extend(weights.tolist())
        starts.append(len(places))
    return csr_matrix((values, places, starts), shape=(len(scenes), features.SIZE))


def scaled(raw, rarity):
    """Return the features as `scorer.weigh` gives them: the hashed part of fixed length."""
    found = raw.multiply(rarity).tocsr()
    hashed = found[:, : features.BUCKETS]
    lengths = np.sqrt(np.asarray(hashed.multiply(hashed).sum(1)).ravel())
    lengths[lengths == 0] = 1
    return hstack(
        [hashed.multiply((LENGTH / lengths)[:, None]), found[:, features.BUCKETS :]], format="csr"
    )


def train(utterances: list[Utterance], raw) -> Weights:
    """Fit the two heads: which answer comes first, and which skills belong to the route."""
    seen = np.asarray((raw != 0).sum(0)).ravel()
    rarity = (np.log((1 + raw.shape[0]) / (1 + seen)) + 0.3).astype(np.float32)
    rarity[features.BUCKETS :] = 1
    texts = scaled(raw, rarity)
    rows, answers, shares = [], [], []
    for at, item in enumerate(utterances):
        for answer in item.skills or (item.label,):
            rows.append(at)
            answers.append(answer)
            shares.append(1 / max(1, len(item.skills)))
    first = LogisticRegression(C=REGULARISATION, max_iter=200, tol=1e-3)
    first.fit(texts[rows], answers, sample_weight=shares)
    bias = first.intercept_ + OUTSIDE * (first.classes_ == "!out-of-scope")
    routes = [at for at, item in enumerate(utterances) if item.kind == "route"]
    heads = []
    for name in SHORT:
        head = LogisticRegression(C=REGULARISATION, solver="liblinear", tol=1e-3, random_state=0)
        heads.append(head.fit(texts[routes], [name in utterances[at].skills for at in routes]))
    return Weights(
        answers=tuple(map(str, first.classes_)),
        skills=tuple(SHORT),
        answer_weights=first.coef_.astype(np.float32),
        answer_bias=bias.astype(np.float32),
        skill_weights=np.vstack([head.coef_[0] for head in heads]).astype(np.float32),
        skill_bias=np.array([head.intercept_[0] for head in heads], np.float32),
        rarity=rarity,
    )


def packed(weights):
    scale = np.maximum(np.abs(weights).max(1), 1e-9) / 127
    return np.round(weights / scale[:, None]).astype(np.int8), scale.astype(np.float32)


def write(weights: Weights, calibration) -> None:
    answer_weights, answer_scale = packed(weights.answer_weights)
    skill_weights, skill_scale = packed(weights.skill_weights)
    np.savez_compressed(
        DATA / "scorer.npz",
        answers=np.array(weights.answers),
        skills=np.array(weights.skills),
        answer_weights=answer_weights,
        answer_scale=answer_scale,
        answer_bias=weights.answer_bias,
        skill_weights=skill_weights,
        skill_scale=skill_scale,
        skill_bias=weights.skill_bias,
        rarity=weights.rarity.astype(np.float16),
    )
    lines = [f"{name} = {value:.4f}" for name, value in calibration.items()]
    (DATA / "calibration.toml").write_text(
        "# Written by benchmarks/router/train.py: log odds of an answer being right.\n"
        + "\n".join(lines)
        + "\n"
    )


def label_of(verdict) -> str:
    if verdict.kind == "route":
        return " > ".join(NAMES[skill] for skill in verdict.skills)
    return f"?{verdict.question}" if verdict.question else f"!{verdict.redirect_to}"


def same(expected: str, given: str) -> bool:
    return sorted(expected.split(" > ")) == sorted(given.split(" > "))


def unseen_by_encoder() -> dict[str, Heard]:
    """Return what an encoder that was not fitted on it makes of each utterance, by digest."""
    with np.load(UNSEEN, allow_pickle=False) as stored:
        answers, skills = stored["answers"].tolist(), stored["skills"].tolist()
        rows = zip(stored["digests"].tolist(), stored["first"], stored["parts"], strict=True)
        return {
            digest: Heard(
                dict(zip(answers, first.astype(float).tolist(), strict=True)),
                dict(zip(skills, parts.astype(float).tolist(), strict=True)),
            )
            for digest, first, parts in rows
        }


def answered(utterances, scenes, weights, heard=None):
    """Return (utterance, decision, right or wrong) for each text."""
    found = []
    for item, scene in zip(utterances, scenes, strict=True):
        decision = decide(scene, weights, heard[item.digest] if heard else None)
        found.append((item, decision, same(item.label, label_of(decision.verdict))))
    return found


def calibrate(found):
    """Fit the log odds of being right on answers to unseen utterances."""
    signals = [signals_of(decision) for _, decision, _ in found]
    names = list(signals[0])
    model = LogisticRegression(C=1.0)
    model.fit([[item[name] for name in names] for item in signals], [ok for *_, ok in found])
    fitted = dict(zip(names, model.coef_[0].tolist(), strict=True))
    return {"intercept": float(model.intercept_[0]), **fitted}


def confidence(calibration, decision) -> float:
    odds = calibration["intercept"]
    odds += sum(calibration[name] * value for name, value in signals_of(decision).items())
    return 1 / (1 + np.exp(-odds))


def report(found, calibration):
    """Return the figures of one set of answers."""
    rows = [
        (item, label_of(decision.verdict), ok, confidence(calibration, decision))
        for item, decision, ok in found
    ]
    by_kind = defaultdict(list)
    for item, _, ok, _ in rows:
        by_kind[item.label if item.kind != "route" else _route_stratum(item)].append(ok)
    asked = [ok for item, given, ok, _ in rows if given.startswith("?")]
    to_ask = [ok for item, _, ok, _ in rows if item.kind == "clarify"]
    single = [given for item, given, _, _ in rows if len(item.skills) == 1]
    several = [ok for item, _, ok, _ in rows if len(item.skills) > 1]
    return {
        "utterances": len(rows),
        "kind": share(_kind(given) == item.kind for item, given, _, _ in rows),
        "exact": share(ok for *_, ok, _ in rows),
        "exact_route": share(ok for item, _, ok, _ in rows if item.kind == "route"),
        "several_skills": share(several),
        "over_routing": share(" > " in given for given in single),
        "clarify_precision": share(asked),
        "clarify_recall": share(to_ask),
        "redirect_target": share(ok for item, _, ok, _ in rows if item.kind == "redirect"),
        "coverage_at_90": coverage(rows),
        "calibration": bins(rows),
        "per_stratum": {name: [sum(v), len(v)] for name, v in sorted(by_kind.items())},
    }


def _route_stratum(item):
    return item.label if len(item.skills) == 1 else "several skills"


def _kind(label):
    return {"?": "clarify", "!": "redirect"}.get(label[0], "route")


def share(values):
    values = list(values)
    return round(float(np.mean(values)), 4) if values else None


def coverage(rows, accuracy=0.9):
    ranked = sorted(rows, key=lambda row: -row[3])
    right = np.cumsum([ok for *_, ok, _ in ranked])
    good = np.flatnonzero(right / np.arange(1, len(ranked) + 1) >= accuracy)
    return round(float((good[-1] + 1) / len(ranked)), 4) if len(good) else 0.0


def bins(rows):
    """Return mean confidence and accuracy per tenth of confidence, and the expected error."""
    found, gap = [], 0.0
    for low in np.arange(0, 1, 0.1):
        inside = [row for row in rows if low <= row[3] < low + 0.1 or (low > 0.85 and row[3] == 1)]
        if inside:
            said = float(np.mean([row[3] for row in inside]))
            was = float(np.mean([row[2] for row in inside]))
            found.append([round(said, 3), round(was, 3), len(inside)])
            gap += abs(said - was) * len(inside) / len(rows)
    return {"bins": found, "expected_error": round(gap, 4)}


MEASURES = {
    "kind": "kind (route, clarify, redirect)",
    "exact": "exact answer",
    "exact_route": "exact route",
    "several_skills": "two or more skills",
    "over_routing": "over-routing (one skill wanted, more given)",
    "clarify_precision": "questions that were right to ask",
    "clarify_recall": "questions that were asked",
    "redirect_target": "neighbour",
    "coverage_at_90": "share that can be answered at 90 % accuracy",
}


def page(figures) -> str:
    """Return the tables of the page as markdown."""
    unseen, held = figures["cross_validated"], figures["held_back"]
    lines = [
        (
            f"| measure | cross-validated ({unseen['utterances']:,}) "
            f"| held back ({held['utterances']:,}) |"
        ),
        "|---|---|---|",
        *(f"| {said} | {unseen[name]:.2f} | {held[name]:.2f} |" for name, said in MEASURES.items()),
        "",
        "| answer that was right | cross-validated | held back |",
        "|---|---|---|",
    ]
    for name, (right, total) in unseen["per_stratum"].items():
        also = held["per_stratum"].get(name, [0, 0])
        lines.append(
            f"| {name.strip('?!')} | {right / total:.2f} of {total} | {also[0]} of {also[1]} |"
        )
    lines += ["", "| confidence | right, cross-validated | answers |", "|---|---|---|"]
    for said, was, count in unseen["calibration"]["bins"]:
        lines.append(f"| {said:.2f} | {was:.2f} {'#' * round(20 * was)} | {count} |")
    error = unseen["calibration"]["expected_error"], held["calibration"]["expected_error"]
    lines += [
        "",
        (
            f"Mean gap between confidence and accuracy: {error[0]:.3f} cross-validated, "
            f"{error[1]:.3f} held back."
        ),
    ]
    return "\n".join(lines)


def write_page(figures) -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- scores -->")
    _, _, after = rest.partition("<!-- /scores -->")
    text = f"{before}<!-- scores -->\n{page(figures)}\n<!-- /scores -->{after}"
    PAGE.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    corpus = load_corpus()
    scenes = [observe(item.text) for item in corpus]
    raw = matrix(scenes)
    usable = [at for at, item in enumerate(corpus) if not item.is_held_back]
    held = [at for at, item in enumerate(corpus) if item.is_held_back]
    unseen, heard = [], unseen_by_encoder()
    for fold in range(FOLDS):
        test = [at for at in usable if corpus[at].fold % FOLDS == fold]
        rest = [at for at in usable if corpus[at].fold % FOLDS != fold]
        weights = train([corpus[at] for at in rest], raw[rest])
        unseen += answered([corpus[at] for at in test], [scenes[at] for at in test], weights, heard)
    calibration = calibrate(unseen)
    if not asked.check:
        write(train([corpus[at] for at in usable], raw[usable]), calibration)
        load_weights.cache_clear()
    held_back = answered([corpus[at] for at in held], [scenes[at] for at in held], load_weights())
    figures = {
        "cross_validated": report(unseen, calibration),
        "held_back": report(held_back, calibration),
    }
    REPORT.write_text(json.dumps(figures, indent=1) + "\n")
    write_page(figures)
    plots.main()
    for name, values in figures.items():
        print(name, json.dumps({key: values[key] for key in list(values)[:10]}))


if __name__ == "__main__":
    main()
