"""Several processes that train one network: the same as one process, and no hang when one of them is lost."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _rank_programs import (
    LABELS,
    QUICK,
    ROWS,
    accuracy,
    batches,
    losses,
    model,
    normalized,
    parameters,
    trainer,
)
from _ranks import PATIENCE, STANDIN, Ran, program, with_mpirun

from autodiff import Tape
from autodiff.data import Loader
from autodiff.train import Trainer

SIZES = pytest.mark.parametrize("ranks", [2, 4])
pytestmark = with_mpirun


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a program made, run once for all tests that look at it."""
    ran: dict[tuple[str, int], Ran] = {}

    def get(name: str, ranks: int) -> Ran:
        if (name, ranks) not in ran:
            ran[name, ranks] = program(name, ranks, tmp_path_factory.mktemp(f"{name}-{ranks}"))
        return ran[name, ranks]

    return get


def alone(epochs: int) -> Trainer:
    """The training of one process."""
    t = trainer()
    t.fit(batches(), epochs, evaluate=accuracy(), progress=False)
    return t


@SIZES
def test_the_curve_is_that_of_one_process(programs: Any, ranks: int) -> None:
    """Batches of 5 and 2 rows: shares are uneven, and with 4 ranks some are empty."""
    whole = alone(3)
    for own in programs("curves", ranks).results("curve"):
        np.testing.assert_allclose(own["losses"], losses(whole), rtol=1e-12)
        np.testing.assert_array_equal(own["scores"], [line["accuracy"] for line in whole.history])
        for name, array in whole.network.state_dict().items():
            np.testing.assert_allclose(own[name], array, rtol=1e-9, atol=1e-11, err_msg=name)


@SIZES
@pytest.mark.parametrize("name", ["curve", "went-on"])
def test_all_ranks_have_the_same_bits(programs: Any, ranks: int, name: str) -> None:
    first, *others = programs("curves", ranks).results(name)
    for other in others:
        assert all(other[key].tobytes() == first[key].tobytes() for key in first if key != "files")


@SIZES
def test_rank_0_writes_checkpoints_and_all_go_on_from_them(programs: Any, ranks: int) -> None:
    """Dropout too: the random numbers of each rank are in the file."""
    ran = programs("curves", ranks)
    went_on, resumed = ran.results("went-on"), ran.results("resumed")
    assert [int(each.pop("files")) for each in went_on] == [1] + [0] * (ranks - 1)
    for one, other in zip(went_on, resumed):
        other.pop("files")
        assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in other.items()}
    assert ran.told("missing") == [["FileNotFoundError", "FileError", 15]] * ranks  # and nothing has changed


def test_a_checkpoint_of_several_ranks_goes_on_in_one(programs: Any, tmp_path: Path) -> None:
    ran = programs("curves", 2)
    drawing = trainer(dropout=0.2)
    with pytest.raises(ValueError, match="trained by 2 ranks, of which each drew its own random numbers"):
        drawing.load(ran.folder / "of-0" / "after-1")
    assert drawing.epoch == 0


def test_a_checkpoint_goes_on_with_any_number_of_ranks(tmp_path: Path) -> None:
    """One, three and one again: the curve is that of one process."""
    whole, checkpoint = alone(3), tmp_path / "checkpoint"
    trainer().fit(batches(), 1, evaluate=accuracy(), checkpoint=checkpoint, progress=False)
    ran = program("counts", 3, tmp_path, EPOCH="2", CHECKPOINT=str(checkpoint))
    last = trainer(seed=9)
    last.load(checkpoint)
    last.fit(batches(), 3, evaluate=accuracy(), progress=False)
    for own in ran.results("after-2"):
        np.testing.assert_allclose(own["losses"], losses(whole)[:2], rtol=1e-12)
    np.testing.assert_allclose(losses(last), losses(whole), rtol=1e-12)
    for name, array in whole.network.state_dict().items():
        np.testing.assert_allclose(
            last.network.state_dict()[name], array, rtol=1e-9, atol=1e-11, err_msg=name
        )


