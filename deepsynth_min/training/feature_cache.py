"""The feature cache: what a frozen encoder makes of a page is computed once and kept.

In: a batch with its pages (and tiles). Out: the same batch with the features that the projector
sees of them, [N, h, w, F]; the projector itself, and all that follows, may train.

The one idea: a page's features are a pure function of its bytes and of the encoder. So the key is
the hash of the bytes, and the place is the hash of the encoder: its weights, the types it computes
in, and what else rounding depends on (torch's version, the device, CPU threads). A cache cannot be
used wrongly, only missed.

Main memory first; then, with a directory, files DIR/ENCODER/UNIQUE.safetensors, written once under
a temporary name and renamed, mapped into memory to read. Each process writes files of its own and
reads those of all that were there when it opened the directory. Each entry's hash stands in its
file's header; an entry that does not fit it, or a file that is none of ours, is computed again.
Nothing is thrown out: epochs visit pages in turns, for which "oldest first" would keep what is
needed last; when the bound is reached, no more is kept.
"""

import hashlib
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import UserError
from ..model.batch import Batch
from ..model.deepseek_ocr import ENCODER
from ..model.weights import tensor_digest
from ..settings import Settings
from ..tuning.freeze import TUNED_PARTS

GIB = 2**30
SHARD_BYTES = 64 * 2**20  # of entries that wait in memory before a file is written


def page_key(page: Tensor) -> str:
    """Hash of a page's bytes and shape; uint8 [C, h, w] on the CPU."""
    shape = "x".join(map(str, page.shape))
    return hashlib.sha256(shape.encode() + page.contiguous().numpy().tobytes()).hexdigest()


def keyed(batch: Batch) -> Batch:
    """The batch with the keys of its pages, then of its tiles; to be called before it moves."""
    tiles = () if batch.tiles is None else batch.tiles
    return replace(batch, page_keys=tuple(page_key(p) for p in (*batch.pages, *tiles)))


