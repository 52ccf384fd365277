"""Sizes and hashes of files and folders."""

from cvpipe.export.files import bytes_of, hash_of


def test_hashes_of_files_and_folders(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_of(tmp_path / "a").startswith("ba7816bf8f01cfea")  # as FIPS 180-2 has it
    for name in ("one", "two"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "x").write_bytes(b"abc")
        (tmp_path / name / "y").write_bytes(b"12345")
    assert hash_of(tmp_path / "one") == hash_of(tmp_path / "two")
    assert bytes_of(tmp_path / "one") == 8
    (tmp_path / "two" / "y").rename(tmp_path / "two" / "z")
    assert hash_of(tmp_path / "one") != hash_of(tmp_path / "two")
    (tmp_path / "one" / "y").write_bytes(b"12346")
    assert hash_of(tmp_path / "one") != hash_of(tmp_path / "two")
