"""Random expressions of the programs in `_programs`: functions, derivatives to a given depth, closures."""

import random
from dataclasses import dataclass
from typing import NamedTuple

NUMBER, VECTOR, MATRIX = (), (2,), (2, 2)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Expr:
    """An expression: a text with places for its parts; `sure` if it is a Variable wherever it stands."""

    form: str
    parts: tuple["Expr", ...] = ()
    shape: Shape = NUMBER
    sure: bool = True
    features: tuple[str, ...] = ()

    def text(self) -> str:
        return self.form.format(*[part.text() for part in self.parts])


class Function(NamedTuple):
    """A function that the program defines: shapes of its argument and result, its depth of derivatives."""

    name: str
    argument: Shape
    result: Shape
    depth: int


FLOORED = "F.astype(F.astype({0}, np.int64), np.float64)"
UNARY = (
    "F.sin({0})", "F.cos({0})", "F.tanh({0})", "F.sigmoid({0})", "F.exp(-F.square({0}))", "(-{0})",
    "F.sqrt(1 + F.square({0}))", "({0} ** 2)", "F.square({0})", "abs({0})", "F.clip({0}, -0.5, 1.1)",
    "(0.5 * {0})", "(1.1 - {0})", "F.log(2 + F.cos({0}))", "({0} / 1.7)", "(1 / (2 + F.sin({0})))", FLOORED,
    "np.sin({0})", "np.square({0})", "np.abs({0})", "(1.3 ** {0})", "(np.float64(0.7) * {0})",
)  # fmt: skip
BINARY = (
    "({0} + {1})", "({0} - {1})", "({0} * {1})", "({0} * {1})", "({0} / (2 + F.cos({1})))",
    "F.maximum({0}, {1})", "F.minimum({0}, {1})", "F.where({1} > 0.4, {0}, 0.1)",
    "np.multiply({0}, {1})", "np.maximum({0}, {1})", "(({1} > 0.4) * {0})",
)  # fmt: skip
# Shape of the result, shapes of the parts, text.
SHAPED = (
    (NUMBER, (VECTOR,), "np.sum({0})"), (NUMBER, (VECTOR,), "{0}[1]"), (NUMBER, (VECTOR,), "F.mean({0})"),
    (NUMBER, (VECTOR,), "F.max({0})"), (NUMBER, (MATRIX,), "F.sum({0})"), (NUMBER, (VECTOR,), "sum({0})"),
    (NUMBER, (VECTOR, VECTOR), "({0} @ {1})"), (NUMBER, (NUMBER, NUMBER), "sum([{0}, {1}])"),
    (VECTOR, (VECTOR,), "{0}[::-1]"), (VECTOR, (VECTOR,), "{0}[np.array([1, 0])]"),
    (VECTOR, (NUMBER, NUMBER), "F.stack([{0}, {1}])"), (VECTOR, (MATRIX,), "F.sum({0}, 0)"),
    (VECTOR, (VECTOR, VECTOR), "F.concatenate([{0}[1:], {1}[:1]])"), (VECTOR, (MATRIX,), "{0}[:, 1]"),
    (VECTOR, (VECTOR,), "F.where(np.array([True, False]), {0}, 0.3)"),
    (VECTOR, (MATRIX, VECTOR), "({0} @ {1})"),
    (MATRIX, (VECTOR, VECTOR), "(F.reshape({0}, (2, 1)) * {1})"), (MATRIX, (MATRIX,), "F.transpose({0})"),
    (MATRIX, (VECTOR, VECTOR), "F.stack([{0}, {1}])"), (MATRIX, (MATRIX, MATRIX), "(0.5 * {0} @ {1})"),
)  # fmt: skip


class Derivative(NamedTuple):
    """Its name, the shapes of arguments, body, seed (if any) and result, and the text."""

    name: str
    arguments: tuple[Shape, ...]
    body: Shape
    seed: Shape | None
    result: Shape
    form: str


