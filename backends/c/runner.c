/* A program that runs one model on files: raw arrays in, raw arrays out, one line of JSON on standard output.
 *
 *   runner --input x.bin --output y.bin [--runs N] [--warmup N] [--threads N] [--weights weights.bin]
 *   runner --self-test [--golden FOLDER] [--rtol R] [--atol A]
 *
 * Several inputs or outputs: repeat the option. The weights and the folder `golden` are looked for beside the program.
 * Exit code: 0 done, 1 the model or its self-test failed, 2 the call was wrong.
 * Compile with -DMODEL_LOADED_WEIGHTS -DPROGRAM=<model>_program.
 */
#define _DEFAULT_SOURCE
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include "planish_runtime.h"

extern const planish_model PROGRAM;

enum { MOST_ARRAYS = 64, USAGE = 2 };

typedef struct {
  const char *inputs[MOST_ARRAYS], *outputs[MOST_ARRAYS], *weights, *golden;
  int input_count, output_count, runs, warmup, threads, self_test;
  double rtol, atol;
} options;

static void quit(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "%s: ", PROGRAM.name);
  vfprintf(stderr, format, arguments);
  fprintf(stderr, "\n");
  va_end(arguments);
  exit(USAGE);
}

/* ---------------------------------------------------------------- files */

static void read_file(const char *path, void *memory, size_t bytes) {
  FILE *file = fopen(path, "rb");
  if (!file) quit("'%s' cannot be opened; give the path of a raw array", path);
  if (fread(memory, 1, bytes, file) != bytes || fgetc(file) != EOF)
    quit("'%s' does not have %zu bytes; it belongs to another model or is truncated", path, bytes);
  fclose(file);
}

static void write_file(const char *path, const void *memory, size_t bytes) {
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(memory, 1, bytes, file) != bytes || fclose(file)) quit("'%s' cannot be written", path);
}

/* A path of any length; it lives as long as the program. */
static const char *path_of(const char *format, ...) {
  va_list measured, written;
  va_start(measured, format);
  va_start(written, format);
  size_t bytes = (size_t)vsnprintf(NULL, 0, format, measured) + 1;
  char *path = malloc(bytes);
  if (!path) quit("no memory for a path of %zu bytes", bytes);
  vsnprintf(path, bytes, format, written);
  va_end(measured);
  va_end(written);
  return path;
}

static const char *beside(const char *program, const char *name) {
  const char *slash = strrchr(program, '/');
  return path_of("%.*s%s", slash ? (int)(slash - program + 1) : 0, program, name);
}

static void *array(size_t bytes) {
  size_t whole = (bytes + MODEL_ALIGNMENT) / MODEL_ALIGNMENT * MODEL_ALIGNMENT;
  void *memory = aligned_alloc(MODEL_ALIGNMENT, whole);
  if (!memory) quit("no memory for an array of %zu bytes", bytes);
  return memset(memory, 0, whole);
}

/* ---------------------------------------------------------------- options */

static const char *value_of(int count, char **words, int *at) {
  if (*at + 1 >= count) quit("option '%s' has no value", words[*at]);
  return words[++*at];
}

static long whole_number(const char *option, const char *text, long least) {
  char *end;
  long value = strtol(text, &end, 10);
  if (*end || end == text || value < least || value > 1000000) quit("'%s %s' is no count of at least %ld", option, text, least);
  return value;
}

static double tolerance(const char *option, const char *text) {
  char *end;
  double value = strtod(text, &end);
  if (*end || end == text || !(value >= 0)) quit("'%s %s' is no tolerance", option, text);
  return value;
}

static void add_path(const char **paths, int *count, const char *path) {
  if (*count == MOST_ARRAYS) quit("more than %d files were given", MOST_ARRAYS);
  paths[(*count)++] = path;
}

static options parse(int count, char **words) {
  options o = {.runs = 1, .threads = 1, .rtol = 1e-4, .atol = 1e-5};
  for (int i = 1; i < count; ++i) {
    const char *word = words[i];
    if (!strcmp(word, "--self-test")) {
      o.self_test = 1;
      continue;
    }
    const char *value = value_of(count, words, &i);
    if (!strcmp(word, "--input")) add_path(o.inputs, &o.input_count, value);
    else if (!strcmp(word, "--output")) add_path(o.outputs, &o.output_count, value);
    else if (!strcmp(word, "--weights")) o.weights = value;
    else if (!strcmp(word, "--golden")) o.golden = value;
    else if (!strcmp(word, "--runs")) o.runs = (int)whole_number(word, value, 1);
    else if (!strcmp(word, "--warmup")) o.warmup = (int)whole_number(word, value, 0);
    else if (!strcmp(word, "--threads")) o.threads = (int)whole_number(word, value, 1);
    else if (!strcmp(word, "--rtol")) o.rtol = tolerance(word, value);
    else if (!strcmp(word, "--atol")) o.atol = tolerance(word, value);
    else quit("option '%s' is unknown; known are --input --output --runs --warmup --threads --weights --self-test "
              "--golden --rtol --atol", word);
  }
  if (!o.self_test && o.input_count != PROGRAM.inputs)
    quit("%d input files were given; the model takes %d", o.input_count, PROGRAM.inputs);
  if (o.output_count && o.output_count != PROGRAM.outputs)
    quit("%d output files were given; the model gives %d", o.output_count, PROGRAM.outputs);
  return o;
}

