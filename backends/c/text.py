"""The C text of one model: its header, its driver, and the assembler file that links its weights in."""

from collections.abc import Mapping, Sequence

from ..manifest import ArraySpec
from .flat import FlatMain, Place

C_TYPES = {
    "bool": "uint8_t",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "float16": "uint16_t",
    "float32": "float",
    "float64": "double",
}

HEADER = """\
/* {name}: a compiled model. Written by Planish; do not edit.
 *
{arrays}
 *
 * Build it into a program, from the folder that holds weights.bin:
 *   cc yours.c {name}.c planish_runtime.c {name}_weights.S kernels.o -lm -lpthread
 * Every array is C-contiguous and starts at a multiple of MODEL_ALIGNMENT bytes (MODEL_ALIGNED before its name).
 * Inputs and outputs do not overlap. A model has one arena: it is not to be run from two threads at once.
 */
#ifndef PLANISH_{NAME}_H
#define PLANISH_{NAME}_H

#include "planish_runtime.h"

#ifdef __cplusplus
extern "C" {{
#endif

#define {NAME}_ARENA_BYTES {arena}
#define {NAME}_WORKSPACE_BYTES {workspace} /* for each thread */
#define {NAME}_WEIGHT_BYTES {weights}
{affine}
/* Returns MODEL_OK, MODEL_FAILED or MODEL_UNALIGNED. */
int {name}_run({signature});

/* Returns MODEL_OK or MODEL_THREADS. The output bytes are the same for every n. */
int {name}_set_threads(int n);

/* The same model as a table. */
extern const planish_model {name}_program;

#ifdef __cplusplus
}}
#endif

#endif
"""

DRIVER = """\
#include "{name}.h"

#include <string.h>

#ifdef MODEL_LOADED_WEIGHTS
MODEL_ALIGNED static uint8_t {name}_weights[{weight_memory}];
#else
extern const uint8_t {name}_weights[];
#endif

MODEL_ALIGNED static uint8_t arena[{arena}];
MODEL_ALIGNED static uint8_t workspace[MODEL_MAX_THREADS][{workspace}];

{prototypes}

static int aligned(const void *array) {{ return (uintptr_t)array % MODEL_ALIGNMENT == 0; }}

int {name}_run({signature}) {{
  if (!({alignment})) return MODEL_UNALIGNED;
  planish_use_workspace(workspace, {workspace});
{calls}
  return MODEL_OK;
}}

int {name}_set_threads(int n) {{ return planish_set_threads(n); }}

static int run(const void *const *in, void *const *out) {{ return {name}_run({unpacked}); }}

static const planish_array inputs[] = {{{input_table}}};
static const planish_array outputs[] = {{{output_table}}};

const planish_model {name}_program = {{
  .name = "{name}", .inputs = {input_count}, .outputs = {output_count}, .input = inputs, .output = outputs,
  .arena_bytes = {arena_bytes}, .workspace_bytes = {workspace_bytes}, .weight_bytes = {weight_bytes},
  .weights = {name}_weights, .run = run,
}};
"""

WEIGHTS = """\
/* The weights of {name}, linked in. A program that reads weights.bin itself leaves this file out. */
  .section .rodata
  .balign 64
  .global {name}_weights
  .hidden {name}_weights
{name}_weights:
  .incbin "weights.bin"
  .section .note.GNU-stack,"",%progbits
"""


