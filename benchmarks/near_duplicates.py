"""Plant copies among the images of a data set, and count which of them are found.

For each kind of copy alone: the share of 200 copies that end up in the cluster of their original
(recall), and how many clusters of the other images they join (merges), by the perceptual hash
alone and by the audit's whole search, which looks at views of the images as well:

    cvpipe fetch digits && python benchmarks/near_duplicates.py digits
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from planted import COPIES, corpus_parser

from cvpipe.data.copies import FINE_PIXELS, near_duplicates
from cvpipe.data.duplicates import find_clusters, hash_thumbnails
from cvpipe.data.images import decode_image
from cvpipe.data.manifest import is_image_name
from cvpipe.data.thumbnails import THUMBNAIL_PIXELS, grey_thumbnail


class Pictures(NamedTuple):
    """Thumbnails of images and what else the search asks for, one row per image."""

    thumbnails: np.ndarray
    fine: np.ndarray
    sizes: np.ndarray

    def followed_by(self, others: "Pictures") -> "Pictures":
        """Put other images behind these."""
        return Pictures(*map(np.concatenate, zip(self, others, strict=True)))


def look_at(files: Sequence[bytes]) -> Pictures:
    """Decode files as the audit does, and keep what the search looks at."""
    thumbnails = np.empty((len(files), THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), np.uint8)
    fine = np.empty((len(files), FINE_PIXELS, FINE_PIXELS), np.uint8)
    sizes = np.empty((len(files), 2), np.int64)
    for row, data in enumerate(files):
        image = decode_image(data)
        thumbnails[row], fine[row] = grey_thumbnail(image), grey_thumbnail(image, FINE_PIXELS)
        sizes[row] = image.shape[:2]
    return Pictures(thumbnails, fine, sizes)


def by_hash(pictures: Pictures) -> np.ndarray:
    """Name each image's cluster, by the perceptual hash alone."""
    names = [f"{row:06}" for row in range(len(pictures.sizes))]
    return np.array(find_clusters(names, names, hash_thumbnails(pictures.thumbnails)).cluster)


def by_views(pictures: Pictures) -> np.ndarray:
    """Name each image's cluster, as the audit does."""
    names = [f"{row:06}" for row in range(len(pictures.sizes))]

    def load_fine(chosen: Sequence[str]) -> np.ndarray:
        return pictures.fine[[int(name) for name in chosen]]

    return np.array(
        near_duplicates(names, names, pictures.thumbnails, pictures.sizes, load_fine)[0].cluster
    )


def compare(paths: Sequence[Path], num_planted: int) -> Iterator[tuple[str, list[str]]]:
    """Plant each kind of copy alone; yield recall and merges, by hash and by views."""
    pictures = look_at([path.read_bytes() for path in paths])
    originals = np.random.default_rng(0).choice(len(paths), num_planted, replace=False)
    images = [decode_image(paths[row].read_bytes()) for row in originals]
    searches = (by_hash, by_views)
    unplanted = [len(set(search(pictures))) for search in searches]
    by_hash_alone, by_all = unplanted
    yield "clusters without copies", [f"{by_hash_alone:,}", "", f"{by_all:,}", ""]
    for kind, make in COPIES.items():
        planted = pictures.followed_by(look_at([make(image) for image in images]))
        figures = []
        for search, num_clusters in zip(searches, unplanted, strict=True):
            cluster = search(planted)
            old, copies = cluster[: len(paths)], cluster[len(paths) :]
            recall, merges = (copies == old[originals]).mean(), num_clusters - len(set(old))
            figures += [f"{recall:.3f}", str(merges)]
        yield kind, figures


def main() -> None:
    """Print a table per data set."""
    parser = corpus_parser(__doc__)
    arguments = parser.parse_args()
    for name in arguments.datasets:
        paths = sorted(
            path for path in (arguments.root / name).rglob("*") if is_image_name(path.name)
        )
        print(f"\n{name}, {len(paths):,} images, {arguments.planted} copies of each kind\n")
        print("| copy | recall, hash | merges, hash | recall, views | merges, views |")
        print("|---|---:|---:|---:|---:|")
        for kind, figures in compare(paths, arguments.planted):
            print(f"| {kind} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