def test_arrays_of_cupy_by_nccl(tmp_path: Path) -> None:
    """With the stand-in, whose NCCL is MPI: it too matches what ranks begin by its order."""
    ran = program("devices", 2, tmp_path, BACKEND="nccl", **STANDIN)
    whole = trainer(dynamic=False)
    whole.fit(batches(), 2, progress=False)
    for own in ran.results("order"):
        assert own["gathered"].tolist() == [[0, 1, 2], [1, 2, 3]]
        assert own["total"].tolist() == [3] * 4 and own["sent"].tolist() == [0, 1]
        assert own["empty"].shape == (2, 0, 2) and own["empty"].dtype == np.float32
    for own in ran.results("curve"):
        np.testing.assert_allclose(own["losses"], losses(whole), rtol=1e-12)
        for name, array in whole.network.state_dict().items():
            np.testing.assert_allclose(own[name], array, rtol=1e-9, atol=1e-11, err_msg=name)


@SIZES
def test_shares_of_a_loader_are_of_one_order(programs: Any, ranks: int) -> None:
    samples = [{"number": i} for i in range(len(ROWS))]
    (whole,) = (b[0] for b in Loader(samples, len(ROWS), fields=["number"])(np.random.default_rng(1)))
    for rank, own in enumerate(programs("curves", ranks).results("loader")):
        share = len(ROWS) // ranks
        assert own["numbers"].tolist() == whole[rank::ranks][:share].tolist()


@SIZES
@pytest.mark.parametrize(("name", "rows"), [("five", 5), ("one", 1), ("single", 5)])
@pytest.mark.parametrize("again", ["", "-again"])
def test_synchronized_batch_norm_is_that_of_the_whole_batch(
    programs: Any, ranks: int, name: str, rows: int, again: str
) -> None:
    """Outputs, first and second derivatives, running averages; with values far from 0, and in checkpoints."""
    dtype = np.float32 if name == "single" else np.float64
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((rows, 3, 4, 5)) + 100).astype(dtype)
    factor = rng.standard_normal(x.shape).astype(dtype)
    # What is compared with is of float64 always.
    whole = normalized(x.astype(np.float64), factor.astype(np.float64), again=bool(again))
    found = programs("statistics", ranks).results(name + again)
    error = 1e-11 if dtype == np.float64 else 1e-4
    for rank, own in enumerate(found):
        for part in ("y", "x"):
            np.testing.assert_allclose(own[part], whole[part][rank::ranks], error, error, err_msg=part)
        for part in ("mean", "variance"):
            np.testing.assert_allclose(own[part], whole[part], error, error, err_msg=part)
    for part in ("weight", "bias"):
        np.testing.assert_allclose(sum(own[part] for own in found), whole[part], error, error)


@SIZES
@pytest.mark.parametrize("bucket", [1, 100, 1 << 20])
@pytest.mark.parametrize("some", [True, False])
def test_gradients_are_those_of_all_rows(programs: Any, ranks: int, bucket: int, some: bool) -> None:
    """Also of a parameter on which the loss of rank 1 alone depends."""
    rows = np.random.default_rng(6).standard_normal((7, 3))
    wanted: dict[str, Any] = {}
    single = []
    for rank in range(ranks):
        share, p = rows[rank::ranks], parameters()
        p["half"].data, p["single"].data = (p[n].data.astype(np.float64) for n in ("half", "single"))
        with Tape() as tape:
            loss = model(p, share, some or rank == 1)
        for name, grad in tape.gradient(loss, p, unused="zero").items():
            wanted[name] = wanted.get(name, 0) + grad * len(share) / 7
        single.append(float(loss))
    for own in programs("gradients", ranks).results(f"bucket-{bucket}-{some}"):
        # 16-bit parameters make the losses differ from those of float64.
        np.testing.assert_allclose(own.pop("values"), single, rtol=1e-3)
        value = np.average(single, weights=[len(rows[rank::ranks]) for rank in range(ranks)])
        np.testing.assert_allclose(own.pop("value"), value, rtol=1e-3)
        dtypes = {"half": np.float16, "single": np.float32}
        assert {name: grad.dtype for name, grad in own.items()} == {
            name: np.dtype(dtypes.get(name, np.float64)) for name in own
        }
        assert set(own) == set(wanted) - {"idle"}
        for name, grad in own.items():
            error = {"half": 1e-3, "single": 1e-6}.get(name, 1e-13)
            np.testing.assert_allclose(grad, wanted[name], error, error, err_msg=name)


