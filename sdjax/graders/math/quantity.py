"""Reads one element of an answer: its unit, and the exact value of a number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from sdjax.graders.answer import currency
from sdjax.graders.math.latex import FONT_NAMES, tight, unwrapped

_MAX_EXPONENT = 5000

# The words and signs of each unit. Words such as "square" change no unit.
_UNITS = {
    "m": "m meter metre", "dm": "dm decimeter decimetre",
    "cm": "cm centimeter centimetre", "mm": "mm millimeter millimetre",
    "km": "km kilometer kilometre", "in": "in inch inche", "ft": "ft foot feet", "yd": "yd yard",
    "mi": "mi mile", "nm": "nm nanometer", "g": "g gram", "kg": "kg kilogram", "mg": "mg milligram",
    "lb": "lb pound", "oz": "oz ounce", "t": "ton tonne", "s": "s sec second", "ms": "ms",
    "min": "min minute", "h": "h hr hour", "d": "day", "wk": "wk week", "mo": "month",
    "yr": "yr year",
    "l": "l L liter litre", "ml": "ml mL milliliter", "gal": "gal gallon", "pt": "pint",
    "qt": "quart", "cup": "cup", "deg": "deg degree", "rad": "rad radian", "usd": "dollar usd USD",
    "cent": "cent", "eur": "euro eur EUR", "gbp": "gbp GBP", "n": "N newton", "j": "J joule",
    "kj": "kJ", "kwh": "kWh", "w": "W watt", "kw": "kW", "v": "V volt", "a": "A ampere amp",
    "k": "K kelvin",
    "c": "C celsius Celsius", "f": "F fahrenheit Fahrenheit", "hz": "Hz hertz", "khz": "kHz",
    "mhz": "MHz", "pa": "Pa pascal", "kpa": "kPa",
    "mol": "mol mole", "bit": "bit", "byte": "byte",
    "mph": "mph", "kmh": "kmh kph",
}  # fmt: skip
_MEANING = {word: unit for unit, words in _UNITS.items() for word in words.split()}
_MEANING |= {code: code.lower() for code in currency.CODES}
_SEVERAL = {"mph": {"mi", "h"}, "kmh": {"km", "h"}}
_POWERS = frozenset("23")
_POWER_WORDS = {"square": "2", "squared": "2", "sq": "2", "cubic": "3", "cubed": "3"}
_IGNORED = set("unit per a an the of in each st nd rd th".split())
_PERCENT = {"percent", "pct"}
# Alone they are no unit: "4 a" may be a product.
_FILLING = set("a an the of".split())
# These join a number without a space; a product of two variables looks like the others.
_JOINED = set(
    "in cm dm mm km mi kg mg lb lbs oz ft yd mph kph kmh ml mL gal cup Hz kHz MHz kJ kW kWh kPa "
    "hr hrs min sec day wk yr yrs mol deg rad USD EUR GBP st nd rd th".split()
)
_JOINED_PAIRS = {"m/s", "g/mol", "g/cm"}

_POWER = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|\d))?"
_TEXT = re.compile(
    rf"\s*(?:/|\\cdot)?\s*\\({FONT_NAMES})\s*\{{([^{{}}\d]*(?:\^[{{]?-?\d)?)\}}{_POWER}$"
)
_WORDS = re.compile(
    rf"(?<![\\a-zA-Z])(\s*)([a-zA-Z]+(?:\s*/\s*[a-zA-Z]+|{_POWER}\s+[a-zA-Z]+)*){_POWER}\.?$"
)
_DEGREES = re.compile(r"\s*(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![a-z]))\s*")
_FONT = re.compile(rf"\\(?:{FONT_NAMES})\s*\{{([^{{}}]*)\}}")


@dataclass(frozen=True)
class Quantity:
    """One element: its text without unit and fonts, its units, and whether a percent sign ends it.

    `value` is its exact value if it is an integer, decimal, fraction, mixed number or power of ten.
    """

    text: str
    units: frozenset[str]
    percent: bool
    value: Fraction | None


def read(element: str) -> Quantity:
    r"""Returns the quantity that an element states; "15\text{ cm}^2" is 15 with unit "cm"."""
    text, units = unwrapped(element.strip()), set[str]()
    if _DEGREES.search(text):
        text, units = _DEGREES.sub(" ", text).strip(), {"deg"}
    for _ in range(3):
        text, found = _without_unit(text)
        if not found:
            break
        units |= found
    text = text.rstrip(" %") + "%" if text.endswith("%") else text
    percent = text.endswith("%") or bool(units & _PERCENT)
    for _ in range(3):
        text = _FONT.sub(r"\1", text)
    text = tight(unwrapped(text.removesuffix("%").strip()))
    return Quantity(text, frozenset(units - _PERCENT - {""}), percent, number(text))


def bare(element: str) -> str:
    """Returns a tight element without fonts."""
    return tight(unwrapped(_FONT.sub(r"\1", element).strip()))


def conflict(ours: Quantity, theirs: Quantity) -> bool:
    """Returns whether both have units and none in common, or other powers of them."""
    left, right = (q.units - _POWERS for q in (ours, theirs))
    powers, gold_powers = (q.units & _POWERS for q in (ours, theirs))
    other_power = bool(powers and gold_powers) and powers != gold_powers
    return bool(left and right) and (other_power or not left & right)


def _without_unit(text: str) -> tuple[str, set[str]]:
    """Returns a text without the unit at its end and the unit, or the text and nothing."""
    match = _TEXT.search(text)
    if match and re.search(r"\d|\\[a-zA-Z]", text[: match.start()]):
        words = re.findall(r"[a-zA-Z]+", match.group(2))
        shortest = 2 if match.group(1) in ("text", "mbox", "textrm", "hbox") else 3
        known = all(word in _MEANING or word in _JOINED for word in words)
        if known or max(map(len, words), default=9) >= shortest:
            return text[: match.start()].rstrip(), _meaning(words) | _power(match.group())
    match = _WORDS.search(text)
    if match is None or not re.search(r"[\d}).%]$|\\[a-zA-Z]+$", text[: match.start()]):
        return text, set()
    core, words = text[: match.start()].rstrip(), re.findall(r"[a-zA-Z]+", match.group(2))
    if not _are_unit(words, core, apart=bool(match.group(1)) or core.endswith("%")):
        return text, set()
    return core, _meaning(words) | _power(match.group())


def _are_unit(words: list[str], core: str, *, apart: bool) -> bool:
    """Returns whether plain words after `core` are its unit, and not a product of variables."""
    if not all(map(_is_unit, words)) or not re.search(r"\d", core):
        return False
    if _FILLING.issuperset(words):
        return False
    if apart and max(map(len, words)) > 1:
        return True
    # One letter, or letters without a space, may be a variable after all but a number.
    joined = words[0].removesuffix("s") in _JOINED or words[0] in _JOINED or len(words[0]) > 3
    joined = joined or "/".join(words) in _JOINED_PAIRS
    return (apart or joined) and number(tight(core)) is not None


def _power(unit: str) -> set[str]:
    """Returns the power of a unit that has only one part."""
    return set() if "/" in unit else set(re.findall(r"\^\s*\{?\s*([23])", unit))


def _is_unit(word: str) -> bool:
    """Returns whether a plain word may be a unit: a known one, or any of four letters or more."""
    known = _MEANING.keys() | _IGNORED | _PERCENT | _POWER_WORDS.keys()
    if word in known or word.lower().removesuffix("s") in known:
        return True
    return len(word) >= 4 and re.search(r"[aeiou]", word.lower()) is not None


def _meaning(words: list[str]) -> set[str]:
    """Returns the units that words name; {""} for words without a unit."""
    units = {""}
    for word in words:
        lower = word.lower()
        singular = lower.removesuffix("s") if len(lower) > 2 else lower
        if lower in _POWER_WORDS:
            units.add(_POWER_WORDS[lower])
            continue
        # "in" alone, or after "square", is an inch.
        inch = lower == "in" and word == words[-1]
        if (lower in _IGNORED or singular in _IGNORED) and not inch:
            continue
        unit = _MEANING.get(word) or _MEANING.get(lower) or _MEANING.get(singular) or singular
        units |= _SEVERAL.get(unit, {unit})
    return units


_DECIMAL = r"\d+(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]*)(?:(?P<whole>\d+)?\\frac\{{(?P<top>[+-]?\d+)\}}\{{(?P<bottom>[+-]?\d+)\}}"
    rf"|(?:(?P<mixed>\d+) )?(?P<a>\d+)/(?P<b>\d+)"
    rf"|(?P<fixed>\d*\.\d*)(?:\\overline\{{(?P<period>\d+)\}}|\((?P<round>\d+)\))"
    rf"|(?P<begun>\d*\.\d+)\\ldots"
    rf"|(?P<decimal>{_DECIMAL})"
    rf"(?:(?:\\times|\\cdot|\*)10\^(?:\{{(?P<power>[+-]?\d+)\}}|(?P<digit>[+-]?\d+))"
    rf"|[eE](?P<e>[+-]?\d+))?"
    rf"|10\^(?:\{{(?P<ten>[+-]?\d+)\}}|(?P<tens>\d+)))",
    re.ASCII,
)


def number(text: str) -> Fraction | None:
    """Returns the exact value of a tight integer, decimal, fraction or power of ten, or None."""
    inner = text
    while len(inner) > 2 and inner[0] + inner[-1] in ("{}", "()", "[]"):
        inner = inner[1:-1]
    if len(inner) > 400:
        return None
    match = _NUMBER.fullmatch(re.sub(r"^([+-]+)[{(](.*)[)}]$", r"\1\2", inner))
    if match is None:
        return None
    value = _value({key: part for key, part in match.groupdict().items() if part is not None})
    return -value if value is not None and match["sign"].count("-") % 2 else value


def _value(part: dict[str, str]) -> Fraction | None:
    """Returns the value of the parts of a number, without its sign."""
    if "top" in part or "a" in part:
        top, bottom = int(part.get("top") or part["a"]), int(part.get("bottom") or part["b"])
        whole = int(part.get("whole") or part.get("mixed") or 0)
        return whole + Fraction(top, bottom) if bottom else None
    if "fixed" in part:
        return _repeating(part["fixed"], part.get("period") or part["round"])
    if "begun" in part:
        match = re.fullmatch(r"(\d*\.\d*?)(\d)\2{2,}|(\d*\.\d*?)(\d{2,}?)\4+", part["begun"])
        if match is None:
            return None
        return _repeating(match[1] or match[3], match[2] or match[4])
    exponent = int(next((part[k] for k in ("ten", "tens", "power", "digit", "e") if k in part), 0))
    if abs(exponent) > _MAX_EXPONENT:
        return None
    return Fraction(part.get("decimal", "1")) * Fraction(10) ** exponent


def _repeating(fixed: str, period: str) -> Fraction:
    """Returns the value of a decimal whose last digits repeat for ever."""
    whole, _, places = fixed.partition(".")
    shift = 10 ** len(places)
    return Fraction(int((whole + places) or "0"), shift) + Fraction(
        int(period), shift * (10 ** len(period) - 1)
    )


def is_decimal(text: str) -> bool:
    """Returns whether a tight element is written with a decimal point."""
    return re.fullmatch(r"[+-]?\d*\.\d+", text) is not None
