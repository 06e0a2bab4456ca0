/* A QEMU TCG plugin that counts how often each translated block of a program runs.
 *
 *   cc -O2 -shared -fPIC -DPLUGIN_API=1 -o block_counter.so block_counter.c
 *   qemu-aarch64 -plugin ./block_counter.so,out=blocks.txt PROGRAM
 *
 * At exit it writes a line per block that ran: address in hex, executions, code in hex. Counts are exact for a program of
 * one thread, and repeat to the digit. PLUGIN_API: the version of the plugin interface, 1 for QEMU below 8.2, 3 for 9.1
 * and newer. Debian ships no header of the interface; what is used of it is declared here.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *),
                                          enum qemu_plugin_cb_flags, void *);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
#if PLUGIN_API < 3
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
#else
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);
#endif

EXPORT int qemu_plugin_version = PLUGIN_API;

typedef struct block {
  struct block *next;
  uint64_t address, executions;
  size_t bytes;
  unsigned char code[];
} block;

static block *blocks;
static const char *path;

static void count(unsigned cpu, void *counted) { ++((block *)counted)->executions; }

static void copy_code(const struct qemu_plugin_insn *instruction, unsigned char *to, size_t bytes) {
#if PLUGIN_API < 3
  memcpy(to, qemu_plugin_insn_data(instruction), bytes);
#else
  qemu_plugin_insn_data(instruction, to, bytes);
#endif
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
  size_t instructions = qemu_plugin_tb_n_insns(tb), bytes = 0;
  for (size_t i = 0; i < instructions; ++i) bytes += qemu_plugin_insn_size(qemu_plugin_tb_get_insn(tb, i));
  block *b = calloc(1, sizeof *b + bytes);
  if (!b) abort();
  b->address = qemu_plugin_tb_vaddr(tb);
  for (size_t i = 0; i < instructions; ++i) {
    const struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(tb, i);
    size_t size = qemu_plugin_insn_size(instruction);
    copy_code(instruction, b->code + b->bytes, size);
    b->bytes += size;
  }
  b->next = __atomic_load_n(&blocks, __ATOMIC_RELAXED); /* a thread may translate while another one does */
  while (!__atomic_compare_exchange_n(&blocks, &b->next, b, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {}
  qemu_plugin_register_vcpu_tb_exec_cb(tb, count, QEMU_PLUGIN_CB_NO_REGS, b);
}

static void finished(qemu_plugin_id_t id, void *unused) {
  FILE *file = fopen(path, "w");
  if (!file) {
    fprintf(stderr, "block_counter: '%s' cannot be written\n", path);
    exit(2);
  }
  for (block *b = blocks; b; b = b->next) {
    if (!b->executions) continue;
    fprintf(file, "%" PRIx64 " %" PRIu64 " ", b->address, b->executions);
    for (size_t i = 0; i < b->bytes; ++i) fprintf(file, "%02x", b->code[i]);
    fputc('\n', file);
  }
  if (fclose(file)) exit(2);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int given, char **arguments) {
  for (int i = 0; i < given; ++i)
    if (!strncmp(arguments[i], "out=", 4)) path = strdup(arguments[i] + 4);
  if (!path) {
    fprintf(stderr, "block_counter: no out=FILE was given\n");
    return 1;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, finished, NULL);
  return 0;
}
