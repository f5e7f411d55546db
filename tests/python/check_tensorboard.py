"""TensorBoard's own reader finds in the events of a run what its metrics.csv says: check_tensorboard.py RUN"""
import csv, sys
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run = sys.argv[1]
events = EventAccumulator(run)
events.Reload()
with open(f"{run}/metrics.csv") as file:
    rows = list(csv.DictReader(file))
groups = ("train", "val", "test", "loss")
n = 0
for name in rows[0]:
    group, _, rest = name.partition("_")
    tag = f"{group}/{rest}" if group in groups and rest else name
    wanted = [(int(row["step"]), np.float32(row[name])) for row in rows if row[name]]
    if name == "step" or not wanted:
        assert tag not in events.Tags()["scalars"], tag
        continue
    found = [(event.step, np.float32(event.value)) for event in events.Scalars(tag)]
    assert found == wanted, (tag, found, wanted)
    n += 1
assert len(rows) > 3 and n > 15, (len(rows), n)
print(f"{n} figures of {len(rows)} evaluations, as in metrics.csv")
