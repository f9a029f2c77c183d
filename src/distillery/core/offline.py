"""Whether the Hugging Face hub can be reached, asked once instead of being found out by retries."""

import huggingface_hub
from huggingface_hub import get_session

SECONDS = 10.0
_silent: dict[str, str] = {}  # why an endpoint did not answer; empty: it did


def read_cache_if_offline() -> None:
    """To be called before the hub is asked: where it does not answer, its cache alone is read from now on.

    `huggingface_hub` would ask six times for each file, which takes half a minute.
    """
    constants = huggingface_hub.constants
    if constants.HF_HUB_OFFLINE:
        return
    if constants.ENDPOINT not in _silent:
        try:
            get_session().head(constants.ENDPOINT, timeout=SECONDS)
            _silent[constants.ENDPOINT] = ""
        except Exception as error:  # whichever client huggingface_hub has, and whatever that raises
            _silent[constants.ENDPOINT] = str(error) or type(error).__name__
    constants.HF_HUB_OFFLINE = bool(_silent[constants.ENDPOINT])


def why_offline() -> str:
    """Why the hub is not asked, and how to get from it what is missing."""
    constants = huggingface_hub.constants
    reason = _silent.get(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE and not reason:
        return "HF_HUB_OFFLINE=1 forbids asking the hub. Set HF_HUB_OFFLINE=0 once, to download it"
    cause = f" ({reason})" if reason else ""
    return f"the hub cannot be reached{cause}. Run once on a machine with a network"
