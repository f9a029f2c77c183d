"""The language of an answer, by py3langid (a fork of langid.py, Lui and Baldwin 2012): offline, for 139 languages."""

import re

from distillery.core.errors import UserError, did_you_mean
from distillery.runs.generate.clean.answers import Evidence
from distillery.runs.generate.clean.settings import Language

CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)  # fenced blocks and spans of Markdown


class LanguageFilter:
    """Finds answers in a language that is not allowed.

    Raises:
        UserError: the detector is not installed, or does not know an allowed language.
    """

    def __init__(self, settings: Language) -> None:
        self.settings = settings
        if settings.allowed is None:
            return
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError as error:
            raise UserError(
                f"language.allowed={settings.allowed} needs the package py3langid: pip install 'distillery[language]'."
            ) from error
        self._detector = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        known = list(self._detector.labels)
        if unknown := [each for each in settings.allowed if each not in known]:
            raise UserError(f"language.allowed: unknown language {unknown[0]!r}." + did_you_mean(unknown[0], known))

    def other_language(self, answer: str) -> Evidence | None:
        """The language that was found, with its probability."""
        settings = self.settings
        if settings.allowed is None:
            return None
        prose = CODE.sub(" ", answer).strip()
        if len(prose) < settings.min_characters:
            return None
        language, probability = self._detector.classify(prose)
        if language in settings.allowed or probability < settings.confidence:
            return None
        return {"language": language, "probability": round(float(probability), 4)}
