"""Character sets: collation numbers to names, and names to exact decoders.

The numbers are those of ``information_schema.COLLATIONS`` on MySQL 9.7 and MariaDB 11.8 (the two
agree wherever both have a number); MariaDB numbers its UCA-14.0.0 collations from 2048 on, in
blocks of 256 a character set (``strings/ctype-uca1400.h``).
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from functools import cache

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
    "utf8mb3": "33 76 83 192-215 223 576-578 1057 1107 1216 1238",
    "ucs2": "35 90 128-151 159 640-642 1059 1114 1152 1174",
    "cp866": "36 68 1060 1092",
    "keybcs2": "37 73 1061 1097",
    "macce": "38 43 1062 1067",
    "macroman": "39 53 1063 1077",
    "cp852": "40 81 1064 1105",
    "utf8mb4": "45-46 224-247 255-271 273-275 277-294 296-298 300 303-323 608-610 1069-1070"
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

# Only character sets whose Python codec reads every byte sequence as the servers do.
_CODECS = {
    "utf8mb4": "utf-8",
    "utf8mb3": "utf-8",
    "ascii": "ascii",
    "utf16": "utf-16-be",
    "utf16le": "utf-16-le",
    "utf32": "utf-32-be",
    "ucs2": "utf-16-be",
    "latin2": "iso8859-2",
    "latin5": "iso8859-9",
    "cp1250": "cp1250",
    "cp1251": "cp1251",
    "cp852": "cp852",
    "cp866": "cp866",
    "koi8r": "koi8-r",
}


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


# The servers' latin1 is cp1252 with the five bytes that cp1252 leaves open as C1 controls.
_LATIN1 = "".join(
    bytes([byte]).decode("cp1252") if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(byte)
    for byte in range(256)
)


def _decode_latin1(data: bytes) -> str:
    return codecs.charmap_decode(data, "strict", _LATIN1)[0]


@cache
def text_decoder(charset: str) -> Callable[[bytes], str] | None:
    """Give a strict decoder of a character set, or ``None`` where no exact one is known.

    The decoder raises ``UnicodeDecodeError`` for bytes that are not valid in the character set.
    """
    if charset == "latin1":
        return _decode_latin1
    codec = _CODECS.get(charset)
    if codec is None:
        return None
    decode = codecs.getdecoder(codec)
    return lambda data: decode(data, "strict")[0]
