"""A whole pipeline file: read, changed by settings of the command line, validated, hashed.

People write TOML and programs write JSON; one loader reads both.
"""

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from cvpipe.contender_sections import (
    CONTENDER_KINDS,
    Contender,
    EnsembleContender,
    FeatureSection,
    ImportedContender,
    NetworkContender,
    TrainingSection,
)
from cvpipe.errors import InputError, nearest_name
from cvpipe.sections import (
    AugmentSection,
    DataSection,
    EvaluateSection,
    ExportSection,
    ImagesSection,
    Section,
    SplitSection,
)

PRESETS = ("quick", "standard")
MAX_NAME_LENGTH = 80


def _refuse_namesakes(what: str, parts: Sequence[Any]) -> None:
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two {what} are called {name!r}; give each its own name")


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Config(Section):
    """A whole pipeline file.

    Attributes:
        name: What run folders are called; made of the file's stem where the file does not say.
        feature: Features with settings of their own, beside those that have a name already.
        contender: The contenders to compare, in the order of the tables.
        seed: Start of every random draw.
        runtime: What computes the frozen parts of networks, as `cvpipe list runtimes` tells. Those
            besides TensorFlow are extras; before one is used, it is compared with TensorFlow.
        precision: `"bfloat16"` is faster on processors that have it, and its features differ by
            some per cent.
        threads: Threads of the numerical libraries and of the image loader. Part of the
            config because the last bits of a sum depend on it; all usable cores where the
            file does not say.
    """

    name: Annotated[str, Field(pattern=r"^\w([\w .-]*[\w-])?$", max_length=MAX_NAME_LENGTH)]
    data: DataSection
    split: SplitSection = SplitSection()
    images: ImagesSection = ImagesSection()
    augment: AugmentSection = AugmentSection()
    feature: tuple[FeatureSection, ...] = ()
    contender: tuple[Contender, ...]
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()
    runtime: str = "tensorflow"
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(default=0, ge=0, lt=2**32)
    threads: int = Field(default_factory=usable_cores, ge=1, le=1024)

    def contender_called(self, name: str) -> Contender:
        """Find a contender by its name, which must be in the config."""
        return next(contender for contender in self.contender if contender.name == name)

    @field_validator("contender")
    @classmethod
    def _check_contenders(cls, contenders: tuple[Contender, ...]) -> tuple[Contender, ...]:
        if not contenders:
            raise ValueError("a pipeline needs at least one [[contender]]")
        _refuse_namesakes("contenders", contenders)
        return contenders

    @field_validator("feature")
    @classmethod
    def _check_features(cls, features: tuple[FeatureSection, ...]) -> tuple[FeatureSection, ...]:
        _refuse_namesakes("features", features)
        return features

    @model_validator(mode="after")
    def _have_the_members(self) -> "Config":
        others = [c.name for c in self.contender if not isinstance(c, EnsembleContender)]
        for contender in self.contender:
            if isinstance(contender, EnsembleContender):
                for name in contender.members:
                    if name in others:
                        continue
                    known = name in [c.name for c in self.contender]
                    why = "an ensemble itself" if known else "no contender"
                    raise ValueError(
                        f"the ensemble {contender.name!r} names the member {name!r}, which is "
                        f"{why}; {nearest_name(name, others)}"
                    )
        return self

    @model_validator(mode="after")
    def _can_be_exported(self) -> "Config":
        kinds = (NetworkContender, ImportedContender)
        networks = [c.name for c in self.contender if isinstance(c, kinds)]
        if networks and self.evaluate.calibration == "isotonic":
            raise ValueError(
                "evaluate.calibration is 'isotonic', but its curves cannot be built into the "
                f"exported file of a network ({networks[0]!r}); choose 'temperature' or 'vector', "
                "or leave the networks out"
            )
        return self


def name_of(text: str) -> str:
    """Make the name of a config out of the name of a file or folder.

    Example:
        >>> name_of("Größe 10 m² (1).")
        'Größe_10_m___1_'
    """
    # Not `isalnum`: it takes a superscript for a letter, the pattern of names does not.
    kept = (c if c.isalpha() or c.isdecimal() or c in "_.-" else "_" for c in text)
    return "".join(kept).lstrip(".-")[:MAX_NAME_LENGTH].rstrip(".") or "images"


# The whole first table, from what looks at no pixel to a network.
STANDARD_CONTENDERS: tuple[dict[str, Any], ...] = (
    {"name": "majority", "classifier": "majority"},
    {"name": "shortcut", "features": ["file_facts"], "classifier": "gradient_boosting"},
    {"name": "pixels_knn", "features": ["raw_pixels"], "classifier": "nearest_neighbours"},
    {"name": "colour_softmax", "features": ["colour_histogram"], "classifier": "softmax"},
    {"name": "hog_svm", "features": ["hog"], "classifier": "linear_svm"},
    {"name": "hog_rbf", "features": ["hog"], "classifier": "rbf_svm"},
    {"name": "lite0_rbf", "features": ["efficientnet_lite0"], "classifier": "rbf_svm"},
    {"name": "linear_probe", "backbone": "efficientnet_lite0", "recipe": "linear_probe"},
)


QUICK_CONTENDERS = ("majority", "shortcut", "hog_svm", "linear_probe")


