"""Personal data in texts, found by rules that check what can be checked."""

import ipaddress
import re
from collections.abc import Callable

_EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-zA-Z]{2,}\b")
_PHONE = re.compile(
    r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?(?:\(\d{3}\)[ .-]?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w.]\d)"
    r"|(?<!\w)\+\d{1,3}(?:[ .-]?\d{2,4}){3,4}\b"
)
_CARD = re.compile(r"(?<![\d.])(?:\d[ -]?){12,18}\d(?![\d.])")
_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")
_IP = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)")


def _luhn(text: str) -> bool:
    """The check digit of cards (ISO/IEC 7812-1)."""
    digits = [int(letter) for letter in text if letter.isdigit()]
    doubled = (d if at % 2 == 0 else sum(divmod(2 * d, 10)) for at, d in enumerate(digits[::-1]))
    # Zeros alone pass the check and are no number of a card.
    return len(set(digits)) > 1 and sum(doubled) % 10 == 0


def _mod_97(text: str) -> bool:
    """The check digits of account numbers (ISO 13616)."""
    plain = text.replace(" ", "")
    return int("".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])) % 97 == 1


def _public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _any(_: str) -> bool:
    return True


# By kind, what it looks like and whether such a place is one. Card numbers stand before phone
# numbers, whose form a part of them has.
KINDS: dict[str, tuple[re.Pattern, Callable[[str], bool]]] = {
    "email": (_EMAIL, _any),
    "iban": (_IBAN, _mod_97),
    "card": (_CARD, _luhn),
    "ssn": (_SSN, _any),
    "ip": (_IP, _public),
    "phone": (_PHONE, _any),
}


def find(text: str) -> dict[str, int]:
    """How many places of each kind a text has, without those that have none."""
    return redact(text)[1]


def redact(text: str) -> tuple[str, dict[str, int]]:
    """(the text with "[email]" and the like for what was found, how many of each kind).

    >>> redact("Write to ann@example.org from 8.8.8.8.")
    ('Write to [email] from [ip].', {'email': 1, 'ip': 1})
    """
    counts: dict[str, int] = {}
    for kind, (pattern, is_one) in KINDS.items():

        def _replaced(place: re.Match, kind: str = kind, is_one=is_one) -> str:
            if not is_one(place[0]):
                return place[0]
            counts[kind] = counts.get(kind, 0) + 1
            return f"[{kind}]"

        text = pattern.sub(_replaced, text)
    return text, counts
