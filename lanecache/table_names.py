"""How a server compares the names of schemas and tables, in one place for all who do.

With ``lower_case_table_names = 0`` (Linux) names are compared exactly. With 1 (Windows) and 2
(macOS) they are compared in lower case, and the rows of the binlog have them so; a statement of the
binlog has them as its writer spelled them.
"""

from __future__ import annotations

import msgspec

TableName = tuple[str, str]
"""Schema and table."""


def fold(name: str) -> str:
    """Fold a name so that whatever a server takes for the same is the same.

    The servers lower each character by itself, by older tables than Python's. Python folds at
    least what they do, so that two names may be taken for one, never one for two; but for the
    dotted capital I of Turkish, which they lower to a plain i.
    """
    return name.casefold().replace("i\u0307", "i")


class Names(msgspec.Struct, frozen=True):
    """How names are compared; ``folded`` where another spelling may be the same name."""

    folded: bool = True

    @classmethod
    def of(cls, lower_case_table_names: int | None) -> Names:
        """Compare as a server with this setting does; ``None``: it is not known."""
        return cls(folded=lower_case_table_names != 0)

    def key(self, table: TableName) -> TableName:
        """Give what is equal for equal names."""
        schema, name = table
        return (fold(schema), fold(name)) if self.folded else table


EXACT = Names(folded=False)
"""Names that differ in any letter are different names."""
