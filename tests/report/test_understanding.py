import base64
import html
import io
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cvpipe.report.page import MAX_OPEN_LOOKUPS, image_data_uri, render_report
from cvpipe.report.understanding import (
    MAX_DESCRIBED,
    Captioned,
    Codebook,
    EqualDistances,
    Glyphs,
    NeighbourRow,
    Neighbours,
    Search,
    Templates,
    Understanding,
    describe_search,
    search_figure,
)
from tests.report.test_report import NASTY_CLASS, NASTY_ID, Page, build_content

KNN = pd.DataFrame(
    {"k": [1, 3, 9], "mean": [0.8, 0.9, 0.85], "std": [0.02, 0.01, 0.03], "folds": 5}
)


def picture(seed=0, height=8, width=8):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def neighbours(image_id="a.jpg", label="cat", labels=("cat", "dog", "cat")):
    right = [name == label for name in labels]
    rows = [
        NeighbourRow(space, picture(1, 30, 100), list(labels), right) for space in ("pixels", "HOG")
    ]
    return Neighbours(image_id, label, picture(2, 64, 64), rows)


def search(name="knn", **changes):
    return replace(Search(name, KNN, {"k": 3}, "accuracy", 5), **changes)


EQUAL = EqualDistances(
    ["knn"], (8, 8), 1489.4, [Captioned(picture(3), "the image"), Captioned(picture(4), "shifted")]
)
GLYPHS = Glyphs("HOG at 64x64", ["svm", "rbf"], [("cat", picture(5), picture(6, 16, 16))], 2)
BOOK = Codebook("k-means features at 32x32", ["words"], picture(7, 20, 60), 400, 200)
EXAMPLES = Codebook("bag of words at 64x64", ["bag"], picture(8, 20, 60), 24, 24, per_word=6)
TEMPLATES = Templates("softmax", [Captioned(picture(9), "cat"), Captioned(picture(10), "dog")], 2)
ALL = Understanding(
    [neighbours()], EQUAL, GLYPHS, [BOOK, EXAMPLES], [TEMPLATES], [search(), search("other")]
)


def section_of(understanding):
    page = render_report(build_content(understanding=understanding))
    (section,) = re.findall(r'<section id="seen">.*?</section>', page, re.DOTALL)
    return section


def words_of(section):
    text = re.sub(r"<svg.*?</svg>", "", section, flags=re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]+>", "", text))
    return re.sub(r"\s+", " ", text).replace("\u00a0", " ")


def headings(section):
    return re.findall(r"<h3>(.*?)</h3>", section)


def alts(section):
    return [html.unescape(alt) for alt in re.findall(r'<img [^>]*alt="([^"]*)"', section)]


def decoded(address):
    kind, data = re.fullmatch(r"data:image/(\w+);base64,(.*)", address).groups()
    return kind, np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_the_section_has_all_parts_in_order_and_is_linked():
    section = section_of(ALL)
    assert headings(section) == [
        "The nearest training images",
        "Equally far, and not alike at all",
        "Edges, as HOG counts them",
        "Visual words",
        "What a linear classifier looks for",
        "How their settings were found",
    ]
    page = Page(render_report(build_content(understanding=ALL)))
    assert ("a", "href", "#seen") in page.attributes
    assert "How the contenders see the images" in page.headings


def test_without_anything_to_show_there_is_no_section():
    assert not Understanding()
    text = render_report(build_content())
    assert 'id="seen"' not in text
    assert "#seen" not in text


PARTS = [
    {"neighbours": [neighbours()]},
    {"equal_distances": EQUAL},
    {"glyphs": GLYPHS},
    {"codebooks": [BOOK]},
    {"templates": [TEMPLATES]},
    {"searches": [search()]},
]


@pytest.mark.parametrize(("number", "part"), list(enumerate(PARTS)))
def test_each_part_can_stand_alone(number, part):
    assert Understanding(**part)
    assert headings(section_of(Understanding(**part))) == [headings(section_of(ALL))[number]]


def test_neighbours_are_told_in_words_and_not_by_colour_alone():
    section = section_of(Understanding([neighbours()]))
    assert alts(section) == ["cat, a test image", *["cat, dog (another class), cat"] * 2]
    words = words_of(section)
    assert "each with the 3 training images that lie nearest" in words
    assert "pixels: 2 of 3" in words
    assert "HOG: 2 of 3" in words
    assert "a cross: another class" in words


@pytest.mark.parametrize(("number", "hidden"), [(MAX_OPEN_LOOKUPS, 0), (MAX_OPEN_LOOKUPS + 3, 3)])
def test_further_test_images_stand_behind_a_click(number, hidden):
    grids = [neighbours(f"{n}.jpg") for n in range(number)]
    section = section_of(Understanding(grids))
    assert section.count('class="lookup"') == number
    folded = re.findall(r"<details>.*?</details>", section, re.DOTALL)
    assert len(folded) == bool(hidden)
    if hidden:
        assert folded[0].count('class="lookup"') == hidden
        assert f"{hidden} more test images" in folded[0]
        assert [f"{n}.jpg" in folded[0] for n in range(number)].count(True) == hidden


