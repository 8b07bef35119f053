"""Which linears an adapter adapts: chosen by name, and named as adapter files name them.

In: a model, and --lora-targets or what adapter_config.json says. Out: official paths of linears;
and the shortest way to say which in adapter_config.json.

The one idea: a linear is known by the path that it has in the official code. The routed experts of
a layer are linears of their own there and one stacked tensor here; CLIP's `qkv_proj` and SAM's
`qkv` are one linear in both. (transformers' own classes cut these in three: PEFT over them finds no
`qkv_proj`, so an adapter on the encoder is read over the official modules, or merged.)
"""

import re
from fnmatch import fnmatchcase

from torch import nn

from ..errors import UserError
from ..model.experts import Experts
from ..model.weights import official_views
from .quant import QuantExperts, QuantLinear

# Sets of linears by name. A pattern fits an official module path, or the end of one from a dot on.
# One that begins with the name of an encoder looks there, any other at the decoder's layers alone.
TARGETS = {
    "attention": ("self_attn.[qkvo]_proj",),
    "attention+mlp": (
        "self_attn.[qkvo]_proj",
        "layers.*.mlp.gate_proj",
        "layers.*.mlp.up_proj",
        "layers.*.mlp.down_proj",
        "shared_experts.*_proj",
    ),
    "all": ("self_attn.[qkvo]_proj", "layers.*.*_proj"),
    "encoder": ("sam_model.*", "vision_model.*", "qwen2_model.*"),
    "encoder-but-sam": ("vision_model.*", "qwen2_model.*"),
}
EXPRESSION = "re:"  # what begins with it is a regular expression, for all linears
STACKED = Experts | QuantExperts  # modules that hold all experts of a layer
PROJECTIONS = ("gate", "up", "down")
_ROUTED = ".mlp.experts."
_DECODER = "model.layers."
# As adapter_config.json excludes them, under their official names and under transformers'.
ENCODERS = r"(.*\.)?(sam_model|vision_model|qwen2_model|vision_tower)\..*"
_ENCODER = re.compile(r"(model\.)?(sam_model|vision_model|qwen2_model)\.")


def adaptable(model: nn.Module) -> dict[str, str]:
    """Official path of every linear that may be adapted -> path of the module that computes it:
    those of the decoder's layers and of the encoder's (no head, router, projector, convolution)."""
    holders = {}
    for path, module in model.named_modules():
        if not path.startswith(_DECODER) and not in_encoder(path):
            continue
        if isinstance(module, STACKED):
            for e in range(module.num_experts):
                holders |= {f"{path}.{e}.{kind}_proj": path for kind in PROJECTIONS}
        elif isinstance(module, nn.Linear | QuantLinear):
            holders[path] = path
    return holders


def in_encoder(path: str) -> bool:
    """Whether an official path, or a pattern of paths, begins with an encoder's name."""
    return _ENCODER.match(path) is not None


def official_paths(model: nn.Module) -> set[str]:
    """Official paths of everything that has a weight, quantised linears included."""
    named = {n.removesuffix(".weight") for n in official_views(model) if n.endswith(".weight")}
    return named | adaptable(model).keys()


# -- as the user says it --------------------------------------------------------------------------


def choose(model: nn.Module, targets: tuple[str, ...], where: str = "--lora-targets") -> set[str]:
    """Official paths of the linears that the names of sets, or patterns, select.

    Raises UserError for a pattern that selects nothing, and for a part of a layer's experts.
    """
    holders, chosen = adaptable(model), set()
    for target in targets:
        for pattern in TARGETS.get(target, (target,)):
            found = _fitting(holders, pattern, where)
            if not found and target not in TARGETS:
                raise UserError(
                    f"{where}: {target!r} fits no linear of {_looked_at(target)}; sets: "
                    + ", ".join(TARGETS)
                )
            chosen |= found
    if not chosen:
        raise UserError(f"{where}: {' '.join(targets) or 'nothing'} fits no linear")
    check_whole_layers(holders, chosen, where)
    return chosen


def _looked_at(pattern: str) -> str:
    if pattern.startswith(EXPRESSION):
        return "decoder and encoder"
    return "the encoder" if in_encoder(pattern) else "the decoder"


