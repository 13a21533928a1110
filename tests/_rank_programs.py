"""What tests run on several ranks: ``mpirun -n 2 python tests/_rank_programs.py NAME``.

Each function notes down what it found, in the current folder; the tests look at it. What one process makes of
the same is made by the tests, with the functions above the programs.
"""

import json
import os
import signal
import sys
import warnings
from typing import Any

import numpy as np

from autodiff import Tape, Variable, checkpoint, distributed
from autodiff import functions as F
from autodiff.data import Loader
from autodiff.layers import DDF, BatchNorm2d, Conv2d, Dropout, Flatten, Linear, ReLU, Sequential
from autodiff.optim import SGD, cosine_schedule
from autodiff.train import Trainer, minibatches

ROWS = np.random.default_rng(0).standard_normal((22, 2, 6, 6))
LABELS = (ROWS.mean((1, 2, 3)) > 0).astype(np.int64)
SIZE = 5  # the last of the batches has two rows: with 4 ranks two of these have none
QUICK = 3.0  # seconds of patience, for programs in which some rank never comes


def note(name: str, **arrays: Any) -> None:
    """Leave arrays for the test."""
    np.savez(f"{name}-{RANK}.npz", **arrays)


def tell(name: str, *words: Any) -> None:
    """Leave words for the test."""
    with open(f"{name}-{RANK}.json", "w") as file:
        json.dump(words, file)


# What one process does, and several do in parts.


def network(seed: int = 0, dropout: float = 0.0, dynamic: bool = True) -> Sequential:
    """A small one in which everything occurs."""
    rng = np.random.default_rng(seed)
    return Sequential(
        Conv2d(2, 4, 3, rng=rng, dtype=np.float64),
        BatchNorm2d(4, dtype=np.float64),
        ReLU(),
        *([DDF(4, 3, rng=rng, dtype=np.float64)] if dynamic else []),
        *([Dropout(dropout, rng=[7, RANK])] if dropout else []),
        Flatten(),
        Linear(144, 2, rng=rng, dtype=np.float64),
    )


def cross_entropy(net: Any, x: Any, labels: Any) -> Any:
    """The loss."""
    return F.cross_entropy(net(x), labels)


def trainer(
    comm: Any = None, seed: int = 0, dropout: float = 0.0, dynamic: bool = True, device: str = "cpu"
) -> Trainer:
    """One that is ready; the others begin with what rank 0 has."""
    net = network(seed, dropout, dynamic).to_device(device)
    if comm is not None:
        distributed.synchronize_batch_norm(net, comm)
    optimizer = SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    schedule = cosine_schedule(0.05, 15)
    return Trainer(net, optimizer, cross_entropy, schedule=schedule, max_norm=2.0, seed=3, communicator=comm)


def batches(comm: Any = None, put: Any = np.asarray) -> Any:
    """Of each batch this rank's share."""
    shares = {} if comm is None else {"rank": comm.rank, "ranks": comm.size}
    return minibatches(SIZE, put(ROWS), put(LABELS), **shares)


def accuracy(comm: Any = None) -> Any:
    """Of all rows, of which each rank looks at its own."""

    def evaluate(net: Any) -> dict[str, float]:
        rows = slice(None) if comm is None else distributed.shard(len(ROWS), comm)
        right = int((net(ROWS[rows]).data.argmax(1) == LABELS[rows]).sum())
        return {"accuracy": (right if comm is None else comm.sum(right)) / len(ROWS)}

    return evaluate


def losses(t: Trainer) -> list[float]:
    """The curve."""
    return [line["loss"] for line in t.history]


def normalized(
    x: np.ndarray, factor: np.ndarray, comm: Any = None, whole: int = 0, again: bool = False
) -> dict[str, Any]:
    """Two batch normalisations in a row, in training: outputs, gradients, and gradients of a penalty."""
    dtype = x.dtype
    first, second = (BatchNorm2d(x.shape[1], dtype=dtype) for _ in range(2))
    first.weight.data[:] = np.linspace(0.5, 2, x.shape[1])
    if comm is not None:
        distributed.synchronize_batch_norm(Sequential(first, second), comm)
    source = Variable(x)

    def both(v: Any) -> Any:
        return second(F.tanh(first(v)))

    with Tape() as tape:
        y = checkpoint(both)(source) if again else both(source)
        loss = F.sum(y * factor) / (whole or len(x))
        if not again:
            inner = tape.gradient(loss, source)  # of this rank's loss alone, by its own x
            penalty = F.sum(F.square(inner)) + loss
    sources = {"x": source, "weight": first.weight, "bias": second.bias}
    found = tape.gradient(loss if again else penalty, sources)
    return {"y": y.data, **found, "mean": first.running_mean, "variance": second.running_variance}


