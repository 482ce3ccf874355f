r"""The numbers that people and models write, read exactly: the grammar behind `parse_number` and `normalize`.

Design note. One regular expression runs over the text from left to right, and the last number that it finds counts.
The expression also matches things that are *not* numbers and hold digits (an identifier, an exponent). Such a match has
no named group and is passed over; without it the search would find a shorter number inside the identifier. Runs of
digits are possessive, which keeps the search linear in the length of the text.

Arithmetic rounds nothing: a decimal is read as a `Decimal` and a fraction as a `Fraction`. `Fraction` for both was
rejected, since it would write out 1e999999999 digit by digit.

The grammar, after folding (below):

    number   = [sign] (mixed | fraction | power | decimal)
    decimal  = (integer ["." digits] | "." digits) [exponent]     7   3.14   .5   1,234.50   6.02e23   6.02 × 10^{23}
    power    = "10^" integer                                      10^-3   10^{5}
    fraction = decimal "/" decimal, both without exponent         3/4   1,000 / 3   \frac{3}{4}   ½
    mixed    = integer " " proper fraction                        1 1/2   1½   1\frac{1}{2}
    integer  = digits, plain or in groups of three (or as in India, 12,34,567) between equal separators, each one of
               , ' ’ _ or a thin or no-break space

- *Sign.* `-`, `−`, `–` or `+` directly before the number or its currency (`-$5`). After a digit, a letter, a closing
  bracket, a percent sign or another dash it is a dash: the range `3-4` ends in 4, `GPT-4` in 4, the date 2024-01-15
  in 15. A sign with a space after it is no sign (`- 5 apples`).
- *Chains* of numbers are read part by part, so the last part counts: lists `1,2,3`, dates, times `12:30`, versions
  `1.2.3`, three or more numbers between slashes. A comma is never a decimal mark: `3,14` is a list.
- *Ambiguous and decided:* `1,200` is twelve hundred, though it could be a list; `9/11` is a fraction, though it could
  be a date; a fraction with denominator 0 is a chain; a plain space separates, so `10 500` ends in 500.
- *Passed over:* digits that a letter of a cased script precedes, with their decimals (`x1`, `H2O`, `v1.2`); subscripts;
  exponents (`5 m²` is 5, `2^10` is 2; but `^` after 10 is scientific notation); hexadecimal (`0x1F`).
- *Ignored:* what follows the number: a full stop (`5.`), `%` (12.5% is 12.5), units, ordinals (`3rd`), `k` and
  `million`. Words (`seven`, `infinity`) are no numbers. Expressions are not evaluated: `2+3` ends in 3.
- *Box.* The last LaTeX `\boxed{…}`, if it holds a number, is read instead of the whole text.

Folding: Unicode NFKC (so full-width digits are digits), digits of any script, `½` and the like as `1/2`,
superscripts as `^{…}`, and LaTeX's `\frac`, `\,`, `\!` and `{,}`.
"""

import re
import unicodedata
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from fractions import Fraction

from .._regex import regex

# The letters that make what follows them an identifier and no number. They are those of scripts with upper and lower
# case only: Chinese, Japanese and Thai write numbers without a space after a word, as in 答案是42, and those do count.
_LETTER = "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u052f"
# Thin and no-break spaces are folded to this control character. NFKC would make plain spaces of them, and a plain space
# separates two numbers whereas a thin one groups the digits of one.
_THIN = "\x1f"
# An integer: digits in groups of three; or grouped as in India, in twos up to a last group of three; or plain. The
# alternatives in groups come first, and the look-around on both sides of them makes sure that the groups are whole:
# `1,2345` is no grouped integer, and so is read as the chain of 1 and 2345.
_INTEGER = rf"""(?>(?<!\d[,'’_{_THIN}])(?:
    \d{{1,3}}(?:(?:,\d{{3}})++|(?:'\d{{3}})++|(?:’\d{{3}})++|(?:_\d{{3}})++|(?:{_THIN}\d{{3}})++)
  | \d{{1,2}}(?:,\d{{2}}(?=,))++,\d{{3}}
  )(?![,'’_{_THIN}]?\d) | \d++)"""
