"""How often the images of a step go through a network whose layers all ranks gather at the same time."""

from bimkern.data.step_layout import StepLayout
from bimkern.train.config.run import ConfigError, TrainingConfig


def check_passes(config: TrainingConfig, num_ranks: int) -> None:
    """Make sure that every rank gathers every layer equally often in a step.

    Raises:
        ConfigError: some have more micro-batches or slices than others; the message says how to choose them.
    """
    run, slices = config.run, config.run.num_slices
    for phase in config.all_phases():
        segment = phase.segment(run.batch_size, run.images_at_a_time)
        if segment.batch_size < num_ranks:
            return  # which is refused anyway
        layout = StepLayout((segment,), 1)
        most, least = (layout.of_rank(rank, num_ranks).segments[0].passes(slices) for rank in (num_ranks - 1, 0))
        if most != least:
            raise ConfigError(
                f"--shard full: {num_ranks} ranks share steps of {segment.batch_size} images, {segment.micro_batch} at "
                f"a time in {slices} slices, so that some gather layers {sum(most)} times and others {sum(least)}; "
                f"choose a --batch-size that is a multiple of {num_ranks}"
            )
