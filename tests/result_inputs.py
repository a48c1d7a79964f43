"""Made-up evaluations: batches, a model that replays maps, and what stands beside their scores."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from datasets.clips import Batch
from datasets.lists import find_leak
from utils.evaluation.localisation import evaluate_localisation
from utils.evaluation.protocols import PROTOCOLS
from utils.reports.report import EvaluationContext

SHA256 = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Replay:
    """Gives each clip the map with the number that stands in its frame."""

    similarity_maps: object

    def __call__(self, batch):
        assert torch.is_inference_mode_enabled()
        return torch.as_tensor(self.similarity_maps)[batch.frames[:, 0, 0, 0]]


def make_batch(numbers, truths, clip_ids, broken=()):
    numbers = torch.as_tensor(list(numbers), dtype=torch.long)
    return Batch(
        clip_ids=tuple(clip_ids),
        frames=numbers[:, None, None, None].expand(-1, 3, 2, 2),
        waveforms=torch.zeros(len(numbers), 4),
        bounding_boxes=(np.array([[0.2, 0.2, 0.6, 0.6]]),) * len(numbers),
        ground_truth_maps=truths,
        broken=tuple(broken),
        pair_keys=(None,) * len(numbers),
    )


def batches_of(truths, clip_ids, batch_size):
    for start in range(0, len(truths), batch_size):
        part = slice(start, start + batch_size)
        yield make_batch(range(start, start + len(truths[part])), truths[part], clip_ids[part])


def evaluate(batches, similarity_maps, *protocols, **options):
    rules = protocols or [PROTOCOLS["ssl_tie"]]
    return evaluate_localisation(Replay(similarity_maps), batches, rules, **options)


def make_result(cious=(0.75, 0.25, 0.5, 0.1234567), unreadable=()):
    """Four clips under two rules, their consensus IoUs and pointing set by hand."""
    count = len(cious)
    truths = np.zeros((count, 224, 224), np.float32)
    for place in range(count):
        truths[place, : 32 * 2**place, : 32 * 2**place] = 1
    boxes = tuple(np.zeros((place + 1, 4)) for place in range(count))
    whole = make_batch(range(count), truths, [f"clip_{place}" for place in range(count)])
    maps = np.random.default_rng(0).random((count, 14, 14), dtype=np.float32)
    rules = PROTOCOLS["ssl_tie"], PROTOCOLS["sspl"]
    result = evaluate([replace(whole, bounding_boxes=boxes)], maps, *rules, negatives=True)
    by_hand = {
        ("ssl_tie", "model"): cious,
        ("sspl", "model"): [0.6] * count,
        **{(rule, "ceiling"): [1.0] * count for rule in ("ssl_tie", "sspl")},
    }
    clips = result.clips
    for (rule, kind), values in by_hand.items():
        rows = (clips["protocol"] == rule) & (clips["kind"] == kind)
        clips.loc[rows, "ciou"] = values
        if kind == "model":
            clips.loc[rows, "pointing"] = [float(place % 2 == 0) for place in range(count)]
    disc = clips["predictor"] == "centre disc (blind)"
    clips.loc[disc, "ciou"] = 0.25
    clips.loc[clips["predictor"] == "centre Gaussian (blind)", ["ciou", "pointing"]] = [0.5, 1.0]
    return replace(result, unreadable=tuple(unreadable))


def make_context(**changes):
    context = EvaluationContext(
        model="SSL-TIE runs, 80 epochs",
        benchmark="vgg_ss",
        data_root="data/VGGSound_test",
        clip_list="ssl_tie_vgg_ss_4911",
        clip_list_sha256="cd" * 32,
        num_listed=4,
        missing=(),
        cut="VGG-SS, 4 clips: none of the published cuts",
        frame_geometry="squash",
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
