"""What numbers a model's configuration may hold: checked before memory is asked for.

In: a section of the configuration. Out: nothing, or a UserError naming the official field.
"""

from dataclasses import fields

from ...errors import UserError

# Other names that our fields have in the official file.
_OFFICIAL = {
    "neck": "neck_channels",
    "window": "window_size",
    "downsample": "downsample_channels",
    "global_layers": "global_attn_indexes",
    "page_size": "candidate_resolutions",
}
_MAY_BE_ZERO = (
    "n_shared_experts",
    "sliding_window",
    "first_k_dense_replace",
    "bos_token_id",
    "eos_token_id",
    "global_layers",
)
# Far beyond any model that there is; a number above it would only exhaust memory and patience.
_MAXIMUM = {
    "layers": 256,
    "num_hidden_layers": 256,
    "n_routed_experts": 2048,
    "image_size": 8192,
    "page_size": 8192,
    "page_sides": 8192,
    "vocab_size": 2**24,
}
_DEFAULT_MAXIMUM = 2**20


def check_numbers(section: object, name: str) -> None:
    """Raises UserError unless every field of a section is a number such as a model can have."""
    for f in fields(section):
        value, least = getattr(section, f.name), 0 if f.name in _MAY_BE_ZERO else 1
        most = _MAXIMUM.get(f.name, _DEFAULT_MAXIMUM)
        if f.type is bool:
            fits, kind = isinstance(value, bool), "true or false"
        elif f.type is float:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            fits, kind = number and 0 < value <= 1e12, "a positive number"
        elif f.type is int:
            fits, kind = type(value) is int and least <= value <= most, "a whole number"
        elif f.type == tuple[int, ...]:
            fits = isinstance(value, tuple) and all(
                type(v) is int and least <= v <= most for v in value
            )
            kind = "a list of whole numbers"
        else:  # a section of its own
            continue
        if not fits:
            limits = "" if f.type in (bool, float) else f" from {least} to {most}"
            shown = f"{name}{_OFFICIAL.get(f.name, f.name)} = {value!r:.100}"
            raise UserError(f"{shown} is not {kind}{limits}")
