"""The official clip lists: where each is published, its count and sha256.

The lists belong to their authors and are not part of this repository; `datasets/splits.py` fetches
and verifies them.
"""

from dataclasses import dataclass

BASE_URL = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class OfficialSplit:
    """A published list: its place at a fixed commit, what it must contain, its local file name."""

    repository: str
    commit: str
    path: str
    num_clips: int
    sha256: str
    file_name: str
    note: str
    pairs: bool = False
    """frames with sounds that are not theirs, see datasets/negatives.py, not clips"""

    def url(self, base_url: str = BASE_URL) -> str:
        """Returns the address of the list on GitHub or, with another base, on a mirror."""
        return f"{base_url.rstrip('/')}/{self.repository}/{self.commit}/{self.path}"


_SSL_TIE = ("jinxiang-liu/SSL-TIE", "c49e6a9")
_LVS = ("hche11/Localizing-Visual-Sounds-the-Hard-Way", "8fe8cbb")
_SSPL = ("zjsong/SSPL", "d1af4c7")
_EZ_VSL = ("stoneMo/EZ-VSL", "95ff5bf")
_SLAVC = ("stoneMo/SLAVC", "05b429c")

OFFICIAL_SPLITS = {
    "ssl_tie_vgg_ss_4911": OfficialSplit(
        *_SSL_TIE,
        "metadata/test_vggss_4911.txt",
        4911,
        "6d60cdd17757a7e10537d4bff0e6a53833d88beccffa0e58755c5d10fc50aead",
        "ssl_tie_vgg_ss_4911.txt",
        "SSL-TIE's VGG-SS test clips",
    ),
    "ssl_tie_flickr_249": OfficialSplit(
        *_SSL_TIE,
        "metadata/test_flickr_250.txt",
        249,
        "d6e743caab0775b1136c388e0de3012d84ad3d85303e8ff95a2af71eb6b238d1",
        "ssl_tie_flickr_249.txt",
        "Flickr-SoundNet test clips; 249 despite the published file name",
    ),
    "ssl_tie_flickr_249_csv": OfficialSplit(
        *_SSL_TIE,
        "metadata/test_flick.csv",
        249,
        "faf5465bdb991cfb7506ccadef64dfea9e9bceb47e895d0e4dbdc2a0ca622871",
        "ssl_tie_flickr_249_csv.csv",
        "the same 249 Flickr-SoundNet test clips as CSV",
    ),
    "ssl_tie_vggsound_10k": OfficialSplit(
        *_SSL_TIE,
        "metadata/train_vggss_train_10k.txt",
        10000,
        "47b12e74a448b10f1d51fa7b4908b93c45f3be18099033e8e3ef735fa8caedb6",
        "ssl_tie_vggsound_10k.txt",
        "VGGSound training clips, none of them in VGG-SS",
    ),
    "ssl_tie_vggsound_144k": OfficialSplit(
        *_SSL_TIE,
        "metadata/train_vggss_train_144k.txt",
        144000,
        "703eca24ff71c1fcfbdcde06d49a246151838f4a03620104fa8dd3b00e977e46",
        "ssl_tie_vggsound_144k.txt",
        "VGGSound training clips, none of them in VGG-SS",
    ),
    "ssl_tie_flickr_10k": OfficialSplit(
        *_SSL_TIE,
        "metadata/train_flickr_10k.txt",
        10000,
        "93f0e6c510a8eb3d090fbfdd91633071227a393168379e2b3aba9ae248774703",
        "ssl_tie_flickr_10k.txt",
        "Flickr-SoundNet training clips; 2 of the 249 test clips are among them",
    ),
    "lvs_vgg_ss_5158": OfficialSplit(
        *_LVS,
        "metadata/vggss_test.csv",
        5158,
        "971081929d45caf21a148a6ca968822d96e8316331d0cc0bafb1783acb4d2c35",
        "lvs_vgg_ss_5158.csv",
        "all VGG-SS test clips",
    ),
    "lvs_vgg_ss_boxes": OfficialSplit(
        *_LVS,
        "metadata/vggss.json",
        5158,
        "ae300b4a259267e6fe839970d495862edd70bfe3da63d925bcdb34054ed3b15e",
        "lvs_vgg_ss_boxes.json",
        "the VGG-SS annotation: the same 5158 clips with class and boxes",
    ),
    "sspl_vgg_ss_4692": OfficialSplit(
        *_SSPL,
        "metadata/vggss_test_4692.csv",
        4692,
        "f075b27306ca213da3c56fe996cdf7a1b39ef7d6e0077c95be580fc5a60af98d",
        "sspl_vgg_ss_4692.csv",
        "SSPL's VGG-SS test clips",
    ),
    "sspl_flickr_249": OfficialSplit(
        *_SSPL,
        "metadata/flickr_test249_in5k.csv",
        249,
        "faf5465bdb991cfb7506ccadef64dfea9e9bceb47e895d0e4dbdc2a0ca622871",
        "sspl_flickr_249.csv",
        "SSPL's Flickr-SoundNet test clips, the bytes of ssl_tie_flickr_249_csv",
    ),
    "ez_vsl_vggsound_10k": OfficialSplit(
        *_EZ_VSL,
        "metadata/vggss_10k.txt",
        10000,
        "9a19023b17aedc79001bbcb69ccd5c96f6af2f7b8ef1b12fa92a76050a0ae43e",
        "ez_vsl_vggsound_10k.txt",
        "VGGSound training clips; 238 VGG-SS test clips are among them",
    ),
    "ez_vsl_vgg_ss_heard": OfficialSplit(
        *_EZ_VSL,
        "metadata/vggss_heard_test.csv",
        2564,
        "70a01c6828e7b84531823616ebb2e32e75bbaf5e44c715fa366b61111ab33c4e",
        "ez_vsl_vgg_ss_heard.csv",
        "VGG-SS test clips of EZ-VSL's heard classes",
    ),
    "ez_vsl_vgg_ss_unheard": OfficialSplit(
        *_EZ_VSL,
        "metadata/vggss_unheard_test.csv",
        2575,
        "11883813db359df63e1a28f69bb53e1ceef7f5b8d68e0149de5792540acb9e17",
        "ez_vsl_vgg_ss_unheard.csv",
        "VGG-SS test clips of EZ-VSL's unheard classes",
    ),
    "slavc_vgg_ss_negatives": OfficialSplit(
        *_SLAVC,
        "metadata/vggss_test_plus_silent.csv",
        5158,
        "905a009428e16d1108e5af112d8e682dbe1702a2ed897b3d56753ff587018e4e",
        "slavc_vgg_ss_negatives.csv",
        "negatives of extended VGG-SS: frames with sounds that are not seen in them",
        pairs=True,
    ),
    "slavc_flickr_negatives": OfficialSplit(
        *_SLAVC,
        "metadata/flickr_test_plus_silent.csv",
        250,
        "45a0d32b64a9ef9e567d3eaf4a4a29683cdb0f7f4e1924a0e26cde24fa298643",
        "slavc_flickr_negatives.csv",
        "negatives of extended Flickr-SoundNet: frames with the sounds of other clips",
        pairs=True,
    ),
}
