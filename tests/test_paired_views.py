"""SSPL's views: cut where they say, drawn as the authors draw them, the same for the same seed."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from datasets.audio import SegmentConfig, VGGishLogMel, level_waveform
from datasets.clips import AudioVisualClips, Clip, ClipRequest, collate
from datasets.frames import FrameGeometry
from datasets.paired_views import CutOut, cut_views, draw_pair, enlarged_size
from datasets.transforms import as_float, normalise
from datasets.views import SSPLViews, TestViews

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SIZE = 32


def test_enlarged_size_is_the_authors():
    assert enlarged_size(224) == 246


def test_views_are_cut_like_one_at_a_time():
    frames = torch.randint(0, 256, (5, 3, 35, 35), dtype=torch.uint8)
    views = [
        CutOut(0, 0, False),
        CutOut(3, 0, False),
        CutOut(0, 3, True),
        CutOut(2, 1, True),
        CutOut(3, 3, 0),
    ]
    cut = cut_views(frames, views, SIZE)
    assert cut.shape == (5, 3, SIZE, SIZE) and cut.dtype == torch.uint8
    for frame, view, result in zip(frames, views, cut, strict=True):
        expected = TF.crop(frame, view.top, view.left, SIZE, SIZE)
        expected = TF.horizontal_flip(expected) if view.mirrored else expected
        assert torch.equal(result, expected)


def test_drawn_views_cover_every_shift_evenly():
    pairs = [draw_pair(seed, 224) for seed in range(4000)]
    assert pairs == [draw_pair(seed, 224) for seed in range(4000)]
    for which in (0, 1):
        views = [pair[which] for pair in pairs]
        assert {view.top for view in views} == {view.left for view in views} == set(range(23))
        assert np.mean([view.top for view in views]) == pytest.approx(11, abs=0.4)
        assert np.mean([view.mirrored for view in views]) == pytest.approx(0.5, abs=0.03)
    tops = np.array([[first.top, second.top] for first, second in pairs])
    assert abs(np.corrcoef(tops.T)[0, 1]) < 0.06  # independent of each other


@pytest.fixture
def clips(tiny_data):
    folder = tiny_data.root / "VGGSound"
    return AudioVisualClips(
        [
            Clip(
                clip_id,
                folder / "total_video_frames" / clip_id / "125.jpg",
                folder / "total_video_3s_audio" / f"{clip_id}.wav",
            )
            for clip_id in tiny_data.train_ids
        ],
        geometry=FrameGeometry(enlarged_size(SIZE)),
        audio=SegmentConfig(),
    )


def test_views_of_a_batch(clips):
    views = SSPLViews(SegmentConfig(), SIZE, CPU)
    batch = collate([clips[ClipRequest(index, 100 + index)] for index in range(4)])
    inputs = views(batch, 0)
    assert inputs["frames_view_1"].shape == inputs["frames_view_2"].shape == (4, 3, SIZE, SIZE)
    assert inputs["log_mel_segments"].shape == (4, 3, 1, 96, 64)
    assert not torch.equal(inputs["frames_view_1"], inputs["frames_view_2"])
    # A clip's views do not depend on its neighbours.
    alone = views(collate([clips[ClipRequest(2, 102)]]), 7)
    for name, tensor in alone.items():
        torch.testing.assert_close(tensor[0], inputs[name][2], rtol=1e-5, atol=1e-5)

    picture = Image.open(clips.clips[2].frame_source).convert("RGB")
    enlarged = TF.resize(picture, [35, 35], TF.InterpolationMode.BICUBIC)
    first, _ = draw_pair(102, SIZE)
    box = (first.left, first.top, first.left + SIZE, first.top + SIZE)
    expected = TF.pil_to_tensor(enlarged.crop(box))
    expected = expected.flip(2) if first.mirrored else expected
    expected = normalise(as_float(expected[None]))[0]
    torch.testing.assert_close(inputs["frames_view_1"][2], expected)


def test_test_views_level_the_sound_and_keep_the_frame_whole(clips):
    batch = collate([clips[ClipRequest(index, 0)] for index in range(2)])
    louder = collate([clips[ClipRequest(index, 0)] for index in range(2)])
    louder.waveforms.mul_(0.5)
    frames, segments = TestViews(SegmentConfig(), CPU)(batch)
    assert torch.equal(frames, normalise(as_float(batch.frames)))
    assert torch.equal(segments, VGGishLogMel()(level_waveform(batch.waveforms)))
    _, quiet = TestViews(SegmentConfig(), CPU)(louder)
    assert (segments - quiet).abs().max() < 0.05  # loudness is discarded: it would be ln 2


def test_the_order_of_drawing_is_python_s_and_documented_by_value():
    source = random.Random(5)
    first, second = draw_pair(5, 224)
    for view in (first, second):
        assert view == CutOut(source.randint(0, 22), source.randint(0, 22), source.random() < 0.5)
