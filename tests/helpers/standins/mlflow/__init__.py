"""The client of MLflow, documented to keep every value of a step that it is given, and parameters for good."""

from types import SimpleNamespace

from mlflow import entities  # noqa: F401

experiments, runs = {}, {}  # as long as this module is


class MlflowClient:
    def get_experiment_by_name(self, name):
        return experiments.get(name)

    def create_experiment(self, name):
        experiments[name] = SimpleNamespace(experiment_id=str(len(experiments)))
        return experiments[name].experiment_id

    def create_run(self, experiment_id, run_name):
        run = SimpleNamespace(run_id=f"run-{len(runs)}", name=run_name, status="RUNNING")
        runs[run.run_id] = SimpleNamespace(info=run, metrics=[], params={}, artifacts=[])
        return runs[run.run_id]

    def update_run(self, run_id, status):
        runs[run_id].info.status = status

    def set_terminated(self, run_id):
        self.update_run(run_id, "FINISHED")

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100
        runs[run_id].metrics += metrics
        for param in params:
            assert runs[run_id].params.setdefault(param.key, param.value) == param.value

    def log_artifact(self, run_id, local_path, artifact_path):
        runs[run_id].artifacts.append(f"{artifact_path}/{local_path.rpartition('/')[2]}")
