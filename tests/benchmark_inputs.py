"""Tiny made-up samples of the benchmarks, in the layouts of docs/data.md."""

import json

import numpy as np
import soundfile
from conftest import RATE, draw_frame, tone
from PIL import Image

from datasets.audio import AudioConfig
from datasets.clips import AudioVisualClips, collate
from datasets.frames import FrameGeometry

AUDIO = AudioConfig(window_seconds=0.5)
SCENES = ("cat_dog_7", "bird_electric drill_12")
AUTHORS_FOLDER = "/somewhere/of/theirs/synthetic3241"


def batch_of(clip_set, map_size=224, frame_size=64):
    """All clips of a set, decoded."""
    clips = AudioVisualClips(
        clip_set.clips, geometry=FrameGeometry(frame_size), audio=AUDIO, map_size=map_size
    )
    return collate([clips[i] for i in range(len(clips))])


def write_frame(path, seed=0, size=(48, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_frame(seed, np.random.default_rng(seed))[0].resize(size).save(path)


def write_sound(path, index=0, seconds=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(index, seconds), RATE)


def sounded_entry(name, box):
    """One entry of IS3's JSON, with a path of the authors' machine."""
    return {
        "image": f"{AUTHORS_FOLDER}/visual_frames/{name}.jpg",
        "audio": f"{AUTHORS_FOLDER}/audio_wav/{name}.wav",
        "gt_box": box,
    }


def make_is3(root):
    """Two scenes with two sounds each; clip id -> its box in pixels."""
    boxes = {}
    for number, scene in enumerate(SCENES):
        for side, token in enumerate(scene.split("_")[:2]):
            clip_id = f"{scene}_{token}"
            write_frame(root / "visual_frames" / f"{clip_id}.jpg", number)
            write_sound(root / "audio_wav" / f"{clip_id}.wav", 2 * number + side)
            # 61, 115 and 122 are the pixels that a plain division by 224 would move.
            boxes[clip_id] = [[0.0, 61.0, 115.0, 224.0], [122.0, 10.0, 200.0, 115.0]][side]
    entries = [sounded_entry(clip_id, box) for clip_id, box in boxes.items()]
    (root / "synthetic3240_bbox.json").write_text(json.dumps(entries))
    return boxes


def write_mask(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def make_is3_download(root):
    """IS3 as its authors give it to download: other folders, another JSON, and masks as JPEGs."""
    boxes = make_is3(root)
    (root / "synthetic3240_bbox.json").unlink()
    (root / "visual_frames").rename(root / "images")
    entries = [
        {"image": f"images/{name}.jpg", "audio": f"audio_wav/{name}.wav", "box": box, "category": "cat"}
        for name, box in boxes.items()
    ]
    (root / "IS3_annotation.json").write_text(json.dumps(entries))
    for name, box in boxes.items():
        x_min, y_min, x_max, y_max = map(int, box)
        mask = np.zeros((224, 224), np.uint8)
        mask[y_min:y_max, x_min:x_max] = 255
        write_mask(root / "gt_segmentation" / f"{name}.jpg", mask)
    return boxes


def make_vpo_download(root, dataset):
    """VPO of its authors: pictures of COCO, a CSV of VGGSound's sounds; beside it SSL-Align's boxes."""
    boxes = {f"000000000540_{i}": [0, 0, 112, 112 + i] for i in (1, 22)}
    boxes["000000029299_7"] = [0, 0, 224, 112]
    folder = root / "data" / "dog" if dataset == "vpo_ss" else root / "data"
    sounds = ["abcdefghijk_000001", "-bcdefg_ijk_000020", "abcdefghijk_000001"]
    lines = ["cateName,img_Id,ann_Ids,vgg_file,split"]
    for number, (clip_id, sound) in enumerate(zip(boxes, sounds, strict=True)):
        picture, annotation = clip_id.split("_")
        write_frame(folder / f"{picture}.jpg", int(picture))
        write_sound(root / "audio" / f"{sound}.wav", number % 2)
        lines.append(f"dog,{picture},{annotation.zfill(12)},{sound}.wav,test")
    write_sound(root / "audio" / "unused_clip_000001.wav")
    (root / f"{dataset}_data_stereo.csv").write_text("\n".join(lines))
    entries = [sounded_entry(*entry) for entry in boxes.items()]
    (root / f"{dataset}_bbox.json").write_text(json.dumps(entries))
    return dict(zip(boxes, sounds, strict=True))


def make_s4(root, videos=("dog/-aB_c_1000_6000", "cat/xY9_0_5000"), frames=3):
    """Videos of AVSBench S4 with a mask for each frame; clip id -> mask."""
    masks = {}
    rng = np.random.default_rng(1)
    for number, place in enumerate(videos):
        video = place.split("/")[1]
        write_sound(root / "audio_wav" / "test" / f"{place}.wav", number)
        for k in range(1, frames + 1):
            name = f"{place}/{video}_{k}.png"
            write_frame(root / "visual_frames" / "test" / name, 10 * number + k)
            masks[f"{video}_{k}"] = mask = 255 * rng.integers(0, 2, (48, 48), dtype=np.uint8)
            write_mask(root / "gt_masks" / "test" / name, mask)
    return masks


def make_ms3(root, videos=("one.two", "three"), frames=2):
    """Videos of AVSBench MS3, the first mask empty; clip id -> mask."""
    masks = {}
    for number, video in enumerate(videos):
        write_sound(root / "audio_wav" / "test" / f"{video}.wav", number)
        for k in range(1, frames + 1):
            write_frame(root / "visual_frames" / video / f"{video}.mp4_{k}.png", number + k)
            mask = np.full((48, 48), 0 if not masks else 3, np.uint8)
            write_mask(root / "gt_masks" / "test" / video / f"{video}_{k}.png", mask)
            masks[f"{video}_{k}"] = mask
    return masks


def make_extended(tiny_data, folder):
    """Negatives for the tiny VGG-SS clips; the lists of positives and of negatives."""
    test = tiny_data.root / "VGGSound_test"
    for index in range(2):
        write_frame(test / "frame" / f"neg_{index}.jpg", 90 + index)
        write_sound(test / "audio" / f"neg_{index}.wav", index)
    pairs = [("neg_0", "neg_1"), ("neg_1", "test_0"), ("neg_0", "neg_0")]
    positives, negatives = folder / "positives.txt", folder / "negatives.csv"
    positives.write_text("".join(f"{clip_id}\n" for clip_id in tiny_data.test_ids[:4]))
    lines = "".join(f"{video},{audio},non-sounding\r\n" for video, audio in pairs)
    negatives.write_text(f"video,audio,label\r\n{lines}")
    return positives, negatives
