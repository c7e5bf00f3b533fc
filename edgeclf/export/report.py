"""The report of an export as one HTML page: what was compared with what, how far apart it is, and the verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from edgeclf.report_page import PAGE, STYLE

REPORT_NAME = "report.html"

_PRECISION_COLUMNS = (
    ("share_of_layers", "layers", "{:.0%}"),
    ("clips", "clips", "{}"),
    ("windows", "windows", "{}"),
    ("min_cosine", "cosine, least", "{:.5f}"),
    ("mean_cosine", "mean", "{:.5f}"),
    ("top1_agreement", "same first label", "{:.2%}"),
    ("accuracy", "accuracy", "{:.4f}"),
    ("fp32_accuracy", "of FP32", "{:.4f}"),
)


def report_page(manifest: Mapping[str, Any]) -> str:
    """The page of a bundle whose `manifest.json` this is, without its own hash."""
    parity = manifest["parity"]
    lowered = {name: rows for name, rows in parity.items() if name not in ("fp32", "left_out")}
    body = "\n".join([*_keras(parity["fp32"]), *_precisions(lowered, parity.get("left_out", {})), *_files(manifest)])
    title = escape(f"Export of {manifest['name']}")
    return PAGE.format(title=title, style=STYLE, head=f"<dl>{''.join(_facts(manifest))}</dl>", body=body)


def _facts(manifest: Mapping[str, Any]) -> Iterator[str]:
    facts = {
        "classifiers": ", ".join(entry["name"] for entry in manifest["classifiers"]),
        "precisions": ", ".join(_held(manifest)),
        "checks passed": "{} of {}".format(
            sum(check["passed"] for check in manifest["parity"]["fp32"]), len(manifest["parity"]["fp32"])
        ),
    }
    for name, value in facts.items():
        yield f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>"


def _held(manifest: Mapping[str, Any]) -> list[str]:
    """The precisions of what runs on the device."""
    entries = [manifest["extractor"], *manifest["classifiers"]]
    return list(next(entry["precisions"] for entry in entries if entry["precisions"]))


def _keras(checks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "<section><h2>FP32 beside Keras</h2>"
    yield _table(
        ("classifier", "check", "rows", "largest difference", "allowed", "labels changed", "verdict"),
        [
            (
                check["classifier"],
                check["name"],
                str(check["rows"]),
                f"{check['max_difference']:.1e}",
                f"{check['tolerance']:.0e}",
                str(check["changed_labels"]),
                "agrees" if check["passed"] else "DIFFERS",
            )
            for check in checks
        ],
        texts=2,
    )
    yield "</section>"


def _precisions(
    lowered: Mapping[str, Sequence[Mapping[str, Any]]], left_out: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    if not lowered:
        return
    yield "<section><h2>Lower precisions beside FP32</h2>"
    yield "<p>Windows are overlapping parts of clips; the interval is of the difference of both accuracies in "
    yield "percentage points, paired, 95 %, recordings resampled.</p>"
    yield _table(
        ("classifier", "precision", *(title for _, title, _ in _PRECISION_COLUMNS), "interval, points", "verdict"),
        [
            (
                row["classifier"],
                precision,
                *(_shown(row.get(key), form) for key, _, form in _PRECISION_COLUMNS),
                "{:+.2f} to {:+.2f}".format(*row["accuracy_difference_interval_points"])
                if "accuracy_difference_interval_points" in row
                else "",
                "left out" if precision in left_out else "kept",
            )
            for precision, rows in lowered.items()
            for row in rows
        ],
        texts=2,
    )
    for precision, reasons in left_out.items():
        yield f'<p class="problem">{escape(precision)} was left out: {escape("; ".join(reasons))}</p>'
    yield "</section>"


def _files(manifest: Mapping[str, Any]) -> Iterator[str]:
    yield "<section><h2>Made with</h2>"
    made = manifest["provenance"].get("exported_with", {})
    yield _table(("package", "version"), [(name, str(version)) for name, version in made.items()], texts=2)
    yield "</section>"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> str:
    """A table whose first columns hold words."""
    head = "".join(f'<th{_class(place, texts)} scope="col">{title}</th>' for place, title in enumerate(titles))
    body = "".join(
        "<tr>" + "".join(f"<td{_class(place, texts)}>{escape(cell)}</td>" for place, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _class(place: int, texts: int) -> str:
    return ' class="text"' if place < texts else ""
