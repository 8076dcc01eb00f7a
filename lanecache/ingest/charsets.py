"""Character sets: collation numbers to names, and names to exact decoders.

The numbers are those of ``information_schema.COLLATIONS`` on MySQL 9.7 and MariaDB 11.8 (the two
agree wherever both have a number); MariaDB numbers its UCA-14.0.0 collations from 2048 on, in
blocks of 256 a character set (``strings/ctype-uca1400.h``).

What a character set's bytes mean was asked of both servers, for every sequence of bytes that makes
a character: a column of the set was filled with it and read as utf8mb4 (``tests/test_charsets.py``
asks again). The servers agree with each other, save for lone surrogates; where Python's codecs do
not, the differences stand here. A character that has no place in Unicode, which the servers show as
``?`` or U+FFFD, is refused: two different values would read the same.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from functools import cache
from typing import NoReturn

BINARY = "binary"

_COLLATIONS = {
    "big5": "1 84 1025 1108",
    "latin2": "2 9 21 27 77 1033 1101",
    "dec8": "3 69 1027 1093",
    "cp850": "4 80 1028 1104",
    "latin1": "5 8 15 31 47-49 94 1032 1071",
    "hp8": "6 72 1030 1096",
    "koi8r": "7 74 1031 1098",
    "swe7": "10 82 1034 1106",
    "ascii": "11 65 1035 1089",
    "ujis": "12 91 1036 1115",
    "sjis": "13 88 1037 1112",
    "cp1251": "14 23 50-52 1074-1075",
    "hebrew": "16 71 1040 1095",
    "tis620": "18 89 1042 1113",
    "euckr": "19 85 1043 1109",
    "latin7": "20 41-42 79 1065 1103",
    "koi8u": "22 75 1046 1099",
    "gb2312": "24 86 1048 1110",
    "greek": "25 70 1049 1094",
    "cp1250": "26 34 44 66 99 1050 1090",
    "gbk": "28 87 1052 1111",
    "cp1257": "29 58-59 1082-1083",
    "latin5": "30 78 1054 1102",
    "armscii8": "32 64 1056 1088",
    "utf8mb3": "33 76 83 192-215 223 576-579 1057 1107 1216 1238",
    "ucs2": "35 90 128-151 159 640-642 1059 1114 1152 1174",
    "cp866": "36 68 1060 1092",
    "keybcs2": "37 73 1061 1097",
    "macce": "38 43 1062 1067",
    "macroman": "39 53 1063 1077",
    "cp852": "40 81 1064 1105",
    "utf8mb4": "45-46 224-247 255-271 273-275 277-294 296-298 300 303-323 608-611 1069-1070"
    " 1248 1270",
    "utf16": "54-55 101-124 672-674 1078-1079 1125 1147",
    "utf16le": "56 62 1080 1086",
    "cp1256": "57 67 1081 1091",
    "utf32": "60-61 160-183 736-738 1084-1085 1184 1206",
    "binary": "63",
    "geostd8": "92-93 1116-1117",
    "cp932": "95-96 1119-1120",
    "eucjpms": "97-98 1121-1122",
    "gb18030": "248-250",
}  # fmt: skip

_UCA1400_FIRST = 2048
_UCA1400_BLOCKS = ("utf8mb3", "utf8mb4", "ucs2", "utf16", "utf32")

# Character sets whose Python codec reads every character as the servers do.
_CODECS = {
    "utf8mb4": "utf-8",
    "utf8mb3": "utf-8",
    "ascii": "ascii",
    "utf16": "utf-16-be",
    "utf16le": "utf-16-le",
    "utf32": "utf-32-be",
    "latin2": "iso8859-2",
    "latin5": "iso8859-9",
    "latin7": "iso8859-13",
    "cp1250": "cp1250",
    "cp1251": "cp1251",
    "cp1257": "cp1257",
    "cp850": "cp850",
    "cp852": "cp852",
    "hp8": "hp-roman8",
    "koi8r": "koi8-r",
    "macce": "mac-latin2",
    "macroman": "mac-roman",
    "tis620": "tis-620",
    "cp932": "cp932",
    "euckr": "cp949",
    "gb2312": "gb2312",
    "gbk": "gbk",
}

_NONE = "\ufffe"  # no character, to codecs.charmap_decode

# Of the others with one byte a character: a codec, and what the servers read differently. Each run
# goes on from its first byte.
_ONE_BYTE: dict[str, tuple[str, dict[int, str]]] = {
    "latin1": ("cp1252", {0x81: "\x81", 0x8D: "\x8d", 0x8F: "\x8f\x90", 0x9D: "\x9d"}),
    "cp1256": (
        "cp1256",
        dict.fromkeys((0x8A, 0x8F, 0x98, 0x9A, 0x9F, 0xAA, 0xC0, 0xFF), _NONE),
    ),
    "cp866": ("cp866", {0xFC: "ⁿ²"}),
    "dec8": (
        "iso8859-1",
        dict.fromkeys((0xA4, 0xA6, 0xB4, 0xB8, 0xBE, 0xD0, 0xDE, 0xF0), _NONE)
        | {0xA8: "¤", 0xAC: _NONE * 4, 0xD7: "Œ", 0xDD: "Ÿ", 0xF7: "œ", 0xFD: "ÿ" + _NONE * 2},
    ),
    "greek": ("iso8859-7", {0xA1: "ʽʼ", 0xA4: _NONE * 2, 0xAA: _NONE}),
    "hebrew": ("iso8859-8", {0xAF: "‾"}),
    "koi8u": ("koi8-u", {0x95: "•"}),
    "swe7": ("ascii", {0x40: "É", 0x5B: "ÄÖÅÜ", 0x60: "é", 0x7B: "äöåü" + _NONE}),
    "armscii8": (
        "latin-1",
        {
            0xA1:
            "❁§։)(»«—.՝,-՟…՜՛՞ԱաԲբԳգԴդԵեԶզԷէԸըԹթԺժԻիԼլԽխԾծԿկՀհՁձՂղՃճՄմՅյՆնՇշՈոՉչՊպՋջՌռՍսՎ"
            "վՏտՐրՑցՒւՓփՔքՕօՖֆ’'"
        },
    ),
    "geostd8": (
        "latin-1",
        {
            0x80:
            "€\ufffe‚\ufffe„…†‡\ufffe‰\ufffe‹\ufffe\ufffe\ufffe\ufffe\ufffe‘’“”•–—\ufffe"
            "\ufffe\ufffe›\ufffe\ufffe\ufffe\ufffe",
            0xC0:
            "აბგდევზჱთიკლმნჲოპჟრსტჳუფქღყშჩცძწჭხჴჯჰჵ\ufffe\ufffe\ufffe\ufffe\ufffe\ufffe"
            "\ufffe\ufffe\ufffe\ufffe\ufffe\ufffe\ufffe\ufffe\ufffe\ufffe\ufffe\ufffe"
            "\ufffe\ufffe\ufffe\ufffe\ufffe№\ufffe\ufffe",
        },
    ),
    "keybcs2": (
        "ascii",
        {
            0x80:
            "ČüéďäĎŤčěĚĹÍľĺÄÁÉžŽôöÓůÚýÖÜŠĽÝŘťáíóúňŇŮÔšřŕŔ¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦"
            "╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\xa0"
        },
    ),
}  # fmt: skip

_REFUSED = "\ufffd"


def _user_defined(prefix: bytes, first: int) -> dict[bytes, str]:
    """Give the ten rows of 94 user-defined characters that EUC-JP keeps from 0xF5A1 on."""
    return {
        prefix + bytes((0xF5 + row, 0xA1)): "".join(
            chr(first + 94 * row + cell) for cell in range(94)
        )
        for row in range(10)
    }


_UJIS_USER_DEFINED = _user_defined(b"", 0xE000) | _user_defined(b"\x8f", 0xE3AC)

# Of those with several bytes a character: a codec, how long a character is, and what the servers
# read differently. Each run goes on from its first character's last byte.
_EUC_JP = rb"[\x00-\x8d\x90-\xa0\xff]|\x8e.|\x8f..|[\xa1-\xfe]."
_MANY_BYTES: dict[str, tuple[str, bytes, dict[bytes, str]]] = {
    "big5": (
        "big5",
        rb"[\x00-\x80\xff]|[\x81-\xfe].",
        {
            b"\xa1\x5a": _REFUSED,
            b"\xa1\xc3": _REFUSED,
            b"\xa1\xc5": _REFUSED,
            b"\xa1\xfe": _REFUSED,
            b"\xa2\x40": _REFUSED,
            b"\xa2\xcc": _REFUSED,
            b"\xa2\xce": _REFUSED,
            b"\xf9\xd6": "碁銹裏墻恒粧嫺",
        },
    ),
    "sjis": (
        "shift_jis",
        rb"[\x00-\x80\xa0-\xdf\xfd-\xff]|[\x81-\x9f\xe0-\xfc].",
        {b"\x81\x5f": "\\"},
    ),
    "ujis": ("euc_jp", _EUC_JP, {b"\xa1\xc0": "\\", **_UJIS_USER_DEFINED}),
    "eucjpms": (
        "euc_jp",
        _EUC_JP,
        {
            b"\xa1\xc1": "～∥",
            b"\xa1\xdd": "－",
            b"\xa1\xf1": "￠￡",
            b"\xa2\xcc": "￢",
            b"\x8f\xa2\xb7": "～",
            b"\x8f\xa2\xc3": "￤",
            # NEC's row 13, and IBM's extensions.
            b"\xad\xa1":
                "①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯⑰⑱⑲⑳ⅠⅡⅢⅣⅤⅥⅦⅧⅨⅩ\ufffd㍉㌔㌢㍍㌘㌧㌃㌶㍑㍗㌍㌦㌣㌫㍊㌻㎜㎝㎞㎎㎏㏄"
                "㎡\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd㍻〝〟№㏍℡㊤㊥㊦㊧㊨㈱㈲㈹㍾㍽㍼≒≡∫∮∑√⊥∠∟⊿∵∩∪",
            b"\x8f\xf3\xf3": "ⅰⅱⅲⅳⅴⅵⅶⅷⅸⅹⅠⅡ",
            b"\x8f\xf4\xa1":
                "ⅢⅣⅤⅥⅦⅧⅨⅩ＇＂㈱№℡炻仼僴凬匇匤﨎咊坙﨏塚增寬峵嵓﨑德悅愠敎昻晥晴朗栁﨓﨔橫櫢淸"
                "淲瀨凞猪甁皂皞益礰礼神祥福竧靖精綠緖羽荢﨟薰蘒﨡蠇諸譿賴赶﨣﨤逸郞都鄕﨧﨨閒"
                "隆﨩霻靍靑飯飼館馞髙魲鶴黑",
            **_UJIS_USER_DEFINED,
        },
    ),
    "gb18030": (
        "gb18030",
        rb"[\x00-\x80\xff]|[\x81-\xfe][\x30-\x39]..|[\x81-\xfe].",
        {b"\xa8\xbc": "ḿ", b"\x81\x35\xf4\x37": "\ue7c7"},
    ),
}  # fmt: skip


def _numbers(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split():
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


_CHARSET_OF = {
    number: charset for charset, numbers in _COLLATIONS.items() for number in _numbers(numbers)
}


def charset_of_collation(collation: int) -> str:
    """Give the name of a collation's character set, or ``""`` where the number is not known."""
    if collation >= _UCA1400_FIRST:
        block = (collation - _UCA1400_FIRST) // 256
        return _UCA1400_BLOCKS[block] if block < len(_UCA1400_BLOCKS) else ""
    return _CHARSET_OF.get(collation, "")


