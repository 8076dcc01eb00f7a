"""The cluster's secrets: the file that holds them, and what is derived from them."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanecache.cluster.wire.keyring import (
    KEY_BYTES,
    SECRET_FILE_BYTES_MAX,
    TAG_BYTES,
    Keyring,
    next_key,
    parse_secrets,
    read_secret_file,
    secret_file_warning,
)
from lanecache.errors import ConfigError

ONE, TWO, THREE = (bytes([byte]) * 32 for byte in (1, 2, 3))
SECRETS = st.binary(min_size=32, max_size=32)


def line(secret: bytes) -> bytes:
    return base64.b64encode(secret) + b"\n"


# Keys.


def test_tags_and_keys_have_constant_sizes() -> None:
    keyring = Keyring.of("a name of any length" * 50, [ONE, TWO])
    assert len(keyring.name_tag) == TAG_BYTES
    assert [len(tag) for tag in keyring.tags] == [TAG_BYTES] * 2
    assert len(keyring.derive(keyring.tags[0], b"packet", b"context" * 99)) == KEY_BYTES


def test_the_first_secret_is_the_one_in_use() -> None:
    one, two = Keyring.of("shop", [ONE]), Keyring.of("shop", [TWO])
    both = Keyring.of("shop", [TWO, ONE])
    assert both.tags == (*two.tags, *one.tags)
    for single in (one, two):
        tag = single.tags[0]
        assert both.derive(tag, b"p", b"c") == single.derive(tag, b"p", b"c")


def test_every_input_of_a_derivation_makes_another_key() -> None:
    keys = []
    for name in ("shop", "shop\0", "shoq"):
        for secrets in ([], [ONE], [TWO]):
            keyring = Keyring.of(name, secrets)
            keys += [
                keyring.derive(keyring.tags[0], purpose, context)
                for purpose, context in ((b"p", b"c"), (b"p", b"d"), (b"pc", b""), (b"q", b"c"))
            ]
    keys += [next_key(keys[0]), next_key(next_key(keys[0]))]
    assert len(set(keys)) == len(keys) == 38


@given(name=st.text(max_size=40), secrets=st.lists(SECRETS, max_size=2, unique=True))
def test_equal_names_and_secrets_make_equal_keyrings(name: str, secrets: list[bytes]) -> None:
    assert Keyring.of(name, secrets) == Keyring.of(name, list(secrets))
    assert Keyring.of(name, secrets) != Keyring.of(name + "x", secrets)


def test_a_keyring_without_a_secret_says_so_and_has_a_key_all_the_same() -> None:
    keyring = Keyring.of("shop", ())
    assert not keyring.secured
    assert len(keyring.tags) == 1
    assert Keyring.of("shop", [ONE]).secured
    assert keyring.tags != Keyring.of("other", ()).tags


def test_a_key_of_a_secret_that_is_not_held_cannot_be_derived() -> None:
    with pytest.raises(ValueError, match="not in"):
        Keyring.of("shop", [ONE]).derive(Keyring.of("shop", [TWO]).tags[0], b"p", b"")


@pytest.mark.parametrize(
    ("secrets", "message"),
    [
        ([ONE[:31]], "32 bytes"),
        ([ONE, TWO + b"x"], "32 bytes"),
        ([b""], "32 bytes"),
        ([ONE, TWO, THREE], "at most 2"),
        ([ONE, ONE], "the same"),
    ],
)
def test_secrets_that_are_none_are_refused(secrets: list[bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Keyring.of("shop", secrets)


def test_nothing_that_is_printed_holds_a_secret() -> None:
    keyring = Keyring.of("shop", [bytes(range(65, 97))])
    shown = f"{keyring!r} {keyring}"
    assert "ABCD" not in shown
    assert keyring.tags[0].hex() in shown
    assert shown.count("_") == 0, "no private field"


# The file.


def test_a_file_of_one_secret_is_read(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(line(ONE))
    assert read_secret_file(path) == (ONE,)
    assert read_secret_file(str(path)) == (ONE,)


@given(
    secrets=st.lists(SECRETS, min_size=1, max_size=2, unique=True),
    around=st.lists(st.sampled_from([b"", b"  ", b"\t\r", b"# since May", b"#"]), max_size=3),
    ending=st.sampled_from([b"\n", b"\r\n", b" \n"]),
)
def test_what_is_written_is_read_back(
    secrets: list[bytes], around: list[bytes], ending: bytes
) -> None:
    lines = [*around, *map(base64.b64encode, secrets), *around]
    for data in (ending.join(lines), ending.join(lines) + ending):
        assert parse_secrets(data, "it", path="") == tuple(secrets)


FAULTS = {
    "empty": (b"", "holds no secret"),
    "only comments": (b"\n# none yet\n \n", "holds no secret"),
    "a passphrase": (b"correct horse battery staple\n", "no base64 in line 1"),
    "of the URL's alphabet": (
        base64.urlsafe_b64encode(b"\xff" * 32) + b"\n",
        "no base64 in line 1",
    ),
    "cut": (line(ONE)[:-3], "no base64 in line 1"),
    "raw bytes": (bytes(range(128, 160)), "no base64 in line 1"),
    "short": (line(ONE[:16]), "16 bytes in line 1 where a secret has 32"),
    "long": (line(ONE) + b"\n" + line(TWO * 2), "64 bytes in line 3 where a secret has 32"),
    "three": (line(ONE) + line(TWO) + line(THREE), "holds 3 secrets"),
    "twice": (line(ONE) + line(ONE), "the same secret twice"),
    "large": (b"#" * (SECRET_FILE_BYTES_MAX + 1), "larger than 4096 bytes"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_holds_something_else_is_an_error_in_one_sentence(
    name: str, tmp_path: Path
) -> None:
    data, message = FAULTS[name]
    path = tmp_path / "key"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        read_secret_file(path)
    text = str(caught.value)
    assert text.startswith(f"the secret file {path} ")
    assert message in text
    assert "\n" not in text
    assert caught.value.path == "cluster.secret_file"
    assert caught.value.__cause__ is None, "what is wrong with it would quote it"
    for part in data.split():
        assert len(part) < 5 or part.decode("latin1") not in text


def test_secrets_from_elsewhere_are_refused_in_words_of_their_own() -> None:
    with pytest.raises(ConfigError, match=r"^the variable X holds no secret: ") as caught:
        parse_secrets(b"", "the variable X", path="cluster.secret")
    assert caught.value.path == "cluster.secret"


def test_a_file_that_is_not_there_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not there: make one with .*urandom"):
        read_secret_file(tmp_path / "key")


def test_a_file_that_cannot_be_read_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_secret_file(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        read_secret_file(tmp_path / "file" / "key")
    with pytest.raises(ConfigError, match="cannot be read: embedded null"):
        read_secret_file("a\0b")


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_file_that_everybody_may_read_is_worth_a_warning(
    tmp_path: Path, mode: int, warned: bool
) -> None:
    path = tmp_path / "key"
    path.write_bytes(line(ONE))
    path.chmod(mode)
    assert read_secret_file(path) == (ONE,)
    found = secret_file_warning(path)
    assert (found is not None) is warned
    assert found is None or (str(path) in found and "chmod o-r" in found)


def test_there_is_no_warning_about_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert secret_file_warning(tmp_path / "key") is None
    assert secret_file_warning("a\0b") is None
