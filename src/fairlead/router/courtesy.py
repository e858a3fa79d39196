"""What people say to be kind, before and after the problem; it says nothing about the problem."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["courtesies"]

_END: Final = r"(?=\s*(?:[.,;:!?)\n-]|$))"
_ALL: Final = r"(?:all|everyone|everybody|there|folks|guys|friends|team|community|experts?)"
_PHRASES: Final = (
    rf"(?:hi|hello|hey|dear|greetings|good (?:morning|afternoon|evening))(?: {_ALL})?{_END}",
    (
        r"(?:many |kind |best )?(?:thanks|thank you|thx|cheers|regards)"
        rf"(?: (?:a lot|so much|very much|in advance|again|for (?:your|any) help|{_ALL}))*{_END}"
    ),
    (
        r"any (?:help|advice|pointers?|ideas?|suggestions?|hints?|tips?|thoughts?|input)"
        r"(?:(?: here)?(?: (?:is|are|would be|will be))?(?: (?:much|greatly|highly|really|very))?"
        rf" (?:appreciated|welcome|helpful|great))?{_END}"
    ),
    (
        r"(?:please |pls )?(?:(?:can|could|would) (?:some(?:one|body)|any(?:one|body)|you)(?: all)?"
        r"(?: please| kindly)?|please) help(?: me| us)?(?: out)?(?: with (?:this|it))?(?: please)?"
        rf"{_END}"
    ),
    (
        r"(?:(?:we|i|here) (?:have|face|is) (?:this|the following|a|my|our) )?"
        r"(?:problem|question|issue)(?: is)?(?=\s*:)"
    ),
)
# Where a line, a sentence or a part of one begins: "hello world example" is no greeting.
_COURTESY: Final = re.compile(
    rf"(?:^|(?<=[\n.,;:!?(-]))[ \t]*(?:{'|'.join(_PHRASES)})", re.IGNORECASE
)


def courtesies(text: str, start: int, stop: int) -> list[tuple[int, int]]:
    """Return where greetings, thanks and calls for help stand in a part of a text.

    Examples:
        >>> courtesies("Hi all, it is slow. Thanks in advance!", 0, 38)
        [(0, 6), (19, 37)]
        >>> courtesies("could somebody help me quantize it?", 0, 35)
        []
    """
    found = _COURTESY.finditer(text, start, stop)
    return [(match.start(), match.end()) for match in found]
