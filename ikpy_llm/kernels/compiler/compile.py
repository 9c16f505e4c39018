"""The compiler: Numba turns a kernel function into LLVM IR, llvmlite optimizes it for the target and emits object code.

As a program (`python -m ikpy_llm.kernels.compiler.compile`) it reads kernel names from stdin and answers one JSON
line for each; jit.py starts such processes.
Numba generates no machine code here: its IR is taken before optimization and optimized once, for a CPU that need not
be this one.
"""

from __future__ import annotations

import functools
import gc
import importlib
import inspect
import json
import os
import sys

import llvmlite.binding as llvm
from llvmlite import ir
from numba import _dynfunc, njit, types
from numba.core import codegen, compiler, cpu, typed_passes, untyped_passes
from numba.core.compiler_machinery import PassManager

from ..simd import arm, emulated, target, x86  # noqa: F401  (arm, x86, emulated: bodies register themselves)
from . import jit
from .compile_error import one_line


def _take_ir_only() -> None:
    """Numba would optimize and run code on this machine; we only want its IR (which may be for another machine)."""

    def placeholder(self, library, fndesc, env):
        return _dynfunc.make_function(
            fndesc.lookup_module(), fndesc.qualname.split(".")[-1], "", 1, env, (library,)
        )  # address 1: never called

    cpu.CPUContext.get_executable = placeholder
    codegen.CPUCodeLibrary._optimize_functions = lambda self, module: None
    codegen.CPUCodeLibrary._optimize_final_module = lambda self: None
    codegen.JITCodeLibrary._finalize_specific = lambda self: (
        None
    )  # machine code generation, which also rewrites the IR in place
    codegen.JITCPUCodegen._add_module = lambda self, module: None
    cpu.CPUContext.create_cpython_wrapper = lambda *args, **kwargs: None
    cpu.CPUContext.create_cfunc_wrapper = lambda *args, **kwargs: None


# What Numba does with a function, less what kernels have no use for: closures, with, literal_unroll, arrays, overloads.
_PASSES = (
    untyped_passes.TranslateByteCode,
    untyped_passes.FixupArgs,
    untyped_passes.IRProcessing,
    untyped_passes.DeadBranchPrune,
    untyped_passes.ReconstructSSA,
    typed_passes.NopythonTypeInference,
    typed_passes.PreLowerStripPhis,
    typed_passes.IRLegalization,
    typed_passes.AnnotateTypes,
    typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)


def _take_few_passes() -> None:
    def pipelines(self):
        manager = PassManager("kernel")
        for each in _PASSES:
            manager.add_pass(each, each.__name__)
        manager.finalize()
        return [manager]

    compiler.Compiler.define_pipelines = pipelines


def _remember_operators() -> None:
    """Numba looks for the signature of each `+` among those of all array libraries; it is the same each time."""
    look, known = types.Function.get_call_type, {}

    def get_call_type(self, context, args, kws):
        if kws or self.typing_key.__class__.__name__ != "builtin_function_or_method":
            return look(self, context, args, kws)
        key = self, args
        if key not in known:
            known[key] = look(self, context, args, kws)
        return known[key]

    types.Function.get_call_type = get_call_type


_take_ir_only()
_take_few_passes()
_remember_operators()


def factory_of(spec: jit.Kernel):
    """The Python factory a kernel name points to."""
    module_name, _, name = spec.path.rpartition(".")
    full = f"ikpy_llm.kernels.{spec.path}"
    try:
        module = importlib.import_module(full)  # derive.gemv: function of the same name in its own file
    except ModuleNotFoundError as error:
        if error.name != full:
            raise
        module = importlib.import_module(f"ikpy_llm.kernels.{module_name}")
    return getattr(module, name)


def _types_of(fn) -> list:
    annotated = {p.name: p.annotation for p in inspect.signature(fn).parameters.values()}
    if list(annotated)[-2:] != ["ith", "nth"]:
        raise TypeError(f"{fn.__qualname__}: the last two parameters of a kernel are ith, nth")
    return [
        types.float32 if str(a).rpartition(".")[2].strip("'") in ("f32", "float32") else types.int64
        for a in annotated.values()
    ]


