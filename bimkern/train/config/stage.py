"""A pipeline as configs: which runs can be one, and the config of one rank of it, for estimates."""

from dataclasses import dataclass

from bimkern.mim.flow import Local
from bimkern.mim.operations import balanced_taps
from bimkern.train.config.run import Config, ConfigError


@dataclass(frozen=True, kw_only=True)
class StageConfig(Config):
    """A pre-training run, of which a process has one stage."""

    stage: int

    @classmethod
    def of(cls, config: Config, stage: int) -> "StageConfig":
        return cls(**vars(config), stage=stage)


def check_stages(config: Config, num_ranks: int) -> None:
    """Make sure that every rank can have a stage, and every stage a rank.

    Raises:
        ConfigError: they cannot; the message may propose a cut into so many stages.
    """
    method = config.method
    if not isinstance(method.flow, Local):
        raise ConfigError(
            f"--pipeline: the stages of {config.recipe} learn together, by {type(method.flow).__name__}; choose a "
            f"recipe whose flow is Local, or leave --pipeline out"
        )
    if num_ranks != len(method.taps):
        raise ConfigError(
            f"--pipeline: {config.recipe} has {len(method.taps)} stages, one for each rank, got {num_ranks} ranks; "
            f"choose {len(method.taps)} ranks{_other_cut(config, num_ranks)}, or leave --pipeline out"
        )


def _other_cut(config: Config, num_ranks: int) -> str:
    try:
        taps = balanced_taps(config.method, num_ranks)
    except ValueError:  # the method cannot have so many stages, or nothing counts its operations
        return ""
    return f", or --set method.taps={','.join(map(str, taps))}"