def test_refusals_come_on_all_ranks_at_once(programs: Any) -> None:
    first, second = programs("gradients", 2).told("refused")
    assert first == second
    patterns = [
        r"the loss of no rank depends on source 'idle'",
        r"^$",
        r"the weights of all ranks are 0",
        r"ranks differ: source 0: \(4,\) float64 numpy \(rank 0\); source 0: \(2,\) float64 numpy \(rank 1\)",
        r"ranks differ: the same in another order \(ranks 0, 1\)",
        r"ranks do not do the same: other \(rank 0\); one \(rank 1\)",
        r"broadcast of Linear: ranks differ: bias \(2,\) float32, weight \(2, 3\) float32 \(rank 0\)",
    ]
    assert len(first) == len(patterns)
    for message, pattern in zip(first, patterns):
        assert re.search(pattern, message), message


@SIZES
def test_a_loss_may_depend_on_nothing_on_some_rank(programs: Any, ranks: int) -> None:
    for own in programs("gradients", ranks).results("apart"):
        np.testing.assert_allclose(own["one"], (ranks - 1) / ranks)


@SIZES
def test_sums_and_what_is_gathered(programs: Any, ranks: int) -> None:
    ran = programs("gradients", ranks)
    for own in ran.results("sums"):
        total = sum(range(ranks))
        assert own["whole"].tolist() == [total, total + ranks, total + 2 * ranks]
        assert (int(own["number"]), int(own["first"])) == (total + ranks, 8)
    right = [{"rank": rank, "long": "x" * 1000 * rank} for rank in range(ranks)]
    assert ran.told("gathered") == [[right]] * ranks


def test_ranks_that_come_apart_are_named(programs: Any) -> None:
    for loss, parameter, exists in programs("apart", 2).told("apart"):
        assert re.search(r"the loss is nan at step 6 \(ranks: 0, 1\)", loss)
        assert re.search(r"layers\.0\.weight \w{8} \(rank 0\); layers\.0\.weight \w{8} \(rank 1\)", parameter)
        assert not exists
    assert len(programs("apart", 2).told("apart")) == 2


def lost(how: str, folder: Path, ranks: int = 2, *options: str, patience: float = 100) -> tuple[Ran, str]:
    """A program that loses rank 1, which must end, and what it said of this rank."""
    ran = program("lost", ranks, folder, *options, HOW=how, PATIENCE=str(patience))
    assert ran.code != 0 or options, ran.output  # a launcher that does not care says 0
    ((process,),) = ran.told("process")
    return ran, f"rank 1 of {ranks} ({os.uname().nodename}, process {process})"


@SIZES
@pytest.mark.parametrize("how", ["raised", "interrupted"])
def test_an_exception_on_one_rank_ends_all(tmp_path: Path, ranks: int, how: str) -> None:
    ran, name = lost(how, tmp_path, ranks)
    kind = {"raised": "KeyError", "interrupted": "KeyboardInterrupt"}[how]
    assert f"{name}: {kind} ends all ranks" in ran.output
    assert "Traceback" in ran.output


def test_a_rank_that_is_killed_ends_all(tmp_path: Path) -> None:
    """The launcher sees it, and ends the others, long before they would give up."""
    ran, _ = lost("killed", tmp_path, 4, patience=10 * PATIENCE)
    assert re.search(r"rank 1\b.* signal 9", ran.output), ran.output


def test_a_rank_that_is_killed_is_named_by_those_who_wait(tmp_path: Path) -> None:
    """With a launcher that does not care."""
    ran, name = lost("killed", tmp_path, 2, "--mca", "orte_enable_recovery", "1")
    assert f"RankError: {name} is dead; rank 0 of 2" in ran.output, ran.output


def test_a_rank_that_ends_early_is_named(tmp_path: Path) -> None:
    ran, name = lost("ended", tmp_path)
    assert f"RankError: {name} has ended; rank 0 of 2" in ran.output, ran.output


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    ran, name = lost("stopped", tmp_path, patience=QUICK)
    assert f"RankError: {name} did not come within 3 s; rank 0 of 2" in ran.output, ran.output


def test_a_rank_with_fewer_batches_is_named(tmp_path: Path) -> None:
    """It is at the end of an epoch while rank 0 waits for its statistics."""
    ran, _ = lost("fewer", tmp_path)
    assert re.search(
        r"RankError: rank \d of 2 .* is at something else, the end of an epoch; rank 0 of 2 .* waits for it: "
        r"statistics of 4 channels|RankError: rank 0 of 2 .* is at something else, statistics of 4 channels; "
        r"rank 1 of 2 .* waits for it: the end of an epoch",
        ran.output,
    ), ran.output


def test_labels_are_of_both_kinds() -> None:
    """Else the curve would be that of a constant."""
    assert 0 < LABELS.sum() < len(LABELS)