_POINT = r"(?<!\d\.)"  # a decimal cannot start inside 1.2.3
_DECIMAL = rf"(?>{_POINT}{_INTEGER}\.\d++(?!\.\d)|(?<![\d.)\]{_LETTER}])\.\d++(?!\.\d)|{_INTEGER})"
# An exponent has at most nine digits, which `Decimal` can hold.
_POWER = r"10\s?\^\s?(?:\{{\s?(?P<{0}b>[-+]?\d{{1,9}}+)\s?\}}|(?P<{0}>[-+]?\d{{1,9}}+)(?!\d))"
_NUMBER = regex(
    rf"""
    (?=[-+.\d^_])(?:   # where a match can begin at all: the rest of the text is passed quickly
    (?:(?<=[{_LETTER}])\d++ | (?<=[^\W_]|[)\]}}])_\{{?[-+]?\d++ | \^\s?\{{?\s?[-+]?\d++)(?:\.\d++)*+
  | 0[xX][0-9a-fA-F]++
  | (?:(?<![\d)\]}}%€£°{_LETTER}-])(?P<sign>[-+])(?:\\?[$€£¥₹])?)?
    (?:
      (?:{_POINT}(?P<whole>{_INTEGER})[\ {_THIN}])?
      (?<!\d/)(?<!\d/\ )(?<!\d\ /\ )(?P<top>{_DECIMAL})\ ?/\ ?(?P<bottom>{_DECIMAL})(?!\ ?/\ ?\d)
    | {_POWER.format("power")}
    | (?P<decimal>{_DECIMAL})
      (?:[eE](?P<e>[-+]?\d{{1,9}}+)(?![\d{_LETTER}])
      | \s?(?:[x×*·⋅]|\\times|\\cdot)\s?{_POWER.format("times")})?
    ))
    """,
    re.VERBOSE,
)
_SEPARATORS = regex(rf"[,'’_{_THIN}]")
_LONGEST_PART = 100  # characters of each part of a fraction, so that its arithmetic is cheap and its float finite
# The context in which nothing is rounded; Decimal's default context rounds to 28 digits.
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)


def last_number(words: str) -> Decimal | Fraction | None:
    """The last number in a text, exactly; `None` if there is none.

    The last `\\boxed{…}` that the text holds is looked into first; the whole text counts only if no number is in it.
    """
    folded = _fold(words)
    box = _last_box(folded)
    in_box = None if box is None else _last(box)
    return _last(folded) if in_box is None else in_box


def written(number: Decimal | Fraction) -> str:
    """The one spelling of a number: equal numbers give equal words, whatever type they have.

    There are no separators and no spare zeros. A fraction is written as a decimal where that decimal ends (`3/4` is
    `0.75`), else as a reduced fraction (`2/6` is `1/3`). A number of 1e100 and above, or of 1e-100 and below, is
    written with an exponent, so that `1e999999999` is not written out.
    """
    if isinstance(number, Fraction):
        decimal = _as_decimal(number)
        if decimal is None:
            return str(number)
        number = decimal
    if not number:
        return "0"
    number = number.normalize(_EXACT)
    exponent = number.adjusted()
    if abs(exponent) < 100:
        return f"{number:f}"
    return f"{number.scaleb(-exponent, _EXACT):f}e{exponent}"


def _last(words: str) -> Decimal | Fraction | None:
    last = None
    for match in _NUMBER.finditer(words):
        if match.lastgroup:  # a match without a named group is something that is no number: an identifier, an exponent
            last = match
    return None if last is None else _value(last)


def _value(match: re.Match[str]) -> Decimal | Fraction:
    if match["top"]:
        return _fraction(match["sign"] or "", *(_plain(match[part] or "") for part in ("whole", "top", "bottom")))
    digits = _plain(match["decimal"] or "1")
    exponent = match["e"] or match["times"] or match["timesb"] or match["power"] or match["powerb"] or "0"
    return Decimal(f"{match['sign'] or ''}{digits}e{exponent}")