def derivatives(s: Shape) -> list[Derivative]:
    """Derivatives with results of shape s among them."""
    n, v, m = NUMBER, VECTOR, MATRIX
    both = "(lambda r: r[0] * r[1])(value_and_grad(lambda NAMES: {0})({1}))"
    return [
        Derivative("grad", (s,), n, None, s, "grad(lambda NAMES: {0})({1})"),
        Derivative("grad", (s, n), n, None, s, "grad(lambda NAMES: {0}, (0, 1, 0))({1}, {2})[0]"),
        Derivative("grad", (n, s), n, None, s, "grad(lambda NAMES: {0}, 1)({1}, {2})"),
        Derivative("value_and_grad", (s,), n, None, s, both),
        Derivative("vjp", (s,), n, n, s, "vjp(lambda NAMES: {0}, {1})[1]({2})[0]"),
        Derivative("vjp", (s,), v, v, s, "vjp(lambda NAMES: {0}, {1})[1]({2})[0]"),
        Derivative("vjp", (v,), s, None, s, "vjp(lambda NAMES: {0}, {1})[0]"),
        Derivative("jvp", (s,), s, s, s, "jvp(lambda NAMES: {0}, ({1},), ({2},))[1]"),
        Derivative("jvp", (n,), v, n, v, "jvp(lambda NAMES: {0}, ({1},), ({2},))[1]"),
        Derivative("hvp", (s,), n, s, s, "hvp(lambda NAMES: {0}, ({1},), ({2},))[0]"),
        Derivative("jacobian", (v,), n, None, v, "jacobian(lambda NAMES: {0})({1})"),
        Derivative("jacobian", (n,), v, None, v, "jacobian(lambda NAMES: {0})({1})"),
        Derivative("jacobian", (v,), v, None, m, "jacobian(lambda NAMES: {0})({1})"),
        Derivative("hessian", (n,), n, None, n, "hessian(lambda NAMES: {0})({1})"),
        Derivative("hessian", (n,), n, None, n, "hessian(lambda NAMES: {0})({1})"),
        Derivative("hessian", (v,), n, None, m, "hessian(lambda NAMES: {0})({1})"),
    ]


