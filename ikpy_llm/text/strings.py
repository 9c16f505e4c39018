"""Long lists of texts, as metadata has them."""

from __future__ import annotations

from collections.abc import Sequence

from ikpy_llm.errors import ModelFileError, shown


class StringArray(Sequence):
    """A list of str that is decoded when somebody looks: vocabularies are big, and most readers do not want them.

    `.raw` is the list of the undecoded bytes. Reading an element that is not UTF-8 raises ModelFileError.
    """

    def __init__(self, raw: list[bytes], where: str):
        self.raw, self._where, self._text = raw, where, None

    def __len__(self):
        return len(self.raw)

    def __getitem__(self, index):
        return self._texts()[index]

    def __iter__(self):
        return iter(self._texts())

    def __eq__(self, other):
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    def __repr__(self):
        return f"<{len(self)} strings>"

    def _texts(self) -> list[str]:
        if self._text is None:
            try:
                self._text = [item.decode() for item in self.raw]
            except UnicodeDecodeError as error:
                raise ModelFileError(f"{self._where} holds {shown(error.object)}, which is not UTF-8") from None
        return self._text
