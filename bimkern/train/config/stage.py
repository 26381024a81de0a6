"""The config of one rank of a pipeline, for estimates."""

from dataclasses import dataclass

from bimkern.train.config.run import Config


@dataclass(frozen=True, kw_only=True)
class StageConfig(Config):
    """A pre-training run, of which a process has one stage."""

    stage: int

    @classmethod
    def of(cls, config: Config, stage: int) -> "StageConfig":
        return cls(**vars(config), stage=stage)
