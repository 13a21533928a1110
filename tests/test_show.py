"""What `Tape.show` prints."""

import numpy as np

from autodiff import Tape, Variable
from autodiff import functions as F


def test_show(capsys):
    x, w = Variable(np.ones((2, 3))), Variable(np.ones(3, np.float32))
    with Tape() as tape:
        F.sum(F.square(x * w * 2.0))
    tape.show()
    assert capsys.readouterr().out == (
        "step  function  arguments            result     bytes saved  saved\n"
        "   0  multiply  a (2, 3), b (3,)     #0 (2, 3)           60  y, x\n"
        "   1  multiply  #0 (2, 3), constant  #1 (2, 3)            0\n"
        "   2  square    #1 (2, 3)            #2 (2, 3)           48  x\n"
        "   3  sum       #2 (2, 3)            #3 ()                0\n"
        "4 steps keep 108 bytes in 3 arrays\n"
    )


def test_show_counts_shared_arrays_once(capsys):
    x = Variable(np.ones(5))
    with Tape() as tape:
        F.sum(F.square(x) + F.square(x) + F.concatenate([x, np.ones(0)])[:5])
    tape.show()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:5]] == ["square", "square", "add", "concatenate"]
    assert lines[-1] == "7 steps keep 40 bytes in 1 array"


def test_show_names_many_leaves(capsys):
    with Tape() as tape:
        total = Variable(0.0)
        for _ in range(30):
            total = total + Variable(1.0)
    tape.show()
    out = capsys.readouterr().out
    assert " z (), " not in out.split("\n")[1]
    assert "aa ()" in out


def test_empty(capsys):
    Tape().show()
    assert capsys.readouterr().out.splitlines()[-1] == "0 steps keep 0 bytes in 0 arrays"


def test_show_counts_arrays_among_the_parameters(capsys):
    with Tape() as tape:
        F.sum(F.where(np.array([True, False, True]), Variable(np.ones(3)), 0.0))
        Variable(np.ones(4))[np.array([0, 2])]
    tape.show()
    lines = capsys.readouterr().out.splitlines()
    index = np.array([0, 2]).nbytes
    assert lines[3].split()[1:] == ["getitem", "b", "(4,)", "#2", "(2,)", str(index), "index"]
    assert lines[-1] == f"3 steps keep {3 + index} bytes in 2 arrays"