class ModelText:
    """Names of things in the C program of one model.

    arena_offsets: where each buffer of the arena starts; weight_offsets: where each constant starts in weights.bin
    sizes: bytes of "arena", "workspace" and "weights"
    """

    def __init__(
        self,
        name: str,
        main: FlatMain,
        arena_offsets: Mapping[int, int],
        weight_offsets: Sequence[int],
        sizes: Mapping[str, int],
    ):
        self.name, self.main, self.sizes = name, main, sizes
        self.arena_offsets, self.weight_offsets = arena_offsets, weight_offsets
        self.outputs = [spec for spec, _ in main.outputs]
        # A buffer that is an output is written there at once; what is returned twice, or was never computed, is copied.
        self.direct: dict[Place, int] = {}
        for index, (_, place) in enumerate(main.outputs):
            if place.kind == "buffer":
                self.direct.setdefault(place, index)

    def header(self) -> str:
        specs = [*self.main.inputs, *self.outputs]
        names = [*self.argument_names("in", self.main.inputs), *self.argument_names("out", self.outputs)]
        arrays = "\n".join(f" *   {name:6} {spec}" for name, spec in zip(names, specs, strict=True))
        affine = "".join(map(self.affine, names, specs))
        return HEADER.format(
            name=self.name, NAME=self.name.upper(), arrays=arrays, signature=self.signature(), affine=affine,
            **self.sizes,
        )  # fmt: skip

    def affine(self, argument: str, spec: ArraySpec) -> str:
        """What the integers of an argument stand for, as constants."""
        if spec.scale is None:
            return ""
        stem = f"#define {self.name}_{argument}".upper().replace("#DEFINE", "#define")
        return f"{stem}_SCALE {float(spec.scale).hex()}f\n{stem}_ZERO_POINT ({spec.zero_point})\n"

    def driver(self) -> str:
        arena, workspace, weights = (max(self.sizes[k], 64) for k in ("arena", "workspace", "weights"))
        inputs, outputs = self.main.inputs, self.outputs
        names = [*self.argument_names("in", inputs), *self.argument_names("out", outputs)]
        unpacked = [f"in[{i}]" for i in range(len(inputs))] + [f"out[{i}]" for i in range(len(outputs))]
        return DRIVER.format(
            name=self.name,
            arena=arena,
            workspace=workspace,
            weight_memory=weights,
            prototypes=self.prototypes(),
            signature=self.signature(),
            alignment=" && ".join(f"aligned({n})" for n in names),
            calls="\n".join([*self.call_lines(), *self.copy_lines()]),
            unpacked=", ".join(unpacked),
            input_table=", ".join(map(table_row, inputs)),
            output_table=", ".join(map(table_row, outputs)),
            input_count=len(inputs),
            output_count=len(outputs),
            arena_bytes=self.sizes["arena"],
            workspace_bytes=self.sizes["workspace"],
            weight_bytes=self.sizes["weights"],
        )

    def weights(self) -> str:
        return WEIGHTS.format(name=self.name)

    def signature(self) -> str:
        names_in = self.argument_names("in", self.main.inputs)
        names_out = self.argument_names("out", self.outputs)
        reads = [f"const {C_TYPES[s.dtype]} *{n}" for s, n in zip(self.main.inputs, names_in, strict=True)]
        writes = [f"{C_TYPES[s.dtype]} *{n}" for s, n in zip(self.outputs, names_out, strict=True)]
        return ", ".join([*reads, *writes])

    def argument_names(self, stem: str, specs: Sequence[ArraySpec]) -> list[str]:
        return [stem] if len(specs) == 1 else [f"{stem}{i}" for i in range(len(specs))]

    def prototypes(self) -> str:
        arity = {call.kernel: len(call.arguments) for call in self.main.calls}

        def line(kernel: str) -> str:
            return f"int {kernel_symbol(self.name, kernel)}({', '.join(['const void *'] * arity[kernel])});"

        return "\n".join(map(line, sorted(arity)))

    def call_lines(self) -> list[str]:
        def line(call):
            arguments = ", ".join(map(self.address, call.arguments))
            note = "" if call.layer == call.kernel else f" /* {call.layer.replace('*/', '')} */"
            return f"  if ({kernel_symbol(self.name, call.kernel)}({arguments})) return MODEL_FAILED;{note}"

        return [line(call) for call in self.main.calls]

    def copy_lines(self) -> list[str]:
        names = self.argument_names("out", self.outputs)
        return [
            f"  memcpy({names[i]}, {self.address(place)}, {spec.nbytes});"
            for i, (spec, place) in enumerate(self.main.outputs)
            if self.direct.get(place) != i
        ]

    def address(self, place: Place) -> str:
        if place.kind == "input":
            return self.argument_names("in", self.main.inputs)[place.index]
        if place.kind == "constant":
            return f"{self.name}_weights + {self.weight_offsets[place.index]}"
        if place in self.direct:
            return self.argument_names("out", self.outputs)[self.direct[place]]
        return f"arena + {self.arena_offsets[place.index]}"


def kernel_symbol(name: str, kernel: str) -> str:
    """The C function of a kernel: apart from the model's own functions, whatever a kernel is called."""
    return f"{name}_kernel_{kernel}"


def table_row(spec: ArraySpec) -> str:
    return f'{{"{spec.name}", "{spec.dtype}", {spec.nbytes}}}'