def _fraction(sign: str, whole: str, top: str, bottom: str) -> Decimal | Fraction:
    # With a denominator of 0, or with very long parts, it is read as a chain of numbers, of which the last counts.
    if max(len(top), len(bottom)) > _LONGEST_PART or not Fraction(bottom):
        return Decimal(bottom)
    value = Fraction(top) / Fraction(bottom)
    if whole:
        # Only a proper fraction makes a mixed number. Otherwise these are two numbers that stand side by side, as in
        # "in 2024 9/3 of them".
        if value >= 1 or len(whole) > _LONGEST_PART:
            return value
        value += int(whole)
    return -value if sign == "-" else value


def _as_decimal(number: Fraction) -> Decimal | None:
    """A fraction as a decimal, or `None` where the decimal does not end."""
    # The decimal ends if the denominator is 2**a * 5**b, and then max(a, b) places suffice, since 2**k and 5**k both
    # divide 10**k. The bit length of the denominator is above a and b, so that many places are enough.
    places = number.denominator.bit_length()
    digits, rest = divmod(number.numerator * 10**places, number.denominator)
    return None if rest else Decimal(f"{digits}e-{places}")


def _plain(digits: str) -> str:
    return _SEPARATORS.sub("", digits)


# -- folding ---------------------------------------------------------------------------------------------------------

# In the order in which `_fold` applies them: a place between a digit and a vulgar fraction; superscripts; subscripts;
# what is changed before NFKC, as NFKC would lose it; what is changed after it; digits of other scripts than ASCII.
_VULGAR = regex("(?<=\\d)(?=[¼-¾⅐-⅟↉])")
_SUPERSCRIPT = regex("[⁰¹²³⁴-⁹⁺⁻]+")
_SUBSCRIPT = regex("[₀-₉₊₋]+")
_FOREIGN_DIGIT = regex(r"(?![0-9])\d")
_BEFORE_NFKC = str.maketrans({"\u00a0": _THIN, "\u2007": _THIN, "\u2009": _THIN, "\u202f": _THIN, "№": "№ "})
_AFTER_NFKC = str.maketrans(
    {"\u2010": "-", "\u2012": "-", "–": "-", "−": "-", "⁄": "/", "∕": "/", "٫": ".", "٬": ","}  # the last two: Arabic
)
_FRAC = regex(
    rf"\\[cdt]?frac\s*(?:\{{\s*([-+]?[\d.,{_THIN}]+)\s*\}}|(\d))\s*(?:\{{\s*([-+]?[\d.,{_THIN}]+)\s*\}}|(\d))"
)
_COMMAND = regex(r"(\\[A-Za-z]+)(?=\d)")
_BOX = r"\boxed{"


def _fold(words: str) -> str:
    if not words.isascii():
        # These three come before NFKC, which would make 11/2 of 1½, 102 of 10² and 1012 of 101₂.
        words = _VULGAR.sub(" ", words)
        words = _SUPERSCRIPT.sub(r"^{\g<0>}", words)
        words = _SUBSCRIPT.sub(r"_{\g<0>}", words)
        words = unicodedata.normalize("NFKC", words.translate(_BEFORE_NFKC)).translate(_AFTER_NFKC)
        words = _FOREIGN_DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), words)
    if "\\" in words or "{,}" in words:
        words = words.replace("{,}", ",").replace(r"\!", "").replace(r"\,", _THIN)
        words = _COMMAND.sub(r"\1 ", _FRAC.sub(_slash, words))
    return words


def _slash(match: re.Match[str]) -> str:
    r"""`\frac{a}{b}` as `a/b` with one sign in front, and with spaces around it.

    A space stands before it if a letter or digit does, so that `1\frac{1}{2}` becomes the mixed number `1 1/2`, and a
    space always stands after it, so that a digit which follows does not become part of the denominator.
    """
    top, bottom = match[1] or match[2], match[3] or match[4]
    sign = "-" if (top[0] == "-") != (bottom[0] == "-") else ""
    apart = " " if match.string[max(match.start() - 1, 0) : match.start()].isalnum() else ""
    return f"{apart}{sign}{top.lstrip('+-')}/{bottom.lstrip('+-')} "


def _last_box(words: str) -> str | None:
    r"""What stands in the last `\boxed{…}`, with its nested braces; up to the end of the text if it is never closed."""
    start = words.rfind(_BOX)
    if start < 0:
        return None
    start += len(_BOX)
    depth = 1
    for brace in re.finditer("[{}]", words[start:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return words[start : start + brace.start()]
    return words[start:]
