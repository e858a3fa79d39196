"""Draw the pictures of the page about the router, from what it is made of and how it did.

    python benchmarks/router/plots.py

Reads the questions of the router and `report.json`, which `train.py` leaves; writes
`docs/concepts/router-decision.svg` and `docs/concepts/router-calibration.svg`. Needs nothing
beyond Fairlead.
"""

from __future__ import annotations

import json
import textwrap
from html import escape
from pathlib import Path

from fairlead.router.answers import QUESTIONS
from fairlead.router.ordering import SHORT
from fairlead.router.questions import question_of

HERE = Path(__file__).parent
PAGES = HERE.parents[1] / "docs" / "concepts"
NAMES = {skill: name for name, skill in SHORT.items()}
SETTLED_BY = {
    "speed-inference-or-training": "answered requests, or a breached SLO",
    "model-or-infrastructure": "the model's share; threads per CPU",
    "speed-or-accuracy": "latency against SLO; drift, lost quality",
    "proactive-or-reactive": "error rate, alerts that fire, drift",
}
INK, SOFT, LINE, PAPER = "#1d2733", "#5b6b7c", "#9aa8b6", "#ffffff"
BLUE, AMBER, GREEN, GREY = "#dcebfa", "#fdefd2", "#dcf3e1", "#eef1f4"
FONT = "font-family='ui-sans-serif,Helvetica,Arial,sans-serif'"


