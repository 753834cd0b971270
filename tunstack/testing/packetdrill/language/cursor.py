"""The parser's place in the tokens, with the errors that say what was expected there."""

from __future__ import annotations

from typing import NoReturn

from tunstack.testing.packetdrill.language.errors import Position, ScriptError, UnsupportedSyntax
from tunstack.testing.packetdrill.language.lexer import Kind, Token

MAX_32 = 0xFFFFFFFF


class Cursor:
    """Reads tokens one after the other. What a production does not find is an error at the next token."""

    def __init__(self, tokens: list[Token], path: str = "") -> None:
        self._tokens = tokens
        self._index = 0
        self.path = path

    @property
    def token(self) -> Token:
        """The next token."""
        return self._tokens[self._index]

    @property
    def last(self) -> Token:
        """The token that was taken last."""
        return self._tokens[max(0, self._index - 1)]

    def ahead(self, count: int) -> Token:
        """The token `count` places behind the next one; the end if there are fewer."""
        return self._tokens[min(self._index + count, len(self._tokens) - 1)]

    def take(self) -> Token:
        """The next token, which is used up."""
        token = self.token
        if token.kind is not Kind.END:
            self._index += 1
        return token

    def fail(self, expected: str) -> NoReturn:
        """Raise the error that `expected` should stand here."""
        raise ScriptError(f"expected {expected}, not {self.token}", self.token.position, self.path)

    def wrong(self, message: str, position: Position) -> NoReturn:
        """Raise an error of meaning."""
        raise ScriptError(message, position, self.path)

    def unsupported(self, what: str, position: Position) -> NoReturn:
        """Raise the error that `what` is in the grammar but not supported."""
        raise UnsupportedSyntax(f"{what} is not supported", position, self.path)

    def at_mark(self, mark: str) -> bool:
        """Whether the next token is this mark."""
        return self.token.kind is Kind.MARK and self.token.text == mark

    def at_word(self, *words: str) -> bool:
        """Whether the next token is one of these words."""
        return self.token.kind is Kind.WORD and self.token.text in words

    def skip_mark(self, mark: str) -> bool:
        """Take `mark` if it is next; whether it was."""
        found = self.at_mark(mark)
        if found:
            self._index += 1
        return found

    def skip_word(self, *words: str) -> bool:
        """Take one of `words` if it is next; whether it was."""
        found = self.at_word(*words)
        if found:
            self._index += 1
        return found

    def mark(self, mark: str, *, otherwise: str = "") -> None:
        """Take `mark`, which must be next; `otherwise` names what else might have stood there."""
        if not self.skip_mark(mark):
            self.fail(f"{otherwise} or '{mark}'" if otherwise else f"'{mark}'")

    def word(self, *words: str, what: str = "") -> str:
        """Take a word, one of `words` if there are any."""
        if self.token.kind is not Kind.WORD or (words and self.token.text not in words):
            self.fail(what or " or ".join(f"'{word}'" for word in words) or "a word")
        return self.take().text

    def number(self, what: str, *, most: int = MAX_32, least: int = 0) -> int:
        """Take a number from `least` to `most`."""
        token = self.token
        if token.kind not in (Kind.INTEGER, Kind.HEX):
            self.fail(what)
        value = integer(token)
        if not least <= value <= most:
            self.wrong(f"{what} is from {least} to {most}, not {value}", token.position)
        self.take()
        return value


def integer(token: Token) -> int:
    """The value of a token of kind INTEGER or HEX."""
    return int(token.text, 16 if token.kind is Kind.HEX else 10)
