"""The archive: faithful, deterministic, never half written, never half read, never unpickled."""

import doctest
import errno
import io
import json
import os
import pickle
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinygrad_rnn import archive
from tinygrad_rnn.errors import CheckpointError, DtypeError, StateError

DTYPES = [
    *("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"),
    *("f2", "f4", "f8", "c8", "c16", ">f4", ">i8", "S3", "U2", "M8[s]"),
]
SAMPLE = {"L0.fwd.W_x": np.arange(6.0).reshape(2, 3), "opt/µ": np.array(7, np.int8)}
META = {"step": 12, "name": "µ", "rng": 2**100, "nested": {"list": [1.5, None, True]}}


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes("A") == b.tobytes("A")


def header(members, **changes):
    fields = {"format": archive.FORMAT, "version": 1, "members": members, "meta": {}, **changes}
    return np.frombuffer(json.dumps(fields).encode(), np.uint8)


def npy(array, **options):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), **options)
    return stream.getvalue()


def npy_claiming(shape, dtype="<f8", content=b""):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue() + content


def forge(path, members, compression=zipfile.ZIP_STORED):
    """Write a ZIP of raw members, as someone who means harm would."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def forge_with(path, content):
    """Write an archive whose header is right and whose member `a` is `content`."""
    return forge(path, [(f"{archive.HEADER}.npy", npy(header(["a"]))), ("a.npy", content)])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.npz"
    archive.write(path, SAMPLE, META)
    return path


# What is written is read.


@given(
    st.dictionaries(
        st.text(st.characters(exclude_characters="\0\\", exclude_categories=["Cs"]), max_size=9),
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
        ),
        max_size=4,
    ),
    st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False) | st.text()),
)
def test_round_trip(arrays, meta):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.npz")
        archive.write(path, arrays, meta)
        read, read_meta = archive.read(path)
    assert list(read) == list(arrays)
    assert all(same(read[name], arrays[name]) for name in arrays)
    assert read_meta == meta


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_keeps_its_bytes(tmp_path, dtype):
    array = np.frombuffer(bytes(range(96)), np.uint8).astype(dtype)
    archive.write(tmp_path / "x", {"a": array})
    assert same(archive.read(tmp_path / "x")[0]["a"], array)


@pytest.mark.parametrize(
    "array",
    [
        np.array(1.5),
        np.zeros((0,)),
        np.zeros((3, 0, 2), np.float32),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(12)[::-2],
        np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
        np.array([np.nan, -0.0, np.inf]),
    ],
    ids=["0-d", "empty", "empty 3-d", "Fortran", "strided", "transposed", "not finite"],
)
def test_every_layout(tmp_path, array):
    archive.write(tmp_path / "x", {"a": array})
    read = archive.read(tmp_path / "x")[0]["a"]
    np.testing.assert_array_equal(read, array, strict=True)
    assert read.flags.writeable
    assert read.flags.owndata
    if array.flags.fnc:
        assert read.flags.fnc


def test_meta_comes_back_as_json_gives_it(tmp_path):
    archive.write(tmp_path / "x", {}, {"a": (1, 2)})
    assert archive.read(tmp_path / "x") == ({}, {"a": [1, 2]})


def test_the_name_is_kept_and_numpy_reads_it(tmp_path):
    archive.write(tmp_path / "model", SAMPLE)
    assert os.listdir(tmp_path) == ["model"]  # noqa: PTH208 - the names are the point
    with np.load(tmp_path / "model", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["L0.fwd.W_x"], SAMPLE["L0.fwd.W_x"])


def test_equal_contents_give_equal_bytes(tmp_path, monkeypatch):
    archive.write(tmp_path / "a", SAMPLE, META)
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    archive.write(tmp_path / "b", {k: v.copy() for k, v in SAMPLE.items()}, dict(META))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert archive.read(tmp_path / "a")[1] == META


def test_a_symbolic_link_stays_one(tmp_path, file):
    link = tmp_path / "latest"
    try:
        link.symlink_to(file)
    except OSError:
        pytest.skip("no symbolic links here")
    archive.write(link, {"b": np.zeros(2)})
    assert link.is_symlink()
    assert list(archive.read(file)[0]) == ["b"]


def test_docstrings():
    assert doctest.testmod(archive).failed == 0


# What cannot be written.


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}]),
        np.zeros(2, [("a", "f4")]),
        np.array(["a"], np.dtypes.StringDType()),
        np.zeros(2, "V2"),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_that_need_a_pickle_are_refused(tmp_path, array):
    with pytest.raises(DtypeError, match=r"array 'bad' has dtype .* only a pickle .* expected"):
        archive.write(tmp_path / "x", {"good": np.zeros(2), "bad": array})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    ["a\0b", "a\\b", archive.HEADER, 3, "\ud800", "a" * 60_001, "µ" * 30_001],
    ids=lambda name: ascii(name)[:9],
)
def test_names_that_no_member_can_have_are_refused(tmp_path, name):
    with pytest.raises(StateError, match=r"array name .* expected text without"):
        archive.write(tmp_path / "x", {name: np.zeros(2)})
    assert not list(tmp_path.iterdir())


def test_a_name_may_be_long(tmp_path):
    name = "µ" * 30_000
    archive.write(tmp_path / "x", {name: np.zeros(2)})
    assert list(archive.read(tmp_path / "x")[0]) == [name]


def test_meta_that_is_not_json_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"meta must hold only what JSON can hold.*float32"):
        archive.write(tmp_path / "x", {}, {"loss": np.float32(1)})
    assert not list(tmp_path.iterdir())


class FullDisk:
    """Stands for ``np.lib.format.write_array``; the second array meets the failure."""

    def __init__(self, failure):
        self.failure = failure
        self.calls = 0

    def __call__(self, stream, array, allow_pickle):
        self.calls += 1
        stream.write(b"half an array")
        if self.calls == 2:
            raise self.failure


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OSError),
        (PermissionError(errno.EACCES, "Permission denied"), PermissionError),
        (OSError("odd"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (MemoryError(), MemoryError),
    ],
    ids=["full", "denied", "no errno", "interrupt", "memory"],
)
def test_an_interrupted_save_changes_nothing(file, monkeypatch, failure, kind):
    old = file.read_bytes()
    monkeypatch.setattr(np.lib.format, "write_array", FullDisk(failure))
    with pytest.raises(kind) as caught:
        archive.write(file, {"a": np.zeros(3), "b": np.zeros(3)})
    assert file.read_bytes() == old
    assert list(file.parent.iterdir()) == [file]
    if isinstance(failure, OSError):
        assert type(caught.value) is kind
        assert caught.value.errno == (failure.errno or errno.EIO)
        assert str(file) in str(caught.value)
        assert "the old file is unchanged" in str(caught.value)


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_save_that_fails_at_its_end_changes_nothing(file, monkeypatch, step, failure):
    def fail(*_):
        raise failure

    old = file.read_bytes()
    monkeypatch.setattr(step, fail)
    with pytest.raises(type(failure)):
        archive.write(file, {"a": np.zeros(3)})
    assert file.read_bytes() == old
    assert list(file.parent.iterdir()) == [file]


FILL = """
import resource, sys
import numpy as np
from tinygrad_rnn import archive
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    archive.write(sys.argv[1], {"a": np.zeros(100_000)})
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="only POSIX limits the size of a file")
def test_a_file_that_may_not_grow_changes_nothing(file):
    old = file.read_bytes()
    command = [sys.executable, "-c", FILL, str(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"cannot save \(.*\); the old file is unchanged", said)
    assert file.read_bytes() == old
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.skipif(os.name != "posix", reason="permission bits are those of POSIX")
def test_permissions_are_kept_and_new_files_follow_the_umask(file):
    before = os.umask(0o027)
    try:
        new = file.with_name("new.npz")
        archive.write(new, SAMPLE)
        assert stat.S_IMODE(new.stat().st_mode) == 0o640
        for mode in (0o600, 0o664, 0o444):
            file.chmod(mode)
            archive.write(file, {"mode": np.array(mode)})
            assert stat.S_IMODE(file.stat().st_mode) == mode
            assert archive.read(file)[0]["mode"] == mode
    finally:
        os.umask(before)


def test_a_file_is_complete_and_on_disk_before_it_takes_the_name(file, monkeypatch):
    events = []
    replace, fsync = Path.replace, os.fsync

    def checked_replace(draft, target):
        events.append("replace")
        assert list(archive.read(draft)[0]) == ["new"]
        assert draft.parent == target.parent
        return replace(draft, target)

    monkeypatch.setattr(os, "fsync", lambda number: (events.append("fsync"), fsync(number)))
    monkeypatch.setattr(Path, "replace", checked_replace)
    archive.write(file, {"new": np.zeros(3)})
    assert events == ["fsync", "replace"]


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file was written.*none/x\.npz"):
        archive.write(tmp_path / "none" / "x.npz", SAMPLE)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"not a regular file.*folder"):
        archive.write(tmp_path / "folder", SAMPLE)
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