Decoder = Callable[[bytes], str]


def _one_byte(charset: str) -> Decoder:
    codec, runs = _ONE_BYTE[charset]
    characters = [bytes((byte,)).decode(codec, "ignore") or _NONE for byte in range(256)]
    for first, run in runs.items():
        characters[first : first + len(run)] = run
    table = "".join(characters)
    decode = codecs.charmap_decode
    return lambda data: decode(data, "strict", table)[0]


def _many_bytes(charset: str) -> Decoder:
    codec, character, runs = _MANY_BYTES[charset]
    differences = {
        first[:-1] + bytes((first[-1] + nth,)): text
        for first, run in runs.items()
        for nth, text in enumerate(run)
    }
    # Where none of these can be, and that is most of the time, the codec alone will do.
    different = re.compile(b"|".join(map(re.escape, differences)), re.DOTALL)
    split = re.compile(character, re.DOTALL)

    def decode(data: bytes) -> str:
        if different.search(data) is None:
            return data.decode(codec)
        texts = []
        pos = 0
        while pos < len(data):
            match = split.match(data, pos)
            if match is None:
                _refuse(charset, data, pos, len(data))
            found = match[0]
            text = differences.get(found)
            if text == _REFUSED:
                _refuse(charset, data, pos, match.end())
            texts.append(text or found.decode(codec))
            pos = match.end()
        return "".join(texts)

    return decode


def _ucs2(data: bytes) -> str:
    text = data.decode("utf-16-be")
    if text and max(text) > "\uffff":
        # Two surrogates, which ucs2 does not put together.
        _refuse("ucs2", data, 0, len(data))
    return text


def _refuse(charset: str, data: bytes, start: int, end: int) -> NoReturn:
    raise UnicodeDecodeError(charset, data, start, end, "no such character")


@cache
def text_decoder(charset: str) -> Decoder | None:
    """Give a strict decoder of a character set, or ``None`` where the set is not known.

    The decoder gives what the servers give for the bytes as utf8mb4, or raises
    ``UnicodeDecodeError`` where they would show a character that the bytes do not hold.
    """
    if charset in _ONE_BYTE:
        return _one_byte(charset)
    if charset in _MANY_BYTES:
        return _many_bytes(charset)
    if charset == "ucs2":
        return _ucs2
    codec = _CODECS.get(charset)
    if codec is None:
        return None
    decode = codecs.getdecoder(codec)
    return lambda data: decode(data, "strict")[0]
