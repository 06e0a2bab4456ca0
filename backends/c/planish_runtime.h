/* What compiled models share: workspaces for kernels, and threads. Link planish_runtime.c once per program.
 *
 * Compile with -DMODEL_NO_THREADS for a machine without threads: then nothing but memcpy and memset of libc is used.
 */
#ifndef PLANISH_RUNTIME_H
#define PLANISH_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifdef MODEL_NO_THREADS
#define MODEL_MAX_THREADS 1
#elif !defined(MODEL_MAX_THREADS)
#define MODEL_MAX_THREADS 16
#endif

/* Kernels load whole vector registers: every array that they are given starts at a multiple of this. */
#define MODEL_ALIGNMENT 64
#define MODEL_ALIGNED __attribute__((aligned(MODEL_ALIGNMENT)))

enum {
  MODEL_OK = 0,
  MODEL_FAILED = -1,    /* a kernel found no workspace: a defect of the build */
  MODEL_UNALIGNED = -2, /* an input or output does not start at a multiple of MODEL_ALIGNMENT bytes */
  MODEL_THREADS = -3    /* that many threads cannot be started */
};

typedef struct {
  const char *name;
  const char *dtype; /* as numpy names it: "float32" */
  size_t bytes;
} planish_array;

/* A model as a table, for programs that serve any model. */
typedef struct {
  const char *name;
  int inputs, outputs;
  const planish_array *input, *output;
  size_t arena_bytes, workspace_bytes, weight_bytes;
  const uint8_t *weights;
  int (*run)(const void *const *in, void *const *out);
} planish_model;

/* Run kernels on n threads, the caller among them; the results are the same bytes for every n.
 * Returns MODEL_OK or MODEL_THREADS. Not to be called while a model runs. */
int planish_set_threads(int n);

/* Give kernels their workspace: MODEL_MAX_THREADS pieces of `bytes_per_thread`. Each model does it before it runs. */
void planish_use_workspace(void *base, size_t bytes_per_thread);

#ifdef MODEL_LOADED_WEIGHTS
/* The memory of a model's weights, to be filled with weights.bin before the first run. */
uint8_t *planish_weight_memory(const planish_model *model);
#endif

#ifdef __cplusplus
}
#endif

#endif