def encoder_fingerprint(model: nn.Module, device: torch.device, arithmetic: str) -> str:
    """Hash of what a page's features depend on beside its bytes; arithmetic: what rounds them."""
    cpu = device.type == "cpu"
    where = (
        [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
        if cpu
        else [torch.cuda.get_device_name(device) if device.type == "cuda" else device.type]
    )
    digest = hashlib.sha256(repr((torch.__version__, arithmetic, *where)).encode())
    for part in model.model.towers:
        for name, parameter in part.named_parameters():
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            digest.update(tensor_digest(parameter))
    return digest.hexdigest()[:32]


def check(settings: Settings) -> None:
    """Raises UserError for a cache that could never be right."""
    if settings.data.feature_cache == "off":
        return
    if settings.augment.augment:
        raise UserError("--feature-cache: not with --augment, which makes every page a new one")
    if settings.augment.vary:
        raise UserError("--feature-cache: not with --vary, which makes every page a new one")
    if TUNED_PARTS[settings.model.tune] & ENCODER:
        tune = settings.model.tune
        raise UserError(f"--feature-cache: not with --tune {tune}, which trains the encoder")


class FeatureCache:
    """Features of the pages seen so far; `report` is told, once each, of what goes wrong."""

    def __init__(
        self,
        settings: Settings,
        model: nn.Module,
        device: torch.device,
        world: int,
        report: Callable[[str], None] = print,
    ):
        if model.encoder_trains:
            raise UserError("--feature-cache: not with an adapter on the encoder (--lora-targets)")
        data = settings.data
        self.model, self.report = model, report
        self.free_bytes = int(data.cache_memory * GIB)
        self.held: dict[str, Tensor] = {}  # key -> features, in main memory
        self.waiting: dict[str, Tensor] = {}  # those to be written with the next file
        self.stored: dict[str, tuple] = {}  # key -> (open file, digest)
        self.hits = self.misses = 0
        self.encoded: Counter[int] = Counter()  # side in px -> views; runs/utilisation.py
        self.folder = None
        if data.feature_cache != "memory":
            root = Path(data.feature_cache)
            arithmetic = settings.optim.precision + " compiled" * settings.optim.compile
            arithmetic += " flex" * any(b.attn.by_score for b in model.model.sam_model.blocks)
            fingerprint = encoder_fingerprint(model, device, arithmetic)
            self.folder = root / fingerprint
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                taken = sum(f.stat().st_size for f in root.rglob("*.safetensors"))
            except OSError as error:
                raise UserError(f"--feature-cache {root}: {error.strerror or error}") from None
            self.disk_room = max(0, int(data.cache_disk * GIB) - taken) // world
            for file in sorted(self.folder.glob("*.safetensors")):
                self._open(file)

    def _open(self, file: Path) -> None:
        try:
            content = safe_open(file, framework="pt")
            digests = content.metadata() or {}
            self.stored |= {k: (content, digests[k]) for k in content.keys() if k in digests}
        except (OSError, SafetensorError) as error:
            self.report(f"{file}: not read, its pages are encoded again ({error})")

    def _find(self, key: str, shape: tuple) -> Tensor | None:
        """Features in main memory, or from a file if they are what was written."""
        for place in (self.held, self.waiting):
            if key in place:
                return place[key]
        if key not in self.stored:
            return None
        content, digest = self.stored[key]
        try:
            found = content.get_tensor(key)
            if found.shape[:2] == shape and tensor_digest(found).hex() == digest:
                self._hold(key, found)
                return found
        except (OSError, SafetensorError):
            pass
        del self.stored[key]
        self.report(f"feature cache: page {key[:12]} is damaged and is encoded again")
        return None

    def _hold(self, key: str, features: Tensor) -> None:
        if key not in self.held and features.nbytes <= self.free_bytes:
            self.held[key] = features.clone()  # not a piece of something larger
            self.free_bytes -= features.nbytes

    def _keep(self, key: str, features: Tensor) -> None:
        self._hold(key, features)
        if self.folder is not None and key not in self.stored:
            self.waiting[key] = features.clone()
            if sum(entry.nbytes for entry in self.waiting.values()) >= SHARD_BYTES:
                self.write()

    def write(self) -> None:
        """Writes what waits, if there is space; a disk that refuses ends the writing, not the
        run."""
        entries, self.waiting = self.waiting, {}
        size = sum(entry.nbytes for entry in entries.values())
        if not entries or self.folder is None:
            return
        # The header, about 200 bytes an entry, counts too.
        if size + 1024 * len(entries) > self.disk_room:
            self.report(f"{self.folder.parent}: no space left (--cache-disk); no more is written")
            self.folder = None
            return
        final = self.folder / f"{uuid.uuid4().hex}.safetensors"
        partial = final.with_suffix(".partial")
        try:
            digests = {key: tensor_digest(entry).hex() for key, entry in entries.items()}
            save_file(entries, partial, metadata=digests)
            partial.replace(final)
            self.disk_room -= final.stat().st_size
            self._open(final)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            self.report(f"{final}: could not be written ({error}); no more is")
            self.folder = None

    def fill(self, batch: Batch) -> Batch:
        """The batch with the features of its pages and tiles, found or computed."""
        N = len(batch.pages)
        features = self._features(batch.pages, batch.page_keys[:N])
        tiles = None if batch.tiles is None else self._features(batch.tiles, batch.page_keys[N:])
        return replace(batch, features=features, tile_features=tiles)

    def _features(self, pages: Tensor, keys: tuple[str, ...]) -> Tensor | None:
        """Pages on their device -> [N, h, w, F] on it."""
        assert len(keys) == len(pages), "batches go through `keyed` first"
        shape = (pages.shape[2] // 64, pages.shape[3] // 64)
        found = {key: self._find(key, shape) for key in keys}
        missing = [key for key in found if found[key] is None]
        self.hits, self.misses = self.hits + len(keys) - len(missing), self.misses + len(missing)
        if missing:
            rows = [keys.index(key) for key in missing]
            with torch.no_grad():
                fresh = self.model.page_features(pages[rows])
            self.encoded[pages.shape[2]] += len(missing)
            for key, entry in zip(missing, fresh.cpu()):
                found[key] = entry
                self._keep(key, entry)
        if not len(keys):
            return None
        return torch.stack([found[key] for key in keys]).to(pages.device)

    def close(self) -> None:
        self.write()
