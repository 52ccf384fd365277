import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from cvpipe.classifiers.table import CLASSIFIERS
from cvpipe.config import PRESETS, preset_config, validate_config
from cvpipe.errors import InputError
from cvpipe.features.table import FEATURES
from cvpipe.models.backbones import BACKBONES, PRETRAINED
from cvpipe.sections import SplitSection
from cvpipe.stages.plan import check_names, estimate_seconds, in_words, make_plan

PIPELINE = """
[data]
root = "../größe eins"

[[contender]]
name = "hog_svm"
features = ["hog"]
classifier = "linear_svm"
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in a folder with images beside the pipelines, reached by relative paths."""
    (tmp_path / "größe eins").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "a.toml").write_text(PIPELINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message_of(target, *arguments, **options):
    with pytest.raises(InputError) as caught:
        make_plan(Path(target), *arguments, **options)
    return str(caught.value)


RAW = {"name": "a", "data": {"root": "x"}}


def config_of(*contenders):
    return validate_config({**RAW, "contender": list(contenders)})


HOG = {"name": "hog_svm", "features": ["hog"], "classifier": "linear_svm"}
PROBE = {"name": "probe", "backbone": "efficientnet_lite0", "recipe": "linear_probe"}
MAJORITY = {"name": "majority", "classifier": "majority"}


def test_a_feature_of_the_config_is_known_and_its_settings_are_tried():
    small = {"name": "small", "kind": "hog", "image_size": [20, 30]}
    raw = {"name": "a", "data": {"root": "x"}, "feature": [small]}
    contender = {**HOG, "features": ["small", "hog"]}
    check_names(validate_config({**raw, "contender": [contender]}))
    with pytest.raises(InputError, match="unknown feature 'smal'; did you mean 'small'"):
        check_names(validate_config({**raw, "contender": [{**HOG, "features": ["smal"]}]}))
    # Asked for even where no contender names it.
    wrong = {**small, "settings": {"cell_pixels": 16}}
    with pytest.raises(InputError, match=r"at least 32 pixels .* but they are \(20, 30\)"):
        check_names(validate_config({**raw, "feature": [wrong], "contender": [MAJORITY]}))


@pytest.mark.parametrize("classifier", ["chi2_svm", "intersection_svm"])
@pytest.mark.parametrize("name", ["fisher_vectors", "tiny_images"])
def test_negative_numbers_are_not_given_to_kernels_for_histograms(classifier, name):
    message = rf"^contender 'hog_svm' gives '{name}', which has negative numbers, to '{classifier}'"
    with pytest.raises(InputError, match=message):
        check_names(config_of({**HOG, "features": ["hog", name], "classifier": classifier}))
    check_names(config_of({**HOG, "features": ["hog"], "classifier": classifier}))
    check_names(config_of({**HOG, "features": ["hog", name], "classifier": "rbf_svm"}))


def test_formats_of_exports_are_known():
    raw = {"name": "a", "data": {"root": "x"}, "contender": [MAJORITY]}
    check_names(validate_config({**raw, "export": {"formats": ["keras", "litert-int8"]}}))
    message = "unknown format of an export 'tflite'; did you mean 'litert'"
    with pytest.raises(InputError, match=message):
        check_names(validate_config({**raw, "export": {"formats": ["tflite"]}}))


def test_pipeline_file():
    plan = make_plan(Path("pipelines/a.toml"), ["seed=5"])
    assert plan.root.samefile("größe eins")
    assert (plan.config.name, plan.config.seed) == ("a", 5)
    assert [c.name for c in plan.config.contender] == ["hog_svm"]


def test_pipeline_file_as_json_and_in_capitals():
    resolved = make_plan(Path("pipelines/a.toml")).config.model_dump(mode="json")
    for name in ("a.json", "a.JSON"):
        Path("pipelines", name).write_text(json.dumps(resolved))
        plan = make_plan(Path("pipelines", name))
        assert plan.config.model_dump(mode="json") == resolved
        assert plan.root.samefile("größe eins")
    Path("pipelines/B.TOML").write_text(PIPELINE)
    assert make_plan(Path("pipelines/B.TOML")).config.name == "B"


def test_root_may_be_absolute(here):
    plan = make_plan(Path("pipelines/a.toml"), [f"data.root={here / 'other'}"])
    assert plan.root == here / "other"


def test_folder():
    plan = make_plan(Path("größe eins"), ["split.val_fraction=0.3"])
    assert plan.root == Path("größe eins")
    assert (plan.config.name, plan.config.data.labels) == ("größe_eins", "folders")
    assert plan.config.split.val_fraction == 0.3
    standard = {c.name: c.search for c in plan.config.contender}
    assert {"majority", "shortcut", "hog_rbf", "linear_probe"} <= standard.keys()
    assert set(standard.values()) == {"fine"}
    quick = make_plan(Path("größe eins"), preset="quick").config.contender
    assert {c.name for c in quick} < standard.keys()
    assert {c.search for c in quick} == {"coarse"}


def test_working_directory_itself(here):
    plan = make_plan(Path())
    assert plan.root == Path()
    assert validate_config(plan.config.model_dump(mode="json")).name == plan.config.name
    assert plan.config.name in here.name + "_"


@pytest.mark.parametrize("folder", ["m²", ".hidden", "a b.", "x" * 120, "(1)"])
def test_any_folder_name_will_do(folder):
    Path(folder).mkdir()
    assert make_plan(Path(folder)).root == Path(folder)


def test_preset_of_a_pipeline_file():
    words = "--preset is for a folder or a table; a pipeline file says it itself."
    assert message_of("pipelines/a.toml", preset="quick") == words


@pytest.mark.parametrize("name", ["table.csv", "TABLE.TSV"])
def test_table(name):
    plan = make_plan(Path("größe eins") / name)
    assert plan.root == Path("größe eins")
    assert (plan.config.name, plan.config.data.labels) == ("größe_eins", name)


@pytest.mark.parametrize("target", ["pipelines/a.toml", "größe eins"])
def test_data_says_where_the_images_are(target):
    assert make_plan(Path(target), data=Path("other")).root == Path("other")
    assert "there is no folder 'nowhere' with images" in message_of(target, data=Path("nowhere"))


@pytest.mark.parametrize("target", ["größe eins", "größe eins/t.csv"])
def test_a_set_root_counts_for_a_folder_and_a_table(target):
    assert make_plan(Path(target), ["data.root=other"]).root == Path("other")


@pytest.mark.parametrize("root", ["größe eins", "other"])
def test_a_given_split_is_looked_for_in_the_table_that_the_settings_name(root):
    Path(root, "t.csv").write_text("path,label,split\n")
    named = ["data.labels=t.csv", f"data.root={root}"]
    assert make_plan(Path("größe eins")).config.split.protocol == "holdout"
    assert make_plan(Path("größe eins"), named).config.split.protocol == "given"
    moved = make_plan(Path("größe eins"), named[:1], data=Path(root))
    assert moved.config.split.protocol == "given"
    again = make_plan(Path("größe eins"), [*named, "split.protocol=holdout"])
    assert again.config.split.protocol == "holdout"


@pytest.mark.parametrize("target", ["nowhere", "photo.jpg"])
def test_missing_target(target):
    assert message_of(target) == (
        f"there is no folder {target!r}; give a pipeline file (.toml), a folder of class "
        "folders, or a table of images (.csv, .tsv)."
    )


def test_missing_pipeline_file():
    assert "no pipeline file 'pipelines/b.toml'; did you mean 'pipelines/a.toml'?" in message_of(
        "pipelines/b.toml"
    )


def test_missing_root():
    assert message_of("pipelines/a.toml", ["data.root=nowhere"]) == (
        "there is no folder 'pipelines/nowhere' with images; correct data.root in the pipeline "
        "file or give the folder with --data DIR."
    )
    assert message_of("pipelines/a.toml", ["data.root=../data/raw/brain_mri"]) == (
        "there is no folder 'pipelines/../data/raw/brain_mri' with images; fetch it with: "
        "cvpipe fetch brain_mri"
    )


@pytest.mark.parametrize("target", ["pipelines/a.toml", "größe eins"])
def test_unknown_preset(target):
    assert message_of(target, preset="quik") == "unknown preset 'quik'; did you mean 'quick'?"


@pytest.mark.parametrize(
    ("contender", "message"),
    [
        (
            {**PROBE, "backbone": "efficientnet_lit0"},
            "unknown backbone 'efficientnet_lit0'; did you mean 'efficientnet_lite0'?",
        ),
        (
            {**HOG, "classifier": "linear_svn"},
            "unknown classifier 'linear_svn'; did you mean 'linear_svm'?",
        ),
        ({**HOG, "features": ["hog", "hgo"]}, "unknown feature 'hgo'; did you mean 'hog'?"),
        (
            {**HOG, "features": []},
            "contender 'hog_svm' has the classifier 'linear_svm' but no features; choose some of "
            f"{sorted((*FEATURES, *PRETRAINED))}.",
        ),
        (
            {**HOG, "features": ["efficientnet_lit0"]},
            "unknown feature 'efficientnet_lit0'; did you mean 'efficientnet_lite0'?",
        ),
        # A network has features of its own, but a feature is no network.
        (
            {**PROBE, "backbone": "hog"},
            f"unknown backbone 'hog'; choose one of {sorted(BACKBONES)}.",
        ),
    ],
)
def test_names_that_no_table_knows(contender, message):
    for contenders in ([contender], [MAJORITY, {**PROBE, "name": "first"}, contender]):
        with pytest.raises(InputError) as caught:
            check_names(config_of(*contenders))
        assert str(caught.value) == message


def test_names_are_checked_for_every_kind_of_target():
    Path("pipelines/a.toml").write_text(PIPELINE.replace('"hog"', '"hgo"'))
    assert "unknown feature 'hgo'" in message_of("pipelines/a.toml")
    settings = ['contender=[{name="a", classifier="majorty"}]']
    assert "unknown classifier 'majorty'" in message_of("größe eins", settings)


WITH_WEIGHTS = [name for name in PRETRAINED if BACKBONES[name].weights]


def test_known_names():
    names = [*FEATURES, *WITH_WEIGHTS]
    of_features = [
        {"name": f"c{number}", "features": [name], "classifier": classifier}
        for number, (name, classifier) in enumerate(product(names, CLASSIFIERS))
        if (name != "file_facts" or CLASSIFIERS[classifier].any_scale)
        and not (name in ("tiny_images", "fisher_vectors") and CLASSIFIERS[classifier].non_negative)
    ]
    config = config_of(MAJORITY, HOG, PROBE, *of_features)
    assert check_names(config) is config


@pytest.mark.parametrize("name", [name for name in PRETRAINED if name not in WITH_WEIGHTS])
def test_a_backbone_without_weights_at_hand_is_told_where_they_are(name):
    words = f"no package holds weights of '{name}'; choose weights = 'keras'"
    for contender in ({**PROBE, "backbone": name}, {**HOG, "features": ["hog", name]}):
        with pytest.raises(InputError, match=words):
            check_names(config_of(contender))
    deep = {"name": "deep", "kind": name, "settings": {"weights": "keras"}}
    contenders = [{**PROBE, "backbone": name, "weights": "keras"}, {**HOG, "features": ["deep"]}]
    check_names(validate_config({**RAW, "feature": [deep], "contender": contenders}))


def test_features_and_backbones_share_no_name():
    # Both may stand in the list `features` of a contender.
    assert not FEATURES.keys() & BACKBONES.keys()


TUNED = {"name": "tuned", "backbone": "efficientnet_lite0", "recipe": "fine_tune"}
SCRATCH = {"name": "small", "backbone": "cifar_resnet", "recipe": "from_scratch"}
FLIPS = {"horizontal_flip": 0.5}


@pytest.mark.parametrize("augment", [{}, FLIPS])
@pytest.mark.parametrize(
    "contender",
    [
        {**PROBE, "layers": ["block_08", "features"], "image_size": [32, 40]},
        *({**TUNED, "freeze": freeze} for freeze in ("none", "middle", "last_block", "block_08")),
        {**SCRATCH, "image_size": [8, 8]},
        {**SCRATCH, "training": {"epochs": 2, "warmup_epochs": 1.9}},
        {**SCRATCH, "training": {"epochs": 4, "cycles": 2, "schedule": "cyclic"}},
    ],
)
def test_networks_that_can_be_trained(contender, augment):
    config = validate_config({**RAW, "contender": [contender], "augment": augment})
    assert check_names(config) is config


@pytest.mark.parametrize(
    ("contender", "augment", "message"),
    [
        (
            {**PROBE, "image_size": [31, 64]},
            {},
            "images of 31x64 pixels are too small for 'efficientnet_lite0'; choose sides of at "
            "least 32 pixels, usual are 224x224.",
        ),
        (
            {**PROBE, "layers": ["block_8"]},
            {},
            "unknown freeze point 'block_8'; did you mean 'block_08'?",
        ),
        (
            {**TUNED, "freeze": "midle"},
            {},
            "unknown freeze point 'midle'; did you mean 'middle'?",
        ),
        (
            {**PROBE, "backbone": "cifar_resnet"},
            {},
            "'cifar_resnet' has no pretrained weights, so there is nothing to transfer; train it "
            f"with recipe = 'from_scratch', or choose one of {list(PRETRAINED)}.",
        ),
        (
            {**TUNED, "views": 3},
            {},
            "contender 'tuned' has 3 views of each image, but [augment] changes nothing, so they "
            "would all be equal; choose an augment.preset, or views = 1.",
        ),
        (
            {**TUNED, "views": 3, "freeze": "none"},
            FLIPS,
            "contender 'tuned' sees new views of its images in every epoch, so views = 3 has no "
            "effect; leave it out, or freeze a part of the network.",
        ),
        *(
            (
                {**contender, "views": 2},
                {**FLIPS, blend: 0.2},
                f"contender {contender['name']!r} reads views one by one, so [augment] cannot "
                "blend images for it (mixup, cutmix); leave them out, or fine-tune with freeze = "
                "'none'.",
            )
            for contender, blend in product([PROBE, TUNED], ["mixup", "cutmix"])
        ),
        *(
            (
                {**contender, "image_size": [64, 32]},
                {"quarter_turns": True},
                "augment.quarter_turns needs images as high as wide, but those of contender "
                f"{contender['name']!r} are 64x32; choose a square image_size.",
            )
            for contender in ({**PROBE, "views": 2}, {**TUNED, "freeze": "none"}, SCRATCH)
        ),
        (
            {**TUNED, "training": {"epochs": 3, "warmup_epochs": 3.0}},
            {},
            "contender 'tuned' warms up over 3 of 3 epochs; choose fewer training.warmup_epochs, "
            "or more training.epochs.",
        ),
        (
            {**SCRATCH, "training": {"epochs": 4, "cycles": 4, "schedule": "cyclic"}},
            {},
            "contender 'small' warms up over 1 of 1 epochs; choose fewer training.warmup_epochs, "
            "or more training.epochs.",
        ),
    ],
)
def test_networks_that_cannot_be_built_or_trained_as_described(contender, augment, message):
    config = validate_config({**RAW, "contender": [MAJORITY, contender], "augment": augment})
    with pytest.raises(InputError) as caught:
        check_names(config)
    assert str(caught.value) == message


def test_blending_and_turns_hinder_only_those_who_read_views():
    blended = {**RAW, "augment": {**FLIPS, "mixup": 0.2}}
    for contender in (HOG, PROBE, {**TUNED, "freeze": "none"}, SCRATCH):
        check_names(validate_config({**blended, "contender": [contender]}))
    turned = {**RAW, "augment": {"quarter_turns": True}}
    for contender in (HOG, {**PROBE, "image_size": [64, 32]}, TUNED, SCRATCH):
        check_names(validate_config({**turned, "contender": [contender]}))


def test_an_unknown_runtime_is_named_before_anything_is_run():
    raw = {**RAW, "contender": [MAJORITY]}
    with pytest.raises(InputError, match=r"^unknown runtime 'tensorflo'; did you mean 'ten"):
        check_names(validate_config({**raw, "runtime": "tensorflo"}))
    with pytest.raises(InputError, match=r"^the runtime 'tensorflow' does not compute in bfloat16"):
        check_names(validate_config({**raw, "precision": "bfloat16"}))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_what_there_is(preset):
    config = validate_config(preset_config("a", "x", "folders", preset))
    assert check_names(config) is config


def test_facts_of_files_need_a_classifier_that_takes_any_scale():
    def contender(classifier, *features):
        return {"name": "c", "features": list(features), "classifier": classifier}

    for classifier in ("gradient_boosting", "softmax"):
        check_names(config_of(contender(classifier, "hog", "file_facts")))
    for classifier in ("linear_svm", "rbf_svm", "nearest_neighbours"):
        check_names(config_of(contender(classifier, "hog", "colour_histogram")))
        with pytest.raises(InputError) as caught:
            check_names(config_of(contender(classifier, "hog", "file_facts")))
        assert str(caught.value) == (
            f"contender 'c' gives 'file_facts' to {classifier!r}, for which its largest numbers, "
            "the bytes of the file, would decide alone; choose one of ['gradient_boosting', "
            "'majority', 'softmax', 'softmax_elastic_net', 'softmax_l1', 'two_layer_net']."
        )


def test_estimate_grows():
    presets = {
        preset: validate_config(preset_config("a", "x", "folders", preset))
        for preset in ("quick", "standard")
    }
    estimates = [estimate_seconds(presets["standard"], n) for n in (0, 100, 3000, 3001, 100_000)]
    assert estimates == sorted(set(estimates))
    assert estimate_seconds(presets["quick"], 3000) < estimates[2]


def test_estimate_counts_every_contender_and_feature():
    def per_image(*contenders):
        config = config_of(*contenders)
        return estimate_seconds(config, 1001) - estimate_seconds(config, 1000)

    def costs(*contenders):
        return pytest.approx(per_image(*contenders) - base, rel=1e-6)

    base = per_image(MAJORITY)
    fit = 0.0001
    assert base == pytest.approx(0.009 + 2 * fit, rel=1e-6)  # and once for the careless split
    base -= 2 * fit
    # 6 values and 2 around the best in 5 folds, 6 in 3 for a coarse search, and the last fit; that
    # one and its calibration in 5 folds are done again for the careless split.
    svm, softmax, coarse_softmax = (40 + 2 * 6) * fit, (40 + 2) * fit, (18 + 2) * fit
    assert costs(HOG) == 0.002 + svm
    assert costs(PROBE) == 0.018 + softmax
    assert costs({**PROBE, "search": "coarse"}) == 0.018 + coarse_softmax
    assert costs({**HOG, "features": ["hog", "efficientnet_lite0"]}) == 0.002 + 0.018 + svm
    # What two contenders read is computed once.
    assert costs(HOG, {**HOG, "name": "again"}) == 0.002 + 2 * svm
    reads_the_network = {"features": ["efficientnet_lite0"], "classifier": "softmax"}
    assert costs(PROBE, {"name": "too", **reads_the_network}) == 0.018 + 2 * softmax


def test_estimate_counts_the_training_of_networks():
    def per_image(**values):
        config = config_of(MAJORITY, {**TUNED, **values})
        return estimate_seconds(config, 1001) - estimate_seconds(config, 1000)

    usual, twice = per_image(), per_image(training={"epochs": 60})
    assert usual < twice < 2 * usual  # the frozen part is run once
    assert per_image(freeze="last_block") < usual < per_image(freeze="none")
    assert per_image(image_size=[112, 112]) < usual < per_image(views=2)
    scratch = config_of({**SCRATCH, "image_size": [64, 64]}), config_of(SCRATCH)
    assert estimate_seconds(scratch[0], 1000) > estimate_seconds(scratch[1], 1000)


def test_estimate_counts_the_folds_and_the_careless_split():
    def seconds(**split):
        config = config_of(HOG).model_copy(update={"split": SplitSection(**split)})
        return estimate_seconds(config, 1000)

    holdout, one_fit = seconds(), 0.1
    one_search = 46 * one_fit
    assert seconds(protocol="kfold") - holdout == pytest.approx(5 * one_search)
    assert seconds(protocol="kfold", num_folds=2) - holdout == pytest.approx(2 * one_search)
    repeated = seconds(protocol="kfold", num_folds=2, num_repeats=3)
    assert repeated - holdout == pytest.approx(6 * one_search)
    assert seconds(num_folds=2) == holdout
    assert holdout - seconds(careless=False) == pytest.approx(6 * one_fit)


def test_estimate_counts_the_fits_for_stacking():
    def seconds(combine, **network):
        members = [HOG, {**TUNED, **network}, {**HOG, "name": "alone"}]
        stack = {"name": "stack", "members": [HOG["name"], TUNED["name"]], "combine": combine}
        config = config_of(*members, stack).model_copy(
            update={"split": SplitSection(careless=False)}
        )
        return estimate_seconds(config, 1000)

    one_search, one_fit = 46 * 0.1, seconds("mean") - seconds("mean", training={"epochs": 15})
    extra = seconds("stacking") - seconds("mean")
    assert extra == pytest.approx(5 * one_search + 5 * 2 * one_fit, rel=1e-3)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "about 10 seconds"),
        (14, "about 10 seconds"),
        (44, "about 40 seconds"),
        (89.9, "about 90 seconds"),
        (90, "about 2 minutes"),
        (149, "about 2 minutes"),
        (600, "about 10 minutes"),
    ],
)
def test_in_words(seconds, words):
    assert in_words(seconds) == words


def test_planning_loads_no_framework():
    code = (
        "import sys; from pathlib import Path\n"
        "from cvpipe.errors import InputError\n"
        "from cvpipe.stages.plan import make_plan\n"
        "make_plan(Path('pipelines/a.toml'))\n"
        "print([n for n in ('sklearn', 'cv2', 'tensorflow', 'keras') if n in sys.modules])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "[]\n"
