"""The stamps data set: object photos on background photos, one of the objects heard.

Every clip is a square frame with one or two objects of different classes and three seconds of
sound of exactly one of them, so where the sound comes from is known to the pixel. With the real
material (two Debian packages, fetched when first needed) photos, recordings and backgrounds are all
real; only their combination is made up. Without it, drawings and synthesised sounds stand in. The
layout is VGGSound's, and so is the form of the annotations.

    python -m datasets.stamps data/stamps --train 2000 --test 200

Module by module: `packages` fetches, `qt_resources` opens Qt's archives, `catalogue` says which
file is which class, `material` loads it, `procedural` stands in for it, `composer` makes one clip
with `painting` and `sounds`, and `writer` makes all of them.
"""
