"""From the model that a user names to a config and weights: `NAME`, `NAME@FILE`, `mmdet:CONFIG@FILE`, `...@random`.

Importing this module imports nothing of OpenMMLab.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api.errors import UsageError, first_line
from tasks.models.openmmlab.models import Library, build, build_random, read_config
from tasks.models.openmmlab.user_config import packaged, read_user_config

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

RANDOM = "random"  # after @: weights drawn anew instead of a file
CONFIGS = Path(__file__).parent / "configs"  # of models of the papers that OpenMMLab's packages have no file for


@dataclass(frozen=True)
class Known:
    """A model that has a name. `config` is a file, or one that comes with the library, as `swin/NAME.py`.

    `changes` is a config whose entries replace those of `config`. `weights` come with the project. Without either the
    weights that OpenMMLab publishes for its config are downloaded.
    """

    config: Path | str
    changes: Path | None = None
    weights: Path | None = None

    def read(self, library: Library) -> Config:
        """The config."""
        config = read_config(self.config if isinstance(self.config, Path) else packaged(library) / self.config)
        if self.changes is not None:
            config.merge_from_dict(read_config(self.changes).to_dict())
        return config

    @property
    def has_weights(self) -> bool:
        """Whether weights come with the project, or the config is one that OpenMMLab publishes weights for."""
        return self.weights is not None or self._from_library

    @property
    def _from_library(self) -> bool:
        """Whether the config is the library's own, as it is."""
        return not isinstance(self.config, Path) and self.changes is None

    def published(self, library: Library) -> str | None:
        """Address of OpenMMLab's weights, from the index beside its config."""
        if not self._from_library:
            return None
        import yaml

        path = packaged(library) / self.config
        for index in sorted(path.parent.glob("metafile.y*ml")):
            for entry in yaml.safe_load(index.read_text(encoding="utf-8"))["Models"]:
                if Path(entry["Config"]).name == path.name and "Weights" in entry:
                    return str(entry["Weights"])
        return None


@dataclass(frozen=True)
class Models:
    """The models of one library that one suite knows by name, beside any config that the user has.

    `trusted`: the user says that such configs may run code.
    """

    library: Library
    known: Mapping[str, Known]
    trusted: bool = False

    @property
    def prefix(self) -> str:
        """What a config's path is written after."""
        return f"{self.library}:"

    def canonical_name(self, reference: str, identity: str) -> str:
        """The name of a model that tables have: files, wherever they lie, are replaced by the model's `identity`."""
        name, separator, weights = reference.partition("@")
        if name.startswith(self.prefix):
            name = self.prefix + Path(name.removeprefix(self.prefix)).stem
            return f"{name}@{weights if weights == RANDOM else identity[:8]}"
        return reference if not separator or weights == RANDOM else f"{name}@{identity[:8]}"

    def load(self, reference: str) -> tuple[Config, nn.Module]:
        """Config of the model, and the model in eval mode, float32 on the CPU.

        Raises:
            UsageError: an unknown name, a config that cannot be used, or weights that are missing or do not fit.
        """
        name, separator, weights = reference.partition("@")
        known = self.known.get(name)
        if name.startswith(self.prefix):
            packaged_one = name.startswith(f"{self.prefix}:")  # mmdet::NAME
            file = name if packaged_one else name.removeprefix(self.prefix)
            config = read_user_config(file, self.library, trusted=self.trusted)
            if not separator:
                raise UsageError(f"model '{reference}' names no checkpoint; write {name}@FILE, or {name}@{RANDOM}")
        elif known is None:
            raise UsageError(
                f"there is no {self.library} model '{name}' in this suite; it has {', '.join(self.known)}; "
                f"{self.prefix}CONFIG@FILE works too"
            )
        else:
            config = known.read(self.library)
        if separator and not weights:
            raise UsageError(f"model '{reference}' names no checkpoint after '@'; give a file or '{RANDOM}'")
        if weights == RANDOM:
            return config, build_random(self.library, config)
        if separator:
            return config, build(self.library, config, Path(weights).expanduser())
        assert known is not None, "a config without weights was refused above"
        return config, build(self.library, config, known.weights or _download(name, known, self.library))


def _download(name: str, known: Known, library: Library) -> Path:
    """OpenMMLab's weights of a model, in torch's cache of downloads."""
    advice = f"give a local checkpoint: {name}@FILE, or {name}@{RANDOM} to try things out"
    address = known.published(library)
    if address is None:
        raise UsageError(f"no weights are published for '{name}' in OpenMMLab's format; {advice}")
    import torch

    target = Path(torch.hub.get_dir()) / "checkpoints" / address.rpartition("/")[2]
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(target), progress=False)
        except Exception as error:  # urllib's errors are many
            reason = first_line(error)
            raise UsageError(f"weights of '{name}' cannot be had ({reason}); go online, or {advice}") from None
    return target