# What cannot be read.


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        archive.read(tmp_path / "none")


def fails(path, what):
    with pytest.raises(CheckpointError, match=what) as caught:
        archive.read(path)
    assert str(path) in str(caught.value)
    assert "expected a whole file written by tinygrad_rnn" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the file is empty"),
        (b"hello", "not a ZIP file"),
        (pickle.dumps([1]), "not a ZIP file"),
        (npy(np.zeros(3)), "not a ZIP file"),
        (b"PK\5\6" + b"\0" * 18, "no member '__tinygrad_rnn__'"),
    ],
)
def test_files_of_other_kinds(tmp_path, content, what):
    (tmp_path / "x").write_bytes(content)
    fails(tmp_path / "x", what)


def test_a_truncated_file(file):
    file.write_bytes(file.read_bytes()[:-30])
    fails(file, "the file is truncated or damaged")


def test_an_npz_from_elsewhere(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    fails(tmp_path / "x.npz", "no member '__tinygrad_rnn__': an .npz from elsewhere")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", r"member 'a' has a bad \.npy header"),
        (b"\x93NUMPY\7\0abc", r"member 'a' has a bad \.npy header"),
        (npy(np.zeros(3))[:40], r"member 'a' has a bad \.npy header"),
        (npy(np.zeros(3)).replace(b"'<f8'", b"'<q8'"), r"member 'a' has a bad \.npy header"),
        (npy(np.zeros(3))[:-1], r"member 'a' claims shape \(3,\) of float64, 24 .* holds 23"),
        (npy(np.zeros(3)) + b"\0", "24 bytes, but holds 25"),
        (npy_claiming((2**40, 2**40)), "claims shape .* but holds 0"),
        (npy_claiming((10**30,)), "claims shape .* but holds 0"),
        (npy_claiming((-1, -1), content=b"\0" * 8), "negative"),
        (npy_claiming((0, 10**30)), "expected a whole file"),
        (npy_claiming((), "|O", pickle.dumps(1)), "Python objects are never unpickled"),
        (npy_claiming((1,), [("a", "|O")], b"\0" * 8), "Python objects are never unpickled"),
        (npy_claiming((1,), "|V4", b"\0" * 4), "dtype"),
    ],
)
def test_bad_members(tmp_path, content, what):
    fails(forge_with(tmp_path / "x", content), what)


