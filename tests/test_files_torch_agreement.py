"""Where PyTorch is installed: what it writes is read as it reads it."""

import numpy as np
import pytest

from autodiff import files

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: bench)")

FORMS = [{"_use_new_zipfile_serialization": True}, {"_use_new_zipfile_serialization": False}]
DTYPES = [
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
    *("complex128", "complex64", "uint16", "uint32", "uint64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
]


def through(tmp_path, value, form):
    torch.save(value, tmp_path / "a.pth", **form)
    return files.load_torch(tmp_path / "a.pth")


def check_same(array, expected):
    """The same dtype, shape and bits."""
    assert array.dtype.name == str(expected.dtype).removeprefix("torch.")
    assert array.shape == tuple(expected.shape)
    whole = expected.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    bits = whole.view(torch.uint8).numpy() if whole.numel() else np.empty(0, np.uint8)
    np.testing.assert_array_equal(np.ascontiguousarray(array).reshape(-1).view(np.uint8), bits)


@pytest.mark.parametrize("form", FORMS, ids=["zip", "legacy"])
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype(tmp_path, name, form):
    bits = torch.randint(0, 120, (6, 4 * 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = (bits % 2 == 1) if name == "bool" else bits.view(getattr(torch, name))
    views = {
        "whole": x,
        "transposed": x.T,
        "rows": x[1:4],
        "columns": x[:, 1::2],
        "expanded": x[:1].expand(5, -1),
        "number": x[2, 1],
        "empty": x[:0],
    }
    for key, array in through(tmp_path, views, form).items():
        check_same(array, views[key])


@pytest.mark.parametrize("form", FORMS, ids=["zip", "legacy"])
def test_the_state_of_a_network_and_of_its_optimiser(tmp_path, form):
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(2, 2).half()
    )
    optimizer = torch.optim.Adam(network.parameters())
    network[0](torch.ones(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    value = {
        "state_dict": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameters": list(network.parameters()),
        "epoch": 3,
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
    }
    found = through(tmp_path, value, form)
    assert list(found["state_dict"]) == list(network.state_dict())
    for name, tensor in network.state_dict().items():
        check_same(found["state_dict"][name], tensor)
    for array, tensor in zip(found["parameters"], network.parameters()):
        check_same(array, tensor)
    groups = optimizer.state_dict()["param_groups"]
    assert found["optimizer"]["param_groups"] == groups
    check_same(found["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert (found["epoch"], found["size"], found["dtype"], found["device"]) == (3, (2, 3), np.float16, "cpu")


@pytest.mark.parametrize("form", FORMS, ids=["zip", "legacy"])
def test_views_that_are_conjugated_negated_shared_or_have_attributes(tmp_path, form):
    x = torch.tensor([1 + 2j, 3 - 4j])
    with_tag = torch.ones(2)
    with_tag.tag = "mine"
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.tag = "mine"
    value = {"conj": x.conj(), "shared": x, "tag": with_tag, "parameter": parameter}
    found = through(tmp_path, value, form)
    for name in value:
        check_same(found[name], value[name])
    found = through(tmp_path, x.conj().imag, form)
    check_same(found, x.conj().imag)
    found = through(tmp_path, x.untyped_storage(), form)
    assert found.view(np.complex64).tolist() == [1 + 2j, 3 - 4j]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("form", FORMS, ids=["zip", "legacy"])
def test_every_protocol(tmp_path, form, protocol):
    value = {"w": torch.arange(6.0).reshape(2, 3), "epochs": {1, 2}, "name": b"\xff"}
    found = through(tmp_path, value, {**form, "pickle_protocol": protocol})
    check_same(found.pop("w"), value.pop("w"))
    assert found == value


@pytest.mark.parametrize("form", FORMS, ids=["zip", "legacy"])
def test_what_is_refused(tmp_path, form):
    dense = torch.eye(3)
    cases = {
        "a sparse tensor": dense.to_sparse(),
        "a sparse tensor: ": dense.to_sparse_csr(),
        "a quantised tensor": torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8),
        "a nested tensor": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "which has no values": torch.ones(2, device="meta"),
        "complex32": torch.zeros(2, dtype=torch.complex32),
        "torch.nn.modules.linear.Linear": torch.nn.Linear(2, 2),
    }
    for message, value in cases.items():
        torch.save(value, tmp_path / "a.pth", **form)
        with pytest.raises(files.FileError, match=message):
            files.load_torch(tmp_path / "a.pth")


def test_a_program_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(files.FileError, match="is a TorchScript program"):
        files.load_torch(tmp_path / "a.pt")