def _fitting(holders: dict[str, str], pattern: str, where: str) -> set[str]:
    """The linears that one pattern selects."""
    if pattern.startswith(EXPRESSION):
        fits = _expression(rf"(?:.*\.)?(?:{pattern.removeprefix(EXPRESSION)})", where).fullmatch
        return {path for path in holders if fits(path)}
    among = [path for path in holders if in_encoder(path) == in_encoder(pattern)]
    return {p for p in among if fnmatchcase(p, pattern) or fnmatchcase(p, "*." + pattern)}


def _expression(text: str, where: str) -> re.Pattern:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{where}: no regular expression ({error})") from None


def check_whole_layers(holders: dict[str, str], chosen: set[str], where: str) -> None:
    """Servers take a layer's routed experts all or not at all. Raises UserError with the layer."""
    for holder in {holders[path] for path in chosen if _ROUTED in path}:
        own = [path for path, held_by in holders.items() if held_by == holder]
        missing = [path for path in own if path not in chosen]
        if missing:
            some = f"{len(own) - len(missing)} of the {len(own)} linears of {holder}"
            raise UserError(
                f"{where}: {some} are adapted; it must be all or none (not {missing[0]})"
            )


# -- as adapter_config.json says it ---------------------------------------------------------------


def selected(paths: set[str], targets: str | tuple[str, ...], where: str) -> set[str]:
    """The paths that PEFT's target_modules means: a pattern, or endings of paths."""
    if isinstance(targets, tuple):
        ends = tuple(f".{target}" for target in targets)
        return {path for path in paths if path in targets or path.endswith(ends)}
    return {path for path in paths if _expression(targets, where).fullmatch(path)}


def peft_fields(
    paths: set[str], chosen: set[str]
) -> tuple[str | tuple[str, ...], str | tuple[str, ...]]:
    """(target_modules, exclude_modules) that select `chosen` of `paths`, the model's linears.

    An encoder's linears can end as the decoder's do: those of DeepSeek-OCR-2, and those of CLIP in
    transformers' own class. So an adapter of the decoder alone excludes the encoders by name, and
    can give its targets as a list of endings: a server that reads the list (SGLang) takes no
    regular expression.
    """
    if any(in_encoder(path) for path in chosen):
        return target_modules(paths, chosen), ()
    return target_modules({path for path in paths if not in_encoder(path)}, chosen), ENCODERS


def target_modules(paths: set[str], chosen: set[str]) -> str | tuple[str, ...]:
    """The shortest endings that select `chosen` and nothing else of `paths`.

    This is what adapter_config.json calls target_modules: a linear whose path ends in one is meant.
    Where no ending is theirs alone, it is a regular expression that matches whole paths.
    """
    suffixes: dict[str, set[str]] = {}
    for path in paths:
        parts = path.split(".")
        for start in range(len(parts)):
            suffixes.setdefault(".".join(parts[start:]), set()).add(path)
    found = set()
    for path in chosen:
        parts = path.split(".")
        endings = (".".join(parts[start:]) for start in reversed(range(len(parts))))
        ending = next((ending for ending in endings if suffixes[ending] <= chosen), None)
        if ending is None:
            return _path_pattern(chosen)
        found.add(ending)
    return tuple(sorted(found))


def _path_pattern(chosen: set[str]) -> str:
    """A regular expression that matches these linears and no other path.

    transformers' own class calls the decoder `model.language_model`; it is meant as well.
    """
    # What comes before the layer's number -> what follows it -> the layers that have it.
    stacks: dict[str, dict[str, set[int]]] = {}
    for path in chosen:
        stack, number, rest = re.fullmatch(r"(.*?\.)(\d+)\.(.*)", path).groups()
        rest = re.sub(r"experts\.\d+\.", "experts.#.", rest)
        stacks.setdefault(stack, {}).setdefault(rest, set()).add(int(number))
    patterns = []
    for stack, layers in sorted(stacks.items()):
        before = re.escape(stack)
        if stack == _DECODER:
            before = r"model\.(language_model\.)?layers\."
        patterns.append(f"{before}({'|'.join(_layer_patterns(layers))})")
    return "|".join(patterns)


def _layer_patterns(layers: dict[str, set[int]]) -> list[str]:
    """Linears of layers -> a pattern for each set of layers that have the same ones."""
    alike: dict[tuple[int, ...], list[str]] = {}
    for rest, numbers in sorted(layers.items()):
        pattern = re.escape(rest).replace(r"\#", r"\d+")
        alike.setdefault(tuple(sorted(numbers)), []).append(pattern)
    return [
        rf"({'|'.join(map(str, numbers))})\.({'|'.join(rests)})"
        for numbers, rests in sorted(alike.items())
    ]