# Programs.


def curves(comm: Any) -> None:
    """The same training as that of one process; its checkpoints; who wrote them."""
    t = trainer(comm, seed=comm.rank)  # only rank 0 has the weights that count
    t.fit(batches(comm), 3, evaluate=accuracy(comm), progress=False)
    scores = [line["accuracy"] for line in t.history]
    note("curve", losses=losses(t), scores=scores, **t.network.state_dict())

    first = trainer(comm, dropout=0.2)
    folder = f"of-{comm.rank}"
    os.mkdir(folder)
    first.fit(batches(comm), 1, checkpoint=f"{folder}/run", every=2, progress=False)
    os.rename(f"{folder}/run", f"{folder}/after-1") if comm.rank == 0 else None
    first.fit(batches(comm), 3, progress=False)
    second = trainer(comm, seed=5 + comm.rank, dropout=0.2)
    for generator in second.network.generators().values():
        generator.random(comm.rank + 1)
    second.load(f"{folder}/after-1")
    second.fit(batches(comm), 3, progress=False)
    for name, each in (("went-on", first), ("resumed", second)):
        note(name, losses=losses(each), files=len(os.listdir(folder)), **each.network.state_dict())
    told = []
    with open(f"{folder}/bad", "w") as file:
        file.write("no checkpoint")
    for path in ("nowhere", f"{folder}/bad"):
        try:
            second.load(path)
        except (OSError, ValueError) as error:
            told.append(type(error).__name__)
    tell("missing", *told, second.step)
    sampled = Loader([{"image": row, "number": i} for i, row in enumerate(ROWS)], 2, fields=["number"],
                     rank=comm.rank, ranks=comm.size)  # fmt: skip
    note("loader", numbers=np.concatenate([b[0] for b in sampled(np.random.default_rng(1))]))


def statistics(comm: Any) -> None:
    """Synchronised batch normalisation, on shares of 5 rows, or of 1 for all ranks but one."""
    for name, rows, dtype in (("five", 5, np.float64), ("one", 1, np.float64), ("single", 5, np.float32)):
        rng = np.random.default_rng(4)
        x = (rng.standard_normal((rows, 3, 4, 5)) + 100).astype(dtype)
        factor = rng.standard_normal(x.shape).astype(dtype)
        own = distributed.shard(rows, comm)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an empty share gives none
            note(name, **normalized(x[own], factor[own], comm, rows))
            note(f"{name}-again", **normalized(x[own], factor[own], comm, rows, again=True))


def parameters() -> dict[str, Variable]:
    """Of several dtypes and sizes, 16 bits among them."""
    rng = np.random.default_rng(2)
    shapes = {"a": (3, 4), "b": (4,), "c": (4, 2), "d": (2,), "e": ()}
    made = {name: Variable(rng.standard_normal(shape)) for name, shape in shapes.items()}
    made["half"] = Variable(rng.standard_normal(3).astype(np.float16))
    made["single"] = Variable(rng.standard_normal(2).astype(np.float32))
    made["idle"] = Variable(np.ones(2))
    return made


def model(p: dict[str, Variable], x: Any, some: bool) -> Any:
    """A loss on which not all parameters have an influence: on `d` only if it is told to."""
    hidden = F.tanh(x @ p["a"] + p["b"]) @ p["c"]
    hidden = hidden + p["d"] if some else hidden
    extra = F.sum(p["half"] * 0.3).astype(np.float64) + F.sum(F.square(p["single"])).astype(np.float64)
    return F.mean(F.square(hidden)) + p["e"] ** 2 + extra


def gradients(comm: Any) -> None:
    """Buckets of all sizes; parameters that some ranks use, and that none does; refusals on all ranks."""
    rows = np.random.default_rng(6).standard_normal((7, 3))
    x = rows[distributed.shard(7, comm)]
    for bucket in (1, 100, 1 << 20):
        for some in (True, False):
            p = parameters()
            with Tape() as tape:
                loss = model(p, x, some or comm.rank == 1)
            found = distributed.value_and_gradient(
                tape, loss, p, comm, weight=len(x), unused="none", bucket=bucket
            )
            assert found.gradients.pop("idle") is None
            note(f"bucket-{bucket}-{some}", value=found.value, values=found.values, **found.gradients)
    told = []

    def refused(**options: Any) -> None:
        p = parameters()
        with Tape() as tape:
            loss = model(p, x, True)
        sources = options.pop("sources", lambda p: p)(p)
        try:
            distributed.value_and_gradient(tape, loss, sources, comm, **options)
            told.append("")
        except (ValueError, RuntimeError) as error:
            told.append(f"{type(error).__name__}: {error}")

    refused()
    refused(unused="zero")
    with Tape() as tape:  # on rank 0 the loss depends on nothing
        source = Variable(np.ones(2))
        loss = F.sum(source) if comm.rank else F.sum(Variable(np.ones(1)))
    (one,) = distributed.value_and_gradient(tape, loss, [source], comm).gradients
    note("apart", one=one)
    refused(weight=0)
    refused(sources=lambda p: p["d"] if comm.rank else p["b"], unused="zero")
    refused(sources=lambda p: dict(reversed(p.items())) if comm.rank else p, unused="zero")
    try:
        comm.meet("one" if comm.rank else "other")
    except RuntimeError as error:
        told.append(str(error))
    try:
        distributed.broadcast(Linear(3, 2 + comm.rank, rng=0), comm)
    except ValueError as error:
        told.append(str(error))
    tell("refused", *told)
    note("sums", whole=comm.sum(np.arange(3.0) + comm.rank), number=comm.sum(comm.rank + 1),
         first=comm.first(comm.rank + 8))  # fmt: skip
    tell("gathered", comm.gather({"rank": comm.rank, "long": "x" * 1000 * comm.rank}))


