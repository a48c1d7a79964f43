"""Which files of the packages show and sound what.

A key is `package:path`, the path below the package's root and without its suffix. The last photo of
two or more and the last sound of two or more are held out: training never uses them, half of the
test clips do.

Left out after looking at every photo and measuring every recording: digital silence (nandou,
iguana, giraffe, wombat), drawings, spoken words, recordings that are in the package twice (badger
is beaver, ram is goat), sounds that an AudioSet tagger took for something else altogether or that
are a single click, and things so slender that they cannot fill the share of the frame that
`composer` asks for (cello, bassoon, bass guitar, sedan).
"""

from dataclasses import dataclass

_BIRDS = "tuxpaint:animals/birds"
_MAMMALS = "tuxpaint:animals/mammals"
_CATTLE = f"{_MAMMALS}/bovines"
_MUSIC = "tuxpaint:hobbies/music"
_FARM = "gcompris:explore_farm_animals/resource/animals"
_INSTRUMENTS = "gcompris:instruments/resource"
_MEMORY = "gcompris:memory-sound/resource"


@dataclass(frozen=True)
class CatalogueEntry:
    """The keys of one class; the last of two or more photos (sounds) is the held-out one."""

    photos: tuple[str, ...]
    sounds: tuple[str, ...]


def _in(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


def _alone(key: str) -> CatalogueEntry:
    """A class with one photo and one recording, which have the same key."""
    return CatalogueEntry((key,), (key,))


# The first twelve are the default set: photos and sounds that are clear, and unlike one another.
_CURATED = {
    "dog": CatalogueEntry(
        _in(f"{_MAMMALS}/dogs", "dog", "dingo"),
        _in(_MEMORY, "LRBark_1_LA_cut", "LRBark_3_LA_cut") + _in(_FARM, "dog"),
    ),
    "fire_truck": _alone("tuxpaint:vehicles/emergency/firetruck"),
    "rooster": _alone(f"{_BIRDS}/rooster"),
    "drum_kit": CatalogueEntry(
        _in(f"{_MUSIC}/percussion", "drumkit"),
        _in(f"{_MUSIC}/percussion", "drumkit") + _in(_INSTRUMENTS, "drum_kit"),
    ),
    "duck": CatalogueEntry(_in(_BIRDS, "duck", "drake"), _in(_BIRDS, "duck") + _in(_FARM, "duck")),
    "cow": CatalogueEntry(
        _in(_CATTLE, "cow", "cow_white", "bull", "zebu"), _in(_CATTLE, "cow_white") + _in(_FARM, "cow")
    ),
    "toilet": _alone("tuxpaint:household/toilet"),
    "sheep": CatalogueEntry(
        _in(_CATTLE, "sheep", "sheep_lamb", "ram"), _in(_CATTLE, "sheep", "sheep_lamb") + _in(_FARM, "sheep")
    ),
    "violin": CatalogueEntry(
        _in(f"{_MUSIC}/string", "violin"), _in(f"{_MUSIC}/string", "violin") + _in(_INSTRUMENTS, "violin")
    ),
    "tiger": CatalogueEntry(
        _in(f"{_MAMMALS}/cats", "tiger", "tiger_sumatran"), _in(f"{_MAMMALS}/cats", "tiger")
    ),
    "frog": CatalogueEntry(
        _in("tuxpaint:animals/amphibians", "frog", "frog-1"),
        (*_in(_MEMORY, "LRFrogsInPondDuringStormLACut"), "tuxpaint:animals/amphibians/frog"),
    ),
    "owl": CatalogueEntry(_in(_BIRDS, "owl"), _in(_BIRDS, "owl") + _in(_FARM, "owl")),
    "turkey": _alone(f"{_BIRDS}/turkey"),
    "crow": _alone(f"{_BIRDS}/crow"),
    "trumpet": CatalogueEntry(
        _in(f"{_MUSIC}/brass", "trumpet"),
        (*_in(_INSTRUMENTS, "trumpet"), "tuxpaint:military/final-roll-call"),
    ),
    "pig": CatalogueEntry(_in(_MAMMALS, "pig_golden", "pig", "pig_golden2"), _in(_FARM, "pig")),
    "acoustic_guitar": CatalogueEntry(
        _in(f"{_MUSIC}/string", "guitar_classical"),
        _in(_INSTRUMENTS, "guitar") + _in(_MEMORY, "guitar_son1", "guitar_son3"),
    ),
    "chicken": CatalogueEntry(
        _in(_BIRDS, "hen", "chicken_profile"), _in(_FARM, "chickens") + _in(_BIRDS, "hen")
    ),
}

_OTHERS = {
    "horse": CatalogueEntry(
        _in(f"{_MAMMALS}/equines", "horse"), _in(_FARM, "horse") + _in(f"{_MAMMALS}/equines", "horse")
    ),
    "goat": CatalogueEntry(_in(_CATTLE, "goat", "mountaingoat"), _in(_CATTLE, "goat")),
    "goose": _alone(f"{_BIRDS}/gander"),
    "blackbird": _alone(f"{_BIRDS}/blackbird"),
    "gorilla": _alone(f"{_MAMMALS}/apes/gorilla"),
    "cymbal": CatalogueEntry(
        _in(f"{_MUSIC}/percussion", "cymbal_crash"),
        _in(f"{_MUSIC}/percussion", "cymbal_crash") + _in(_INSTRUMENTS, "cymbal"),
    ),
    "tom_drum": _alone(f"{_MUSIC}/percussion/drum_tomtom_floor"),
    "electric_guitar": CatalogueEntry(
        _in(f"{_MUSIC}/string", "guitar_electric", "guitar2"), _in(_INSTRUMENTS, "electric_guitar")
    ),
    "bear": CatalogueEntry(
        _in(f"{_MAMMALS}/bears", "bear", "european-bear"), _in(f"{_MAMMALS}/bears", "bear")
    ),
    "bison": _alone(f"{_CATTLE}/bison"),
    "donkey": CatalogueEntry(
        _in(f"{_MAMMALS}/equines", "donkey", "donkey_eating"), _in(f"{_MAMMALS}/equines", "donkey")
    ),
    "rabbit": CatalogueEntry(
        _in(f"{_MAMMALS}/rodents", "rabbit", "rabbit-2") + _in(_MAMMALS, "rabbit_little"),
        _in(f"{_MAMMALS}/rodents", "rabbit"),
    ),
    "fox": _alone(f"{_MAMMALS}/dogs/fox"),
    "lark": _alone(f"{_BIRDS}/lark"),
    "ferret": _alone(f"{_MAMMALS}/ferret"),
    "seagull": CatalogueEntry(_in(_BIRDS, "seagull", "silver-gull"), _in(_BIRDS, "seagull")),
    "camel": CatalogueEntry(
        _in(f"{_MAMMALS}/camel", "camel", "dromedary"), _in(f"{_MAMMALS}/camel", "camel", "dromedary")
    ),
    "deer": CatalogueEntry(
        _in(f"{_MAMMALS}/deer", "deer", "doe", "caribou", "wapiti"),
        _in(f"{_MAMMALS}/deer", "deer", "caribou"),
    ),
    "lion": CatalogueEntry(_in(f"{_MAMMALS}/cats", "lion-2", "lion"), _in(f"{_MAMMALS}/cats", "lion")),
    "cuckoo": _alone(f"{_BIRDS}/cuckoo"),
    "quetzal": _alone(f"{_BIRDS}/quetzal"),
    "toucan": _alone(f"{_BIRDS}/tucan"),
    "vulture": _alone(f"{_BIRDS}/vulture"),
    "heron": CatalogueEntry(
        _in(_BIRDS, "heron_greatblue", "heron_greatblue_flying"), _in(_BIRDS, "heron_greatblue_flying")
    ),
    "penguin": CatalogueEntry(
        _in(_BIRDS, "penguin", "magellanic_penguin", "little-penguin"), _in(_BIRDS, "penguin")
    ),
    "grasshopper": _alone("tuxpaint:animals/insects/grasshopper"),
    "chimpanzee": _alone(f"{_MAMMALS}/apes/chimp"),
    "elephant": _alone(f"{_MAMMALS}/elephant"),
    "mouse": CatalogueEntry(_in(f"{_MAMMALS}/rodents", "mouse", "rat"), _in(f"{_MAMMALS}/rodents", "mouse")),
    "koala": _alone("tuxpaint:animals/marsupials/koala"),
    "car": CatalogueEntry(
        _in("tuxpaint:vehicles/auto", "truck", "beetle"), _in(_MEMORY, "LRStartAndStopCarEngine1LACut")
    ),
    "saw": _alone("tuxpaint:household/tools/saw"),
}

CATALOGUE: dict[str, CatalogueEntry] = _CURATED | _OTHERS

# Photos of things that never sound here.
SILENT_PHOTOS: tuple[str, ...] = (
    *_in(_BIRDS, "pelican", "pink_flamingo", "ostrich", "pigeon"),
    *_in(_MAMMALS, "giraffe", "aquatic/otter", "rodents/marmot"),
    *_in("tuxpaint:animals/marsupials", "kangaroo", "wombat"),
    *_in("tuxpaint:animals/fish", "butterflyfish", "seahorse"),
    *_in("tuxpaint:vehicles", "flight/balloon360", "cycle/pink_tricycle"),
    *_in("tuxpaint:household", "dishes/mug", "dishes/pitcher_small", "wheelie_bin", "Lightbulb"),
    *_in("tuxpaint:household/tools", "toolbox", "cementmixer"),
    "tuxpaint:hobbies/binoculars",
)

# Folders of gcompris with scenery in which none of the classes is to be seen.
BACKGROUND_FOLDERS = ("explore_monuments/resource", "categorization/resource/images/renewable")
