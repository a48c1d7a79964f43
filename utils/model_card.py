"""The card of a trained model: data and licences, recipe, command, figures and limits, as Markdown.

Everything in it comes from files of the run; nothing is typed in by hand.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.comparison import as_markdown
from utils.tables import SCORE_NAMES

SCORES = ("ciou_at_0.5", "auc", "pointing_accuracy")
"""of each list of test clips, in the card's table"""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is known of a model."""

    title: str
    file_name: str
    """of the weights, beside the card"""
    num_bytes: int
    sha256: str
    """of the file"""
    weights_sha256: str
    """of the names and values of its tensors, the same as in the run's checkpoint"""
    num_values: int
    """floating-point numbers in it: parameters and running statistics"""
    method: str
    epochs: int
    training_list: Mapping[str, Any]
    """name, sha256, num_listed, num_missing"""
    training_clips: Sequence[str]
    changed_options: Mapping[str, tuple[Any, Any]]
    """name -> what it is, and what it is in the published recipe"""
    options: Mapping[str, Any]
    """all of them"""
    command: str
    """that makes the model"""
    data: Mapping[str, Any]
    """the set's manifest: source, recipe, licence, packages, classes"""
    data_sha256: str
    """of that manifest's file"""
    evaluations: Mapping[str, Mapping[str, Any]]
    """summary.json of each list of test clips, by the name of its results"""
    losses: Sequence[Mapping[str, str]]
    """rows of history.csv"""
    environment: Mapping[str, str]
    """that it was scored in"""


def render_model_card(card: ModelCard) -> str:
    """The card as Markdown, ending in a line feed."""
    sections = {
        "The file": _file(card),
        "Data": _data(card),
        "Recipe": _recipe(card),
        "Figures": _figures(card),
        "Limits": _limits(card),
        "Use": _use(card),
    }
    parts = [f"# {card.title}\n"]
    parts += [f"## {name}\n\n{text}\n" for name, text in sections.items()]
    return "\n".join(parts)


def _file(card: ModelCard) -> str:
    return _facts(
        {
            "file": f"`{card.file_name}`, {card.num_bytes:,} bytes: weights, configuration and ids "
            "of the training clips, without the optimiser's state",
            "sha256": f"`{card.sha256}`",
            "sha256 of the weights": f"`{card.weights_sha256}`",
            "method": f"{card.method}, {card.num_values:,} numbers, {card.epochs} epochs",
        }
    )


def _data(card: ModelCard) -> str:
    data, listed = card.data, card.training_list
    packages = "; ".join(
        f"{one['name']} {one['version']} (sha256 `{one['sha256']}`)" for one in data["packages"]
    )
    return _facts(
        {
            "set": "stamps, " + ", ".join(f"{name} {value}" for name, value in data["recipe"].items()),
            "manifest": f"stamps.json, sha256 `{card.data_sha256}`",
            "classes": ", ".join(data["classes"]),
            "training clips": f"{len(card.training_clips)} of {listed['num_listed']} in "
            f"{listed['name']} (sha256 `{listed['sha256']}`)",
            "material": packages or "drawn and synthesised by the program",
            "licence": data["licence"],
        }
    )


def _recipe(card: ModelCard) -> str:
    lines = [["option", "here", "published recipe"]]
    lines += [
        [f"`{name}`", _plain(here), _plain(there)] for name, (here, there) in card.changed_options.items()
    ]
    losses = ", ".join(f"{float(row['loss']):.3f}" for row in card.losses)
    return (
        f"```bash\n{card.command}\n```\n\nOptions that differ from the published recipe:\n\n"
        f"{as_markdown(lines)}\nMean loss of each epoch: {losses}.\n\n<details><summary>All options"
        f"</summary>\n\n```json\n{json.dumps(card.options, indent=2)}\n```\n\n</details>"
    )


def _figures(card: ModelCard) -> str:
    """One table for each rule: lists of test clips, with intervals and the best blind guess."""
    parts = []
    first = next(iter(card.evaluations.values()))
    for place, protocol in enumerate(first["protocols"]):
        head = ["test clips", "n", *(SCORE_NAMES[key] for key in SCORES)]
        lines = [[*head, "best blind cIoU@0.5"]]
        lines += [_figures_of(name, one, place) for name, one in card.evaluations.items()]
        parts.append(f"Rule `{protocol['name']}`: {protocol['description']}\n")
        parts.append(as_markdown(lines))
    method = first["intervals"]
    versions = ", ".join(f"{name} {version}" for name, version in card.environment.items())
    parts.append(
        f"Percent [{method['confidence']:.0%} interval, {method['method']}]; one training run. "
        f"Scored with {versions}."
    )
    return "\n".join(parts)


def _figures_of(name: str, summary: Mapping[str, Any], place: int) -> list[str]:
    rows = summary["protocols"][place]["rows"]
    model = next(row for row in rows if row["kind"] == "model")
    blind = max(row["ciou_at_0.5"] for row in rows if row["kind"] == "baseline")
    shuffled = "" if summary["audio"] == "own" else f" ({summary['audio']} sounds)"
    cells = []
    for key in SCORES:
        interval = model["intervals"][key]
        ends = "" if interval is None else f" [{interval[0]:.1f}, {interval[1]:.1f}]"
        cells.append("" if model[key] is None else f"{model[key]:.1f}{ends}")
    return [f"{name}{shuffled}", str(summary["num_clips"]), *cells, f"{blind:.1f}"]


def _limits(card: ModelCard) -> str:
    num_classes = len(card.data["classes"])
    warnings = dict.fromkeys(
        warning for summary in card.evaluations.values() for warning in summary["warnings"]
    )
    limits = [
        f"It has heard and seen {num_classes} classes, most of them from one to a few photos and "
        "recordings, composed into scenes by a program. It is no model of real scenes, and says "
        "nothing of the accuracy of the method on VGGSound or Flickr.",
        "The figures are of one run and one seed, on clips composed like the training clips; see "
        "those of held-out photos and recordings above for what it makes of new ones.",
        "The code is under the MIT licence, the data under those above; what these mean for "
        "weights that were trained on the data is not settled here.",
        *(f"From the evaluations: {warning}" for warning in warnings),
    ]
    return "\n".join(f"- {limit}" for limit in limits)


def _use(card: ModelCard) -> str:
    data = f"data/{Path(card.options['data']['data_root']).name}"
    return (
        f"```bash\nbash scripts/run.sh test.py localisation --checkpoint ckpts/{card.file_name}"
        f" \\\n  --benchmark stamps --data-root {data} --clip-list {data}/test.txt \\\n"
        f"  --output results/{card.file_name.split('.')[0]}\n```"
    )


def _facts(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {' '.join(value.split())}" for name, value in facts.items())


def _plain(value: object) -> str:
    return "" if value is None else str(value)
