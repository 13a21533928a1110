"""Random programs that differentiate, as small trees: from a seed, printed as Python, made smaller.

A program is a sequence of statements as a user would write them: leaves, tapes (nested, entered again, left
by an exception), gradients inside and after their blocks, derivatives of functions to depth 3, closures,
copies, layers, checkpoints, threads and tasks. It runs with the names of the library and with those of
`_forward_mode`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from _expressions import MATRIX, NUMBER, VECTOR, Expr, ExpressionMaker, Function, Shape

HEADER = """\
import asyncio, copy, pickle
import numpy as np

def within(tape, f):
    with tape:
        return f()

"""


@dataclass(frozen=True)
class Statement:
    """Lines with places for expressions, then an indented body if there is one, then more lines."""

    form: str
    parts: tuple[Expr, ...] = ()
    body: tuple["Statement", ...] | None = None
    tail: str = ""
    features: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        yield from self.form.format(*[part.text() for part in self.parts]).splitlines()
        for statement in self.body or ():
            yield from ("    " + line for line in statement.lines())
        if self.body == ():
            yield "    pass"
        yield from self.tail.splitlines()


Program = tuple[Statement, ...]
DERIVATIVES = {"grad", "value_and_grad", "vjp", "jvp", "hvp", "jacobian", "hessian"}


def source(program: Program) -> str:
    """The program as Python."""
    return "\n".join(line for statement in program for line in statement.lines()) + "\n"


def features(program: Any) -> set[str]:
    """What it uses, by the names that statements and expressions carry."""
    found: set[str] = set()
    for node in program:
        found.update(node.features, features(node.parts), features(getattr(node, "body", None) or ()))
    return found


class Maker(ExpressionMaker):
    """Makes one program of statements; `program` is the way in."""

    def program(self) -> Program:
        made = [self.leaf() for _ in range(self.random.randint(1, 3))]
        made += self.block(self.random.randint(3, 8), 0)
        made += self.last_gradient()
        return tuple(made)

    def name(self, letter: str, shape: Shape, sure: bool = True) -> Expr:
        """A new name, in scope from here on."""
        name = Expr(self.fresh(letter), (), shape, sure)
        self.names.append(name)
        return name

    def out(self, text: str) -> str:
        """A line that gives a value out, if it is no function: a checkpoint would run it twice."""
        return text if self.defining else f"out({text})"

    def block(self, length: int, level: int) -> list[Statement]:
        makers = [self.assign] * 4 + [self.tape] * (4 if level < 2 else 1) + [self.gradient] * 4
        makers += [
            self.copied,
            self.layer,
            self.data,
            self.threaded,
            self.loop,
            self.pullback,
            self.pullback,
            self.escape,
        ]
        makers += [self.reads, self.augmented]
        if level == 0:
            makers += [
                self.function,
                self.function,
                self.tasks,
                self.interrupted,
                self.released,
                self.released,
            ]
        made: list[Statement] = []
        while len(made) < length:
            made += self.random.choice(makers)(level)
        return made

    def leaf(self, level: int = 0) -> Statement:
        shape = self.random.choice((NUMBER, NUMBER, VECTOR, VECTOR, MATRIX))
        literal = self.literal(shape)
        leaf = self.name("w", shape)
        self.leaves.append(leaf)
        return Statement(f"{leaf.form} = Variable({literal})")

    def value(self) -> Expr:
        """An expression of some shape; where nothing records, mostly one that counts as computed outside."""
        return self.expr(self.random.choice((NUMBER, NUMBER, VECTOR)), self.random.randint(1, 4), 3)

    def outside(self, expr: Expr) -> tuple[str, ...]:
        if self.active or self.defining:
            return ()
        taken = ("derivative taken outside",) if features([expr]) & DERIVATIVES else ()
        return (*taken, "value computed outside") if expr.sure else taken

    def assign(self, level: int) -> list[Statement]:
        expr = self.value()
        name = self.name("v", expr.shape, expr.sure)
        return [Statement(f"{name.form} = {{0}}", (expr,), features=self.outside(expr))]

    def augmented(self, level: int) -> list[Statement]:
        expr = self.value()
        old = self.atom(expr.shape)
        name = self.name("v", expr.shape, expr.sure or old.sure)
        operator = self.random.choice(("+=", "*=", "-="))
        if not old.sure:  # an array of the program would change in place
            return [Statement(f"{name.form} = {{0}} + {{1}}", (old, expr))]
        return [
            Statement(
                f"{name.form} = {{0}}\n{name.form} {operator} {{1}}", (old, expr), features=("in-place",)
            )
        ]

    def tape(self, level: int) -> list[Statement]:
        again = [tape for tape in self.tapes if tape not in self.active or self.chance(0.2)]
        if again and self.chance(0.3):
            tape = self.random.choice(again)
            form, used = f"with {tape}:", ("tape entered again",)
        else:
            tape, check = self.fresh("t"), "check=False" if self.chance(0.2) else ""
            form, used = f"with Tape({check}) as {tape}:", ()
        if self.active and tape not in self.active:
            used += ("nested tapes",)
        held, self.active = self.active, [*self.active, tape]
        if tape not in self.tapes:
            self.tapes.append(tape)
        body = self.block(self.random.randint(1, 4), level + 1)
        self.active = held
        return [Statement(form, (), tuple(body), features=used)]

    def gradient(self, level: int) -> list[Statement]:
        targets = [name for name in self.names if name.sure and name not in self.leaves]
        sources = [name for name in self.names if name.sure]
        if not self.tapes or not targets or self.derivatives >= 6:
            return []
        self.derivatives += 1
        tape = self.random.choice(self.tapes)
        target = targets[-1 - min(int(self.random.expovariate(0.6)), len(targets) - 1)]
        # Sources from before the target, mostly leaves.
        sources = sources[: sources.index(target) + 1]
        count = self.random.choice((1, 1, 1, 2, 3))
        leaves = [s for s in sources if s in self.leaves]
        chosen = [
            self.random.choice(leaves if leaves and self.chance(0.7) else sources) for _ in range(count)
        ]
        if (
            self.active
        ):  # what is named twice has one gradient, of which nothing says whether it is one Variable
            chosen = list(dict.fromkeys(chosen))
            count = len(chosen)
        used = ("gradient in the block",) if tape in self.active else ("gradient after the block",)
        used += () if all(c in self.leaves for c in chosen) else ("source is a result",)
        options = ""
        if target.shape != NUMBER or self.chance(0.2):
            options += f", grad={self.seed(target.shape).text()}"
        if self.chance(0.5 if tape in self.active else 0.35):
            options += ", keep=True"
            used = (used[0] + ", keep", *used[1:])
        if self.chance(0.1):
            form = self.out(f"{tape}.gradient({target.text()}, {chosen[0].text()}{options}, unused='none')")
            return [Statement(form, features=(*used, "unused none"))]
        if self.chance(0.8):
            options += ", unused='zero'"
            used += ("unused zero",)
        names = [self.name("g", c.shape, bool(self.active)).form for c in chosen]
        texts = [c.text() for c in chosen]
        if count == 1 and self.chance(0.8):
            form = f"{names[0]} = {tape}.gradient({target.text()}, {texts[0]}{options})"
        elif self.chance(0.3):
            pairs = ", ".join(f"'{name}': {text}" for name, text in zip(names, texts))
            form = (
                f"{', '.join(names)}, = {tape}.gradient({target.text()}, {{{{{pairs}}}}}{options}).values()"
            )
        else:
            form = f"{', '.join(names)}, = {tape}.gradient({target.text()}, [{', '.join(texts)}]{options})"
        return [Statement(form, features=used), *(Statement(self.out(name)) for name in names)]

    def last_gradient(self) -> list[Statement]:
        """Whatever came before, something is asked of the last value."""
        made = []
        if not self.tapes or self.chance(0.3):
            made = self.tape(2)
        target = next((name for name in reversed(self.names) if name.sure and name.shape == NUMBER), None)
        leaf = self.random.choice(self.leaves)
        if target is None:
            return made
        options = ", unused='zero'" if self.chance(0.7) else ""
        tape = self.random.choice(self.tapes)
        return [*made, Statement(f"out({tape}.gradient({target.form}, {leaf.form}{options}))")]

    def copied(self, level: int) -> list[Statement]:
        sure = [name for name in self.names if name.sure]
        of = self.random.choice(sure if self.chance(0.1) else self.leaves)
        kind = self.random.choice(("copy.deepcopy({})", "copy.copy({})", "pickle.loads(pickle.dumps({}))"))
        leaf = self.name("c", of.shape)
        self.leaves.append(leaf)
        used = kind.split("(")[0].replace("copy.", "").replace("pickle.loads", "pickle")
        return [Statement(f"{leaf.form} = {kind.format(of.form)}", features=(used,))]

    def layer(self, level: int) -> list[Statement]:
        layer, used = self.fresh("n"), ("layer",)
        text = f"Dense({self.literal(VECTOR)}, {self.literal(VECTOR)})"
        if self.layers and self.chance(0.7):
            form = self.random.choice(("copy.deepcopy({})", "pickle.loads(pickle.dumps({}))"))
            text, used = form.format(self.random.choice(self.layers)), ("layer copy",)
        self.layers.append(layer)
        for part in ("weight", "bias"):
            self.names.append(Expr(f"{layer}.{part}", (), VECTOR))
            self.leaves.append(self.names[-1])
        return [Statement(f"{layer} = {text}", features=used)]

    def data(self, level: int) -> list[Statement]:
        if not self.chance(0.5):
            return []
        leaf = self.random.choice(self.leaves)
        change = Statement(f"{leaf.form}.data = {leaf.form}.data * 0.9 + 0.05", features=("data changed",))
        tape = next((tape for tape in self.active if tape in self.tapes), None)
        if tape is None or leaf.shape == MATRIX or not self.chance(0.5):
            return [change]
        # What a checkpoint used is no more what it was.
        form = f"checkpoint(lambda a: a * {leaf.form})({{0}})"
        name = self.name("v", leaf.shape).form
        value = Statement(f"{name} = {{0}}", (Expr(form, (leaf,), leaf.shape),), features=("checkpoint",))
        return [value, change, Statement(self.out(f"{tape}.gradient(F.sum(1.0 * {name}), {leaf.form})"))]

    def threaded(self, level: int) -> list[Statement]:
        held, tape = self.active, self.random.choice([*self.active, *self.tapes, None])
        self.active = [tape] if tape else []
        expr = self.value()
        taken, self.active = features([expr]) & DERIVATIVES, held
        if tape is None:
            used = ("thread without the tape",)
            used += ("derivative in a thread without the tape",) if taken else ()
            form = self.random.choice(
                ("pool.submit(lambda: {0}).result()", "sum(pool.map(lambda c: c * {0}, [0.5, 1.0]))")
            )
        else:
            used = ("thread within the tape",)
            form = f"pool.submit(within, {tape}, lambda: {{0}}).result()"
            if self.chance(0.4):
                form = f"sum(pool.map(lambda c: within({tape}, lambda: c * {{0}}), [0.5, 1.0]))"
                used += self.outside(expr)
        name = self.name("v", expr.shape, expr.sure)
        return [Statement(f"{name.form} = {form}", (expr,), features=used)]

    def loop(self, level: int) -> list[Statement]:
        shape = self.random.choice((NUMBER, VECTOR))
        start = self.atom(shape)
        name = self.name("v", shape, start.sure)
        step = self.expr(shape, 2, 1)
        self.names.remove(name)
        name = replace(name, sure=start.sure and step.sure)
        self.names.append(name)
        head = f"{name.form} = {{0}}\nfor _ in range({self.random.randint(2, 3)}):"
        form = f"{head}\n    {name.form} = F.tanh({{1}})"
        return [Statement(form, (start, step), features=("loop",))]

    def pullback(self, level: int) -> list[Statement]:
        if self.derivatives >= 5:
            return []
        argument, result = self.random.choice((NUMBER, VECTOR)), self.random.choice((NUMBER, VECTOR))
        body, names = self.body(result, (argument,), 3, 2, ["the derivative"])
        given = self.expr(argument, 1, 0)
        value, pull = self.name("v", result, bool(self.active)), self.fresh("p")
        self.pulls.append((pull, result, argument))
        return [
            Statement(
                f"{value.form}, {pull} = vjp(lambda {names}: {{0}}, {{1}})", (body, given), features=("vjp",)
            )
        ]

    def escape(self, level: int) -> list[Statement]:
        """The argument of a function that is differentiated is used outside of it, too."""
        if self.derivatives >= 5 or not self.chance(0.5):
            return []
        self.derivatives += 1
        body, names = self.body(NUMBER, (NUMBER,), 2, 1, ["the derivative"])
        given, box = self.expr(NUMBER, 1, 0), self.fresh("b")
        slope = self.out(f"grad(lambda {names}: {box}.append({names} * 0.7) or {{0}})({{1}})")
        self.names.append(Expr(f"{box}[0]"))
        form = f"{box} = []\n{slope}"
        return [Statement(form, (body, given), features=("argument that escapes",))]

    def reads(self, level: int) -> list[Statement]:
        name = self.atom(NUMBER)
        if not name.sure:
            return []
        text = self.random.choice(
            ("{0}.item()", "float(format({0}, '.17g'))", "(str({0}) > '', float(bool({0} > 0)))[1]")
        )
        return [Statement(self.out(text), (name,), features=("reads",))]

    def function(self, level: int) -> list[Statement]:
        """A function of one argument, with statements of its own, and a default that it captures."""
        held = (
            list(self.names),
            list(self.leaves),
            list(self.tapes),
            self.active,
            list(self.layers),
            list(self.pulls),
        )
        argument, result = self.random.choice((NUMBER, VECTOR)), self.random.choice((NUMBER, NUMBER, VECTOR))
        name, start = self.fresh("f"), self.derivatives
        self.active, self.defining = [], True
        given = self.name("a", argument, sure=False)
        default = self.random.choice(self.leaves)
        captured = self.name("d", default.shape)
        self.tapes = self.tapes[:0] if self.chance(0.7) else self.tapes
        body = self.block(self.random.randint(1, 3), 1)
        inner = self.expr(result, 2, 1)
        last = Expr(
            "({0} * F.sin({1}))" if argument == result else "({0} * F.sum({1}))", (inner, given), result
        )
        if argument == NUMBER and result == VECTOR:
            last = Expr("({0} * {1})", (inner, given), result)
        self.names, self.leaves, self.tapes, self.active, self.layers, self.pulls = held
        self.defining = False
        depth = 2 if self.derivatives > start else 0
        self.functions.append(Function(name, argument, result, depth))
        lines = (*body, Statement("return {0}", (last,)))
        head = f"def {name}({given.form}, {captured.form}={default.form}):"
        return [Statement(head, (), lines, features=("function",))]

    def tasks(self, level: int) -> list[Statement]:
        """Two tasks of an event loop; they inherit what records, and one may have a tape of its own."""
        one, two = self.value(), self.value()
        first, second, loop = self.fresh("j"), self.fresh("j"), self.fresh("j")
        tape, names = self.fresh("t"), []
        for expr in (one, two):
            names.append(self.name("v", expr.shape, expr.sure).form)
        form = f"""\
