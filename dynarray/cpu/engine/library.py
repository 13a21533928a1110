"""How machine code is made: once, in the kernel, of all that it calls.

Numba makes machine code of each function by itself. For that it links in what the function calls, which has
been through all of LLVM's passes before, and has all of it go through them again: innermost loops, written at
the bottom, are optimised as often as they are nested deep, and made into code that nothing ever runs. Here
what a kernel calls is handed on as Numba has written it. The kernel alone is optimised.
"""

import gc
from types import SimpleNamespace
from typing import Any

from llvmlite.binding import create_pass_builder, create_pipeline_tuning_options
from numba.core import typed_passes, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import PassManager

# Those of Numba that kernels need: without closures, comprehensions, `literal_unroll`, array expressions.
_PASSES = (
    untyped_passes.TranslateByteCode,
    untyped_passes.FixupArgs,
    untyped_passes.IRProcessing,
    untyped_passes.RewriteSemanticConstants,
    untyped_passes.DeadBranchPrune,
    untyped_passes.GenericRewrites,
    untyped_passes.ReconstructSSA,
    typed_passes.NopythonTypeInference,
    typed_passes.PreLowerStripPhis,
    typed_passes.IRLegalization,
    typed_passes.AnnotateTypes,
    typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)


class _UntouchedLibrary(JITCodeLibrary):
    """Numba first optimises each function as it is written; here none is, until a kernel has all it calls."""

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout


class _RolledLibrary(_UntouchedLibrary):
    """Of a kernel whose innermost loops are written as vectors: few passes, and no loop is unrolled."""

    def _optimize_final_module(self) -> None:
        options = create_pipeline_tuning_options(speed_level=1)
        options.loop_vectorization, options.loop_unrolling = True, False
        builder = create_pass_builder(self._codegen._tm, options)
        builder.getModulePassManager().run(self._final_module, builder)


class _CalleeLibrary(_UntouchedLibrary):
    """Of what kernels call: linked into them, and without an address of its own."""

    # Numba tells the code where its globals are; in a kernel these are the kernel's.
    codegen = property(lambda self: SimpleNamespace(set_env=lambda name, env: None))

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        return 0


class _SharedLibrary(_CalleeLibrary):
    """Of what kernels call from several places: one copy for all of them."""

    def add_ir_module(self, module: Any) -> None:
        for function in module.functions:
            if not function.is_declaration:
                function.attributes.add("noinline")
        super().add_ir_module(module)


class KernelCompiler(Compiler):
    """Numba's, for a kernel."""

    _library: type = JITCodeLibrary  # a kernel's own loops do profit from being optimised first

    def __init__(self, typing: Any, target: Any, library: Any, *rest: Any) -> None:
        library = self._library(target.codegen(), "library")
        library.enable_object_caching()
        super().__init__(typing, target, library, *rest)

    def compile_extra(self, function: Any) -> Any:
        """Without collecting garbage: there are a million objects, and little of that."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            return super().compile_extra(function)
        finally:
            if collecting:
                gc.enable()

    def define_pipelines(self) -> list[PassManager]:
        """One, of those passes."""
        passes = PassManager("kernel")
        for each in _PASSES:
            passes.add_pass(each, each.__name__)
        passes.finalize()
        return [passes]


class RolledCompiler(KernelCompiler):
    """The same for a kernel whose innermost loops are written as vectors."""

    _library = _RolledLibrary


class CalleeCompiler(KernelCompiler):
    """The same for what kernels call."""

    _library = _CalleeLibrary


class SharedCompiler(KernelCompiler):
    """The same for what kernels call from several places."""

    _library = _SharedLibrary
