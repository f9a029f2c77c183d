"""timm's networks are used by name, without a wrapper; here a name is checked before anything is built."""

from distillery.core.errors import UserError, did_you_mean

REMOTE = ("hf-hub:", "hf_hub:", "local-dir:")


def check_timm(model_name: str) -> None:
    """Refuse a name that `timm.create_model` does not know, and a weights tag (`name.tag`) that it lacks.

    Names of hub repositories and local folders pass: only loading shows what they are.

    Raises:
        UserError: with the nearest names.
    """
    import timm  # importing it takes seconds: only if a timm network is used

    if model_name.startswith(REMOTE):
        return
    name, _, tag = model_name.partition(".")
    if not timm.is_model(name):
        raise UserError(
            f"model_name={model_name}: timm has no network {name!r}." + did_you_mean(name, timm.list_models())
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        raise UserError(f"model_name={model_name}: timm's {name} has no weights {tag!r}." + did_you_mean(tag, tags))