async def {first}():
    await asyncio.sleep(0)
    with Tape() as {tape}:
        await asyncio.sleep(0)
        return {{0}}
async def {second}():
    await asyncio.sleep(0)
    return {{1}}
async def {loop}():
    return await asyncio.gather({first}(), {second}())
{", ".join(names)} = asyncio.run({loop}())"""
        return [Statement(form, (one, two), features=("asyncio",))]

    def interrupted(self, level: int) -> list[Statement]:
        """A block that an exception leaves: what was computed stays computed."""
        if self.chance(0.3):
            call = self.random.choice(
                ("grad({})(0.3)", "vjp({}, 0.3)", "checkpoint({})(0.3)", "pool.submit({}).result()")
            )
            call = call.format("lambda a=0.3: {0} * missing")
            return [
                Statement(
                    f"try:\n    {call}\nexcept NameError:\n    pass", (self.value(),), features=("exception",)
                )
            ]
        tape = self.fresh("t")
        held, self.active = self.active, [*self.active, tape]
        self.tapes.append(tape)
        body = self.block(self.random.randint(1, 3), 2)
        self.active = held
        block = Statement(f"with Tape() as {tape}:", (), (*body, Statement("raise KeyError")))
        return [Statement("try:", (), (block,), "except KeyError:\n    pass", features=("exception",))]

    def released(self, level: int) -> list[Statement]:
        if not self.tapes or not self.chance(0.6):
            return []
        return [Statement(f"{self.random.choice(self.tapes)}.release()", features=("release",))]


def make(seed: int) -> Program:
    """The program of a seed."""
    return Maker(seed).program()


def smaller(program: Program) -> Iterator[Program]:
    """Programs with one thing less: a statement, a block around statements, a part of an expression."""
    for i, statement in enumerate(program):
        before, after = program[:i], program[i + 1 :]
        yield before + after
        if statement.body:
            yield before + statement.body + after
            for body in smaller(statement.body):
                yield (*before, replace(statement, body=body), *after)
        for parts in smaller_parts(statement.parts):
            yield (*before, replace(statement, parts=parts), *after)


def smaller_parts(parts: tuple[Expr, ...]) -> Iterator[tuple[Expr, ...]]:
    for i, part in enumerate(parts):
        for less in smaller_expr(part):
            yield (*parts[:i], less, *parts[i + 1 :])


def smaller_expr(expr: Expr) -> Iterator[Expr]:
    yield from (part for part in expr.parts if part.shape == expr.shape)
    for parts in smaller_parts(expr.parts):
        yield replace(expr, parts=parts)


def shrunk(program: Program, fails: Any) -> Program:
    """A program that still fails, from which nothing more can be taken."""
    for _ in range(300):
        program_with_less = next((p for p in smaller(program) if fails(p)), None)
        if program_with_less is None:
            break
        program = program_with_less
    return program