class Drawing:
    """An SVG on white paper, so that it reads on dark pages too."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.size, self.title, self.parts = (width, height), title, []

    def add(self, part: str) -> None:
        self.parts.append(part)

    def text(self, x, y, words, *, size=13, fill=INK, weight=400, anchor="start"):
        self.add(
            f"<text x='{x}' y='{y}' font-size='{size}' fill='{fill}' font-weight='{weight}' "
            f"text-anchor='{anchor}'>{escape(words)}</text>"
        )

    def box(self, x, y, width, height, head, words="", fill=GREY):
        self.add(
            f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='7' fill='{fill}' "
            f"stroke='{LINE}'/>"
        )
        lines = textwrap.wrap(words, int(width / 6.1)) if words else []
        top = y + height / 2 - 8 * len(lines) + 5
        self.text(x + width / 2, top, head, weight=600, anchor="middle")
        for number, line in enumerate(lines, 1):
            self.text(x + width / 2, top + 16 * number, line, size=11.5, fill=SOFT, anchor="middle")

    def arrow(self, *points, says="", at=None):
        path = " ".join(f"{x},{y}" for x, y in points)
        self.add(
            f"<polyline points='{path}' fill='none' stroke='{SOFT}' stroke-width='1.6' "
            "marker-end='url(#head)'/>"
        )
        if says:
            (x, y) = at or points[0]
            self.text(x, y, says, size=11.5, fill=SOFT)

    def save(self, path: Path) -> None:
        width, height = self.size
        head = (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' "
            f"width='{width}' height='{height}' role='img' {FONT}><title>{escape(self.title)}"
            "</title><defs><marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' "
            f"markerHeight='7' orient='auto'><path d='M0 0 8 4 0 8z' fill='{SOFT}'/></marker>"
            f"</defs><rect width='{width}' height='{height}' fill='{PAPER}'/>"
        )
        path.write_text("\n".join([head, *self.parts, "</svg>"]) + "\n", encoding="utf-8")


def decision() -> None:
    """Draw the way of a text to its answer, and where every option of a question leads."""
    rows = sum(len(question_of(name).choices) for name in QUESTIONS)
    height = 424 + rows * 23 + len(QUESTIONS) * 12
    drawing = Drawing(960, height, "How the router decides")
    _flow(drawing)
    _questions(drawing, 394)
    drawing.save(PAGES / "router-decision.svg")


def _flow(drawing: Drawing) -> None:
    drawing.text(20, 28, "From words to one answer", size=16, weight=700)
    drawing.box(20, 60, 120, 70, "words", "of the user", BLUE)
    drawing.box(
        175, 60, 200, 70, "typed facts", "phase, what is slow, target, negation; products apart"
    )
    drawing.box(415, 60, 150, 70, "understood?", "is any word left over", AMBER)
    drawing.box(620, 40, 150, 48, "rules", "decide alone")
    drawing.box(620, 108, 150, 48, "linear + encoder", "within what rules allow")
    drawing.box(820, 72, 120, 56, "verdict", "and how sure")
    drawing.arrow((140, 95), (175, 95))
    drawing.arrow((375, 95), (415, 95))
    drawing.arrow((565, 82), (620, 64), says="all", at=(580, 66))
    drawing.arrow((565, 108), (620, 132), says="not all", at=(572, 138))
    drawing.arrow((770, 64), (820, 90))
    drawing.arrow((770, 132), (820, 112))
    drawing.arrow((905, 128), (905, 225))
    drawing.arrow((870, 128), (870, 203), (740, 203), (740, 225))
    drawing.arrow(
        (835, 128), (835, 178), (560, 178), (560, 225), says="a fact is missing", at=(576, 173)
    )
    drawing.box(
        470, 225, 180, 62, "evidence", "measured or said already? with --measure: now", AMBER
    )
    drawing.box(820, 225, 120, 62, "route", "skills in the order of work", GREEN)
    drawing.box(680, 225, 120, 62, "redirect", "whose problem it is, and why", GREEN)
    drawing.box(240, 225, 170, 62, "one question", "with options, and where each leads", GREEN)
    drawing.arrow((470, 256), (410, 256), says="neither", at=(421, 249))
    drawing.arrow((560, 287), (560, 316), (205, 316), (205, 130), says="settles it", at=(470, 310))
    drawing.arrow((325, 225), (325, 130), says="the answer is one more fact", at=(333, 205))
    drawing.text(
        20, 352,
        "Products (Kubernetes, MLflow …) never vote. The same words and measurements always give "
        "the same answer.", size=12, fill=SOFT,
    )  # fmt: skip


def _questions(drawing: Drawing, top: int) -> None:
    drawing.text(20, top, "The seven questions and where their options lead", size=16, weight=700)
    y = top + 24
    for name in QUESTIONS:
        asked = question_of(name)
        height = 23 * len(asked.choices) - 3
        drawing.add(
            f"<rect x='20' y='{y}' width='255' height='{height}' rx='6' fill='{AMBER}' "
            f"stroke='{LINE}'/>"
        )
        drawing.text(30, y + 16, name, size=12, weight=600)
        for number, line in enumerate(
            textwrap.wrap(SETTLED_BY.get(name, "nothing to measure: people know"), 46)
        ):
            if height > 34:
                drawing.text(30, y + 32 + 13 * number, line, size=10, fill=SOFT)
        for choice in asked.choices:
            drawing.arrow((275, y + 10), (298, y + 10))
            drawing.text(304, y + 14, choice.id, size=12)
            drawing.arrow((420, y + 10), (444, y + 10))
            drawing.text(450, y + 14, _leads(choice), size=12, fill=SOFT)
            y += 23
        y += 12


def _leads(choice) -> str:
    if choice.redirect:
        return f"redirect: {choice.redirect}"
    if choice.next:
        return f"asks {choice.next}"
    later = ", ".join(NAMES[skill] for skill in choice.also)
    route = " → ".join(NAMES[skill] for skill in choice.skills)
    return f"{route}  (later: {later})" if later else route


def calibration(figures) -> None:
    """Draw how often answers of a stated confidence were right."""
    drawing = Drawing(640, 560, "Stated confidence and how often it was right")
    left, top, side = 80, 60, 420

    def place(said, was):
        return left + said * side, top + (1 - was) * side

    drawing.text(left, 28, "Confidence against how often it was right", size=16, weight=700)
    drawing.text(left, 46, "area of a dot: share of the answers", size=11.5, fill=SOFT)
    for tenth in range(0, 11, 2):
        x, y = place(tenth / 10, tenth / 10)
        drawing.add(f"<path d='M{left} {y}H{left + side}M{x} {top}V{top + side}' stroke='{GREY}'/>")
        drawing.text(x, top + side + 20, f"{tenth / 10:.1f}", size=11.5, anchor="middle")
        drawing.text(left - 10, y + 4, f"{tenth / 10:.1f}", size=11.5, anchor="end")
    drawing.add(
        f"<rect x='{left}' y='{top}' width='{side}' height='{side}' fill='none' stroke='{LINE}'/>"
        f"<path d='M{left} {top + side}L{left + side} {top}' stroke='{SOFT}' "
        "stroke-dasharray='5 5'/>"
    )
    drawing.text(left + side / 2, top + side + 44, "confidence that was stated", anchor="middle")
    drawing.add(
        f"<text transform='translate(28 {top + side / 2}) rotate(-90)' font-size='13' "
        f"fill='{INK}' text-anchor='middle'>share that was right</text>"
    )
    for number, (name, colour) in enumerate(
        (("cross_validated", "#2f6db3"), ("held_back", "#d9822b"))
    ):
        _series(drawing, figures[name], place, colour)
        found = figures[name]
        x, y = left + side + 18, top + 30 + 64 * number
        drawing.add(f"<circle cx='{x}' cy='{y}' r='6' fill='{colour}'/>")
        drawing.text(x + 12, y + 4, name.replace("_", " "), size=12, weight=600)
        drawing.text(x, y + 22, f"{found['utterances']:,} answers", size=11, fill=SOFT)
        gap = found["calibration"]["expected_error"]
        drawing.text(x, y + 37, f"mean gap {gap:.3f}", size=11, fill=SOFT)
    drawing.save(PAGES / "router-calibration.svg")


def _series(drawing: Drawing, found, place, colour) -> None:
    bins, total = found["calibration"]["bins"], found["utterances"]
    points = [place(said, was) for said, was, _ in bins]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    drawing.add(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.8'/>")
    for (x, y), (_, was, count) in zip(points, bins, strict=True):
        # One standard error of a share, so that thin bins are not over-read.
        reach = 420 * (was * (1 - was) / count) ** 0.5
        drawing.add(
            f"<path d='M{x:.1f} {y - reach:.1f}V{y + reach:.1f}' stroke='{colour}' opacity='.5'/>"
            f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{3 + 14 * (count / total) ** 0.5:.1f}' "
            f"fill='{colour}' fill-opacity='.75'/>"
        )


def main() -> None:
    """Draw both pictures."""
    decision()
    calibration(json.loads((HERE / "report.json").read_text()))


if __name__ == "__main__":
    main()
