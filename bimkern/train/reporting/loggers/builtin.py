"""Our loggers; importing this module registers them."""

from bimkern.train.reporting.loggers.csv import CSV
from bimkern.train.reporting.loggers.mlflow import MLflow
from bimkern.train.reporting.loggers.wandb import Wandb

__all__ = ["CSV", "MLflow", "Wandb"]