def test_a_deeply_nested_header_is_refused(tmp_path):
    text = b"(" * 5000
    content = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text
    fails(forge_with(tmp_path / "x", content), r"bad \.npy header")


def test_damaged_contents_are_noticed(file):
    content = bytearray(file.read_bytes())
    content[content.index(np.float64(5).tobytes())] ^= 1
    file.write_bytes(content)
    fails(file, r"member 'L0.fwd.W_x' is damaged \(Bad CRC-32")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_members(tmp_path):
    zero = npy(np.zeros(1))
    members = [(f"{archive.HEADER}.npy", npy(header(["a"]))), ("a.npy", zero), ("a.npy", zero)]
    fails(forge(tmp_path / "x", members), r"duplicate members \['a'\]")


def test_missing_extra_and_compressed_members(tmp_path):
    head, zero = (f"{archive.HEADER}.npy", npy(header(["a"]))), npy(np.zeros(1))
    fails(forge(tmp_path / "x", [head]), r"members \[\] where \['a'\] were written")
    both = [head, ("a.npy", zero), ("b.npy", zero)]
    fails(forge(tmp_path / "x", both), r"members \['a', 'b'\] where \['a'\] were written")
    packed = forge(tmp_path / "x", both[:2], zipfile.ZIP_DEFLATED)
    fails(packed, "is compressed")


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.frombuffer(b"{nonsense", np.uint8), "the meta data is not JSON"),
        (np.frombuffer(b"\xff\xfe\xfd", np.uint8), "the meta data is not JSON"),
        (np.frombuffer(b"[" * 10**5, np.uint8), "the meta data is not JSON"),
        (np.frombuffer(b"[1, 2]", np.uint8), "does not name the format"),
        (header([], format="another"), "does not name the format"),
        (header([], version=2), "format version 2, but this tinygrad_rnn reads 1"),
        (header([], meta=[]), "lacks 'members' or 'meta'"),
        (header({}), "lacks 'members' or 'meta'"),
    ],
)
def test_bad_meta_data(tmp_path, array, what):
    fails(forge(tmp_path / "x", [(f"{archive.HEADER}.npy", npy(array))]), what)


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("where", ["array", "meta", "file", "npz"])
def test_a_pickle_is_never_executed(tmp_path, where):
    sentinel = tmp_path / "executed"
    bomb = np.array([Bomb(sentinel)], object)
    content = npy(bomb, allow_pickle=True)
    path = tmp_path / "x.npz"
    if where == "array":
        forge_with(path, content)
    elif where == "meta":
        forge(path, [(f"{archive.HEADER}.npy", content)])
    elif where == "npz":
        np.savez(path, a=bomb)
    else:
        path.write_bytes(pickle.dumps(Bomb(sentinel)))
    fails(path, "never unpickled|not a ZIP|no member")
    assert not sentinel.exists()
    np.lib.format.read_array(io.BytesIO(content), allow_pickle=True)
    assert sentinel.exists(), "the bomb would not have gone off"


# Any damage is noticed or harmless.


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("damage") / "whole"
    archive.write(path, SAMPLE, META)
    return path.read_bytes()


def reads_equal_or_fails(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x")
        path.write_bytes(content)
        try:
            arrays, meta = archive.read(path)
        except CheckpointError:
            return False
    assert list(arrays) == list(SAMPLE)
    assert all(same(arrays[name], SAMPLE[name]) for name in SAMPLE)
    assert meta == META
    return True


@given(fraction=st.floats(0, 1, exclude_max=True))
def test_truncation_is_noticed(whole, fraction):
    assert not reads_equal_or_fails(whole[: int(fraction * len(whole))])


@given(fraction=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_is_noticed_or_harmless(whole, fraction, flip):
    content = bytearray(whole)
    content[int(fraction * len(whole))] ^= flip
    reads_equal_or_fails(bytes(content))


@given(junk=st.binary(max_size=200))
def test_junk_is_refused(junk):
    assert not reads_equal_or_fails(junk)
