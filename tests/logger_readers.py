"""Read what W&B and MLflow stored of a run."""

import json


def wandb_records(run):
    """The records of W&B's files, oldest file first.

    A file has a header of 7 bytes and blocks of 32 KiB; a record has a header of 7 bytes: CRC (4),
    length (2), kind (1: whole, 2: first, 3: middle, 4: last part).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        raw, place, message = file.read_bytes(), 7, b""
        while place + 7 <= len(raw):
            if 2**15 - place % 2**15 < 7:
                place += 2**15 - place % 2**15
            length, kind = int.from_bytes(raw[place + 4 : place + 6], "little"), raw[place + 6]
            message += raw[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):
                yield Record.FromString(message)
                message = b""


def items(part):
    """The entries of a part of a W&B record."""
    return {"/".join(x.nested_key) or x.key: json.loads(x.value_json) for x in part}


def wandb_history(run):
    """The rows of W&B's history, each with its "_step"."""
    return [items(r.history.item) for r in wandb_records(run) if r.HasField("history")]


def mlflow_run(run):
    """The client of the store next to a run, and the run in it."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'fewshot'")
    names = f"attributes.run_name = '{run.name}'"
    (found,) = client.search_runs([experiment.experiment_id], filter_string=names)
    return client, found