@functools.cache
def _machine():
    t = target.current()
    for init in (
        (llvm.initialize_native_target, llvm.initialize_native_asmprinter, llvm.initialize_native_asmparser)
        if t.here
        else (llvm.initialize_all_targets, llvm.initialize_all_asmprinters)
    ):
        init()
    machine = llvm.Target.from_triple(t.triple).create_target_machine(  # for another machine as for this one
        cpu=t.cpu, features=t.features, opt=3, jit=True, codemodel="jitdefault"
    )
    machine.set_asm_verbosity(False)
    return machine


def _wrapper(name: str, inner: str, arg_types: list) -> str:
    """IR of `void name(args, ith, nth)`, which loads the words and calls Numba's function (status and return slot
    ignored: kernels never raise)."""
    module, i64 = ir.Module(), ir.IntType(64)
    llvm_types = [ir.FloatType() if t == types.float32 else i64 for t in arg_types]
    slot, exc = i64.as_pointer(), i64.as_pointer()
    callee = ir.Function(module, ir.FunctionType(ir.IntType(32), [slot, exc, *llvm_types]), inner)
    fn = ir.Function(module, ir.FunctionType(ir.VoidType(), [i64, i64, i64]), name)
    b = ir.IRBuilder(fn.append_basic_block())
    base = b.inttoptr(fn.args[0], i64.as_pointer())
    values = []
    for i, t in enumerate(llvm_types[:-2]):
        word = b.load(b.gep(base, [i64(i)]))
        values.append(b.bitcast(b.trunc(word, ir.IntType(32)), t) if t != i64 else word)
    b.call(callee, [b.alloca(i64), b.alloca(i64), *values, *fn.args[1:]])
    b.ret_void()
    return str(module)


def _callees(library) -> list:
    """Libraries of the functions a kernel calls, directly or not, callers before callees (Numba's runtime left
    out: kernels own no objects)."""
    found: dict[int, object] = {}

    def visit(lib):
        for callee in lib._linking_libraries:
            if callee.name != "nrt":
                found.pop(id(callee), None)
                found[id(callee)] = callee
                visit(callee)

    visit(library)
    return list(found.values())


def build(spec: jit.Kernel) -> tuple[str, llvm.ModuleRef]:
    """(symbol, optimized module) of a kernel."""
    fn = factory_of(spec)(**dict(spec.params))
    arg_types = _types_of(fn)
    fn.__annotations__ = {}
    dispatcher = njit(
        types.void(*arg_types),
        nogil=True,
        error_model="numpy",
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        _nrt=False,
    )(fn)
    result = next(iter(dispatcher.overloads.values()))
    symbol = jit.symbol_of(jit.cache_path(spec))
    module = result.library._final_module.clone()
    for library in _callees(result.library):
        module.link_in(library._get_module_for_linking(), preserve=True)
    wrapper = llvm.parse_assembly(_wrapper(symbol, result.fndesc.llvm_func_name, arg_types))
    module.link_in(wrapper)
    machine = _machine()
    module.triple, module.data_layout = target.current().triple, str(machine.target_data)
    for f in module.functions:
        if not f.is_declaration and f.name != symbol:
            f.linkage = "internal"
    for g in module.global_variables:
        if (
            g.linkage in (llvm.Linkage.common, llvm.Linkage.weak_any, llvm.Linkage.linkonce_odr)
            and not g.is_declaration
        ):
            g.linkage = "internal"
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = (
        False  # kernels are vectors already; scalar loops stay as written
    )
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return symbol, module


def compile_to_cache(spec: jit.Kernel) -> None:
    symbol, module = build(spec)
    jit.write_object(jit.cache_path(spec), symbol, _machine().emit_object(module))


def text_of(spec: jit.Kernel, as_ir: bool) -> str:
    _, module = build(spec)
    return str(module) if as_ir else _machine().emit_assembly(module)


def main() -> None:
    """Serve compile requests from stdin. Numba must not print into the answers, so stdout is kept for us alone."""
    gc.freeze()  # what the imports left lives as long as the process
    gc.set_threshold(100_000)  # a compiler makes many objects that live: the default looks at them too often
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            compile_to_cache(jit.Kernel.parse(line))
            reply = {"ok": True}
        except Exception as error:  # the parent reports it with the kernel's name
            reply = {"error": one_line(error)}
        try:
            answers.write(json.dumps(reply) + "\n")
            answers.flush()
        except BrokenPipeError:  # who asked is gone; the kernel is in the cache
            os._exit(0)


if __name__ == "__main__":
    main()