def preset_config(name: str, root: str, labels: str, preset: str) -> dict[str, Any]:
    """Write the raw config for a folder that has no pipeline file.

    Args:
        name: What run folders are called.
        root: Folder of the images.
        labels: As in `DataSection`.
        preset: One of `PRESETS`: `"quick"` has fewer contenders and searches their
            hyperparameters coarsely.
    """
    contenders = list(STANDARD_CONTENDERS)
    if preset == "quick":
        quick = [c for c in contenders if c["name"] in QUICK_CONTENDERS]
        contenders = [{**contender, "search": "coarse"} for contender in quick]
    return {"name": name, "data": {"root": root, "labels": labels}, "contender": contenders}


def load_config(path: Path, settings: Sequence[str] = ()) -> Config:
    """Read a pipeline file.

    Args:
        path: A `.toml` file, or a `.json` file such as a run's `config.json`.
        settings: Changes of the form `section.key=value`, applied before validation.

    Raises:
        InputError: The file cannot be read or parsed, or says something unknown.
    """
    return validate_config(read_raw_config(path), settings, source=str(path))


def read_raw_config(path: Path) -> dict[str, Any]:
    """Parse a pipeline file without validating it; `name` is filled in from the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark at the start
    except FileNotFoundError:
        others = sorted(str(p) for p in path.parent.glob("*.toml"))
        raise InputError(
            f"there is no pipeline file {str(path)!r}; {nearest_name(str(path), others)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the pipeline file {str(path)!r}: {error}.") from None
    try:
        raw = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} cannot be parsed: {error}.") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path} must hold sections, but holds a {type(raw).__name__}.")
    return {"name": name_of(path.stem), **raw}


def validate_config(
    raw: Mapping[str, Any], settings: Sequence[str] = (), source: str = ""
) -> Config:
    """Turn parsed values into a config.

    Args:
        raw: Sections as parsed from a file.
        settings: Changes of the form `section.key=value`.
        source: Where the values come from, for messages.

    Raises:
        InputError: A key is unknown or missing, or a value has the wrong type or range.
    """
    values = json.loads(json.dumps(raw, default=str))  # a private copy, in JSON's types
    # A preset replaces its section, so what is set besides comes after it, in whatever order.
    for setting in sorted(settings, key=lambda text: not text.startswith("augment.preset")):
        _apply_setting(values, setting)
    try:
        # Through JSON, because there a list is the only way to write a tuple, while every
        # other type stays strict: the text "7" is not a seed.
        return Config.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        where = f"{source}: " if source else ""
        problems = "; ".join(_explain(e) for e in error.errors())
        raise InputError(f"{where}{problems}") from None


def _apply_setting(values: dict[str, Any], setting: str) -> None:
    key, separator, text = setting.partition("=")
    parts = key.strip().split(".")
    if not separator or len(parts) > 2 or not all(parts) or "\n" in text:
        raise InputError(
            f"cannot understand the setting {setting!r}; write section.key=value, "
            "for example split.test_fraction=0.3."
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is text: images.fit=pad
    target = values if len(parts) == 1 else values.setdefault(parts[0], {})
    if not isinstance(target, dict):
        kind = "list" if isinstance(target, list) else "single value"
        raise InputError(
            f"{parts[0]!r} is a {kind}; change it in the pipeline file, not by {setting!r}."
        )
    if parts == ["augment", "preset"]:
        target.clear()  # or the settings of a file, and all those of a stored config, would win
    target[parts[-1]] = value


def _explain(error: Any) -> str:
    location = error["loc"]
    if error["type"] == "extra_forbidden":
        section = _section_at(location[:-1])
        known = [*section.model_fields, *section.shorthands]
        return f"unknown key {_dotted(location)!r}; {nearest_name(location[-1], known)}"
    if error["type"] == "missing":
        return f"{_dotted(location)!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, but is {error['input']!r}"
        if error["type"] == "string_type":
            message += f"; write it in quotes: '\"{error['input']}\"'"
    return f"{_dotted(location) or 'top level'}: {message}"


def _dotted(location: Sequence[str | int]) -> str:
    """Write the place of an error as a person would: `contender.2.classifier`."""
    # pydantic puts the kind of a contender behind its number.
    parts = [*location[:2], *location[3:]] if location[:1] == ("contender",) else location
    return ".".join(str(part + 1) if isinstance(part, int) else part for part in parts)


def _section_at(location: Sequence[str | int]) -> type[Section]:
    """Find the section that an error's location points into."""
    if not location:
        return Config
    if location[0] == "contender":
        return TrainingSection if "training" in location else CONTENDER_KINDS[str(location[2])]
    if location[0] == "feature":
        return FeatureSection
    section = Config.model_fields[str(location[0])].annotation
    return section if isinstance(section, type) and issubclass(section, Section) else Config


def config_hash(config: Config) -> str:
    """Name a config by its content.

    `data.root` is left out: the fingerprint of the manifest says which images were used,
    wherever they lie. So are the paths of imported models, of which the checksums say it.

    Returns:
        64 hexadecimal digits; equal for equal configs.
    """
    values = config.model_dump(mode="json")
    del values["data"]["root"]
    for contender in values["contender"]:
        if "model_sha256" in contender:
            del contender["model"], contender["labels"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
