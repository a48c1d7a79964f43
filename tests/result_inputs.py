"""A made-up evaluation of a few clips under two rules."""

from dataclasses import replace

from utils.evaluation.protocols import PROTOCOLS
from utils.leaks import find_leak
from utils.results import EvaluationContext
from utils.scores import ClipScore, ClipTruth, LocalisationResult, ProtocolScores, Scores

SHA256 = "0123456789abcdef" * 4


def make_scores(name, kind, cious, pointing=None):
    pointing = pointing or [None] * len(cious)
    clips = [
        ClipScore(f"clip_{index}", *score) for index, score in enumerate(zip(cious, pointing, strict=True))
    ]
    return Scores(name, kind, tuple(clips))


def make_protocol_scores(name, cious):
    count = len(cious)
    rows = (
        make_scores("model", "model", cious, [index % 2 == 0 for index in range(count)]),
        make_scores("centre disc (blind)", "baseline", [0.25] * count),
        make_scores("centre Gaussian (blind)", "baseline", [0.5] * count, [True] * count),
        make_scores(f"best possible under {name}", "ceiling", [1.0] * count),
    )
    return ProtocolScores(PROTOCOLS[name], rows)


def make_result(cious=(0.75, 0.25, 0.5, 0.1234567), unreadable=()):
    under_sspl = [0.6] * len(cious)
    return LocalisationResult(
        (make_protocol_scores("ssl_tie", cious), make_protocol_scores("sspl", under_sspl)),
        tuple(unreadable),
        truths=tuple(ClipTruth(1000.5 * 4**index, index + 1) for index in range(len(cious))),
    )


def with_rows(result, rows):
    first, *others = result.by_protocol
    return replace(result, by_protocol=(replace(first, rows=tuple(rows)), *others))


def make_context(**changes):
    context = EvaluationContext(
        benchmark="vgg_ss",
        data_root="data/VGGSound_test",
        clip_list="ssl_tie_vgg_ss_4911",
        clip_list_sha256="cd" * 32,
        num_listed=4,
        missing=(),
        frame_geometry="squash",
        audio="own",
        note="",
        checkpoint={
            "path": "runs/last.pth",
            "sha256": SHA256,
            "method": "ssl_tie",
            "epoch": 80,
            "selection": {"kind": "last"},
        },
        leak=find_leak(["other"], ["clip_0"], purpose="test"),
        num_chosen_on=0,
        environment={"torch": "2.11", "device": "cpu"},
        command="python test.py localisation --output 'results/<a>'",
    )
    return replace(context, **changes)