def test_equal_distances_say_how_far_and_why_it_matters():
    section = section_of(Understanding(equal_distances=EQUAL))
    words = words_of(section)
    assert "knn compares images by a distance of their pixels." in words
    assert "1,489 grey levels (L2 over all values of 8x8 pixels)" in words
    assert alts(section) == ["the image", "shifted"]
    several = replace(EQUAL, contenders=["a", "b", "c"])
    assert "a, b and c compare images by" in words_of(
        section_of(Understanding(equal_distances=several))
    )


def test_small_pictures_keep_every_pixel():
    section = section_of(Understanding(equal_distances=EQUAL))
    for address, part in zip(re.findall(r'src="([^"]*)"', section), EQUAL.pictures, strict=True):
        kind, pixels = decoded(address)
        assert kind == "png"
        np.testing.assert_array_equal(pixels, part.picture)


def test_glyphs_stand_beside_their_photos():
    section = section_of(Understanding(glyphs=GLYPHS))
    assert alts(section) == ["cat, a training image", "cat, its edges"]
    words = words_of(section)
    assert "What svm and rbf read of a training image (HOG at 64x64)." in words
    assert "A stroke lies along an edge, at right angles to the gradient" in words
    assert "The first 1 of 2 classes." in words
    whole = replace(GLYPHS, num_classes=1, contenders=["svm"])
    words = words_of(section_of(Understanding(glyphs=whole)))
    assert "The first" not in words
    assert "What svm reads of" in words


def test_codebooks_say_how_many_words_are_shown():
    section = section_of(Understanding(codebooks=[BOOK, EXAMPLES]))
    words = words_of(section)
    assert "200 of the 400 words that words reads images by: k-means features at 32x32." in words
    assert (
        "The 24 words that bag reads images by: bag of words at 64x64. These words are no "
        "pictures; each is shown by the 6 patches of training images"
    ) in words
    kinds = [decoded(address)[0] for address in re.findall(r'src="([^"]*)"', section)]
    assert kinds == ["png", "jpeg"]  # patches are photos


def test_templates_name_contender_and_classes():
    section = section_of(Understanding(templates=[TEMPLATES, replace(TEMPLATES, num_classes=30)]))
    assert section.count("<h4>softmax</h4>") == 2
    assert alts(section) == ["cat", "dog"] * 2
    assert words_of(section).count("The first 2 of 30 classes.") == 1


def test_searches_stand_behind_a_click():
    section = section_of(Understanding(searches=[search(), search("other")]))
    (folded,) = re.findall(r"<details>.*?</details>", section, re.DOTALL)
    assert section.count("<svg ") == folded.count("<svg ") == 2
    assert "&lt;svg" not in section
    words = words_of(folded)
    assert "Scores of all settings of 2 contenders" in words
    assert "knn, 5 folds" in words
    assert "other, 5 folds" in words
    alone = section_of(Understanding(searches=[search()]))
    assert "Scores of all settings of 1 contender A dot" in words_of(alone)


def test_a_search_is_described_the_best_first():
    assert describe_search(search()).replace("\u00a0", " ") == (
        "Cross-validation of knn, accuracy of 3 of 3 settings, the best first: "
        "k 3: 90.0 %, standard deviation 1.0 %; k 9: 85.0 %, standard deviation 3.0 %; "
        "k 1: 80.0 %, standard deviation 2.0 %. Chosen: k 3"
    )
    loss = describe_search(search(metric="log_loss"))
    assert "log loss of 3 of 3 settings, the best first: k 1: 0.800" in loss
    many = pd.DataFrame({"k": range(1, 31), "mean": 0.5, "std": 0.1})
    text = describe_search(search(table=many))
    assert f"{MAX_DESCRIBED} of 30 settings" in text
    assert text.count("standard deviation") == MAX_DESCRIBED


def test_two_searches_of_one_shape_share_no_identifier():
    figures = [search_figure(search(name)) for name in ("one", "two")]
    ids = [set(re.findall(r' id="([^"]*)"', figure)) for figure in figures]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_names_from_data_are_escaped():
    nasty = Understanding(
        [neighbours(NASTY_ID, NASTY_CLASS, (NASTY_CLASS, "b"))],
        replace(EQUAL, contenders=[NASTY_CLASS]),
        Glyphs(NASTY_CLASS, [NASTY_CLASS], [(NASTY_CLASS, picture(), picture())], 1),
        [replace(BOOK, feature=NASTY_CLASS, contenders=[NASTY_CLASS])],
        [Templates(NASTY_CLASS, [Captioned(picture(), NASTY_CLASS)], 1)],
        [search(NASTY_CLASS)],
    )
    section = section_of(nasty)
    assert "<script" not in section
    assert "<b>.jpg" not in section
    assert NASTY_ID in words_of(section)
    assert f"{NASTY_CLASS}, b (another class)" in alts(section)


def test_pages_are_equal_and_load_nothing():
    pages = [render_report(build_content(understanding=ALL)) for _ in range(2)]
    assert pages[0] == pages[1]
    for tag, name, value in Page(pages[0]).attributes:
        assert name != "style", tag
        if name == "src":
            assert value.startswith("data:image/")


def test_lossless_pictures_are_png_and_made_smaller_when_large():
    image = picture(0, 30, 60)
    kind, pixels = decoded(image_data_uri(image, (100, 100), lossless=True))
    assert kind == "png"
    np.testing.assert_array_equal(pixels, image)
    assert decoded(image_data_uri(image, (30, 30), lossless=True))[1].shape == (15, 30, 3)
    assert decoded(image_data_uri(image))[0] == "jpeg"
