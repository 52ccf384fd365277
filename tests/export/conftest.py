"""Exported files that several tests look at, each written once."""

import functools

import pytest

from cvpipe.export.formats import file_name, parse_label
from cvpipe.export.writing import write_file
from tests.export.networks import images_for, network


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A function from a kind of network and a label to the path of the file."""

    @functools.cache
    def write(kind, label):
        name, precision = parse_label(label)
        path = tmp_path_factory.mktemp("written") / file_name(name, precision)
        write_file(network(kind), path, name, precision, images_for(kind, 60, seed=5))
        return path

    return write
