"""What files say of themselves is read within limits, and becomes records whose types are checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.core.reader import decoded, parse_json, parse_toml, record


@pytest.mark.parametrize("value", [None, True, -3, 0.5, "té\u0085xt", [], {"a": [1, {"b": [2.5, None]}]}, 2**63 - 1])
def test_json_comes_back(value: Any) -> None:
    assert parse_json(json.dumps(value), source="x.json") == value
    assert parse_json(json.dumps(value).encode(), source="x.json", finite=True) == value


NESTED = [
    *("[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 50_000, "[" * 41 + "]" * 41),
    *('{"a":' * 41 + "1" + "}" * 41, '[{"a":' * 21 + "1" + "}]" * 21),
]


@pytest.mark.parametrize("text", NESTED, ids=range(len(NESTED)))
def test_json_that_is_nested_too_deeply(text: str) -> None:
    with pytest.raises(InputError, match=r"^x\.json is not JSON that can be read: "):
        parse_json(text, source="x.json")


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "nul", "{'a': 1}", '"\\ud800"', '{"\\udfff": 1}', "9223372036854775808", "-9223372036854775809"),
        *("1" * 5000, '{"a": 1' + "0" * 400 + "}"),
    ],
)
def test_json_that_nothing_can_be_made_of(text: str) -> None:
    with pytest.raises(InputError, match=r"^x\.json is not JSON that can be read: ") as caught:
        parse_json(text, source="x.json")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", '{"a": 1e999}'])
def test_numbers_that_are_none_are_read_unless_they_must_not_be(text: str) -> None:
    parse_json(text, source="x.json")
    with pytest.raises(InputError, match="is not a number"):
        parse_json(text, source="x.json", finite=True)


def test_text_has_a_largest_size_and_a_number_of_brackets() -> None:
    parse_json("[" + "1," * 20 + "1]", source="x.json", most_bytes=100)
    with pytest.raises(InputError, match=r"^x\.json holds more than 100 bytes"):
        parse_json(b"[" + b"1," * 50 + b"1]", source="x.json", most_bytes=100)
    with pytest.raises(InputError, match=r"11 brackets and braces are too many"):
        parse_json("[" + "[]," * 9 + "[]]", source="x.json", most_bytes=160)
    with pytest.raises(InputError, match=r"^x\.txt is not text in UTF-8: .* at byte 2"):
        decoded(b"ab\xff", source="x.txt")


@pytest.mark.parametrize(
    "text",
    [
        *("a = " + "[" * 20_000, "a = " + "{a=" * 5_000, "[" * 20_000, ".".join("a" * 20_000) + " = 1"),
        *(".".join("a" * 50) + " = 1", "a = 1\na = 2", "a = 9223372036854775808", 'a = "\\ud800"', "a = 1" + "0" * 400),
        *(b"a = \xff", b"a = 1\n" * 30_000),
    ],
    ids=range(11),
)
def test_toml_that_is_not_read(text: str | bytes) -> None:
    with pytest.raises(InputError, match=r"^x\.toml ") as caught:
        parse_toml(text, source="x.toml")
    assert len(str(caught.value)) < 200


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inner:
    size: int
    share: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outer:
    name: str
    kind: Literal["a", "b"] = "a"
    on: bool = False
    sizes: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    inner: _Inner | None = None
    many: tuple[_Inner, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    made: object = None

    def __post_init__(self) -> None:
        if self.name == "never":
            raise InputError("it is never.")


WHOLE = {
    "name": "net",
    "kind": "b",
    "on": True,
    "sizes": [1, 2],
    "pair": [1, 2.5],
    "inner": {"size": 3},
    "many": [{"size": 4, "share": 1}],
    "notes": {"any": [None, {"thing": float("nan")}]},
}


def test_a_record_is_built_with_those_in_it() -> None:
    found = record(_Outer, WHOLE, source="x")
    assert found.notes["any"][0] is None
    assert found == _Outer(
        name="net", kind="b", on=True, sizes=(1, 2), pair=(1.0, 2.5), inner=_Inner(size=3),
        many=(_Inner(size=4, share=1.0),), notes=found.notes,
    )  # fmt: skip


def test_fields_that_are_made_already_are_neither_read_nor_checked() -> None:
    mark = object()
    found = record(_Outer, {"name": "net"}, source="x", made=mark, inner=_Inner(size=1))
    assert found == _Outer(name="net", made=mark, inner=_Inner(size=1))
    with pytest.raises(InputError, match=r"unknown key 'made'"):
        record(_Outer, {"name": "net", "made": 3}, source="x", made=mark)
    with pytest.raises(InputError, match=r"^x: it is never"):
        record(_Outer, {"name": "never"}, source="x", made=mark)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 3}, r"x: name must be text, got 3"),
        ({"name": ["n" * 100_000]}, r"x: name must be text, got \['nnn"),
        ({"on": 1}, r"x: on must be true or false, got 1"),
        ({"sizes": "12"}, r"x: sizes must be a list, got '12'"),
        ({"sizes": [1, True]}, r"x: sizes\[1\] must be a whole number, got True"),
        ({"sizes": [1.0]}, r"x: sizes\[0\] must be a whole number, got 1.0"),
        ({"pair": [1]}, r"x: pair\[1\]|x: missing key"),
        ({"pair": ["1", 2]}, r"x: pair\[0\] must be a number, got '1'"),
        ({"kind": "c"}, r"x: unknown kind 'c'; known are: a, b"),
        ({"inner": 3}, r"x: inner must be a section, got 3"),
        ({"inner": {}}, r"x \[inner\]: missing key 'size'"),
        ({"inner": {"size": 1, "shar": 2}}, r"x \[inner\]: unknown key 'shar'; did you mean 'share'"),
        ({"many": [{"size": "1"}]}, r"x \[many.1\]: size must be a whole number, got '1'"),
        ({"many": [{"size": 1, "sise": 1}]}, r"x \[many.1\]: unknown key 'sise'; did you mean 'size'"),
        ({"notes": []}, r"x: notes must be a section|x: notes must be"),
        ({"nam": "a"}, r"x: unknown key 'nam'; did you mean 'name'"),
        ({"name": "never"}, r"x: it is never"),
    ],
)
def test_a_record_of_other_types_names_the_key(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        record(_Outer, WHOLE | change, source="x")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [None, 3, "name", [], [["name", "net"]]])
def test_what_is_not_even_a_section(value: Any) -> None:
    with pytest.raises(InputError, match=r"^x must be a section, got "):
        record(_Outer, value, source="x")