/* ---------------------------------------------------------------- times */

static double microseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* The smallest time that at least this share of the sorted runs does not exceed. */
static double percentile(const double *times, int count, double share) {
  int index = (int)ceil(share * count) - 1;
  return times[index < 0 ? 0 : index];
}

/* ---------------------------------------------------------------- comparison with the golden pair */

static double from_half(uint16_t bits) {
  int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                : exponent     ? ldexp(1024 + fraction, exponent - 25)
                               : ldexp(fraction, -24);
  return bits >> 15 ? -size : size;
}

static double element(const planish_array *spec, const void *data, size_t i) {
  if (!strcmp(spec->dtype, "float32")) return ((const float *)data)[i];
  if (!strcmp(spec->dtype, "float64")) return ((const double *)data)[i];
  return from_half(((const uint16_t *)data)[i]);
}

/* The greatest error; `failed` is set when an element is further off than the tolerance, or is not a number. */
static double compare(const planish_array *spec, const void *got, const void *want, const options *o, int *failed) {
  double worst = 0;
  if (strncmp(spec->dtype, "float", 5)) {
    if (memcmp(got, want, spec->bytes)) *failed = 1;
    return 0;
  }
  size_t count = spec->bytes / (size_t)(atoi(spec->dtype + 5) / 8);
  for (size_t i = 0; i < count; ++i) {
    double g = element(spec, got, i), w = element(spec, want, i), error = g == w ? 0 : fabs(g - w);
    if (!(error <= o->atol + o->rtol * fabs(w))) *failed = 1;
    if (isnan(error) || error > worst) worst = error;
  }
  return worst;
}

static double compare_golden(void *const *out, const options *o, int *failed) {
  double worst = 0;
  for (int i = 0; i < PROGRAM.outputs; ++i) {
    void *want = array(PROGRAM.output[i].bytes);
    read_file(path_of("%s/output%d.bin", o->golden, i), want, PROGRAM.output[i].bytes);
    double error = compare(&PROGRAM.output[i], out[i], want, o, failed);
    if (isnan(error) || error > worst) worst = error;
    free(want);
  }
  return worst;
}

/* ---------------------------------------------------------------- main */

static int run_times(const void *const *in, void *const *out, const options *o, double *times) {
  for (int i = 0; i < o->warmup; ++i) {
    int code = PROGRAM.run(in, out);
    if (code) return code;
  }
  for (int i = 0; i < o->runs; ++i) {
    double start = microseconds();
    int code = PROGRAM.run(in, out);
    if (code) return code;
    times[i] = microseconds() - start;
  }
  qsort(times, (size_t)o->runs, sizeof *times, ascending);
  return MODEL_OK;
}

/* KiB. getrusage counts what the parent process held before exec; the kernel's own line does not. */
static long peak_rss(void) {
  char line[256];
  long peak;
  struct rusage used;
  FILE *status = fopen("/proc/self/status", "r");
  while (status && fgets(line, sizeof line, status))
    if (sscanf(line, "VmHWM: %ld", &peak) == 1) {
      fclose(status);
      return peak;
    }
  if (status) fclose(status);
  getrusage(RUSAGE_SELF, &used);
  return used.ru_maxrss;
}

static void report(int code, const options *o, const double *times, const char *self_test, double error) {
  printf("{\"model\": \"%s\", \"return_code\": %d, \"runs\": %d, \"threads\": %d, \"min_us\": %.3f, \"p50_us\": %.3f, "
         "\"p90_us\": %.3f, \"peak_rss_kib\": %ld, \"arena_bytes\": %zu, \"self_test\": \"%s\"",
         PROGRAM.name, code, o->runs, o->threads, times[0], percentile(times, o->runs, 0.5),
         percentile(times, o->runs, 0.9), peak_rss(), PROGRAM.arena_bytes, self_test);
  if (isfinite(error)) printf(", \"max_abs_error\": %.9g}\n", error);
  else printf(", \"max_abs_error\": null}\n");
}

int main(int count, char **words) {
  options o = parse(count, words);
  const void *in[MOST_ARRAYS];
  void *out[MOST_ARRAYS];
  int failed = 0;
  double error = 0, *times = array((size_t)o.runs * sizeof *times);
  if (!o.golden) o.golden = beside(words[0], "golden");
  if (!o.weights) o.weights = beside(words[0], "weights.bin");
  read_file(o.weights, planish_weight_memory(&PROGRAM), PROGRAM.weight_bytes);
  for (int i = 0; i < PROGRAM.inputs; ++i) {
    void *memory = array(PROGRAM.input[i].bytes);
    read_file(o.self_test ? path_of("%s/input%d.bin", o.golden, i) : o.inputs[i], memory, PROGRAM.input[i].bytes);
    in[i] = memory;
  }
  for (int i = 0; i < PROGRAM.outputs; ++i) out[i] = array(PROGRAM.output[i].bytes);
  if (planish_set_threads(o.threads)) quit("%d threads cannot be started; at most %d can", o.threads, MODEL_MAX_THREADS);

  int code = run_times(in, out, &o, times);
  if (!code && o.self_test) error = compare_golden(out, &o, &failed);
  for (int i = 0; !code && i < o.output_count; ++i) write_file(o.outputs[i], out[i], PROGRAM.output[i].bytes);
  report(code, &o, times, !o.self_test ? "not run" : code || failed ? "failed" : "passed", error);
  return code || failed ? 1 : 0;
}