class ExpressionMaker:
    """Makes expressions. `names` are the values in scope, the latest last; `active` surely records."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.count = 0
        self.names: list[Expr] = []
        self.leaves: list[Expr] = []
        self.tapes: list[str] = []
        self.active: list[str] = []
        self.functions: list[Function] = []
        self.pulls: list[tuple[str, Shape, Shape]] = []
        self.layers: list[str] = []
        self.derivatives = 0
        self.defining = False

    def fresh(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}"

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def number(self) -> str:
        return str(self.random.choice((-1, 1)) * round(self.random.uniform(0.3, 1.4), 2))

    def literal(self, shape: Shape) -> str:
        if shape == NUMBER:
            return self.number()
        rows = [self.number() for _ in range(2)]
        return (
            f"np.array([{', '.join(rows)}])"
            if shape == VECTOR
            else f"np.array([[{rows[0]}, 0.5], [0.2, {rows[1]}]])"
        )

    # Expressions

    def atom(self, shape: Shape) -> Expr:
        fitting = [name for name in self.names if name.shape == shape]
        if fitting and self.chance(0.85):
            # Later ones more often: programs become deep.
            return fitting[min(int(self.random.expovariate(0.4)), len(fitting) - 1) * -1 - 1]
        others = [name for name in self.names if name.shape != shape and MATRIX not in (shape, name.shape)]
        if others and self.chance(0.8):
            other = self.random.choice(others)
            form = "F.sum({0})" if shape == NUMBER else "({0} * np.array([0.7, -1.2]))"
            return Expr(form, (other,), shape, other.sure)
        return Expr(self.literal(shape), (), shape, False)

    def expr(self, shape: Shape, size: int, depth: int) -> Expr:
        """An expression of about so many functions, with derivatives nested at most so deep."""
        if size <= 0:
            return self.atom(shape)
        if depth > 0 and self.derivatives < 5 and self.chance(0.35):
            return self.derivative(shape, size, depth)
        if self.chance(0.15):
            special = self.special(shape, size, depth)
            if special is not None:
                return special
        kind = self.random.random()
        if kind < 0.35:
            return self.combined(self.random.choice(UNARY), (shape,), shape, size, depth)
        if kind < 0.7:
            return self.combined(self.random.choice(BINARY), (shape, shape), shape, size, depth)
        _, parts, form = self.random.choice([row for row in SHAPED if row[0] == shape])
        return self.combined(form, parts, shape, size, depth)

    def combined(self, form: str, shapes: tuple, shape: Shape, size: int, depth: int) -> Expr:
        parts = tuple(self.expr(s, (size - 1) // len(shapes), depth) for s in shapes)
        if form == FLOORED and not parts[0].sure:
            return parts[0]
        # A condition alone makes no Variable.
        return Expr(form, parts, shape, any(part.sure for part in parts[: 1 if ">" in form else None]))

    def special(self, shape: Shape, size: int, depth: int) -> Expr | None:
        """Functions of the program, layers, pullbacks, checkpoints, constants."""
        kind = self.random.randrange(6)
        functions = [f for f in self.functions if f.result == shape and f.depth <= depth]
        if kind == 0 and functions:
            f = self.random.choice(functions)
            name = f"checkpoint({f.name})" if self.chance(0.3) else f.name
            used = ("function", "checkpoint") if name != f.name else ("function",)
            given = self.expr(f.argument, size - 1, depth)
            return Expr(name + "({0})", (given,), shape, given.sure, used)
        if kind == 1 and self.layers and shape == VECTOR:
            layer = self.random.choice(self.layers)
            return Expr(layer + "({0})", (self.expr(shape, size - 1, depth),), shape, True, ("layer",))
        if kind == 2:
            inner = self.expr(shape, size - 1, depth)
            form = self.random.choice(("stop_gradient({0})", "stop_gradient(({0}, 1.0))[0]"))
            return Expr(form, (inner,), shape, False, ("stop_gradient",))
        if kind == 3:
            return self.checkpoint(shape, size, depth)
        pulls = [pull for pull in self.pulls if pull[2] == shape]
        if pulls and self.derivatives < 5:
            name, seed, _ = self.random.choice(pulls)
            self.derivatives += 1
            return Expr(name + "({0})[0]", (self.seed(seed),), shape, bool(self.active), ("late pullback",))
        return None

    def checkpoint(self, shape: Shape, size: int, depth: int) -> Expr:
        argument = self.random.choice((NUMBER, VECTOR))
        inner, name = self.body(shape, (argument,), size - 1, depth, self.active)
        given = self.expr(argument, size // 2, depth)
        used = ("checkpoint",)
        return Expr(f"checkpoint(lambda {name}: {{0}})({{1}})", (inner, given), shape, given.sure, used)

    def body(
        self, shape: Shape, arguments: tuple, size: int, depth: int, active: list[str]
    ) -> tuple[Expr, str]:
        """The body of a lambda that depends on each of its arguments, and their names."""
        own = [Expr(self.fresh("a"), (), s) for s in arguments]
        held, recording = list(self.names), self.active
        self.names, self.active = self.names + own, active
        inner = self.expr(shape, size, depth)
        for argument in own:
            if argument.shape == MATRIX:
                argument = Expr("F.sum({0}, 1)" if shape == VECTOR else "F.sum({0})", (argument,), shape)
            elif shape == NUMBER and argument.shape == VECTOR:
                argument = Expr("F.sum({0})", (argument,))
            form = self.random.choice(
                ("({0} * {1})", "({0} + F.sin({1}))", "({0} + {1})", "(F.sin({0}) * {1})")
            )
            inner = Expr(form, (inner, argument), shape)
        if shape == VECTOR and all(a == NUMBER for a in arguments):
            inner = Expr("({0} * np.array([1.0, 0.6]))", (inner,), shape)
        self.names, self.active = held, recording
        return inner, ", ".join(argument.form for argument in own)

    def derivative(self, shape: Shape, size: int, depth: int) -> Expr:
        """A derivative of a function whose own derivatives are nested less deep."""
        self.derivatives += 1
        fitting = [
            f for f in self.functions if f.argument == shape and f.result == NUMBER and f.depth < depth
        ]
        if fitting and self.chance(0.3):
            f, given = self.random.choice(fitting), self.expr(shape, size // 2, depth - 1)
            return Expr(f"grad({f.name})({{0}})", (given,), shape, bool(self.active), ("grad", "function"))
        rows = [row for row in derivatives(shape) if row.result == shape]
        row = self.random.choice(rows)
        body, names = self.body(row.body, row.arguments, size - 1, depth - 1, ["the derivative"])
        given = [self.expr(argument, size // 2, depth - 1) for argument in row.arguments]
        seeds = [self.seed(row.seed)] if row.seed is not None else []
        form = row.form.replace("NAMES", names)
        return Expr(form, (body, *given, *seeds), shape, bool(self.active), (row.name, "closure"))

    def seed(self, shape: Shape) -> Expr:
        """What a derivative is multiplied by: an array, or where it surely is recorded also a Variable."""
        sure = [name for name in self.names if name.sure and name.shape == shape]
        if sure and self.active and self.chance(0.5):
            return self.random.choice(sure)
        return Expr(
            f"np.array({self.number()})" if shape == NUMBER else self.literal(shape), (), shape, False
        )