def devices(comm: Any) -> None:
    """CuPy's arrays, with the stand-in: a training, and things that ranks begin in another order."""
    import cupy

    own, total = cupy.arange(3.0) + comm.rank, cupy.ones(4) * (comm.rank + 1)
    if comm.rank:
        gathered, started = comm.all_gather(own), comm.start_sum(total)
    else:  # as the backward pass of another loss might
        started, gathered = comm.start_sum(total), comm.all_gather(own)
    started.wait()
    sent = cupy.arange(2.0) * comm.rank
    comm.send(sent, 1)
    empty = comm.all_gather(cupy.empty((0, 2), np.float32))
    note("order", gathered=gathered.get(), total=total.get(), sent=sent.get(), empty=empty.get())
    t = trainer(comm, seed=comm.rank, dynamic=False, device="cuda")
    t.fit(batches(comm, cupy.asarray), 2, progress=False)
    t.save("of-devices")
    note("curve", losses=losses(t), **{name: a.get() for name, a in t.network.state_dict().items()})


def counts(comm: Any) -> None:
    """A training that other numbers of ranks go on with, each for an epoch."""
    epoch, path = int(os.environ["EPOCH"]), os.environ["CHECKPOINT"]
    t = trainer(comm, seed=5 + comm.rank)
    if epoch > 1:
        t.load(path)
    t.fit(batches(comm), epoch, checkpoint=path, progress=False)
    note(f"after-{epoch}", losses=losses(t), **t.network.state_dict())


def lost(comm: Any) -> None:
    """Training that never ends by itself; rank 1 does what the variable says, after a few steps."""
    how, steps = os.environ["HOW"], iter(range(10**9))
    if comm.rank == 1:
        tell("process", os.getpid())

    def draw(rng: np.random.Generator) -> Any:
        for batch in batches(comm)(rng):
            if next(steps) >= 7 and comm.rank == 1:
                harm(how)
                if how == "fewer":
                    return
            yield batch

    try:
        trainer(comm).fit(draw, 10**6, progress=False)
    except BaseException as error:
        tell("error", type(error).__name__, str(error))
        raise


def harm(how: str) -> None:
    """What may befall a rank."""
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "interrupted":
        signal.raise_signal(signal.SIGINT)
    if how == "ended":
        sys.exit(0)
    if how == "raised":
        raise KeyError("of rank 1")


def apart(comm: Any) -> None:
    """A rank that changes its parameters alone, and one whose loss is not finite."""
    t = trainer(comm)
    t.fit(batches(comm), 1, progress=False)
    t.network.layers[0].weight.data[0, 0, 0, 0] += 1e-9 * comm.rank
    told = []
    try:
        t.fit(lambda rng: odd(comm, rng), 2, progress=False)
    except FloatingPointError as error:
        told.append(str(error))
    t.network.layers[0].weight.data[0, 0, 0, 0] += 1e-9 * comm.rank
    try:
        t.save("never")
    except ValueError as error:
        told.append(str(error))
    tell("apart", *told, os.path.exists("never"))


def odd(comm: Any, rng: np.random.Generator) -> Any:
    """Batches, the second of which has no finite values on rank 1."""
    for number, (x, labels) in enumerate(batches(comm)(rng)):
        yield (np.full_like(x, np.inf) if number == 1 and comm.rank == 1 else x), labels


RANK = 0
if __name__ == "__main__":
    PATIENCE = float(os.environ.get("PATIENCE", "120"))
    COMM = distributed.communicator(os.environ.get("BACKEND", "mpi"), patience=PATIENCE)
    RANK = COMM.rank
    globals()[sys.argv[1]](COMM)
